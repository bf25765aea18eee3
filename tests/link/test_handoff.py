"""The workload's end of the pipe: against a recorder played by the test, and against real ones."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli.errors import RecorderError
from mlotel_cli.link import handoff
from mlotel_cli.link.handoff import Opening, RecorderLink
from mlotel_cli.modes.opening import tracker_settings
from mlotel_cli.recorder.process import read_frames
from mlotel_cli.store.reading import read_run
from mlotel_cli.telemetry.span import Span
from mlotel_cli.telemetry.tracer import Provider, Recording
from tests.support.telemetry import Telemetry


def opening(**options: Any) -> Opening:
    tracker = tracker_settings(project="test", entity=None, group=None, mode="disabled")
    return Opening(mode="loop", name="test", run_id="f00", started_ns=1, tracker=tracker, **options)


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` says as soon as it holds."""
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it never held")


# -- a recorder played by the test ------------------------------------------------------------------------------------


class PlayedRecorder:
    """The other end of both pipes, in this process."""

    pid = 4711

    def __init__(self) -> None:
        self.read_fd, self.to_recorder = os.pipe()
        self.from_recorder, self.write_fd = os.pipe()
        self.returncode: int | None = None
        self.lingers = False
        self.killed = False

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        if self.lingers:
            raise subprocess.TimeoutExpired("recorder", timeout or 0)
        return self.returncode

    def kill(self) -> None:
        self.killed = True
        self.stop_answering()

    def frames(self) -> list[list[tuple[Any, ...]]]:
        """Everything up to the end of the pipe."""
        return [frame for frame in read_frames(self.read_fd, tick_s=10) if frame is not None]

    def items(self) -> list[tuple[Any, ...]]:
        return [item for frame in self.frames() for item in frame]

    def answer(self, *lines: str) -> None:
        os.write(self.write_fd, "".join(f"{line}\n" for line in lines).encode())

    def stop_answering(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def die(self, code: int = -9) -> None:
        """As after a kill -9: both ends are closed."""
        self.returncode = code
        os.close(self.read_fd)
        self.read_fd = -1
        self.stop_answering()


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedRecorder]:
    recorder = PlayedRecorder()
    monkeypatch.setattr(
        handoff, "start_recorder", lambda *_, **__: (recorder, recorder.to_recorder, recorder.from_recorder)
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
    link._listener.join(1)


def spans(count: int, **attributes: Any) -> list[Span]:
    ended: list[Span] = []
    tracer = Provider(Recording(ended.append, first_id=1)).get_tracer("test")
    for _ in range(count):
        tracer.start_span("stage", attributes=attributes or None).end()
    return ended


def close(link: RecorderLink, played: PlayedRecorder, timeout_s: float = 5.0) -> list[tuple[Any, ...]]:
    """Close with a recorder that reads all and then answers; what it read."""
    read: list[tuple[Any, ...]] = []

    def play() -> None:
        read.extend(played.items())
        played.answer(json.dumps({"result": {"status": "complete"}}))
        played.stop_answering()

    thread = threading.Thread(target=play)
    thread.start()
    assert link.close({"status": "complete"}, timeout_s=timeout_s) == {"status": "complete"}
    thread.join()
    return read


def test_the_order_of_spans_and_messages_is_kept(link: RecorderLink, played: PlayedRecorder) -> None:
    ended = spans(5000)
    link.open(opening(), flush_ms=1)
    for number, span in enumerate(ended):
        link.emit(span)
        if number % 100 == 99:
            link.send("info", number)
    read = close(link, played)
    assert (read[0][0], json.loads(read[0][1])["run_id"]) == ("open", "f00")
    assert read[-1] == ("close", json.dumps({"status": "complete"}), 5000)
    expected: list[Any] = []
    for number in range(5000):
        expected.append(number + 1)
        if number % 100 == 99:
            expected.append(("info", number))
    assert [item[2] if item[0] == "span" else item for item in read[1:-1]] == expected
    assert link.emitted == 5000


def test_a_backlog_is_handed_over_in_frames(link: RecorderLink, played: PlayedRecorder) -> None:
    for span in spans(4500):
        link.emit(span)
    link.open(opening())
    frames: list[list[tuple[Any, ...]]] = []
    reader = threading.Thread(target=lambda: frames.extend(played.frames()))
    reader.start()
    link.send("close", "{}")
    link.abandon()
    reader.join()
    assert [len(frame) for frame in frames] == [2000, 2000, 502]


def test_foreign_spans_count_as_emitted_too(link: RecorderLink, played: PlayedRecorder) -> None:
    link.open(opening())
    link.emit(("span", 1, 2, 3))  # type: ignore[arg-type]
    assert close(link, played)[1:] == [("span", 1, 2, 3), ("close", json.dumps({"status": "complete"}), 1)]


def test_what_cannot_be_packed_is_lost_alone_counted_and_said(
    link: RecorderLink, played: PlayedRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad, worse = spans(3)
    bad._kind = "no kind"  # type: ignore[assignment]
    worse._attributes = {"x": object()}
    link.open(opening())
    for span in (bad, worse, good):
        link.emit(span)
    link.send("info", object())
    read = close(link, played)
    assert [item[0] for item in read] == ["open", "span", "close"]
    assert (read[1][2], read[2][2]) == (1, 3)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "a span could not be packed and is lost",
        "a span could not be handed over and is lost",
        "a info could not be handed over and is lost",
    ]


@pytest.fixture
def low_water(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(handoff, "HIGH_WATER", 10)
    return 10


def fill(link: RecorderLink) -> None:
    """The hand-over thread is stuck in a full pipe, and 30 messages wait behind it."""
    link.send("info", b"x" * (2 << 20))
    until(lambda: not link._queue)
    for number in range(30):
        link.send("info", number)


def test_the_source_waits_while_the_recorder_is_far_behind(
    link: RecorderLink, played: PlayedRecorder, low_water: int
) -> None:
    link.open(opening(), flush_ms=1)
    link.wait_for_room()
    assert link.paused_s == 0.0
    fill(link)
    read: list[list[tuple[Any, ...]]] = []
    reader = threading.Timer(0.1, lambda: read.extend(played.frames()))
    reader.start()
    before = time.perf_counter()
    link.wait_for_room()
    assert 0.05 < link.paused_s <= time.perf_counter() - before
    assert len(link._queue) <= low_water // 2
    link.abandon()
    reader.join()
    assert [item[1] for frame in read for item in frame][-30:] == list(range(30))


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
        """Five seconds pass whenever somebody asks."""
        clock[0] += 5.0
        return clock[0]

    link = RecorderLink(tmp_path, say=said.append, on_death=deaths.append, now=now)
    link.open(opening(), flush_ms=1)
    until(lambda: link._moved_s == 10.0)
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
        link.close({"status": "failed"}, timeout_s=600)  # at once
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
    until(lambda: not link._queue)
    link.pause()  # does not raise
    with pytest.raises(RecorderError, match="exit code -9"):
        link.wait_for_room()
    with pytest.raises(RecorderError, match="exit code -9"):
        link.close({}, timeout_s=1)
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
        link.close({}, timeout_s=0.05)
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
    assert len(link._queue) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(played.to_recorder)


def test_a_recorder_that_was_never_opened_is_not_waited_for(link: RecorderLink, played: PlayedRecorder) -> None:
    link.abandon()
    assert played.killed
    assert not link._listener.is_alive()


def test_a_recorder_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(RecorderError, match=r"could not be started .*no-python"):
        RecorderLink(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


# -- real recorders ---------------------------------------------------------------------------------------------------


def test_a_run_from_opening_to_closing(tmp_path: Path, telemetry: Telemetry) -> None:
    link = RecorderLink(tmp_path, imports=("polars",))
    telemetry.recording.emit = link.emit
    link.open(opening(settle_roots=True))
    for index in range(3):
        with telemetry.span("batch", attributes={"batch.index": index, "batch.size": 2}), telemetry.span("stage"):
            pass
    info = link.close({"status": "complete", "telemetry": {"source_paused_s": link.paused_s}}, timeout_s=60)
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
        link.close({"status": "complete"}, timeout_s=5)
    assert (read_run(tmp_path).status, read_run(tmp_path).batches["batch"].to_list()) == ("interrupted", [0])


def test_a_run_that_is_abandoned_before_it_opens_leaves_nothing(tmp_path: Path) -> None:
    link = RecorderLink(tmp_path)
    pid = link.pid
    link.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["recorder.log"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not link._listener.is_alive()


def test_a_run_that_is_abandoned_is_interrupted(tmp_path: Path) -> None:
    link = RecorderLink(tmp_path, imports=("polars",))
    link.open(opening())
    link.abandon()
    link._listener.join(30)
    assert link._process.wait(30) == 0
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_child_that_outlives_a_killed_workload_does_not_keep_the_recorder(tmp_path: Path) -> None:
    program = """
        import os, sys
        from pathlib import Path
        from tests.link.test_handoff import opening, until
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
