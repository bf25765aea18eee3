"""Keeps a monitor's tables bounded: merges old parts period by period, and deletes the oldest.

Merging happens in a process of its own (`store.compact`); here is when, and what is deleted. Called from the
recorder's main loop, which it does not hold: a pass looks at file sizes and ages, and deletes.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mlotel_cli.config.policies import Retention
from mlotel_cli.store.layout import UNFINISHED_PARTS, part_numbers
from mlotel_cli.store.reading import covered_parts, current_parts, last_part

logger = logging.getLogger("mlotel.recorder")

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

LOOK_EVERY_S = 10.0
"""Seconds between two looks at sizes and ages."""
HANGS_S = 600.0
"""A compaction that takes longer is killed. While one runs, nothing is deleted."""
JUMP_S = 60.0
"""A wall clock that advances by so much more than the monotonic clock was set, as on a board without a battery."""
LAST_COMPACTION_S = 5.0
"""At the end of a run: how long the last compaction may take."""


class Compaction(Protocol):
    """A process that merges parts; a Popen."""

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


Start = Callable[[Sequence[str]], Compaction]


class Rolling:
    """Merges and deletes parts of some tables.

    Attributes:
        deleted_bytes: size of the parts deleted for their age or size.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        retention: Retention,
        *,
        start: Start | None = None,
        clock: Callable[[], float] = lambda: time.clock_gettime(_CLOCK),
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Begin with `folders`, and remove what a killed recorder left in them.

        Args:
            folders: the tables; they need not exist yet.
            retention: what stays.
            start: starts `store.compact` with these arguments.
            clock: seconds, for intervals; goes on while the machine sleeps, where there is such a clock.
            wall: seconds since the epoch, as file times are.
        """
        self._folders = folders
        self._retention = retention
        self._start = start or _start
        self._clock = clock
        self._wall = wall
        self._compacted_at = self._looked_at = clock()
        self._offset_s = wall() - clock()
        self._running: Compaction | None = None
        self._compacted = dict.fromkeys(folders, 0)
        self._reaching = dict(self._compacted)
        self.deleted_bytes = 0
        for folder in folders:
            _tidy(folder)
            self._compacted[folder] = max((part_numbers(part)[1] for part in _merged(folder)), default=0)

    def tick(self) -> None:
        """Do what is due. Called about every second."""
        now = self._clock()
        self._reap()
        if self._running is not None and now - self._compacted_at >= HANGS_S:
            self._finish(now)
        if now - self._compacted_at >= self._retention.compact_s and self._running is None:
            self._compacted_at = now
            self._begin()
        if now - self._looked_at >= LOOK_EVERY_S and self._running is None:  # one may be reading old parts
            self._looked_at = now
            self._delete_old()

    def close(self) -> None:
        """Merge the parts of the last period; if that takes long, leave them, which are just as readable."""
        deadline = self._clock() + LAST_COMPACTION_S
        self._finish(deadline)
        self._begin()
        self._finish(deadline)
        for folder in self._folders:
            _tidy(folder)
        self._delete_old()

    def _begin(self) -> None:
        words: list[str] = []
        for folder in self._folders:
            first, last = self._compacted[folder] + 1, last_part(folder)
            if len([part for part in current_parts(folder) if part_numbers(part)[0] >= first]) > 1:
                words += [str(folder), str(first), str(last)]
                self._reaching[folder] = last
        if not words:
            return
        try:
            self._running = self._start(words)
        except OSError as error:  # no memory for another process, for instance; the next period tries again
            logger.warning("parts were not merged: %s", error)

    def _reap(self) -> None:
        """Note how a compaction ended; after a failure the next one takes its parts too."""
        if self._running is None or (code := self._running.poll()) is None:
            return
        self._running = None
        if code:
            logger.warning("parts were not merged: the process that does it ended with %d", code)
        else:
            self._compacted.update(self._reaching)

    def _finish(self, deadline: float) -> None:
        if self._running is None:
            return
        try:
            self._running.wait(max(0.0, deadline - self._clock()))
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
        self._reap()

    def _delete_old(self) -> None:
        """Delete the oldest parts of all tables until age and size are within bounds; a table keeps its newest."""
        self._follow_wall_clock()
        tables = [_files(folder) for folder in self._folders]
        files = sorted(file for table in tables for file in table[:-1])
        total = sum(size for table in tables for _, _, size in table)
        oldest = self._wall() - self._retention.max_age_h * 3600
        for written, path, size in files:
            if written >= oldest and total <= self._retention.max_gb * 1e9:
                return
            path.unlink(missing_ok=True)
            total -= size
            self.deleted_bytes += size

    def _follow_wall_clock(self) -> None:
        """After the wall clock was set forward, move the parts' times by the same amount: their age stays."""
        now_s = self._wall()
        jump_s = now_s - self._clock() - self._offset_s
        self._offset_s += jump_s
        if jump_s < JUMP_S:
            return
        for folder in self._folders:
            for written, path, _ in _files(folder):
                if written <= now_s - jump_s:  # written before the clock was set
                    os.utime(path, (written + jump_s, written + jump_s))


def _files(folder: Path) -> list[tuple[float, Path, int]]:
    """Return (time of the newest row, path, bytes) of a table's parts, in order."""
    found: list[tuple[tuple[int, int], float, Path, int]] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if (numbers := part_numbers(path))[0]:
                status = entry.stat()
                found.append((numbers, status.st_mtime, path, status.st_size))
    return [(written, path, size) for _, written, path, size in sorted(found)]


def _merged(folder: Path) -> list[Path]:
    return [path for _, path, _ in _files(folder) if part_numbers(path)[1] > part_numbers(path)[0]]


def _tidy(folder: Path) -> None:
    """Remove what a killed process left: unfinished files, and parts whose rows are in a merged one."""
    for path in (*folder.glob(UNFINISHED_PARTS), *covered_parts(folder)):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _start(words: Sequence[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", "-m", "mlotel_cli.store.compact", *words]
    # One thread is enough for an hour of parts, and leaves the cores to the workload.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "POLARS_MAX_THREADS": "1"})
