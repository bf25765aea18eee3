"""`python -m mlotel_cli.store.compact [FOLDER FIRST LAST]...` merges a period's parts, in a process of its own.

Merging an hour of spans takes seconds of a core and a few hundred megabytes at worst; a recorder that did it itself
would stop reading meanwhile, and keep the memory. The process is nice, and ends when its recorder does.

A crash at any moment neither loses nor doubles a row: the merged part is written whole under another name and renamed,
and only then are those that it covers removed. Readers leave out what a merged part covers, and so does the next start.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mlotel_cli.store.layout import part_name, part_numbers
from mlotel_cli.store.reading import current_parts, scan_parts
from mlotel_cli.store.writing import replacing

FILES_AT_ONCE = 100
"""Parts that are merged at once; more are merged in several steps, which bounds the memory."""
ROW_GROUP = 32_768


class _StoppedError(Exception):
    """The recorder ended; another one may be merging these parts already."""


def compact(folder: Path, *, first: int, last: int, may_go_on: Callable[[], bool] = lambda: True) -> None:
    """Merge the parts from number `first` to `last` into one.

    Args:
        folder: the table.
        first: number of the first part of the period.
        last: number of its last part.
        may_go_on: asked before every change; False leaves things as they are.
    """
    while len(parts := _within(folder, first=first, last=last)) > 1:
        groups = [parts[start : start + FILES_AT_ONCE] for start in range(0, len(parts), FILES_AT_ONCE)]
        for group in groups:
            if len(group) > 1 and not (may_go_on() and _merge(folder, group, may_go_on=may_go_on)):
                return


def _within(folder: Path, *, first: int, last: int) -> list[Path]:
    return [part for part in current_parts(folder) if first <= part_numbers(part)[0] and part_numbers(part)[1] <= last]


def _merge(folder: Path, parts: Sequence[Path], *, may_go_on: Callable[[], bool]) -> bool:
    """Merge consecutive parts; the new one is as old as the newest row in it."""
    start, end = part_numbers(parts[0])[0], part_numbers(parts[-1])[1]
    try:
        with replacing(folder / part_name(start, end)) as unfinished:
            scan_parts(parts).sink_parquet(unfinished, row_group_size=ROW_GROUP)
            written = parts[-1].stat().st_mtime
            os.utime(unfinished, (written, written))
            if not may_go_on():
                raise _StoppedError
    except _StoppedError:
        return False
    for part in parts:
        part.unlink(missing_ok=True)
    return True


def main() -> None:
    """Merge what the command line names, one table after the other."""
    words = sys.argv[1:]
    recorder = os.getppid()
    os.nice(10)
    for folder, first, last in zip(words[::3], words[1::3], words[2::3], strict=True):
        compact(Path(folder), first=int(first), last=int(last), may_go_on=lambda: os.getppid() == recorder)


if __name__ == "__main__":
    main()
