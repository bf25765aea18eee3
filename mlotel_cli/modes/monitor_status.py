"""The newest figures of a running monitor: kept up to date once a second, and reported to its recorder.

What it looks like is in `monitor_view`.
"""

import os
import resource
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlotel_cli.hardware import rss_bytes
from mlotel_cli.link.persistent import PersistentLink
from mlotel_cli.modes.monitor_loop import Loop
from mlotel_cli.snapshot import Gaps, QueueDepth, Snapshot, SourceReport
from mlotel_cli.sources import Health
from mlotel_cli.sources.intake import CONNECTED
from mlotel_cli.wire import ProcessReport, Report

_DROPS_EVERY_S = 60.0


@dataclass(slots=True)
class Board:
    """The newest figures. Each is replaced as a whole, so that any thread may read them.

    Attributes:
        snapshot: the recorder's figures of the last minute; empty before the first.
        heard_s: when it came, monotonic.
        source_detail: why the source is not connected.
        queues: depth and capacity by name.
        gaps: what is missing from the record.
        last_failure: why the newest of them did.
        ending: why the run ends; empty while it goes on.
    """

    name: str
    snapshot: Snapshot = field(default_factory=Snapshot)
    heard_s: float | None = None
    source: SourceReport = field(default_factory=SourceReport)
    source_detail: str = ""
    queues: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    gaps: Gaps = field(default_factory=Gaps)
    phase: str = "starting"
    num_failed: int = 0
    last_failure: str = ""
    ending: str = ""

    def hear(self, snapshot: Snapshot) -> None:
        """Take the recorder's newest figures; on the thread that listens to it."""
        self.snapshot, self.heard_s = snapshot, time.monotonic()

    def look_at(self, loop: Loop, link: PersistentLink) -> None:
        """Take the workload's newest figures."""
        intake = loop.feed.intake
        self.source, self.source_detail = intake.report(), intake.health.detail
        self.queues, self.gaps, self.phase = loop.depths(), link.gaps, loop.phase
        self.num_failed, self.last_failure = loop.num_failed, loop.last_failure


class Ticker(threading.Thread):
    """Once a second it updates the board, reports to the recorder, and says what changed. It is a thread of its own.

    The main thread may be stuck in a terminal that was stopped.
    """

    def __init__(
        self,
        loop: Loop,
        link: PersistentLink,
        board: Board,
        *,
        say: Callable[[str], None],
        every_s: float = 1.0,
    ) -> None:
        super().__init__(name="mlotel-live", daemon=True)
        self._loop = loop
        self._link = link
        self._board = board
        self._changes = Changes(say)
        self._every_s = every_s
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until `stop`, and once more then."""
        stopped = False
        while True:
            self._board.look_at(self._loop, self._link)
            self._link.send(report_of(self._board))
            self._changes.tell(self._board, self._loop.feed.intake.health, now_s=time.monotonic())
            if stopped:
                return
            stopped = self._stopped.wait(self._every_s)

    def stop(self) -> None:
        """End, and wait for the last message."""
        self._stopped.set()
        self.join(2)


class Changes:
    """Says what an operator should know at once, and nothing twice."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._state = ""
        self._was_connected = False
        self._lost_s = 0.0
        self._dropped: Mapping[str, int] = {}
        self._dropped_s: float | None = None
        self._has_failed = False

    def tell(self, board: Board, health: Health, *, now_s: float) -> None:
        """Compare with the last time."""
        self._tell_source(health, now_s)
        self._tell_drops(board.source.dropped, now_s)
        if board.num_failed and not self._has_failed:
            self._has_failed = True
            self._say(f"{board.last_failure} (said once; further batches that fail are counted, the run goes on)")

    def _tell_source(self, health: Health, now_s: float) -> None:
        state, detail = health.state, health.detail
        if state == CONNECTED and self._state != CONNECTED:
            again = f" again after {now_s - self._lost_s:.0f} s" if self._lost_s else ""
            if again or self._state:
                self._say(f"source: connected{again}")
            self._was_connected = True
        elif detail and self._state in ("", CONNECTED, "quiet") and state != CONNECTED:
            what = "lost" if self._was_connected else "cannot be reached yet"
            self._say(f"source: {what}: {detail}; it is tried again and again")
            self._lost_s = now_s if self._was_connected else 0.0
        elif not detail and state != CONNECTED:
            state = "quiet"
        self._state = state

    def _tell_drops(self, dropped: Mapping[str, int], now_s: float) -> None:
        if self._dropped_s is not None and now_s - self._dropped_s < _DROPS_EVERY_S:
            return
        dropped = {reason: count for reason, count in dropped.items() if reason not in ("warmup", "stopped")}
        new = {reason: count - self._dropped.get(reason, 0) for reason, count in dropped.items()}
        if any(new.values()):
            counts = ", ".join(f"{count} {reason}" for reason, count in new.items() if count)
            self._say(f"source: dropped {counts}; {sum(dropped.values())} in all")
            self._dropped, self._dropped_s = dict(dropped), now_s


def report_of(board: Board) -> Report:
    """What the recorder must know once a second; every count is since the start of the run."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    process = ProcessReport(rss_bytes=rss_bytes(), cpu_s=usage.ru_utime + usage.ru_stime, pid=os.getpid())
    return Report(board.source, {name: QueueDepth(*depth) for name, depth in board.queues.items()}, process, board.gaps)
