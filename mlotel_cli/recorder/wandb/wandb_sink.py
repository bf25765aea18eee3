"""The W&B sink: one wide row per batch, in batch order, exactly once, from a thread of its own.

`write` only queues. The thread imports wandb, opens the run and logs; no other thread uses the run. The sink reports a
run that fails once, counts the rows it loses, and never raises into the recorder. wandb_rows.py makes the rows,
wandb_run.py calls wandb.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from mlotel_cli.config.policies import TrackerMode
from mlotel_cli.errors import UsageError
from mlotel_cli.recorder.wandb.wandb_rows import BatchOrder, Row, RowBuilder, RowMerger, WorstSamples
from mlotel_cli.recorder.wandb.wandb_run import TrackerSettings, WandbRun, first_line, mode_of_environment, open_run
from mlotel_cli.recorder.wandb.wandb_windows import Window, WindowBuilder, WindowRowBuilder
from mlotel_cli.records import BatchRecord
from mlotel_cli.wire import Attachment, Report

__all__ = ["NullTracker", "TrackerSettings", "WandbSink", "WindowedWandbSink", "create_tracker"]

TICK_S = 0.2
"""How often the thread checks for merged rows and gaps that are due while nothing arrives."""
CLOSE_GRACE_S = 10.0
"""How long `close` waits beyond the finish timeout, for the queue to drain and the run to open."""

MAX_WINDOWS = 1_000
"""Number of windows that may wait for W&B: four hours of the default length."""

OpenRun = Callable[..., WandbRun]


def create_tracker(settings: TrackerSettings, *, say: Callable[[str], None]) -> "WandbSink | NullTracker":
    """Return the sink for `settings.mode`. `say` takes one line for the user. Raises UsageError for an unknown mode."""
    if settings.mode not in [*TrackerMode]:
        raise UsageError(f"tracker.mode={settings.mode} is not a mode. Allowed: {', '.join(TrackerMode)}.")
    mode = mode_of_environment() if settings.mode == "auto" else settings.mode
    if mode == "disabled":
        return NullTracker()
    return WandbSink(settings, say=say) if settings.window_s is None else WindowedWandbSink(settings, say=say)


class NullTracker:
    """A sink that logs nothing."""

    def start(self) -> None:
        """Do nothing."""

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Do nothing."""

    def attach(self, attachment: Attachment) -> None:
        """Do nothing."""

    def write(self, record: BatchRecord) -> None:
        """Do nothing."""

    def take_report(self, report: Report) -> None:
        """Do nothing."""

    def close(self, summary: Mapping[str, Any], *, exit_code: int = 0) -> None:
        """Do nothing."""

    def describe(self) -> dict[str, Any]:
        """Return the `wandb` part of run.json of a run without W&B."""
        identity = {"id": None, "mode": "disabled", "url": None, "dir": None}
        return identity | {"rows_logged": 0, "rows_lost": 0, "error": None}


class WandbSink:
    """Logs batches to W&B. See the module.

    The recorder's main thread calls all methods. None blocks but `close`, and `write` when the queue is full; both are
    bounded.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        *,
        say: Callable[[str], None],
        open_run: OpenRun = open_run,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare. `say` takes one line for the user; the sink's thread calls it too."""
        self._settings = settings
        self._say = say
        self._open_run = open_run
        self._order = BatchOrder(clock=clock)
        self._builder = RowBuilder()
        self._worst = WorstSamples()
        self._clock = clock
        self._merger: RowMerger | None = None
        self._run: WandbRun | None = None
        self._changed = threading.Condition()
        self._queue: deque[BatchRecord] = deque()
        self._config: dict[str, Any] = {}
        self._attachments: list[Attachment] = []
        self._ending: tuple[Mapping[str, Any], int] | None = None
        self._stalled = False
        self._failed = False
        self._error: str | None = None
        self._num_written = 0
        self._num_logged = 0
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._work, name="mlotel-wandb", daemon=True)

    def start(self) -> None:
        """Start the thread, which imports wandb and opens the run. Returns at once."""
        self._thread.start()

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Add to the run's config, before or after `start`."""
        with self._changed:
            self._config.update(_plain(config))
            self._changed.notify_all()

    def attach(self, attachment: Attachment) -> None:
        """Log a table, a chart and files at the end of the run; see `WandbRun.attach`."""
        self._attachments.append(attachment)

    def write(self, record: BatchRecord) -> None:
        """Queue one batch. While the queue is full, wait up to `write_timeout_s`, then drop and count the batch.

        After one such wait, a full queue drops without waiting until it has room again.
        """
        with self._changed:
            self._num_written += 1
            if self._failed or not self._has_room():
                self._num_dropped += 1
                return
            self._queue.append(record)
            self._changed.notify_all()

    def take_report(self, report: Report) -> None:
        """Ignore a report of the workload: rows of batches do not contain it."""

    def close(self, summary: Mapping[str, Any], *, exit_code: int = 0) -> None:
        """Log what waits, the summary and the worst samples, and finish the run.

        This takes at most the finish timeout and 10 s, and the init timeout while the run is not open; a wandb-core
        that takes longer is ended. An `exit_code` other than 0 marks the run as failed in W&B.
        """
        with self._changed:
            self._ending = (_plain(summary), exit_code)
            self._changed.notify_all()
        if self._thread.ident is None:
            return
        opening_s = 0.0 if self._run is not None else self._settings.init_timeout_s
        self._thread.join(timeout=opening_s + self._settings.finish_timeout_s + CLOSE_GRACE_S)
        if self._thread.is_alive():
            self._fail("it did not finish in time")
            if self._run is not None:
                self._run.kill()
            self._thread.join(timeout=CLOSE_GRACE_S / 2)

    def describe(self) -> dict[str, Any]:
        """Return the `wandb` part of run.json.

        `dir` is relative to the run directory. `rows_logged` counts the batches that wandb-core took; when wandb-core
        dies, those of its last second may be missing in its file. `windows` and `rows_merged` exist only when rows came
        too fast and were merged: the merged rows, and the rows in them. `renamed` lists names that W&B does not allow.
        """
        run = self._run
        is_over = self._failed or (self._ending is not None and not self._thread.is_alive())
        described = {
            "id": run.id if run else None,
            "mode": run.mode if run else self._settings.mode,
            "url": run.url if run else None,
            "dir": run.dir if run else None,
            "rows_logged": self._num_logged,
            "rows_lost": self._num_written - self._num_logged if is_over else self._num_dropped,
            "error": self._error,
        }
        if self._merger is not None and self._merger.num_merges:
            described |= {"windows": self._merger.num_merges, "rows_merged": self._merger.num_merged}
        return described | {"renamed": self._builder.renamed}

    def _has_room(self) -> bool:
        """Return whether the queue has room, after waiting for it; call it under the lock."""
        settings = self._settings

        def room() -> bool:
            return len(self._queue) < settings.max_queued_rows

        if not room() and not self._stalled:
            self._stalled = not self._changed.wait_for(lambda: room() or self._failed, settings.write_timeout_s)
            if self._stalled:
                self._say(f"W&B: it took no rows for {settings.write_timeout_s:g} s; rows are dropped and counted")
        self._stalled = self._stalled and not room()
        return room() and not self._failed

    def _work(self) -> None:
        try:
            with self._changed:
                config, self._config = self._config, {}
            self._run = self._open_run(self._settings, config=config, say=self._say)
            if self._run.mode == "online":
                self._merger = RowMerger(rows_per_minute=self._settings.rows_per_minute, clock=self._clock)
            while (ending := self._step()) is None:
                pass
            self._finish(*ending)
        except Exception as error:  # a remote sink must not end the recorder
            self._fail(first_line(error) if self._run is None else self._run.abandon(error))

    def _step(self) -> tuple[Mapping[str, Any], int] | None:
        """Take what has come and log what is due. Returns the ending once everything before it was taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._config or self._ending, timeout=TICK_S)
            records = [self._queue.popleft() for _ in range(min(len(self._queue), 500))]
            config, self._config = self._config, {}
            ending = None if records else self._ending
            self._changed.notify_all()
        if config and self._run is not None:
            self._run.update_config(config)
        for record in records:
            self._worst.add(record.batch, record.samples)
            self._order.push(record)
        for record in self._order.ready():
            self._log(record)
        if self._merger is not None:
            self._log_row(self._merger.due())
        return ending

    def _log(self, record: BatchRecord) -> None:
        row = self._builder.row(record)
        self._log_row((row, 1) if self._merger is None else self._merger.add(row))

    def _log_row(self, closed: tuple[Row, int] | None) -> None:
        if closed is None or self._run is None:
            return
        row, num_batches = closed
        if num_batches > 1 and self._merger is not None and self._merger.num_merges == 1:
            rate = self._settings.rows_per_minute
            self._say(f"W&B: more than {rate:g} batches a minute; from here on a row is the mean of several batches")
        self._run.log(row)
        self._num_logged += num_batches

    def _finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        for record in self._order.rest():
            self._log(record)
        if self._merger is not None:
            self._log_row(self._merger.close())
            if self._merger.num_merges:
                summary = {**summary, "batches_merged": self._merger.num_merged}
        run = self._run
        if run is None:
            return
        for attachment in self._attachments:
            if problem := run.attach(attachment):
                self._say(f"W&B: {problem}")
        problem = run.finish(summary, table=self._worst.table(), exit_code=exit_code)
        if problem is not None:
            self._error = problem
            self._say(f"W&B: {problem}")

    def _fail(self, reason: str) -> None:
        """Report the failure once and drop everything from now on."""
        with self._changed:
            if self._failed:
                return
            self._failed = True
            self._error = reason
            self._queue.clear()
            self._changed.notify_all()
        run = self._run
        upload = f"; upload what was logged with: wandb sync {self._settings.dir / run.dir}" if run else ""
        self._say(f"W&B: stopped ({reason}). Every batch is in batches.parquet{upload}")


class WindowedWandbSink(WandbSink):
    """The sink of a monitor: it logs one row per window of `window_s`. `write` adds up and never waits.

    While W&B cannot be reached, wandb-core keeps the rows in its file. The cost of a window does not depend on the
    number of its batches.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        *,
        say: Callable[[str], None],
        open_run: OpenRun = open_run,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Prepare. `clock` returns seconds since the epoch: a restarted recorder continues the run's windows."""
        clock = clock or anchored_clock()
        super().__init__(settings, say=say, open_run=open_run, clock=clock)
        window_s, now_s = settings.window_s or 15.0, clock()
        self._windows = WindowBuilder(window_s=window_s, started_s=settings.started_s or now_s, now_s=now_s)
        self._rows = WindowRowBuilder()
        self._closed: deque[Window] = deque(maxlen=MAX_WINDOWS)
        self._num_windows = 0

    def write(self, record: BatchRecord) -> None:
        """Add one batch to the open window."""
        with self._changed:
            self._num_written += 1
            if self._failed:
                self._num_dropped += 1
                return
            self._close_window(self._windows.due(self._clock()))
            self._windows.add(record)

    def take_report(self, report: Report) -> None:
        """Add a report of the workload to the open window."""
        with self._changed:
            self._windows.take_report(report)

    def describe(self) -> dict[str, Any]:
        """Return the `wandb` part of run.json; `rows_logged` counts batches here too, `windows` counts rows.

        `earlier` is the id of an earlier recorder's W&B run that this one could not continue.
        """
        described = super().describe() | {"windows": self._num_windows, "renamed": self._rows.renamed}
        earlier = self._settings.resume_id
        return described if earlier in (None, described["id"]) else described | {"earlier": earlier}

    def _close_window(self, window: Window | None) -> None:
        """Queue a window, under the lock. A full queue drops its oldest window and counts the batches in it."""
        if window is None:
            return
        if len(self._closed) == MAX_WINDOWS:
            self._num_dropped += self._closed[0].num_batches
        self._closed.append(window)

    def _step(self) -> tuple[Mapping[str, Any], int] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._config or self._ending, timeout=TICK_S)
            self._close_window(self._windows.due(self._clock()))
            ending = self._ending
            if ending is not None:
                self._close_window(self._windows.close(self._clock()))
            windows = list(self._closed)
            self._closed.clear()
            config, self._config = self._config, {}
        if config and self._run is not None:
            self._run.update_config(config)
        for window in windows:
            if self._run is not None:
                self._run.log(self._rows.row(window))
            self._num_windows += 1
            self._num_logged += window.num_batches
        return ending


def anchored_clock(
    wall: Callable[[], float] = time.time, elapsed: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """Return a clock of seconds since the epoch that later changes of the wall clock do not move."""
    offset_s = wall() - elapsed()
    return lambda: offset_s + elapsed()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in JSON's types; other types, such as paths and enums, become text."""
    return json.loads(json.dumps(values, default=str, skipkeys=True))
