"""Which sinks a run has: those of an evaluation, or those of a monitor, and how W&B sees the run."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli.config.policies import TrackerOptions
from mlotel_cli.recorder import sinks
from mlotel_cli.recorder.exports import OtlpExports
from mlotel_cli.recorder.monitor_exports import MonitorExports
from mlotel_cli.recorder.parquet_sink import RollingParquetSink
from mlotel_cli.recorder.pipe import Answers
from mlotel_cli.recorder.sinks import Sinks, create_sinks, start_tracker
from mlotel_cli.recorder.wandb.wandb_run import TrackerSettings
from mlotel_cli.recorder.wandb.wandb_sink import NullTracker
from mlotel_cli.snapshot import SinkHealth
from mlotel_cli.store.run_json import RunFile
from mlotel_cli.wire import MonitorOptions, Opening

DISABLED = TrackerOptions(mode="disabled")


class FakeTracker:
    """A W&B that only notes what it is told."""

    def __init__(self, settings: TrackerSettings, **described: Any) -> None:
        self.settings = settings
        self.told: list[Any] = []
        self._described = {"mode": "offline", "error": "", "url": "", "rows_logged": 3, "rows_lost": 1} | described

    def start(self) -> None:
        self.told.append("start")

    def update_config(self, config: Any) -> None:
        self.told.append(config)

    def describe(self) -> dict[str, Any]:
        return self._described


@pytest.fixture
def answers() -> Iterator[Answers]:
    read, write = os.pipe()
    made = Answers(write)
    yield made
    made._pipe.close()
    os.close(read)


def opening(*, monitor: MonitorOptions | None = None, **more: Any) -> Opening:
    options = {"mode": "monitor" if monitor else "eval", "tracker": DISABLED} | more
    return Opening(name="lpr", run_id="abc", started_ns=5_000_000_000, monitor=monitor, **options)


def create(given: Opening, folder: Path, answers: Answers) -> Sinks:
    return create_sinks(given, folder, answers=answers, file=RunFile(folder, given))


def settings_of(given: Opening, folder: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> TrackerSettings:
    monkeypatch.setattr(sinks, "create_tracker", lambda settings, **_: FakeTracker(settings))
    found = create(given, folder, answers)
    found.exports.deliver(0.0)
    assert isinstance(found.tracker, FakeTracker)
    return found.tracker.settings


def test_an_evaluation_keeps_its_parts_and_serves_nothing(tmp_path: Path, answers: Answers) -> None:
    found = create(opening(), tmp_path, answers)
    assert isinstance(found.exports, OtlpExports)
    assert isinstance(found.tracker, NullTracker)
    assert not isinstance(found.parquet, RollingParquetSink)
    assert not found.keeps_totals


def test_a_monitor_deletes_what_is_old_and_serves_its_figures(tmp_path: Path, answers: Answers) -> None:
    found = create(opening(monitor=MonitorOptions()), tmp_path, answers)
    assert isinstance(found.exports, MonitorExports)
    assert isinstance(found.parquet, RollingParquetSink)
    assert found.keeps_totals
    found.exports.deliver(0.0)


def test_the_run_in_wandb_is_called_as_the_run_is(
    tmp_path: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = TrackerOptions(project="p", entity="e", group="g", tags=["t"], notes="n", finish_timeout_s=9.0)
    settings = settings_of(opening(tracker=tracker), tmp_path, answers, monkeypatch)
    assert (settings.name, settings.job_type, settings.dir) == ("lpr", "eval", tmp_path)
    assert (settings.project, settings.entity, settings.group) == ("p", "e", "g")
    assert (settings.tags, settings.notes, settings.finish_timeout_s) == (["t"], "n", 9.0)
    assert (settings.window_s, settings.started_s, settings.resume_id) == (None, 5.0, None)


def test_a_monitors_rows_are_windows_and_its_next_recorder_goes_on_with_the_same_run(
    tmp_path: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "wandb_id", lambda run_dir: f"the run of {run_dir.name}")
    first = settings_of(opening(monitor=MonitorOptions(window_s=60.0)), tmp_path, answers, monkeypatch)
    assert (first.window_s, first.resume_id) == (60.0, None)
    given = opening(monitor=MonitorOptions(restarts=1))
    RunFile(tmp_path, opening(monitor=MonitorOptions())).write()
    assert settings_of(given, tmp_path, answers, monkeypatch).resume_id == f"the run of {tmp_path.name}"


def test_wandb_gets_the_configuration_without_its_secrets(
    tmp_path: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "create_tracker", lambda settings, **_: FakeTracker(settings))
    given = opening(config={"source": {"uri": "rtsp://me:secret@gate/1"}}, identity={"git.commit": "f00"})
    found = create(given, tmp_path, answers)
    start_tracker(found, given)
    assert isinstance(found.tracker, FakeTracker)
    assert found.tracker.told == ["start", {"source": {"uri": "rtsp://***@gate/1"}, "git.commit": "f00"}]


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({}, SinkHealth(sent=3, lost=1, detail="offline")),
        ({"mode": "online", "url": "http://w"}, SinkHealth(sent=3, lost=1, detail="http://w")),
        ({"url": "http://w", "error": "full"}, SinkHealth(ok=False, sent=3, lost=1, detail="full")),
        ({"mode": "disabled"}, None),
    ],
)
def test_health_of_the_tables_and_of_wandb(
    tmp_path: Path, answers: Answers, described: dict[str, Any], expected: SinkHealth | None
) -> None:
    parquet = create(opening(), tmp_path, answers).parquet
    tracker: Any = FakeTracker(None, **described)  # type: ignore[arg-type]
    health = sinks._health(parquet, tracker)
    assert health["parquet"] == SinkHealth()
    assert health.get("wandb") == expected
