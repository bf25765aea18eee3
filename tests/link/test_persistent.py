"""A link without end: recorders that die, hang or fall behind, played by the test."""

import json
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli.errors import RecorderError
from mlotel_cli.link import child, handoff, ledger, persistent
from mlotel_cli.link.persistent import PersistentLink
from mlotel_cli.snapshot import Gaps, Snapshot
from mlotel_cli.store.reading import read_run
from mlotel_cli.summary import Telemetry
from mlotel_cli.telemetry.span import Span
from mlotel_cli.telemetry.tracer import Provider, Recording
from mlotel_cli.wire import Closing, HttpOptions, Info, MonitorOptions, Opening, Settled, Stamp, split_frames, unpack
from tests.support.played_recorder import PlayedRecorder, opening, until


class Recorders:
    """Hands out played recorders, one after the other; None is one that cannot be started."""

    def __init__(self) -> None:
        self.started: list[PlayedRecorder] = []
        self.refusals = 0

    def start(self, *_: Any, **__: Any) -> tuple[PlayedRecorder, int, int]:
        if self.refusals:
            self.refusals -= 1
            raise RecorderError("The recorder could not be started: no memory")
        recorder = PlayedRecorder()
        self.started.append(recorder)
        return recorder, recorder.to_recorder, recorder.from_recorder

    def __getitem__(self, number: int) -> PlayedRecorder:
        until(lambda: len(self.started) > number)
        return self.started[number]


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorders]:
    recorders = Recorders()
    monkeypatch.setattr(child, "start_recorder", recorders.start)
    monkeypatch.setattr(persistent, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(persistent, "LONGEST_DELAY_S", 0.04)
    yield recorders
    for recorder in recorders.started:
        recorder.stop_answering()
        if recorder.read_fd >= 0:
            os.close(recorder.read_fd)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def link(recorders: Recorders, tmp_path: Path, said: list[str]) -> Iterator[PersistentLink]:
    link = PersistentLink(tmp_path, say=said.append)
    link.open(opening(monitor=MonitorOptions()), flush_ms=1)
    yield link
    end(link, recorders)


def end(link: PersistentLink, recorders: Recorders) -> None:
    link._is_replaced_for_closing = True
    link._handover.finish()
    for recorder in recorders.started:
        if recorder.returncode is None:
            recorder.die()
    link._thread.join(5)
    assert not link._thread.is_alive()


def batch_of_spans(link: PersistentLink, index: int, *, stages: int = 3) -> list[Span]:
    """Spans of one batch, ended but not emitted; the root comes last."""
    ended: list[Span] = []
    tracer = Provider(Recording(ended.append)).get_tracer("test")
    with tracer.start_as_current_span("batch", attributes={"batch.index": index}):
        for _ in range(stages):
            tracer.start_span("stage").end()
    return ended


def settled(index: int) -> Settled:
    return Settled(index, index, 0, 1, "done", 4, 0)


def emit(link: PersistentLink, *indexes: int) -> None:
    for index in indexes:
        for span in batch_of_spans(link, index):
            link.emit(span)
        link.send(settled(index))


class Reading:
    """What a played recorder has read so far, message by message, without waiting for the end of the pipe."""

    def __init__(self, recorder: PlayedRecorder) -> None:
        self._recorder = recorder
        self._buffer = bytearray()
        self.messages: list[Any] = []
        os.set_blocking(recorder.read_fd, False)

    def read(self) -> list[Any]:
        try:
            while chunk := os.read(self._recorder.read_fd, 1 << 20):
                self._buffer += chunk
        except BlockingIOError:
            pass
        self.messages += [unpack(packed) for frame in split_frames(self._buffer) for packed in frame]
        return self.messages

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.read() if isinstance(message, kind)]

    def settled(self) -> list[int]:
        return [message.batch for message in self.of(Settled)]

    def spans_of(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for stamp in self.of(Stamp):
            counts[stamp.span.batch] = counts.get(stamp.span.batch, 0) + 1
        return counts


def test_what_is_emitted_arrives_in_order(link: PersistentLink, recorders: Recorders) -> None:
    reading = Reading(recorders[0])
    emit(link, 0, 1)
    until(lambda: reading.settled() == [0, 1])
    assert reading.spans_of() == {0: 4, 1: 4}
    assert link.gaps == Gaps(0, 0)


def test_it_never_holds_back(link: PersistentLink) -> None:
    for _ in range(handoff.HIGH_WATER + 10):
        link.send(Info("x"))
    link.wait_for_room()
    link.pause()
    assert link.paused_s == 0.0


def test_a_recorder_that_dies_is_replaced(link: PersistentLink, recorders: Recorders, said: list[str]) -> None:
    reading = Reading(recorders[0])
    link.send(Info.of({"environment": "here"}))
    emit(link, 0)
    until(lambda: reading.settled() == [0])
    recorders[0].die()
    second = Reading(recorders[1])
    emit(link, 1)
    until(lambda: second.settled() == [1])
    first_opening, first, *_ = second.messages
    assert first_opening == opening(monitor=MonitorOptions(restarts=1))
    assert first == Info.of({"environment": "here"})
    assert said == [
        "The recorder process ended (exit code -9: SIGKILL, as by a kernel that is short of memory). "
        "The pipeline goes on; another recorder starts in 0.0 s."
    ]


def wrote(folder: Path, **batches: int) -> None:
    """What a recorder notes in run.json of what it has written."""
    (folder / "run.json").write_text(json.dumps({"totals": {"batches": batches}}))


def test_what_dead_recorders_did_not_write_is_counted(
    link: PersistentLink, recorders: Recorders, tmp_path: Path
) -> None:
    for number, (indexes, written) in enumerate(((range(10), 7), (range(10, 14), 9))):
        reading = Reading(recorders[number])
        emit(link, *indexes)
        until(lambda reading=reading, indexes=indexes: reading.settled() == list(indexes))
        wrote(tmp_path, done=written - 1, failed=1)
        recorders[number].die()
    third = Reading(recorders[2])
    emit(link, 14)
    until(lambda: third.settled() == [14])
    assert link.gaps == Gaps(2, 14 - 9)


def test_a_recorder_that_wrote_nothing_lost_everything(link: PersistentLink, recorders: Recorders) -> None:
    reading = Reading(recorders[0])
    emit(link, 0, 1)
    until(lambda: reading.settled() == [0, 1])
    recorders[0].die()
    until(lambda: link.gaps.recorder_restarts)
    assert link.gaps.batches_lost == 2


def test_the_rest_of_a_batch_whose_beginning_died_is_left_out(link: PersistentLink, recorders: Recorders) -> None:
    reading = Reading(recorders[0])
    begun = batch_of_spans(link, 5)
    link.emit(begun[0])
    until(lambda: reading.spans_of() == {5: 1})
    recorders[0].die()
    second = Reading(recorders[1])
    for span in begun[1:]:
        link.emit(span)
    link.send(settled(5))
    emit(link, 6)
    until(lambda: second.settled() == [6])
    assert second.spans_of() == {6: 4}
    assert link.gaps.batches_lost == 1
    assert not link._ledger._shedding


def test_restarts_come_at_a_limited_rate(link: PersistentLink, recorders: Recorders, said: list[str]) -> None:
    recorders[0]
    recorders.refusals = 3
    recorders[0].die()
    recorders[1].die()
    until(lambda: link.gaps.recorder_restarts == 2)
    delays = [line.rpartition("starts in ")[2] for line in said]
    assert delays == ["0.0 s.", "0.0 s.", "0.0 s.", "0.0 s.", "0.0 s."]
    assert link._delay_s == pytest.approx(0.04)
    assert "could not be started: no memory" in said[1]


def test_a_recorder_that_lived_long_is_replaced_at_once(recorders: Recorders, tmp_path: Path, said: list[str]) -> None:
    clock = [0.0]
    link = PersistentLink(tmp_path, say=said.append, now=lambda: clock[0])
    link.open(opening(), flush_ms=1)
    link._delay_s = 30.0
    clock[0] = persistent.STEADY_S
    recorders[0].die()
    recorders[1]
    until(lambda: link.gaps.recorder_restarts == 1)
    assert "starts in 0.0 s" in said[0]
    end(link, recorders)


def test_a_recorder_that_hangs_makes_whole_batches_go(
    link: PersistentLink, recorders: Recorders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipe is full and is not read: the newest half of what waits is kept, and every batch is whole."""
    monkeypatch.setattr(ledger, "HIGH_WATER", 100)
    reading = Reading(recorders[0])
    begun = batch_of_spans(link, 0)
    link.emit(begun[0])
    until(lambda: reading.spans_of() == {0: 1})
    link.send(Info("x" * (4 << 20)))  # stuck in the pipe
    until(lambda: not len(link._outbox))
    for span in begun[1:]:
        link.emit(span)
    link.send(settled(0))
    emit(link, *range(1, 41))
    until(lambda: link.gaps.batches_lost)
    until(lambda: reading.settled()[-1:] == [40])
    kept = reading.settled()
    assert kept[0] == 0, "its first span was handed over already"
    assert kept[1:] == list(range(kept[1], 41)), "the oldest go"
    assert set(reading.spans_of().values()) == {4}
    assert link.gaps.batches_lost == 40 - len(kept[1:])
    assert 5 <= len(kept) <= 15
    assert link.emitted == 41 * 4, "what was shed counts as lost in the summary"
    assert not link._ledger._shedding


def test_a_recorder_that_hangs_for_good_is_killed_and_replaced(
    recorders: Recorders, tmp_path: Path, said: list[str]
) -> None:
    clock = [0.0]
    link = PersistentLink(tmp_path, say=said.append, now=lambda: clock[0])
    link.open(opening(monitor=MonitorOptions()), flush_ms=1)
    hung = recorders[0]
    hung.kill = hung.die  # type: ignore[method-assign]
    link.send(Info("x" * (4 << 20)))
    until(lambda: link._ledger.infos)

    def is_replaced() -> bool:
        """The clock goes on while the test looks: when the hand-over began to wait is not known here."""
        clock[0] += handoff.HUNG_S / 50
        return len(recorders.started) > 1

    until(is_replaced)
    assert clock[0] > handoff.HUNG_S
    second = Reading(recorders[1])
    until(lambda: second.of(Opening))
    assert said[0] == "The recorder (process 4711) has taken nothing for 120 s and is killed."
    assert link.gaps.recorder_restarts == 1
    end(link, recorders)


def test_spans_that_come_after_their_batch_do_not_fill_the_memory(
    link: PersistentLink, recorders: Recorders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "REMEMBERED", 3)
    reading = Reading(recorders[0])
    for index in range(10):
        link.emit(batch_of_spans(link, index)[0])
    until(lambda: len(reading.spans_of()) == 10)
    assert len(link._ledger._under_way) == 3


def test_closing_counts_the_gaps(link: PersistentLink, recorders: Recorders) -> None:
    recorders[0].die()
    played = recorders[1]
    played.result({"status": "complete"})
    played.stop_answering()
    assert link.close(Closing(telemetry=Telemetry(faults={})), timeout_s=5) == {"status": "complete"}
    (closing,) = Reading(played).of(Closing)
    assert closing.telemetry == Telemetry(faults={}, recorder_restarts=1, batches_lost=0)


def test_a_recorder_that_is_dead_when_the_run_ends_is_replaced_at_once(
    recorders: Recorders, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = PersistentLink(tmp_path, say=said.append)
    link.open(opening(), flush_ms=1)
    monkeypatch.setattr(persistent, "LONGEST_DELAY_S", 100.0)
    link._delay_s = 100.0
    recorders[0].die()
    until(lambda: said)

    def answer() -> None:
        recorders[1].result({"status": "complete"})
        recorders[1].stop_answering()

    thread = threading.Thread(target=answer)
    thread.start()
    assert link.close(Closing(), timeout_s=5)["status"] == "complete"
    thread.join()


def test_a_recorder_that_dies_again_and_again_while_closing_is_an_error(
    recorders: Recorders, tmp_path: Path, said: list[str]
) -> None:
    link = PersistentLink(tmp_path, say=said.append)
    link.open(opening(), flush_ms=1)
    link.send(Info("x" * (4 << 20)))  # more than a pipe takes
    until(lambda: link._ledger.infos)
    link._handover.finish()
    recorders[0].die()
    recorders[1].die()
    until(lambda: not link._thread.is_alive())
    assert link.gaps.recorder_restarts == 1
    with pytest.raises(RecorderError, match="exit code -9"):
        link.close(Closing(), timeout_s=1)


def test_a_snapshot_reaches_the_one_who_asked_for_it(recorders: Recorders, tmp_path: Path) -> None:
    heard: list[Snapshot] = []
    link = PersistentLink(tmp_path, on_snapshot=heard.append)
    link.open(opening(), flush_ms=1)
    recorders[0].answer('{"snapshot": {"batches": 3}}')
    until(lambda: heard)
    assert heard == [Snapshot(batches=3)]
    end(link, recorders)


@pytest.mark.slow
def test_a_real_recorder_that_is_killed_leaves_its_port_to_the_next(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        link = PersistentLink(tmp_path, imports=("polars",), say=lambda _: None, listener=listener)
        options = MonitorOptions(http=HttpOptions(fd=listener.fileno()), background_rate=0.0)
        link.open(opening(monitor=options), flush_ms=5)
        until(lambda: (tmp_path / "run.json").exists() and read_run(tmp_path).info["http"] == url)
        first = link.pid
        os.kill(first, 9)
        with urllib.request.urlopen(f"{url}/healthz", timeout=60) as answer:  # it waits for the next recorder
            assert answer.status == 200
        assert link.pid != first
        assert link.close(Closing(), timeout_s=60)["status"] == "complete"


@pytest.mark.slow
def test_a_real_recorder_that_is_killed(tmp_path: Path) -> None:
    link = PersistentLink(tmp_path, imports=("polars",), say=lambda _: None)
    link.open(opening(settle_roots=True, part_s=0.1), flush_ms=5)
    for span in batch_of_spans(link, 0):
        link.emit(span)
    until(lambda: (tmp_path / "run.json").exists() and read_run(tmp_path).batches.height)
    os.kill(link.pid, 9)
    until(lambda: link.gaps.recorder_restarts)
    for span in batch_of_spans(link, 1):
        link.emit(span)
    info = link.close(Closing(), timeout_s=60)
    assert (info["status"], read_run(tmp_path).batches["batch"].to_list()) == ("complete", [0, 1])
