"""The recorder's main loop: read frames, assemble, feed the sinks; when the pipe closes, finish everything.

It ends when the workload says so, and just as well when the workload is killed: then the run is `interrupted`. Signals
of a terminal or a service manager are blocked (in `__main__`), because the workload decides when a run is over.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlotel_cli.config.credentials import hide_in
from mlotel_cli.errors import MlotelError, RecorderError
from mlotel_cli.recorder.assemble import Assembler, Settled, unpack
from mlotel_cli.recorder.ending import summarise_monitor, summarise_run
from mlotel_cli.recorder.exports import Exports, OtlpExports
from mlotel_cli.recorder.monitor_exports import MonitorExports
from mlotel_cli.recorder.otlp.otlp_sink import CLOSE_S, notes
from mlotel_cli.recorder.parquet_sink import create_parquet
from mlotel_cli.recorder.pipe import Answers, read_frames
from mlotel_cli.recorder.wandb.wandb_sink import TrackerSettings, create_tracker
from mlotel_cli.records import BatchRecord, Sample
from mlotel_cli.store.run_json import RunFile, Totals, wandb_id
from mlotel_cli.summary import OtlpCounts, Summary
from mlotel_cli.typed_json import from_json


class Recorder:
    """One run's recorder. Everything happens on the calling thread; W&B has a thread of its own.

    The opening message is a `telemetry.handoff.Opening`.
    """

    def __init__(self, run_dir: Path, opening: Mapping[str, Any], answers: "Answers") -> None:
        """Write run.json, start the sinks."""
        self._run_dir = run_dir
        self._answers = answers
        self._part_s: float = opening["part_s"]
        self._assembler = Assembler(
            settle_s=opening["settle_s"], max_names=opening["max_names"], settle_roots=opening["settle_roots"]
        )
        live: Mapping[str, Any] = opening.get("live") or {}
        self._parquet = create_parquet(run_dir, live.get("retention"), say=answers.say)
        self._tracker = create_tracker(_tracker_settings(opening, run_dir), say=answers.say)
        self._settle_roots: bool = opening["settle_roots"]
        # A loop that runs itself has no executor, whatever its configuration calls so.
        self._executor: dict[str, Any] = {} if self._settle_roots else opening["config"].get("executor") or {}
        self._flushed_at = time.monotonic()
        self._lost: int | None = None
        self._refused = 0
        self._closing: dict[str, Any] | None = None
        self._file = RunFile(run_dir, opening)
        self._info = self._file.info
        self._is_live = bool(live)
        self._totals = Totals()
        self._exports = self._create_exports(opening)
        self._write_info()
        self._tracker.start()
        self._tracker.update_config({**hide_in(opening["config"]), **opening["identity"]})

    def _create_exports(self, opening: Mapping[str, Any]) -> Exports:
        answers = self._answers
        if not self._is_live:
            return OtlpExports(opening, say=answers.say)
        return MonitorExports(
            opening,
            run_dir=self._run_dir,
            answer=answers.live,
            say=answers.say,
            sinks=self._describe_sinks,
            before=self._file.before,
        )

    @property
    def is_closing(self) -> bool:
        """True once the workload has said how the run ended."""
        return self._closing is not None

    def take(self, items: list[tuple[Any, ...]]) -> None:
        """Handle one frame. What makes no sense is counted, and costs nothing but itself."""
        now = time.monotonic()
        for item in items:
            try:
                self._take_one(item, now=now)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                self._refused += 1
                if self._refused == 1:
                    print(f"refused {item!r}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201 - recorder.log
        self._write_rows(self._assembler.finished(now=now))

    def _take_one(self, item: tuple[Any, ...], *, now: float) -> None:
        kind = item[0]
        if kind == "span":
            self._totals.spans += 1
            stamp = unpack(item)
            self._parquet.write_span(stamp.span)
            self._assembler.add(stamp, now=now)
            for take_span in self._exports.span_takers:
                take_span(stamp.span)
        elif kind == "settle":
            self._assembler.settle(_settled(item), now=now)
        elif kind == "live":
            self._exports.take_live(item[1])
            self._tracker.take_live(item[1])
        elif kind == "info":
            self._take_info(json.loads(item[1]))
        elif kind == "attach":
            self._tracker.attach(json.loads(item[1]))
        elif kind == "close":
            self._closing = json.loads(item[1])
            self._lost = item[2] - self._totals.spans  # here and not at the end: spans may end after the run

    def tick(self) -> None:
        """Called a few times a second: rows that waited long enough, and a Parquet part when one is due."""
        now = time.monotonic()
        self._write_rows(self._assembler.finished(now=now))
        if now - self._flushed_at >= self._part_s:
            self._flush()
            self._flushed_at = now
        self._exports.tick()

    def _flush(self) -> None:
        self._parquet.flush()
        if self._is_live:
            self._info["totals"] = self._file.before.totals.plus(self._totals).to_json()
            self._write_info()

    def close(self) -> dict[str, Any]:
        """Finish rows, files and sinks; returns what run.json says in the end."""
        closing = self._closing or {"status": "interrupted", "error": "the workload ended without a word"}
        self._exports.end()
        self._write_rows(self._assembler.finished(now=time.monotonic(), closing=True))
        self._flush()
        self._parquet.close({})
        self._info["notes"] += self._parquet.notes
        totals = self._file.before.totals.plus(self._totals)
        summary = self._summarise(closing, totals)
        telemetry = summary.telemetry
        counters: Mapping[str, Any] = closing.get("telemetry") or {}
        cost_us: float | None = counters.get("span_cost_us")
        telemetry.hot_path_us_per_batch = cost_us * totals.spans / totals.rows if cost_us and totals.rows else None
        telemetry.spans_recorded, telemetry.spans_lost = totals.spans, self._lost
        telemetry.spans_late, telemetry.spans_unnamed = self._assembler.late, self._assembler.overflowed
        telemetry.items_refused = self._refused
        self._info.update(ended_ns=time.time_ns(), error=closing.get("error") or None, summary=summary.to_json())
        otlp = self._exports.deliver(CLOSE_S)["otlp"]
        telemetry.otlp = None if otlp is None else from_json(OtlpCounts, otlp)
        self._info["notes"] += notes(otlp)
        self._info["summary"] = summary.to_json()
        self._write_info()  # a kill while W&B finishes must not cost the summary
        self._tracker.close(self._info["summary"], exit_code=0 if closing["status"] == "complete" else 1)
        self._info.update(status=closing["status"], wandb=self._tracker.describe())
        self._exports.close()
        self._write_info()
        return self._info

    def _summarise(self, closing: Mapping[str, Any], totals: Totals) -> Summary:
        if not self._is_live:
            return summarise_run(self._run_dir, closing, executor=self._executor, mean_scores=self._settle_roots)
        started_ns: int = self._file.info["started_ns"]
        return summarise_monitor(self._run_dir, closing, executor=self._executor, totals=totals, started_ns=started_ns)

    def fail(self, reason: str) -> None:
        """End a run that cannot be recorded any further; what still can be written is."""
        with contextlib.suppress(RecorderError):
            self._write_rows(self._assembler.finished(now=time.monotonic(), closing=True))
            self._parquet.flush()
        self._exports.deliver(1.0)
        self._tracker.close({}, exit_code=1)
        self._exports.close()
        self._info.update(status="failed", error=reason, ended_ns=time.time_ns())
        self._write_info()

    def _write_rows(self, records: Iterator[BatchRecord]) -> None:
        for record in records:
            self._totals.add(record)
            self._parquet.write(record)
            self._tracker.write(record)
            self._exports.add_batch(record)

    def _describe_sinks(self) -> dict[str, dict[str, Any]]:
        """Health of the sinks that are no exports."""
        sinks: dict[str, dict[str, Any]] = {"parquet": self._parquet.describe()}
        wandb = self._tracker.describe()
        if wandb["mode"] != "disabled":
            detail = wandb["error"] or wandb["url"] or wandb["mode"]
            sent, lost = wandb["rows_logged"], wandb["rows_lost"]
            sinks["wandb"] = {"ok": not wandb["error"], "sent": sent, "lost": lost, "detail": detail}
        return sinks

    def _take_info(self, info: dict[str, Any]) -> None:
        self._file.update(info)
        self._tracker.update_config(hide_in(info.get("config") or {}))
        self._write_info()

    def _write_info(self) -> None:
        self._info.update(wandb=self._tracker.describe(), **self._exports.describe())
        self._file.write()


def _tracker_settings(opening: Mapping[str, Any], run_dir: Path) -> TrackerSettings:
    live: Mapping[str, Any] = opening.get("live") or {}
    return TrackerSettings(
        **opening["tracker"],
        name=opening["name"],
        job_type=opening["mode"],
        dir=run_dir,
        window_s=live.get("window_s"),
        started_s=opening["started_ns"] / 1e9,
        resume_id=wandb_id(run_dir) if live.get("restarts") else None,
    )


def _settled(item: tuple[Any, ...]) -> Settled:
    """The inverse of the tuple that `modes.session.Session.settle` sends."""
    *fields, samples, error = item[1:]
    return Settled(*fields, samples=[Sample(*sample) for sample in samples], error=error)


def main() -> None:
    """Run one recorder; the arguments are READ_FD WRITE_FD RUN_DIR [MODULE ...], modules being imported at once.

    The first module is imported before anything else, the others beside the work: rows are readable a second earlier.
    """
    read_fd, write_fd, run_dir = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    first, *others = sys.argv[4:] or ["polars"]
    importlib.import_module(first)
    importing = threading.Thread(
        target=lambda: [importlib.import_module(name) for name in others], name="mlotel-import"
    )
    importing.start()
    # Hundreds of thousands of spans live for a second and none is part of a cycle: looking for cycles took a third.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    ended_well = record(read_fd, run_dir, Answers(write_fd))
    importing.join()
    sys.exit(0 if ended_well else 1)


def record(read_fd: int, run_dir: Path, answers: Answers) -> bool:
    """Record one run until its pipe closes; False when that failed, which then has been said."""
    recorder: Recorder | None = None
    try:
        for frame in read_frames(read_fd, tick_s=0.2):
            if recorder is None:
                if frame is None:
                    continue
                recorder = Recorder(run_dir, json.loads(frame[0][1]), answers)
                frame = frame[1:]
            if frame:
                recorder.take(frame)
            elif recorder.is_closing:
                break  # somebody else, such as a process that the workload forked, holds the pipe open
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
            with contextlib.suppress(Exception):  # it has been said; the disk may be full
                recorder.fail(reason)
        return False
    return True
