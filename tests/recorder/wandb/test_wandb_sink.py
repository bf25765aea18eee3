"""The W&B sink against a run that the test controls: queue, order, counting, failing, closing."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli.errors import UsageError
from mlotel_cli.recorder.wandb.wandb_rows import Row
from mlotel_cli.recorder.wandb.wandb_run import Mode
from mlotel_cli.recorder.wandb.wandb_sink import NullTracker, TrackerSettings, WandbSink, create_tracker
from mlotel_cli.records import BatchRecord, Sample


class FakeRun:
    """A W&B run in memory. `gate` closed makes `log` wait, as a wandb-core that does not read would."""

    def __init__(self, *, mode: Mode = "offline", fail_after: int | None = None, finish_hangs: bool = False) -> None:
        self.mode: Mode = mode
        self.id = "abc"
        self.url = None
        self.dir = "wandb/offline-run-abc"
        self.rows: list[Row] = []
        self.config: dict[str, Any] = {}
        self.finished: tuple[Mapping[str, Any], tuple[list[Any], list[Any]], int] | None = None
        self.abandoned = threading.Event()
        self.fail_after = fail_after
        self.finish_hangs = finish_hangs
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.killed = threading.Event()

    def log(self, row: Row) -> None:
        self.waiting.set()
        self.gate.wait()
        if self.fail_after is not None and len(self.rows) >= self.fail_after:
            raise ConnectionResetError("Connection lost")
        self.rows.append(dict(row))

    def update_config(self, config: Mapping[str, Any]) -> None:
        self.config.update(config)

    def finish(self, summary: Mapping[str, Any], *, table: tuple[list[Any], list[Any]], exit_code: int) -> str | None:
        if self.finish_hangs:
            self.killed.wait()
            raise ConnectionResetError("Connection lost")
        self.finished = (summary, table, exit_code)
        return None

    def kill(self) -> None:
        self.killed.set()

    def abandon(self, error: Exception) -> str:
        self.abandoned.set()
        return str(error)


class Desk:
    """A sink on a fake run, and what it said."""

    def __init__(self, run: FakeRun, **changes: Any) -> None:
        self.run = run
        self.said: list[str] = []
        self.opened = threading.Event()
        self.opened.set()
        self.now = 0.0
        self.sink = WandbSink(settings(**changes), say=self.said.append, open_run=self.open, clock=lambda: self.now)

    def open(self, settings: TrackerSettings, *, config: Mapping[str, Any], say: Callable[[str], None]) -> FakeRun:
        self.opened.wait()
        self.run.config.update(config)
        return self.run

    def wait_until_taken(self) -> None:
        """Return when the thread has handled all that was written: the second mark is seen one step later."""
        for mark in ("first", "second"):
            self.run.config.pop(mark, None)
            self.sink.update_config({mark: True})
            wait_for(lambda mark=mark: mark in self.run.config)


def settings(mode: str = "offline", **changes: Any) -> TrackerSettings:
    given: dict[str, Any] = {"project": "p", "entity": None, "name": "n", "group": None, "job_type": "eval"}
    return TrackerSettings(**{"mode": mode, "dir": Path("run")} | given | changes)


def record(batch: int, *, scores: tuple[float, ...] = ()) -> BatchRecord:
    samples = [Sample(f"{batch}-{n}", {"score": score}) for n, score in enumerate(scores)]
    return BatchRecord(
        batch=batch, source_batch=batch, repeat=0, start_ns=0, size=1, status="scored", samples=samples, latency_ms=1.0
    )


def wait_for(condition: Callable[[], object]) -> None:
    """Return once `condition` holds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def batches(run: FakeRun) -> list[float]:
    return [row["batch"] for row in run.rows]


def test_rows_are_logged_in_order_once_and_the_run_is_finished() -> None:
    desk = Desk(FakeRun())
    desk.sink.start()
    for index in (2, 0, 1, 5, 4):
        desk.sink.write(record(index, scores=(index / 10,)))
    desk.sink.close({"accuracy": {"ap": 0.5}}, exit_code=1)
    assert batches(desk.run) == [0, 1, 2, 4, 5]
    assert desk.run.finished is not None
    summary, table, exit_code = desk.run.finished
    assert (summary, exit_code) == ({"accuracy": {"ap": 0.5}}, 1)
    assert [row[0] for row in table[1]] == ["0-0", "1-0", "2-0", "4-0", "5-0"]
    assert desk.sink.describe() == {
        "id": "abc",
        "mode": "offline",
        "url": None,
        "dir": "wandb/offline-run-abc",
        "rows_logged": 5,
        "rows_lost": 0,
        "error": None,
        "renamed": {},
    }
    assert desk.said == []


def test_what_is_written_before_the_run_is_open_waits_for_it() -> None:
    desk = Desk(FakeRun())
    desk.opened.clear()
    desk.sink.update_config({"early": 1, "path": Path("x")})
    desk.sink.start()
    desk.sink.write(record(0))
    desk.sink.update_config({"late": 2})
    desk.opened.set()
    desk.sink.close({})
    assert batches(desk.run) == [0]
    assert desk.run.config == {"early": 1, "path": "x", "late": 2}


def test_config_that_comes_during_the_run_reaches_it_without_a_row() -> None:
    desk = Desk(FakeRun())
    desk.sink.start()
    desk.sink.write(record(0))
    assert desk.run.waiting.wait(5)
    desk.sink.update_config({"late": 2})
    desk.sink.close({})
    assert desk.run.config == {"late": 2}


def test_closing_logs_everything_that_waits_first() -> None:
    desk = Desk(FakeRun())
    desk.run.gate.clear()
    desk.sink.start()
    for index in range(2000):
        desk.sink.write(record(index))
    closing = threading.Thread(target=desk.sink.close, args=({},))
    closing.start()
    closing.join(0.05)
    desk.run.gate.set()
    closing.join(5)
    assert batches(desk.run) == list(range(2000))
    assert desk.run.finished is not None


def test_a_full_queue_blocks_the_writer_and_loses_nothing() -> None:
    desk = Desk(FakeRun(), max_queued_rows=2, write_timeout_s=30.0)
    desk.run.gate.clear()
    desk.sink.start()
    desk.sink.write(record(0))
    assert desk.run.waiting.wait(5)
    writer = threading.Thread(target=lambda: [desk.sink.write(record(index)) for index in range(1, 10)])
    writer.start()
    writer.join(0.05)
    assert writer.is_alive()
    desk.run.gate.set()
    writer.join(5)
    desk.sink.close({})
    assert batches(desk.run) == list(range(10))
    assert desk.sink.describe()["rows_lost"] == 0


def test_a_queue_that_stays_full_drops_and_counts_and_waits_only_once() -> None:
    desk = Desk(FakeRun(), max_queued_rows=2, write_timeout_s=0.1)
    desk.run.gate.clear()
    desk.sink.start()
    desk.sink.write(record(0))
    assert desk.run.waiting.wait(5)
    started = time.monotonic()
    for index in range(1, 40):
        desk.sink.write(record(index))
    assert 0.1 <= time.monotonic() - started < 1.0
    assert desk.sink.describe()["rows_lost"] == 37
    desk.run.gate.set()
    desk.sink.close({})
    assert batches(desk.run) == [0, 1, 2]
    assert (desk.sink.describe()["rows_logged"], desk.sink.describe()["rows_lost"]) == (3, 37)
    assert desk.said == ["W&B: it took no rows for 0.1 s; rows are dropped and counted"]


def test_a_run_that_fails_says_so_once_counts_the_rest_and_never_raises() -> None:
    desk = Desk(FakeRun(fail_after=3))
    desk.sink.start()
    for index in range(10):
        desk.sink.write(record(index))
    desk.sink.close({})
    desk.sink.write(record(10))
    assert batches(desk.run) == [0, 1, 2]
    assert desk.run.abandoned.wait(5)
    assert desk.run.finished is None
    described = desk.sink.describe()
    assert (described["rows_logged"], described["rows_lost"], described["error"]) == (3, 8, "Connection lost")
    (line,) = desk.said
    assert line.startswith("W&B: stopped (Connection lost). Every batch is in batches.parquet; upload what was logged")


def test_a_run_that_cannot_be_opened_is_said_and_its_rows_are_counted() -> None:
    said: list[str] = []

    def fail(*_: object, **__: object) -> FakeRun:
        raise OSError("no space left on device")

    sink = WandbSink(settings(), say=said.append, open_run=fail)
    sink.start()
    sink.write(record(0))
    sink.close({})
    described = sink.describe()
    assert (described["id"], described["rows_lost"], described["error"]) == (None, 1, "no space left on device")
    assert said == ["W&B: stopped (no space left on device). Every batch is in batches.parquet"]


def test_a_finish_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlotel_cli.recorder.wandb.wandb_sink.CLOSE_GRACE_S", 0.1)
    desk = Desk(FakeRun(finish_hangs=True), finish_timeout_s=0.05)
    desk.sink.start()
    desk.sink.write(record(0))
    started = time.monotonic()
    desk.sink.close({})
    assert time.monotonic() - started < 5.5
    assert desk.run.killed.is_set()
    assert desk.run.abandoned.wait(5)
    assert desk.sink.describe()["error"] == "it did not finish in time"
    assert len(desk.said) == 1


def test_online_and_too_fast_rows_are_merged_and_it_is_said() -> None:
    desk = Desk(FakeRun(mode="online"), mode="online", rows_per_minute=10)
    desk.sink.start()
    for index in range(200):
        desk.sink.write(record(index))
    desk.sink.close({"a": 1})
    assert batches(desk.run)[:10] == list(range(10))
    assert len(desk.run.rows) < 20
    assert sum(row.get("batches_merged", 1) for row in desk.run.rows) == 200
    assert desk.run.rows[-1]["batch"] == 199
    described = desk.sink.describe()
    assert (described["rows_logged"], described["rows_lost"]) == (200, 0)
    assert described["rows_merged"] == 200 - sum("batches_merged" not in row for row in desk.run.rows)
    assert described["windows"] == sum("batches_merged" in row for row in desk.run.rows)
    assert desk.run.finished is not None
    assert desk.run.finished[0] == {"a": 1, "batches_merged": described["rows_merged"]}
    assert desk.said == ["W&B: more than 10 batches a minute; from here on a row is the mean of several batches"]


def test_a_merged_row_is_logged_when_its_time_has_come_and_merging_is_said_once() -> None:
    desk = Desk(FakeRun(mode="online"), mode="online", rows_per_minute=60)
    desk.sink.start()
    for index in range(60):
        desk.sink.write(record(index))
    wait_for(lambda: len(desk.run.rows) == 60)
    for last in (62, 65):
        for index in range(last - 2, last + 1):
            desk.sink.write(record(index))
        desk.wait_until_taken()
        desk.now += 1.0
        wait_for(lambda: desk.run.rows[-1]["batch"] == last)  # noqa: B023 - called in this turn of the loop
    desk.sink.close({})
    assert desk.run.rows[60:] == [{"batch": last, "latency/batch_ms": 1.0, "batches_merged": 3} for last in (62, 65)]
    assert len(desk.said) == 1


def test_offline_rows_are_never_merged() -> None:
    desk = Desk(FakeRun(), rows_per_minute=10)
    desk.sink.start()
    for index in range(200):
        desk.sink.write(record(index))
    desk.sink.close({})
    assert batches(desk.run) == list(range(200))


def test_closing_a_sink_that_was_never_started_does_nothing() -> None:
    desk = Desk(FakeRun())
    desk.sink.write(record(0))
    desk.sink.close({})
    assert desk.sink.describe()["rows_lost"] == 1


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("disabled", None, NullTracker),
        ("auto", "disabled", NullTracker),
        ("auto", "offline", WandbSink),
        ("auto", None, WandbSink),
        ("offline", "disabled", WandbSink),
        ("auto", "nonsense", WandbSink),
    ],
)
def test_the_mode_chooses_the_tracker(
    mode: str, environment: str | None, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert type(create_tracker(settings(mode), say=print)) is expected


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"tracker\.mode=sometimes is not a mode. Allowed: auto, online"):
        create_tracker(settings("sometimes"), say=print)


def test_no_tracker_takes_everything_and_describes_nothing() -> None:
    tracker = create_tracker(settings("disabled"), say=print)
    tracker.start()
    tracker.update_config({"a": 1})
    tracker.write(record(0))
    tracker.close({})
    assert tracker.describe() == {
        "id": None,
        "mode": "disabled",
        "url": None,
        "dir": None,
        "rows_logged": 0,
        "rows_lost": 0,
        "error": None,
    }
