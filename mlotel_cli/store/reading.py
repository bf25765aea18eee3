"""Reads run directories, whether the run goes on, was killed or has finished."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli.errors import UsageError
from mlotel_cli.store.layout import BATCHES, PARTS, SAMPLES, SPANS, part_numbers
from mlotel_cli.store.run_json import check_version, read_info
from mlotel_cli.summary import Summary

if TYPE_CHECKING:
    import polars as pl

RECORDER_MODULE = "mlotel_cli.recorder"
"""A recorder's command line names this module and its run directory."""
_ATTEMPTS = 5


@dataclass(slots=True)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        info: run.json; `status` is interrupted when it says running and the recorder is dead.
        died: True in that case.
    """

    path: Path
    info: Mapping[str, Any]
    died: bool = False

    @property
    def status(self) -> str:
        """One of running, complete, failed, interrupted."""
        return self.info["status"]

    @property
    def summary(self) -> Summary | None:
        """The summary of run.json; None while the run goes on, and when it was broken off.

        Raises:
            ValueError: what is there makes no sense.
        """
        told = self.info.get("summary")
        return Summary.from_json(told) if told else None

    @property
    def batches(self) -> "pl.DataFrame":
        """One row a batch, in batch order."""
        frame = read_table(self.path / BATCHES)
        return frame.sort("batch") if frame.width else frame

    @property
    def spans(self) -> "pl.DataFrame":
        """One row a span, in the order in which they ended."""
        return read_table(self.path / SPANS)

    @property
    def samples(self) -> "pl.DataFrame":
        """One row a sample."""
        return read_table(self.path / SAMPLES)


def read_run(path: str | Path) -> Run:
    """Open a run directory in any state. Each access reads the table again.

    Raises:
        UsageError: when `path` is no run directory, or a newer mlotel wrote it.
    """
    folder = Path(path)
    try:
        info = read_info(folder)
        if "status" not in info:
            raise ValueError("it has no status")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} is no run directory: its run.json cannot be read ({error}). "
            "Give the folder that the run printed, such as outputs/eval/<date>_<time>"
        ) from error
    check_version(info, folder)
    died = info["status"] == "running" and not _is_alive(info.get("recorder_pid"), folder)
    if died:
        info["status"] = "interrupted"
    return Run(folder, info, died)


def _is_alive(pid: int | None, folder: Path) -> bool:
    """Return True while the recorder of `folder` runs; False when another program has its pid now."""
    if not pid:
        return False
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        beside = Path(os.readlink(f"/proc/{pid}/cwd"))
    except PermissionError:  # another user's process: it runs, and says no more
        return True
    except OSError:
        return not Path("/proc/self").exists() and _answers(pid)
    return any((beside / os.fsdecode(word)).resolve() == folder.resolve() for word in command if word) and (
        RECORDER_MODULE.encode() in command
    )


def _answers(pid: int) -> bool:
    """Return True when any process has this pid; for systems without /proc."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def read_table(folder: Path) -> "pl.DataFrame":
    """Return all rows of a table, in order, with the union of its parts' columns; empty without parts."""
    return query_table(folder, lambda frame: frame)


def query_table(folder: Path, query: "Callable[[pl.LazyFrame], pl.LazyFrame]") -> "pl.DataFrame":
    """Run `query` on a table and read only what it needs; without parts, return an empty frame and do not call it."""
    import polars as pl

    return _read_parts(folder, lambda parts: query(scan_parts(parts)).collect() if parts else pl.DataFrame())


def _read_parts(folder: Path, read: "Callable[[Sequence[Path]], pl.DataFrame]") -> "pl.DataFrame":
    """Return `read` of the parts; list and read again when a part was merged away in between."""
    before: Sequence[Path] | None = None
    while True:
        parts = current_parts(folder)
        try:
            return read(parts)
        except FileNotFoundError:
            if parts == before:  # the listing did not change: the part is lost
                raise
            before = parts


def scan_parts(parts: Sequence[Path]) -> "pl.LazyFrame":
    """Return all rows of some parts, in order, with the union of their columns."""
    import polars as pl

    # Neighbours with one schema share a scan: polars starts a thread for each, and there may be thousands of parts.
    groups = groupby(parts, key=lambda part: list(pl.read_parquet_schema(part).items()))
    return pl.concat([pl.scan_parquet(list(group)) for _, group in groups], how="diagonal_relaxed")


def newest_rows(folder: Path, count: int) -> "pl.DataFrame":
    """Return the `count` rows of a table that were written last, and read no other parts than theirs."""
    return _read_parts(folder, lambda parts: _newest_rows(parts, count))


def count_rows(folder: Path) -> int:
    """Return the number of rows of a table so far, by its files' metadata."""
    import polars as pl

    rows = query_table(folder, lambda frame: frame.select(pl.len()))
    return int(rows.item()) if rows.height else 0


def _newest_rows(parts: Sequence[Path], count: int) -> "pl.DataFrame":
    import polars as pl

    chosen: list[Path] = []
    rows = 0
    for part in reversed(parts):
        if rows >= count:
            break
        chosen.insert(0, part)
        rows += int(pl.scan_parquet(part).select(pl.len()).collect().item())
    if not chosen:
        return pl.DataFrame()
    return scan_parts(chosen).slice(max(0, rows - count), count).collect()


def current_parts(folder: Path) -> list[Path]:
    """Return the parts of a table that no merged part covers, in order.

    A listing is no snapshot: while parts are merged it can miss the merged one and some of those that it replaced.
    Parts count up from 1, so a gap gives that away, and the folder is listed again. A gap that stays is none of those:
    a monitor's oldest parts are deleted in time.
    """
    before: list[tuple[int, int, Path]] = []
    current = before
    for _ in range(_ATTEMPTS):
        current = _uncovered(_list_parts(folder))
        has_gap = any(first != last + 1 for (_, last, _), (first, _, _) in pairwise([(0, 0, folder), *current]))
        if not has_gap or current == before:
            break
        before = current
    return [part for _, _, part in current]


def covered_parts(folder: Path) -> list[Path]:
    """Return the parts whose rows are in a merged part too: the process that merged them was killed."""
    listed = _list_parts(folder)
    return [part for _, _, part in sorted(set(listed) - set(_uncovered(listed)))]


def last_part(folder: Path) -> int:
    """Return the highest number of a part; 0 without parts."""
    return max((last for _, last, _ in _list_parts(folder)), default=0)


def _uncovered(listed: Sequence[tuple[int, int, Path]]) -> list[tuple[int, int, Path]]:
    """Return those of `listed` that no wider part covers, in order."""
    uncovered: list[tuple[int, int, Path]] = []
    reach = 0
    for first, last, part in sorted(listed, key=lambda each: (each[0], -each[1])):
        if last > reach:
            uncovered.append((first, last, part))
            reach = last
    return uncovered


def _list_parts(folder: Path) -> list[tuple[int, int, Path]]:
    listed = ((*part_numbers(part), part) for part in folder.glob(PARTS))
    return sorted(each for each in listed if each[0])
