"""A monitor's W&B sink: on a run in memory, on the real wandb offline, and online against the loopback backend."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli.recorder.wandb import wandb_sink as wandb
from mlotel_cli.recorder.wandb.wandb_run import TrackerSettings
from mlotel_cli.recorder.wandb.wandb_sink import WindowedWandbSink, anchored_clock, create_tracker
from mlotel_cli.records import BatchRecord, StageTime
from mlotel_cli.snapshot import SourceReport
from mlotel_cli.wire import Report
from tests.recorder.wandb.test_wandb_run import KEY, _own_process_state  # noqa: F401 - an autouse fixture
from tests.recorder.wandb.test_wandb_sink import FakeRun, wait_for
from tests.support.wandb_backend import WandbBackend
from tests.support.wandb_file import find_wandb_file, read_wandb_file

START = 1_000_000.0


def settings(folder: Path, mode: str = "offline", **changes: Any) -> TrackerSettings:
    given: dict[str, Any] = {"project": "p", "entity": None, "name": "gate", "group": None, "job_type": "monitor"}
    given |= {"window_s": 15.0, "started_s": START, "system_metrics": False, "dir": folder}
    return TrackerSettings(**{"mode": mode} | given | changes)


def record(batch: int) -> BatchRecord:
    stages = {"reader": StageTime(host_ms=2.0, queue_ms=0.5, calls=1)}
    return BatchRecord(batch, batch, 0, 0, 1, "done", latency_ms=4.0, stages=stages, data={"plates": float(batch % 3)})


class Desk:
    """A sink on a fake run and a clock."""

    def __init__(self, run: FakeRun, **changes: Any) -> None:
        self.run = run
        self.said: list[str] = []
        self.now = START
        self.opened = threading.Event()
        self.opened.set()
        given = settings(Path("run"), **changes)
        self.sink = WindowedWandbSink(given, say=self.said.append, open_run=self.open, clock=lambda: self.now)

    def open(self, given: TrackerSettings, *, config: Mapping[str, Any], say: Callable[[str], None]) -> FakeRun:
        self.opened.wait()
        return self.run

    def write(self, count: int, *, seconds: float) -> None:
        """So many batches, evenly."""
        for batch in range(count):
            self.now += seconds / count
            self.sink.write(record(batch))


def test_a_row_a_window_however_many_batches():
    desk = Desk(FakeRun())
    desk.sink.start()
    desk.write(3000, seconds=50)
    desk.sink.close({"a": 1}, exit_code=0)
    rows = desk.run.rows
    assert [row["window"] for row in rows] == [0, 1, 2, 3]
    assert sum(row["count/done"] for row in rows) == 3000
    assert desk.run.finished[0] == {"a": 1}
    described = desk.sink.describe()
    assert (described["rows_logged"], described["rows_lost"], described["windows"]) == (3000, 0, 4)
    assert desk.said == []


def test_a_clock_that_is_set_moves_no_window(monkeypatch: pytest.MonkeyPatch):
    wall, elapsed = [START], [50.0]
    clock = anchored_clock(lambda: wall[0], lambda: elapsed[0])
    wall[0] -= 3600
    elapsed[0] += 15
    assert clock() == START + 15
    sink = WindowedWandbSink(settings(Path("run")), say=print)
    monkeypatch.setattr(wandb.time, "time", lambda: 0.0)
    assert sink._clock() > START


def test_a_window_without_batches_is_logged_by_the_clock():
    desk = Desk(FakeRun())
    desk.sink.start()
    desk.now += 16
    wait_for(lambda: len(desk.run.rows) == 1)
    assert desk.run.rows[0]["rate/batches_per_s"] == 0
    desk.sink.close({})


def test_writing_never_waits_for_a_run_that_does_not_take_rows():
    desk = Desk(FakeRun(), max_queued_rows=1)
    desk.opened.clear()
    desk.sink.start()
    begun = time.monotonic()
    desk.write(20_000, seconds=60)
    assert time.monotonic() - begun < 2
    desk.opened.set()
    desk.sink.close({})
    assert sum(row["count/done"] for row in desk.run.rows) == 20_000


def test_windows_that_wait_too_long_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlotel_cli.recorder.wandb.wandb_sink.MAX_WINDOWS", 2)
    desk = Desk(FakeRun())
    desk.opened.clear()
    desk.sink.start()
    desk.write(50, seconds=75)
    desk.opened.set()
    desk.sink.close({})
    described = desk.sink.describe()
    assert described["rows_lost"] == 50 - sum(row["count/done"] for row in desk.run.rows) > 0


def test_a_run_that_fails_is_said_once_and_batches_are_counted_as_lost():
    desk = Desk(FakeRun(fail_after=1))
    desk.sink.start()
    desk.write(10, seconds=15)
    wait_for(lambda: len(desk.run.rows) == 1)
    desk.write(10, seconds=40)
    wait_for(lambda: desk.said)
    desk.write(5, seconds=5)
    desk.sink.close({})
    described = desk.sink.describe()
    assert described["rows_logged"] + described["rows_lost"] == 25
    assert len(desk.said) == 1


def test_what_the_workload_reports_is_in_the_row():
    desk = Desk(FakeRun())
    desk.sink.take_report(Report(SourceReport(received=7, dropped={"full": 2})))
    desk.sink.start()
    desk.sink.close({})
    assert (desk.run.rows[0]["drop/full"], desk.run.rows[0]["source/received"]) == (2, 7)


def test_only_a_monitor_has_windows(tmp_path: Path):
    assert not isinstance(create_tracker(settings(tmp_path, window_s=None), say=print), WindowedWandbSink)


# -- the real wandb ---------------------------------------------------------------------------------------------------


def log_windows(folder: Path, said: list[str], *, first: int, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    now = START + 15 * first
    clock = iter(range(10**6))
    given = settings(folder, **changes)
    sink = WindowedWandbSink(given, say=said.append, clock=lambda: now + next(clock) / 1000)
    sink.start()
    for batch in range(30):
        sink.write(record(batch))
    sink.close({"latency_ms": {"batch": {"p50": 4.0}}})
    return sink.describe()


def test_offline_the_file_holds_rows_and_histograms(tmp_path: Path):
    described = log_windows(tmp_path / "run", [], first=0)
    assert (described["rows_logged"], described["windows"], described["error"]) == (30, 1, None)
    file = read_wandb_file(find_wandb_file(tmp_path / "run"))
    (row,) = [row for row in file.history if "window" in row]
    assert (row["window"], row["count/done"], row["latency/batch_max_ms"]) == (0, 30, 4.0)
    assert row["data/plates"]["_type"] == "histogram"
    assert sum(row["data/plates"]["values"]) == 30
    assert len(row["data/plates"]["bins"]) == len(row["data/plates"]["values"]) + 1
    assert file.metrics["latency/*"].step_metric == "window"


def test_offline_a_second_recorder_starts_a_second_run_and_says_so(tmp_path: Path):
    said: list[str] = []
    first = log_windows(tmp_path / "run", said, first=0)
    second = log_windows(tmp_path / "run", said, first=2, resume_id=first["id"])
    assert first["id"] != second["id"]
    assert (first.get("earlier"), second["earlier"]) == (None, first["id"])
    assert sum(f"run {first['id']} cannot go on offline" in line for line in said) == 1
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 2


def test_online_a_second_recorder_goes_on_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with WandbBackend() as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        said: list[str] = []
        first = log_windows(tmp_path / "run", said, first=0, mode="online")
        second = log_windows(tmp_path / "run", said, first=2, mode="online", resume_id=first["id"])
        assert (first["error"], second["error"]) == (None, None), said
        assert first["id"] == second["id"]
        assert "earlier" not in second
        assert [row["window"] for row in backend.run.history if "window" in row] == [0, 2]
        assert backend.complaints == []
