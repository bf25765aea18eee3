"""Everything that the recorder of a run feeds, chosen once: that of an evaluation, or that of a monitor."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlotel_cli.config.credentials import hide_in
from mlotel_cli.recorder.ending import summarise_monitor, summarise_run
from mlotel_cli.recorder.exports import Exports, OtlpExports
from mlotel_cli.recorder.monitor_exports import MonitorExports
from mlotel_cli.recorder.parquet_sink import ParquetSink, RollingParquetSink
from mlotel_cli.recorder.pipe import Answers
from mlotel_cli.recorder.wandb.wandb_run import TrackerSettings
from mlotel_cli.recorder.wandb.wandb_sink import NullTracker, WandbSink, create_tracker
from mlotel_cli.snapshot import SinkHealth
from mlotel_cli.store.run_json import RunFile, Totals, wandb_id
from mlotel_cli.summary import Summary
from mlotel_cli.wire import Closing, MonitorOptions, Opening

Tracker = WandbSink | NullTracker
Summarise = Callable[[Closing, Totals], Summary]


@dataclass(slots=True)
class Sinks:
    """The sinks of one run.

    Attributes:
        parquet: the tables.
        tracker: W&B.
        exports: OTLP, and what a monitor serves.
        summarise: makes the summary, from the closing and what was counted.
        keeps_totals: whether run.json holds the totals while the run goes on.
    """

    parquet: ParquetSink
    tracker: Tracker
    exports: Exports
    summarise: Summarise
    keeps_totals: bool


def create_sinks(opening: Opening, run_dir: Path, *, answers: Answers, file: RunFile) -> Sinks:
    """Build what `opening` asks for. The tracker is started later, by `start_tracker`."""
    tracker = create_tracker(_tracker_settings(opening, run_dir), say=answers.say)
    if opening.monitor is None:
        return _of_evaluation(opening, run_dir, tracker=tracker, answers=answers)
    return _of_monitor(opening, opening.monitor, run_dir, tracker=tracker, answers=answers, file=file)


def start_tracker(sinks: Sinks, opening: Opening) -> None:
    """Open the W&B run, with the configuration and what identifies the run."""
    sinks.tracker.start()
    sinks.tracker.update_config({**hide_in(opening.config), **opening.identity})


def _of_evaluation(opening: Opening, run_dir: Path, *, tracker: Tracker, answers: Answers) -> Sinks:
    # A program's own loop has no executor, whatever its configuration calls so.
    executor: Mapping[str, Any] = {} if opening.settle_roots else opening.config.get("executor") or {}

    def summarise(closing: Closing, totals: Totals) -> Summary:
        return summarise_run(run_dir, closing, executor=executor, mean_scores=opening.settle_roots)

    exports = OtlpExports(opening, say=answers.say)
    return Sinks(ParquetSink(run_dir), tracker, exports, summarise, keeps_totals=False)


def _of_monitor(
    opening: Opening, monitor: MonitorOptions, run_dir: Path, *, tracker: Tracker, answers: Answers, file: RunFile
) -> Sinks:
    executor: Mapping[str, Any] = opening.config.get("executor") or {}
    started_ns = int(file.info["started_ns"])
    parquet = RollingParquetSink(run_dir, monitor.retention, say=answers.say)

    def summarise(closing: Closing, totals: Totals) -> Summary:
        return summarise_monitor(run_dir, closing, executor=executor, totals=totals, started_ns=started_ns)

    exports = MonitorExports(
        opening,
        run_dir=run_dir,
        answer=answers.snapshot,
        say=answers.say,
        sinks=lambda: _health(parquet, tracker),
        before=file.before,
    )
    return Sinks(parquet, tracker, exports, summarise, keeps_totals=True)


def _health(parquet: ParquetSink, tracker: Tracker) -> dict[str, SinkHealth]:
    """Health of the sinks that are no exports."""
    sinks = {"parquet": parquet.health()}
    wandb = tracker.describe()
    if wandb["mode"] != "disabled":
        detail = wandb["error"] or wandb["url"] or wandb["mode"]
        sinks["wandb"] = SinkHealth(not wandb["error"], wandb["rows_logged"], wandb["rows_lost"], detail=detail)
    return sinks


def _tracker_settings(opening: Opening, run_dir: Path) -> TrackerSettings:
    return TrackerSettings(
        **asdict(opening.tracker),
        name=opening.name,
        job_type=opening.mode,
        dir=run_dir,
        window_s=None if opening.monitor is None else opening.monitor.window_s,
        started_s=opening.started_ns / 1e9,
        resume_id=wandb_id(run_dir) if opening.restarts else None,
    )
