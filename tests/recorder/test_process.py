"""The recorder, given frames that are written by hand: what it leaves behind, whatever comes through the pipe."""

import contextlib
import json
import marshal
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mlotel_cli.config.policies import TrackerOptions
from mlotel_cli.recorder.process import Answers, read_frames, record
from mlotel_cli.records import Sample
from mlotel_cli.snapshot import Gaps, SourceReport
from mlotel_cli.store.reading import Run, read_run
from mlotel_cli.wire import (
    Closing,
    Info,
    Message,
    MonitorOptions,
    Opening,
    Report,
    Settled,
    SpanMessage,
    split_frames,
)
from tests.support.wandb_file import find_wandb_file, read_wandb_file
from tests.support.wire import frame

OPENING = Opening(
    mode="eval",
    name="by-hand",
    run_id="abc",
    started_ns=1,
    overrides=["seed=1"],
    config={"seed": 1},
    identity={"mlotel.run.id": "abc", "service.name": "by-hand"},
    tracker=TrackerOptions(mode="disabled"),
)


def opened(**changes) -> Opening:
    return replace(OPENING, **changes)


def span(batch, name="batch", *, opened=None, start=0, end=10_000_000, attributes=None) -> SpanMessage:
    return SpanMessage(1, 2, 0, opened, batch, name, "INTERNAL", "t", "Main", start, end, attributes=attributes)


def settle(batch, *, opened, status="scored", accuracy=None, samples=()) -> Settled:
    return Settled(batch, batch, 0, 1, status, opened, 0, 0.5, accuracy=accuracy or {}, samples=list(samples))


def whole_batch(batch) -> list[Message]:
    sample = Sample(f"{batch}.0", {"score": 1.0}, "1", "0")
    last = settle(batch, opened=2, accuracy={"score": 0.5}, samples=[sample])
    return [span(batch, "reader"), span(batch, opened=2), last]


def close(*, emitted, **closing) -> Closing:
    return Closing(spans_emitted=emitted, **closing)


def raw_frame(*items: tuple) -> bytes:
    """A frame of anything, as no workload writes it."""
    payload = marshal.dumps(list(items))
    return struct.pack("<I", len(payload)) + payload


@dataclass
class Ended:
    """How a recorder ended: whether it was content, what it said, its last answer, and what is on disk."""

    ok: bool
    said: list[str]
    result: dict | None
    run: Run | None


@dataclass
class Heard(Answers):
    """Answers that are kept."""

    said: list[str] = field(default_factory=list)
    info: dict | None = None

    def say(self, text: str) -> None:
        self.said.append(text)

    def result(self, info) -> None:
        self.info = json.loads(json.dumps(info, default=str))


def run_recorder(folder: Path, *chunks: bytes) -> Ended:
    """Record `chunks` in this process, up to the end of the pipe."""
    read_end, write_end = os.pipe()
    answers = Heard()
    os.set_blocking(write_end, False)
    for chunk in chunks:
        assert os.write(write_end, chunk) == len(chunk)
    os.close(write_end)
    ok = record(read_end, folder, answers)
    return Ended(ok, answers.said, answers.info, read_run(folder) if (folder / "run.json").exists() else None)


def unfinished(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def test_a_run_from_opening_to_closing(tmp_path):
    told = Info.of({"environment": {"python": "3"}, "config": {"more": 2}, "notes": ["said"]})
    ended = run_recorder(
        tmp_path,
        frame(opened(), told),
        frame(*whole_batch(0), *whole_batch(1)),
        frame(span(None, "outside")),
        frame(close(emitted=6, accuracy={"score": 0.75}, wall_s=2.0, span_cost_us=3.0)),
    )
    info = ended.run.info
    assert ended.ok
    assert ended.result == dict(info)
    assert (info["status"], info["mode"], info["name"], info["run_id"]) == ("complete", "eval", "by-hand", "abc")
    assert (info["schema_version"], info["started_ns"], info["overrides"]) == (1, 1, ["seed=1"])
    assert info["ended_ns"] > 1
    assert (info["environment"], info["notes"], info["error"]) == ({"python": "3"}, ["said"], None)
    assert info["wandb"]["mode"] == "disabled"
    telemetry = info["summary"]["telemetry"]
    assert (telemetry["spans_recorded"], telemetry["spans_lost"], telemetry["spans_late"]) == (5, 1, 0)
    assert telemetry["hot_path_us_per_batch"] == 3.0 * 5 / 2
    assert info["summary"]["accuracy"] == {"score": {"value": 0.75, "ci95": None}}
    assert info["summary"]["throughput"]["wall_items_per_s"] == 1.0
    assert ended.run.batches["batch"].to_list() == [0, 1]
    assert ended.run.batches["accuracy.score"].to_list() == [0.5, 0.5]
    assert ended.run.batches["reader.host_ms"].to_list() == [10.0, 10.0]
    assert ended.run.spans.height == 5
    assert ended.run.samples["id"].to_list() == ["0.0", "1.0"]
    assert unfinished(tmp_path) == []


def test_closing_without_a_batch(tmp_path):
    ended = run_recorder(tmp_path, frame(opened(), close(emitted=0, status="failed", error="data: empty")))
    assert ended.ok
    assert (ended.run.status, ended.run.info["error"]) == ("failed", "data: empty")
    assert ended.run.summary.batches == {}
    assert ended.run.summary.telemetry.hot_path_us_per_batch is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


def test_a_workload_that_never_opened_leaves_nothing(tmp_path):
    ended = run_recorder(tmp_path)
    assert (ended.ok, ended.result, list(tmp_path.iterdir())) == (True, None, [])


def test_a_workload_that_dies_without_a_word_leaves_an_interrupted_run(tmp_path):
    ended = run_recorder(tmp_path, frame(opened()), frame(*whole_batch(0), span(1, "reader")))
    assert ended.ok
    assert (ended.run.status, ended.run.info["error"]) == ("interrupted", "the workload ended before it closed the run")
    assert ended.run.batches.select("batch", "status").rows() == [(0, "scored"), (1, "incomplete")]
    assert ended.run.summary.telemetry.spans_lost is None
    assert ended.run.summary.throughput.items_per_s == pytest.approx(100.0)  # by the rows: 1 item in 10 ms


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 100, -1])
def test_half_a_frame_at_the_end_costs_nothing_before_it(tmp_path, cut):
    ended = run_recorder(tmp_path, frame(opened()), frame(*whole_batch(0)), frame(*whole_batch(1))[:cut])
    assert ended.ok
    assert ended.run.status == "interrupted"
    assert ended.run.batches.rows(named=True)[0]["status"] == "scored"
    assert ended.run.batches["batch"].to_list() == [0]


def test_bytes_that_are_no_frame_end_the_run_with_everything_before_them(tmp_path):
    garbage = struct.pack("<I", 8) + b"no frame"
    ended = run_recorder(tmp_path, frame(opened()), frame(*whole_batch(0)), garbage, frame(*whole_batch(1)))
    assert not ended.ok
    assert ended.result is None
    (said,) = ended.said
    assert said.startswith("The recorder gives up: the workload sent what cannot be read")
    assert (ended.run.status, ended.run.info["error"]) == ("failed", said.removeprefix("The recorder gives up: "))
    assert ended.run.batches["batch"].to_list() == [0]


def test_an_item_that_makes_no_sense_costs_only_itself(tmp_path, capsys):
    bad = [("span", "too", "short"), (), ("settle", 1), ("info", "{"), ("close", '{"wall_s": "long"}'), ("nonsense",)]
    ended = run_recorder(
        tmp_path, frame(opened()), raw_frame(*bad), frame(span(9, opened="many"), *whole_batch(0), close(emitted=4))
    )
    assert ended.ok
    assert ended.run.status == "complete"
    assert ended.run.summary.telemetry.items_refused >= 4
    assert 0 in ended.run.batches.filter(status="scored")["batch"]
    assert capsys.readouterr().err.count("refused") == 1


def test_spans_that_end_after_the_closing_are_kept_and_are_no_loss(tmp_path):
    late = span(0, "thread")
    ended = run_recorder(tmp_path, frame(opened(), *whole_batch(0)), frame(close(emitted=2)), frame(late))
    telemetry = ended.run.summary.telemetry
    assert (telemetry.spans_lost, telemetry.spans_recorded, telemetry.spans_late) == (0, 3, 1)
    assert ended.run.spans["name"].to_list() == ["reader", "batch", "thread"]


def test_an_own_loop_is_settled_by_its_roots_and_scored_by_its_attributes(tmp_path):
    roots = [span(n, opened=1, attributes={"batch.size": 2, "mlotel.accuracy.recall": n / 2}) for n in range(3)]
    ended = run_recorder(tmp_path, frame(opened(settle_roots=True, mode="loop")), frame(*roots, close(emitted=3)))
    assert ended.run.batches.select("batch", "size", "status").rows() == [(n, 2, "scored") for n in range(3)]
    assert ended.run.summary.accuracy["recall"].value == 0.5


def test_an_opening_that_cannot_be_followed_is_said(tmp_path):
    ended = run_recorder(tmp_path, frame(opened(tracker=TrackerOptions(mode="loud"))))
    assert not ended.ok
    assert "tracker.mode=loud" in ended.said[0]


def test_a_full_disk_is_said_and_what_was_written_stays_readable(tmp_path, monkeypatch):
    """A limit on file sizes stands in for the disk: run.json fits, a part of incompressible scores does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    draw = random.Random(0)
    many = [settle(n, opened=0, accuracy={"score": draw.random()}) for n in range(1, 2000)]
    read_end, write_end = os.pipe()
    os.write(write_end, frame(opened(part_s=0.0), *whole_batch(0)))
    answers = Heard()
    taken = 0

    def read_then_fill(read_fd: int, *, tick_s: float):
        nonlocal taken
        yield from read_frames(read_fd, tick_s=tick_s)  # ends: the pipe is closed
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        taken += 1
        yield next(split_frames(bytearray(frame(*many))))

    os.close(write_end)
    monkeypatch.setattr("mlotel_cli.recorder.process.read_frames", read_then_fill)
    try:
        ok = record(read_end, tmp_path, answers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (ok, taken) == (False, 1)
    (said,) = answers.said
    assert "The recorder gives up: " in said
    assert "batches.parquet cannot be written" in said
    assert "File too large" in said
    run = read_run(tmp_path)
    assert run.status == "failed"
    assert run.batches["batch"].to_list() == [0]
    assert unfinished(tmp_path) == []


def test_parts_that_could_not_be_merged_are_noted_and_fail_nothing(tmp_path, monkeypatch):
    class NoRoom:
        def sink_parquet(self, path: Path) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlotel_cli.store.tables.scan_parts", lambda parts: NoRoom())
    told = Info.of({"notes": ["said"]})
    first, second = frame(opened(part_s=0.0), told, *whole_batch(0)), frame(*whole_batch(1), close(emitted=4))
    ended = run_recorder(tmp_path, first, second)
    assert ended.ok
    assert (ended.run.status, ended.run.batches["batch"].to_list()) == ("complete", [0, 1])
    notes = ended.run.info["notes"]
    assert notes[0] == "said"
    assert notes[1] == "batches.parquet: its 2 parts were not merged: [Errno 28] No space left on device"


def test_frames_are_put_together_from_any_pieces():
    read_end, write_end = os.pipe()
    sent = [[("a", n, "x" * n)] for n in range(30)]
    data = b"".join(raw_frame(*items) for items in sent)
    frames = read_frames(read_end, tick_s=0.0)
    assert next(frames) is None
    got = []
    for start in range(0, len(data), 7):
        os.write(write_end, data[start : start + 7])
        while (items := next(frames)) is not None:
            got.append(items)
    os.close(write_end)
    assert got == sent
    assert list(frames) == []
    os.close(read_end)


TOLD = Report(SourceReport("data", "connected", 2), gaps=Gaps(batches_lost=1))


def monitoring(*, restarts=0, **changes) -> Opening:
    return opened(mode="monitor", monitor=MonitorOptions(restarts=restarts), **changes)


def done_batch(batch, *, status="done") -> list[Message]:
    return [span(batch, "reader"), span(batch, opened=2), settle(batch, opened=2, status=status)]


def test_a_monitor_is_summed_up_by_what_was_counted(tmp_path):
    batches = [*done_batch(0), *done_batch(1), *done_batch(2, status="skipped")]
    ended = run_recorder(tmp_path, frame(monitoring(), *batches, TOLD, close(emitted=6, wall_s=2.0)))
    info = ended.run.info
    assert ended.ok
    assert info["totals"] == {"batches": {"done": 2, "skipped": 1}, "items": 3, "items_done": 2, "spans": 6}
    assert info["summary"]["batches"] == {"done": 2, "skipped": 1}
    assert info["summary"]["throughput"] == {"items_per_s": 1.0, "wall_items_per_s": 1.0}
    assert (info["summary"]["telemetry"]["spans_recorded"], info["summary"]["telemetry"]["items_refused"]) == (6, 0)
    assert info["http"] is None  # the server has ended
    assert ended.run.batches["batch"].to_list() == [0, 1, 2]


def test_an_evaluation_has_neither_totals_nor_a_server(tmp_path):
    ended = run_recorder(tmp_path, frame(opened(), *whole_batch(0), close(emitted=2)))
    assert not {"totals", "http"} & set(ended.run.info)


def test_a_report_that_makes_no_sense_costs_only_itself(tmp_path, capsys):
    ended = run_recorder(
        tmp_path, frame(monitoring()), raw_frame(("report", "{")), frame(*done_batch(0), close(emitted=2))
    )
    assert ended.ok
    assert ended.run.summary.telemetry.items_refused == 1
    assert ended.run.summary.batches == {"done": 1}


# -- the real process ---------------------------------------------------------------------------------------------


class Recorder:
    """`python -m mlotel_cli.recorder` with both pipes in the test's hand."""

    def __init__(self, folder: Path, *modules: str) -> None:
        read_end, self.pipe = os.pipe()
        self.answers, write_end = os.pipe()
        self.folder = folder
        command = [sys.executable, "-P", "-m", "mlotel_cli.recorder", str(read_end), str(write_end), str(folder)]
        with (folder / "recorder.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *modules],
                pass_fds=(read_end, write_end),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
            )
        os.close(read_end)
        os.close(write_end)

    def send(self, *messages: Message) -> None:
        os.write(self.pipe, frame(*messages))

    def finish(self, *, timeout_s: float = 60) -> list[dict]:
        """Close the pipe; what it answered."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
        with os.fdopen(self.answers) as answers:
            lines = [json.loads(line) for line in answers]
        self.process.wait(timeout_s)
        return lines

    def wait_for(self, condition, *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, (self.folder / "recorder.log").read_text()
            time.sleep(0.01)

    @property
    def status(self) -> str | None:
        return read_run(self.folder).status if (self.folder / "run.json").exists() else None


def test_rows_are_readable_while_the_run_goes_on_and_signals_do_not_end_it(tmp_path):
    recorder = Recorder(tmp_path, "polars")
    recorder.send(opened(part_s=0.05), *whole_batch(0))
    recorder.wait_for(lambda: recorder.status and read_run(tmp_path).batches.height == 1)
    assert recorder.status == "running"
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # In every thread: polars would take a SIGINT that any of its own gets, in spite of SIG_IGN, and stop writing.
    for thread in Path(f"/proc/{recorder.process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # that thread has ended
            (blocked,) = re.findall(r"^SigBlk:\s*(\w+)", (thread / "status").read_text(), re.MULTILINE)
            assert all(int(blocked, 16) >> (signum - 1) & 1 for signum in signals)
    for signum in signals:
        os.kill(recorder.process.pid, signum)
    recorder.send(*whole_batch(1))
    recorder.wait_for(lambda: read_run(tmp_path).batches.height == 2)
    assert recorder.status == "running"
    recorder.send(close(emitted=4))
    (answer,) = recorder.finish()
    assert answer["result"]["status"] == recorder.status == "complete"
    assert recorder.process.returncode == 0
    assert os.listdir(tmp_path / "batches.parquet") == ["part-000001-000002.parquet"]


def test_a_recorder_killed_leaves_what_it_had_written(tmp_path):
    recorder = Recorder(tmp_path, "polars")
    recorder.send(opened(part_s=0.05), *whole_batch(0))
    recorder.wait_for(lambda: recorder.status and read_run(tmp_path).batches.height == 1)
    recorder.process.kill()
    recorder.finish()
    assert recorder.status == "interrupted"
    assert read_run(tmp_path).batches["batch"].to_list() == [0]


@pytest.mark.slow
def test_a_monitors_recorder_serves_metrics_tells_the_workload_and_its_successor_goes_on(tmp_path):
    first = Recorder(tmp_path, "polars")
    first.send(monitoring(part_s=0.05), *done_batch(0), TOLD)
    first.wait_for(lambda: first.status and read_run(tmp_path).info.get("totals", {}).get("spans") == 2)
    with os.fdopen(os.dup(first.answers)) as answers:
        live = json.loads(answers.readline())["snapshot"]
    assert (live["batches"], live["source"]["received"]) == (1, 2)
    assert live["sinks"]["parquet"]["sent"] == 3  # a batch and its spans
    url = read_run(tmp_path).info["http"]
    assert url == live["http"]
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as reply:
        assert 'mlotel_batches_total{service_name="by-hand",status="done"} 1.0' in reply.read().decode()
    first.send(Info.of({"environment": {"python": "3"}}))
    first.wait_for(lambda: read_run(tmp_path).info["environment"])
    first.process.kill()
    first.finish()

    second = Recorder(tmp_path, "polars")
    second.send(monitoring(started_ns=99, restarts=1), *done_batch(5))
    second.wait_for(lambda: read_run(tmp_path).info["recorder_pid"] == second.process.pid)
    assert read_run(tmp_path).info["http"] == url  # a page that is open finds it again
    second.send(close(emitted=2, wall_s=2.0))
    (*_, answer) = second.finish()
    info = answer["result"]
    assert (info["status"], info["started_ns"], info["environment"]) == ("complete", 1, {"python": "3"})
    assert info["totals"] == {"batches": {"done": 2}, "items": 2, "items_done": 2, "spans": 4}
    assert info["summary"]["telemetry"]["spans_recorded"] == 4
    assert any(note.startswith("recorder 2 took over at ") for note in info["notes"])
    assert read_run(tmp_path).batches["batch"].to_list() == [0, 5]


def test_it_ends_with_the_closing_although_another_process_holds_the_pipe_open(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.send(opened(), *whole_batch(0), close(emitted=2))
    held, recorder.pipe = recorder.pipe, -1
    (answer,) = recorder.finish()
    os.close(held)
    assert answer["result"]["status"] == "complete"


def test_a_workload_that_is_gone_needs_no_answer(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.send(opened(), *whole_batch(0))
    os.close(recorder.pipe)
    os.close(recorder.answers)
    assert recorder.process.wait(60) == 0
    assert recorder.status == "interrupted"


@pytest.mark.slow
def test_a_killed_workload_leaves_a_finished_offline_wandb_run(tmp_path):
    recorder = Recorder(tmp_path, "polars", "wandb")
    tracker = TrackerOptions(mode="offline")
    recorder.send(opened(tracker=tracker), *whole_batch(0), *whole_batch(1))
    said = recorder.finish()
    assert any("recording offline" in line.get("say", "") for line in said)
    assert recorder.status == "interrupted"
    file = read_wandb_file(find_wandb_file(tmp_path))
    assert (file.exit_code, file.torn) == (1, False)
    assert [row["batch"] for row in file.history if "latency/batch_ms" in row] == [0, 1]
    assert file.config["seed"] == 1
    assert file.config["mlotel.run.id"] == "abc"
    assert file.summary["batches"] == {"scored": 2}
    assert read_run(tmp_path).info["wandb"]["rows_logged"] == 2
