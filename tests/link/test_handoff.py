"""The link that loses nothing: against a recorder played by the test, and against real ones."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli import summary
from mlotel_cli.errors import RecorderError
from mlotel_cli.link import child, handoff
from mlotel_cli.link.handoff import RecorderLink
from mlotel_cli.store.reading import read_run
from mlotel_cli.wire import Closing, Info, SpanMessage, Stamp
from tests.support.played_recorder import PlayedRecorder, opening, spans, until
from tests.support.telemetry import Telemetry


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedRecorder]:
    recorder = PlayedRecorder()
    monkeypatch.setattr(
        child, "start_recorder", lambda *_, **__: (recorder, recorder.to_recorder, recorder.from_recorder)
    )
    yield recorder
    recorder.stop_answering()
    if recorder.read_fd >= 0:
        os.close(recorder.read_fd)


@pytest.fixture
def link(played: PlayedRecorder, tmp_path: Path) -> Iterator[RecorderLink]:
    link = RecorderLink(tmp_path)
    yield link
    played.stop_answering()
    link.abandon()
    link._recorder.wait_for_answers(1)


def close(link: RecorderLink, played: PlayedRecorder, timeout_s: float = 5.0) -> list[Any]:
    """Close with a recorder that reads all and then answers; what it read."""
    read: list[Any] = []

    def play() -> None:
        read.extend(played.messages())
        played.result({"status": "complete"})
        played.stop_answering()

    thread = threading.Thread(target=play)
    thread.start()
    assert link.close(Closing(), timeout_s=timeout_s) == {"status": "complete"}
    thread.join()
    return read


def test_the_order_of_spans_and_messages_is_kept(link: RecorderLink, played: PlayedRecorder) -> None:
    ended = spans(5000)
    link.open(opening(), flush_ms=1)
    for number, span in enumerate(ended):
        link.emit(span)
        if number % 100 == 99:
            link.send(Info.of({"number": number}))
    read = close(link, played)
    assert read[0] == opening()
    assert read[-1] == Closing(spans_emitted=5000)
    expected: list[Any] = []
    for number in range(5000):
        expected.append(number + 1)
        if number % 100 == 99:
            expected.append({"number": number})
    assert [item.span.span_id if isinstance(item, Stamp) else item.content for item in read[1:-1]] == expected
    assert link.emitted == 5000


def test_foreign_spans_count_as_emitted_too(link: RecorderLink, played: PlayedRecorder) -> None:
    link.open(opening())
    link.emit(SpanMessage(1, 2, 0, None, None, "s", "INTERNAL", "", "", 10, 20))
    stamp, closing = close(link, played)[1:]
    assert (stamp.span.span_id, closing.spans_emitted) == (2, 1)


@pytest.fixture
def low_water(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(handoff, "HIGH_WATER", 10)
    return 10


def fill(link: RecorderLink) -> None:
    """The hand-over thread is stuck in a full pipe, and 30 messages wait behind it."""
    link.send(Info("x" * (2 << 20)))
    until(lambda: not len(link._outbox))
    for number in range(30):
        link.send(Info(str(number)))


def test_the_source_waits_while_the_recorder_is_far_behind(
    link: RecorderLink, played: PlayedRecorder, low_water: int
) -> None:
    link.open(opening(), flush_ms=1)
    link.wait_for_room()
    assert link.paused_s == 0.0
    fill(link)
    read: list[Any] = []
    reader = threading.Timer(0.1, lambda: read.extend(played.messages()))
    reader.start()
    before = time.perf_counter()
    link.wait_for_room()
    assert 0.05 < link.paused_s <= time.perf_counter() - before
    assert len(link._outbox) <= low_water // 2
    link.abandon()
    reader.join()
    assert [message.text for message in read[-30:]] == [str(number) for number in range(30)]


def test_a_recorder_that_dies_while_the_source_waits(
    link: RecorderLink, played: PlayedRecorder, low_water: int, tmp_path: Path
) -> None:
    (tmp_path / "recorder.log").write_text("Traceback\nfirst\nsecond\nMemoryError\n")
    link.open(opening(), flush_ms=1)
    fill(link)
    threading.Timer(0.05, played.die, [1]).start()
    with pytest.raises(RecorderError) as raised:
        link.wait_for_room()
    assert str(raised.value) == (
        "The recorder process ended (exit code 1: first | second | MemoryError). "
        f"What it had recorded is readable in {tmp_path}; start the run again for the rest."
    )


def test_a_recorder_that_takes_nothing_is_given_up(played: PlayedRecorder, low_water: int, tmp_path: Path) -> None:
    clock, said, deaths = [0.0], [], []

    def now() -> float:
        """Five seconds pass with every call."""
        clock[0] += 5.0
        return clock[0]

    link = RecorderLink(tmp_path, say=said.append, on_death=deaths.append, now=now)
    link.open(opening(), flush_ms=1)
    until(lambda: link._handover.moved_s == 15.0)
    clock[0] = 1000.0  # nothing was to be said for long; that is no silence of the recorder's
    fill(link)
    with pytest.raises(
        RecorderError, match=r"^The recorder \(process 4711\) has taken nothing for 120 s and is given up"
    ):
        link.wait_for_room()
    assert said == ["The recorder (process 4711) has taken nothing for 15 s; the run waits for it, at most 120 s."]
    assert clock[0] == 1130.0
    assert (len(deaths), link.is_open) == (1, False)
    with pytest.raises(RecorderError, match="is given up"):
        link.close(Closing("failed"), timeout_s=600)  # at once
    played.die()
    link._thread.join(5)


def test_a_dead_recorder_does_not_fill_the_memory_and_is_said_once(played: PlayedRecorder, tmp_path: Path) -> None:
    said: list[RecorderError] = []
    link = RecorderLink(tmp_path, on_death=said.append)
    link.open(opening(), flush_ms=1)
    assert link.is_open
    played.die()
    until(lambda: said)
    assert not link.is_open
    link.emit(spans(1)[0])
    until(lambda: not len(link._outbox))
    link.pause()  # does not raise
    with pytest.raises(RecorderError, match="exit code -9"):
        link.wait_for_room()
    with pytest.raises(RecorderError, match="exit code -9"):
        link.close(Closing(), timeout_s=1)
    assert len(said) == 1
    link._thread.join(1)
    assert not link._thread.is_alive()


def test_what_the_recorder_says_reaches_the_user(played: PlayedRecorder, tmp_path: Path) -> None:
    said: list[str] = []
    link = RecorderLink(tmp_path, say=said.append)
    link.open(opening())
    played.answer('{"say": "first"}', '{"say": "sec', '{"say": "third"}')
    close(link, played)
    assert said == ["first", "third"]


def test_a_terminal_that_is_gone_does_not_cost_the_result(played: PlayedRecorder, tmp_path: Path) -> None:
    def say(text: str) -> None:
        raise OSError(f"no terminal for {text}")

    link = RecorderLink(tmp_path, say=say)
    link.open(opening())
    played.answer('{"say": "first"}')
    close(link, played)


def test_a_recorder_that_does_not_answer_in_time(link: RecorderLink, played: PlayedRecorder, tmp_path: Path) -> None:
    link.open(opening())
    with pytest.raises(RecorderError) as raised:
        link.close(Closing(), timeout_s=0.05)
    assert str(raised.value) == (
        "The recorder did not finish within 0 s; it goes on in the background (process 4711). "
        f"Rows written so far are in {tmp_path}."
    )


def test_a_recorder_that_lingers_after_its_result_is_no_error(link: RecorderLink, played: PlayedRecorder) -> None:
    link.open(opening())
    played.lingers = True
    close(link, played)
    assert not link.is_open
    played.lingers = False


def test_a_forked_child_does_not_hold_the_pipe(link: RecorderLink, played: PlayedRecorder) -> None:
    link.open(opening(), flush_ms=1)
    link.emit(spans(1)[0])
    link.forget_in_child()
    assert not link.is_open
    assert len(link._outbox) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(played.to_recorder)


def test_a_recorder_that_was_never_opened_is_not_waited_for(link: RecorderLink, played: PlayedRecorder) -> None:
    link.abandon()
    assert played.killed
    assert link._recorder.wait_for_answers(0)


# -- real recorders ---------------------------------------------------------------------------------------------------


def test_a_run_from_opening_to_closing(tmp_path: Path, telemetry: Telemetry) -> None:
    link = RecorderLink(tmp_path, imports=("polars",))
    telemetry.recording.emit = link.emit
    link.open(opening(settle_roots=True))
    for index in range(3):
        with telemetry.span("batch", attributes={"batch.index": index, "batch.size": 2}), telemetry.span("stage"):
            pass
    info = link.close(Closing(telemetry=summary.Telemetry(source_paused_s=link.paused_s)), timeout_s=60)
    assert (info["status"], info["recorder_pid"]) == ("complete", link.pid)
    run = read_run(tmp_path)
    assert run.info == info
    assert run.batches["batch"].to_list() == [0, 1, 2]
    assert run.spans["name"].to_list() == ["stage", "batch"] * 3
    assert (info["summary"]["telemetry"]["spans_recorded"], info["summary"]["telemetry"]["spans_lost"]) == (6, 0)


def test_a_recorder_that_is_killed(tmp_path: Path, telemetry: Telemetry) -> None:
    link = RecorderLink(tmp_path, imports=("polars",))
    link.open(opening(settle_roots=True, part_s=0.1), flush_ms=5)
    telemetry.recording.emit = link.emit
    with telemetry.span("batch", attributes={"batch.index": 0}):
        pass
    until(lambda: (tmp_path / "run.json").exists() and read_run(tmp_path).batches.height)
    os.kill(link.pid, 9)
    until(lambda: not link.is_open)
    with pytest.raises(RecorderError, match=r"ended \(exit code -9: SIGKILL.*readable in"):
        link.wait_for_room()
    with pytest.raises(RecorderError, match="exit code -9"):
        link.close(Closing(), timeout_s=5)
    assert (read_run(tmp_path).status, read_run(tmp_path).batches["batch"].to_list()) == ("interrupted", [0])


def test_a_run_that_is_abandoned_before_it_opens_leaves_nothing(tmp_path: Path) -> None:
    link = RecorderLink(tmp_path)
    pid = link.pid
    link.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["recorder.log"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert link._recorder.wait_for_answers(0)


def test_a_run_that_is_abandoned_is_interrupted(tmp_path: Path) -> None:
    link = RecorderLink(tmp_path, imports=("polars",))
    link.open(opening())
    link.abandon()
    assert link._recorder.wait_for_answers(30)
    link._recorder.wait(30)
    assert not link._recorder.is_running
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_child_that_outlives_a_killed_workload_does_not_keep_the_recorder(tmp_path: Path) -> None:
    program = """
        import os, sys
        from pathlib import Path
        from tests.support.played_recorder import opening, until
        from mlotel_cli.link.handoff import RecorderLink
        link = RecorderLink(Path(sys.argv[1]), imports=("polars",))
        link.open(opening())
        until((Path(sys.argv[1]) / "run.json").exists)
        child = os.fork()
        if not child:
            sys.stdin.read()
            os._exit(0)
        print(child, flush=True)
        os.kill(os.getpid(), 9)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert process.wait(30) == -9
    status = until(
        lambda: (
            (tmp_path / "run.json").exists()
            and (found := json.loads((tmp_path / "run.json").read_text())["status"]) != "running"
            and found
        )
    )
    assert status == "interrupted"
    os.kill(child, 0)  # it still lives
    process.stdin.close()
    process.stdout.close()
