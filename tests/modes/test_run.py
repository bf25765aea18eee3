"""A session around the real recorder process: how a run ends, whatever happens in between."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlotel_cli.config.policies import TrackerOptions
from mlotel_cli.errors import Interrupted, RecorderError
from mlotel_cli.execute.batches import Finished, Numbered
from mlotel_cli.modes.run import Session, measure_span_cost
from mlotel_cli.records import Batch, Sample
from mlotel_cli.store.reading import Run, read_run
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.tracer import Recording
from mlotel_cli.wire import Opening

TRACKER = TrackerOptions(mode="disabled")


@pytest.fixture(autouse=True)
def _backend_is_restored():
    before = api.PROVIDER.backend
    yield
    api.PROVIDER.backend = before


@pytest.fixture
def said():
    return []


@pytest.fixture
def session(tmp_path, said):
    return Session(tmp_path, say=said.append)


def open_session(session: Session, *, backend: str = "otel", **changes) -> Session:
    opening = Opening(mode="eval", name="t", run_id="r", started_ns=time.time_ns(), tracker=TRACKER, **changes)
    session.open(opening, backend=backend, strict=False, flush_ms=5)
    session.record()
    return session


def run_batch(session: Session, index: int, **settled) -> None:
    start_ns = time.perf_counter_ns()
    with api.batch(index) as root, api.span("stage"):
        pass
    done = Finished(Numbered(index, 0, Batch(index, ["0"], None)), None, None, "", root, start_ns, wait_ns=500_000)
    session.settle(replace(done.settled("scored"), **settled))


def ended(folder: Path) -> Run:
    return read_run(folder)


def handlers() -> list:
    return [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_a_run_that_completes(session, tmp_path, said):
    before = handlers()
    with session:
        assert handlers() != before
        open_session(session)
        session.tell({"environment": {"python": "3"}})
        run_batch(session, 0, accuracy={"score": 0.5}, samples=[Sample("a", {"score": 0.5}, "1")])
        run_batch(session, 1, status="skipped", error="stage x raised")
        session.closing.accuracy = {"score": 0.5}
        session.closing.wall_s = 2.0
    assert handlers() == before
    assert api.PROVIDER.backend is OFF
    run = ended(tmp_path)
    assert session.info == run.info
    assert (run.status, run.info["environment"]) == ("complete", {"python": "3"})
    assert run.batches.select("batch", "status", "error", "source.wait_ms").rows() == [
        (0, "scored", "", 0.5),
        (1, "skipped", "stage x raised", 0.5),
    ]
    assert run.batches["stage.calls"].to_list() == [1, 1]
    assert run.samples.select("batch", "id", "prediction", "score.score").rows() == [(0, "a", "1", 0.5)]
    telemetry = run.summary.telemetry
    assert (telemetry.spans_recorded, telemetry.spans_lost, telemetry.source_paused_s) == (4, 0, 0.0)
    assert 0 < telemetry.hot_path_us_per_batch < 1000
    assert run.summary.accuracy["score"].value == 0.5
    assert said == []


def test_numbers_of_numpy_come_through_the_pipe(session, tmp_path):
    with session:
        open_session(session)
        sample = Sample("a", {"iou": np.float32(0.5), "none": None})
        accuracy = {"score": np.float64(0.25)}
        run_batch(session, 0, size=np.int64(4), source_batch=np.int32(7), accuracy=accuracy, samples=[sample])
    run = ended(tmp_path)
    assert run.batches.select("size", "source_batch", "accuracy.score").rows() == [(4, 7, 0.25)]
    assert run.samples.select("score.iou", "score.none").rows() == [(0.5, None)]
    assert run.summary.telemetry.items_refused == 0


def test_live_input_is_dated_by_its_arrival(session, tmp_path):
    with session:
        open_session(session)
        run_batch(session, 0, source_time_ns=time.time_ns() - 10**9)
    assert 1000 < ended(tmp_path).batches["latency_ms"][0] < 2000


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("no label"), "failed", "no label"),
        (ValueError(), "failed", "ValueError"),
        (KeyboardInterrupt(), "interrupted", None),
        (Interrupted(signal.SIGTERM), "interrupted", None),
    ],
)
def test_what_ends_a_run_early_is_in_run_json(session, tmp_path, error, status, text):
    def run() -> None:
        with session:
            run_batch(open_session(session), 0)
            raise error

    with pytest.raises(type(error)):
        run()
    assert (ended(tmp_path).status, ended(tmp_path).info["error"]) == (status, text)
    assert ended(tmp_path).batches.height == 1


def test_a_session_that_is_never_opened_leaves_no_run_and_no_process(session, tmp_path):
    with session:
        pid = session.link.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert session.info is None
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_in_order(session, tmp_path, signum, request):
    if signum == signal.SIGHUP:  # the process that runs the tests may ignore it
        request.addfinalizer(functools.partial(signal.signal, signum, signal.signal(signum, signal.SIG_DFL)))
    before = handlers()

    def run() -> None:
        with session:
            run_batch(open_session(session), 0)
            os.kill(os.getpid(), signum)
            pytest.fail("the signal was not taken")

    with pytest.raises(Interrupted) as caught:
        run()
    assert caught.value.exit_code == 128 + signum
    assert handlers() == before
    assert ended(tmp_path).status == "interrupted"
    assert ended(tmp_path).batches["status"].to_list() == ["scored"]
    assert ended(tmp_path).summary.telemetry.spans_lost == 0


def test_a_signal_while_closing_waits_for_the_files(session, tmp_path, monkeypatch, capfd):
    finish = session.link.close

    def close(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(*args, **kwargs)

    monkeypatch.setattr(session.link, "close", close)

    def run() -> None:
        with session:
            run_batch(open_session(session), 0)

    with pytest.raises(Interrupted) as caught:
        run()
    assert caught.value.exit_code == 143
    assert ended(tmp_path).status == "complete"  # every batch ran; only the leaving was hurried
    assert session.info is not None
    assert "Finishing files" in capfd.readouterr().err


def test_a_signal_while_closing_does_not_hide_why_the_run_failed(session, monkeypatch):
    finish = session.link.close

    def close(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(*args, **kwargs)

    monkeypatch.setattr(session.link, "close", close)

    def run() -> None:
        with session:
            open_session(session)
            raise ValueError("no label")

    with pytest.raises(ValueError, match="no label"):
        run()


@pytest.mark.slow
def test_a_second_signal_leaves_at_once_and_the_recorder_finishes(tmp_path):
    program = f"""
        import os, signal, sys, time
        from pathlib import Path
        from tests.modes.test_run import Session, open_session, run_batch

        times = iter([100.0, 100.1, 100.2, 100.4])
        session = Session(Path({str(tmp_path)!r}), say=print, now=lambda: next(times))
        with session:
            run_batch(open_session(session), 0)
            time.sleep(0.1)  # the hand-over is every 5 ms
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                os.kill(os.getpid(), signal.SIGINT)  # still the first one, which was sent to the group as well
                os.kill(os.getpid(), signal.SIGTERM)
                print(session.link.pid, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
            print("still here")
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert result.returncode == 143, result.stderr
    pid = int(result.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended(tmp_path).info["status"] == "interrupted"
    assert ended(tmp_path).batches["status"].to_list() == ["scored"]


def test_a_run_that_ends_by_a_signal_is_told_and_goes_on(tmp_path):
    told: list[int] = []
    session = Session(tmp_path, say=print, on_signal=told.append, now=lambda: 7.0)
    with session:
        run_batch(open_session(session), 0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # of one stop, sent to the process and to its group
        run_batch(session, 1)
    assert told == [signal.SIGTERM]
    assert ended(tmp_path).info["status"] == "complete"
    assert ended(tmp_path).batches["batch"].to_list() == [0, 1]


def test_a_terminal_that_goes_ends_the_run_unless_nohup_said_no(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Session(tmp_path, say=print) as session:
            run_batch(open_session(session), 0)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended(tmp_path).info["status"] == "complete"


def test_a_thread_of_a_program_leaves_its_signals_alone(tmp_path):
    before, during = handlers(), []

    def run() -> None:
        with Session(tmp_path, say=print) as session:
            during.extend(handlers())
            run_batch(open_session(session), 0)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert during == before == handlers()
    assert ended(tmp_path).status == "complete"


def test_a_recorder_that_is_killed_ends_the_run_with_a_clear_message(session, tmp_path):
    def run() -> None:
        with session:
            open_session(session, part_s=0.01)
            run_batch(session, 0)
            _wait_until(lambda: (tmp_path / "run.json").exists() and ended(tmp_path).batches.height)
            os.kill(session.link.pid, signal.SIGKILL)
            _wait_until(session.link.wait_for_room)

    with pytest.raises(
        RecorderError, match=r"recorder process ended \(exit code -9: SIGKILL.*is readable in"
    ) as caught:
        run()
    assert caught.value.exit_code == 1
    run_ = ended(tmp_path)
    assert (run_.info["status"], run_.info["error"]) == ("failed", str(caught.value))
    assert run_.batches["batch"].to_list() == [0]
    assert session.info is None


def test_a_recorder_that_is_killed_at_the_very_end_fails_the_run_too(session, tmp_path):
    def run() -> None:
        with session:
            open_session(session)
            _wait_until(lambda: (tmp_path / "run.json").exists())
            os.kill(session.link.pid, signal.SIGKILL)

    with pytest.raises(RecorderError, match="exit code -9"):
        run()
    assert ended(tmp_path).info["status"] == "failed"


def test_a_failed_run_says_its_own_reason_even_when_the_recorder_died_too(session, tmp_path):
    def run() -> None:
        with session:
            open_session(session)
            _wait_until(lambda: (tmp_path / "run.json").exists())
            os.kill(session.link.pid, signal.SIGKILL)
            raise ValueError("no label")

    with pytest.raises(ValueError, match="no label"):
        run()
    assert ended(tmp_path).info["error"] == "no label"


def test_a_control_run_settles_batches_without_spans(session, tmp_path):
    with session:
        open_session(session, backend="off")
        assert api.PROVIDER.backend is OFF
        run_batch(session, 0, accuracy={"score": 1.0})
    run = ended(tmp_path)
    assert run.batches.select("status", "latency_ms", "accuracy.score").rows() == [("scored", None, 1.0)]
    assert run.spans.height == 0
    assert run.summary.telemetry.hot_path_us_per_batch is None


def test_spans_before_record_are_not_recorded(session, tmp_path):
    with session:
        opening = Opening(mode="eval", name="t", run_id="r", started_ns=1, tracker=TRACKER)
        session.open(opening, backend="otel", strict=False, flush_ms=5)
        run_batch(session, 0)  # warm-up
        session.record()
        run_batch(session, 1)
    assert ended(tmp_path).spans["batch"].to_list() == [1, 1]
    assert ended(tmp_path).summary.telemetry.spans_recorded == 2


def test_faults_are_counted_in_the_summary(session, tmp_path):
    with session:
        open_session(session)
        with api.batch(0):
            api.record("boxes", float("nan"))
            api.record("boxes", float("inf"))
    assert ended(tmp_path).summary.telemetry.faults == {"record": 2}


def test_measuring_the_cost_of_a_span_emits_nothing():
    emitted = []
    cost_us = measure_span_cost(Recording(emitted.append))
    assert 0.1 < cost_us < 1000
    assert emitted == []
    assert api.PROVIDER.backend is OFF


def _wait_until(condition, *, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
