"""The recorder's main loop: read frames, assemble, feed the sinks; when the pipe closes, finish everything.

It ends when the workload says so, or when the workload is killed; the run is then `interrupted`. `__main__` blocks the
signals of a terminal or a service manager, because the workload decides when a run is over.
"""

import contextlib
import gc
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlotel_cli.config.credentials import hide_in
from mlotel_cli.errors import MlotelError, RecorderError
from mlotel_cli.recorder.assemble import Assembler
from mlotel_cli.recorder.otlp.otlp_sink import CLOSE_S, notes
from mlotel_cli.recorder.pipe import Answers, read_frames
from mlotel_cli.recorder.sinks import create_sinks, start_tracker
from mlotel_cli.records import BatchRecord
from mlotel_cli.store.run_json import RunFile, Totals
from mlotel_cli.wire import Attachment, Closing, Info, Opening, Received, Report, Settled, Stamp, unpack


class Recorder:
    """One run's recorder. Everything happens on the calling thread; W&B and OTLP have threads of their own."""

    def __init__(self, run_dir: Path, opening: Opening, answers: Answers) -> None:
        """Write run.json, start the sinks."""
        self._part_s = opening.part_s
        self._assembler = Assembler(
            settle_s=opening.settle_s, max_names=opening.max_names, settle_roots=opening.settle_roots
        )
        self._file = RunFile(run_dir, opening)
        self._info = self._file.info
        self._sinks = create_sinks(opening, run_dir, answers=answers, file=self._file)
        self._flushed_at = time.monotonic()
        self._totals = Totals()
        self._lost: int | None = None
        self._refused = 0
        self._closing: Closing | None = None
        self._write_info()
        start_tracker(self._sinks, opening)

    @property
    def is_closing(self) -> bool:
        """True once the workload has sent how the run ended."""
        return self._closing is not None

    def take(self, frame: list[tuple[Any, ...]]) -> None:
        """Handle one frame. A message that cannot be read is counted and left out."""
        now = time.monotonic()
        for packed in frame:
            try:
                self._take_one(unpack(packed), now=now)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                self._refused += 1
                if self._refused == 1:
                    print(f"refused {packed!r}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201 - recorder.log
        self._write_rows(self._assembler.finished(now=now))

    def _take_one(self, message: Received, *, now: float) -> None:
        if type(message) is Stamp:
            self._totals.spans += 1
            self._sinks.parquet.write_span(message.span)
            self._assembler.add(message, now=now)
            for take_span in self._sinks.exports.span_takers:
                take_span(message.span)
        elif isinstance(message, Settled):
            self._assembler.settle(message, now=now)
        elif isinstance(message, Report):
            self._sinks.exports.take_report(message)
            self._sinks.tracker.take_report(message)
        elif isinstance(message, Info):
            self._take_info(message.content)
        elif isinstance(message, Attachment):
            self._sinks.tracker.attach(message)
        elif isinstance(message, Closing):
            self._closing = message
            self._lost = message.spans_emitted - self._totals.spans  # here, because spans may end after the run

    def tick(self) -> None:
        """Write rows that waited long enough, and a Parquet part when one is due; called a few times a second."""
        now = time.monotonic()
        self._write_rows(self._assembler.finished(now=now))
        if now - self._flushed_at >= self._part_s:
            self._flush()
            self._flushed_at = now
        self._sinks.exports.tick()

    def _flush(self) -> None:
        self._sinks.parquet.flush()
        if self._sinks.keeps_totals:
            self._info["totals"] = self._all_totals().to_json()
            self._write_info()

    def close(self) -> dict[str, Any]:
        """Finish rows, files and sinks. Returns the last content of run.json."""
        closing = self._closing or Closing(status="interrupted", error="the workload ended before it closed the run")
        sinks = self._sinks
        sinks.exports.end()
        self._write_rows(self._assembler.finished(now=time.monotonic(), closing=True))
        self._flush()
        sinks.parquet.close()
        self._info["notes"] += sinks.parquet.notes
        totals = self._all_totals()
        summary = sinks.summarise(closing, totals)
        telemetry = summary.telemetry
        cost_us = closing.span_cost_us
        telemetry.hot_path_us_per_batch = cost_us * totals.spans / totals.rows if cost_us and totals.rows else None
        telemetry.spans_recorded, telemetry.spans_lost = totals.spans, self._lost
        telemetry.spans_late, telemetry.spans_unnamed = self._assembler.late, self._assembler.overflowed
        telemetry.items_refused = self._refused
        self._info.update(ended_ns=time.time_ns(), error=closing.error or None, summary=summary.to_json())
        telemetry.otlp = sinks.exports.deliver(CLOSE_S)
        self._info["notes"] += notes(telemetry.otlp)
        self._info["summary"] = summary.to_json()
        self._write_info()  # a kill while W&B finishes must not cost the summary
        sinks.tracker.close(self._info["summary"], exit_code=0 if closing.status == "complete" else 1)
        self._info.update(status=closing.status, wandb=sinks.tracker.describe())
        sinks.exports.close()
        self._write_info()
        return self._info

    def fail(self, reason: str) -> None:
        """End a run that cannot be recorded any further; what can still be written is written."""
        with contextlib.suppress(RecorderError):
            self._write_rows(self._assembler.finished(now=time.monotonic(), closing=True))
            self._sinks.parquet.flush()
        self._sinks.exports.deliver(1.0)
        self._sinks.tracker.close({}, exit_code=1)
        self._sinks.exports.close()
        self._info.update(status="failed", error=reason, ended_ns=time.time_ns())
        self._write_info()

    def _all_totals(self) -> Totals:
        """Return what this recorder and those before it counted."""
        return self._file.before.totals.plus(self._totals)

    def _write_rows(self, records: Iterator[BatchRecord]) -> None:
        for record in records:
            self._totals.add(record)
            self._sinks.parquet.write(record)
            self._sinks.tracker.write(record)
            self._sinks.exports.add_batch(record)

    def _take_info(self, info: dict[str, Any]) -> None:
        self._file.update(info)
        self._sinks.tracker.update_config(hide_in(info.get("config") or {}))
        self._write_info()

    def _write_info(self) -> None:
        self._info.update(wandb=self._sinks.tracker.describe(), **self._sinks.exports.describe())
        self._file.write()


def main() -> None:
    """Run one recorder; the arguments are READ_FD WRITE_FD RUN_DIR [MODULE ...].

    The first module is imported at once, the others on a thread, so that rows are readable a second earlier.
    """
    read_fd, write_fd, run_dir = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    first, *others = sys.argv[4:] or ["polars"]
    importlib.import_module(first)
    importing = threading.Thread(
        target=lambda: [importlib.import_module(name) for name in others], name="mlotel-import"
    )
    importing.start()
    # Hundreds of thousands of spans live for a second and none is part of a cycle. The search for cycles took a third
    # of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    ended_well = record(read_fd, run_dir, Answers(write_fd))
    importing.join()
    sys.exit(0 if ended_well else 1)


def record(read_fd: int, run_dir: Path, answers: Answers) -> bool:
    """Record one run until its pipe closes. Returns False when that failed, after a line to the user."""
    recorder: Recorder | None = None
    try:
        for frame in read_frames(read_fd, tick_s=0.2):
            if recorder is None:
                if frame is None:
                    continue
                recorder = Recorder(run_dir, read_opening(frame[0]), answers)
                frame = frame[1:]
            if frame:
                recorder.take(frame)
            elif recorder.is_closing:
                break  # another process, such as one that the workload forked, holds the pipe open
            recorder.tick()
        if recorder is not None:
            os.close(read_fd)
            answers.result(recorder.close())
    except Exception as error:
        if not isinstance(error, MlotelError):
            traceback.print_exc()
        reason = str(error) if isinstance(error, MlotelError) else f"{type(error).__name__}: {error}"
        answers.say(f"The recorder gives up: {reason}")
        if recorder is not None:
            with contextlib.suppress(Exception):  # the reason is reported; the disk may be full
                recorder.fail(reason)
        return False
    return True


def read_opening(packed: tuple[Any, ...]) -> Opening:
    """Return the first message of a run.

    Raises:
        RecorderError: when it is another one.
    """
    opening = unpack(packed)
    if not isinstance(opening, Opening):
        raise RecorderError(f"the workload began with something else than an opening: {opening!r}")
    return opening
