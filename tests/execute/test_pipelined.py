"""The pipelined executor: order, spans, errors, back pressure, time-outs, and an end in every state."""

import contextlib
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mlotel_cli.errors import StageError
from mlotel_cli.execute import Finished, Inference, Numbered, PipelinedExecutor
from mlotel_cli.execute.pipelined import UNFINISHED
from mlotel_cli.execute.streams import HostStream, HostStreams
from mlotel_cli.records import BATCH_INDEX, BATCH_SIZE, KIND, Batch
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.clock import CLOCK
from tests.support.gates import PATIENCE_S, Gate, Pace, numbered, until
from tests.support.spans import Recorded, recording

STAGES: dict[str, Callable[[Any], Any]] = {"add": lambda x: x + 1, "double": lambda x: x * 2}


def executor(stages: Any = None, **settings: Any) -> PipelinedExecutor:
    return PipelinedExecutor(STAGES if stages is None else stages, inference=Inference("cpu"), **settings)


def run(stages: Any, batches: Iterator[Numbered], **settings: Any) -> list[Finished]:
    return list(executor(stages, **settings).run(batches))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(PATIENCE_S)
    assert not [thread for thread in left if thread.is_alive()]


def by_batch(recorded: Recorded, index: int) -> list[str]:
    return [span.name for span in sorted(recorded.spans, key=lambda span: span.span_id) if span.batch == index]


# -- what a good run gives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [{}, {"add": 2}, {"double": 3}, {"add": 2, "double": 2}])
@pytest.mark.parametrize("queue_size", [1, 4])
def test_batches_come_out_in_order_with_what_the_stages_made_of_them(queue_size: int, replicas: dict[str, int]) -> None:
    finished = run(STAGES, numbered(*range(20)), queue_size=queue_size, replicas=replicas)
    assert [one.numbered.index for one in finished] == list(range(20))
    assert [one.output for one in finished] == [(value + 1) * 2 for value in range(20)]
    assert {(one.error, one.stage) for one in finished} == {(None, "")}


def test_spans_of_a_batch_across_its_threads() -> None:
    with recording() as recorded:
        (finished,) = run(STAGES, numbered(1, size=2))
    assert recorded.tree() == [
        ("batch", None),
        ("queue add", "batch"),
        ("add", "batch"),
        ("queue double", "batch"),
        ("double", "batch"),
    ]
    spans = {span.name: span for span in recorded.spans}
    assert spans["batch"].attributes == {BATCH_INDEX: 0, BATCH_SIZE: 2}
    assert spans["queue add"].attributes == spans["queue double"].attributes == {KIND: "queue"}
    assert {span.batch for span in recorded.spans} == {0}
    assert {span.kind for span in recorded.spans} == {"INTERNAL"}
    assert {span.scope for span in recorded.spans} == {"mlotel"}
    assert spans["batch"].end_ns == max(span.end_ns for span in recorded.spans)
    assert spans["queue add"].end_ns <= spans["add"].start_ns
    assert spans["add"].end_ns <= spans["queue double"].start_ns
    assert finished.root.get_span_context().span_id == spans["batch"].span_id
    assert finished.root.count_opened() == len(recorded.spans) == 5  # type: ignore[attr-defined]


def test_threads_are_named_after_their_stages() -> None:
    both = threading.Barrier(2)

    def meet(value: int) -> int:
        both.wait(PATIENCE_S)
        return value

    with recording() as recorded:
        run({"read": meet, "write": lambda x: x}, numbered(1, 2), replicas={"read": 2})
    assert {span.thread for span in recorded.spans if span.name == "read"} == {"read", "read-1"}
    assert {span.thread for span in recorded.spans if span.name == "write"} == {"write"}
    assert {span.thread for span in recorded.spans if span.name == "batch"} == {"source"}


def test_spans_and_values_of_a_stage_belong_to_its_batch() -> None:
    def stage(value: int) -> int:
        with api.span("inner"):
            api.record("found", value)
        return value

    with recording() as recorded:
        run({"one": stage, "two": lambda x: x}, numbered(7, 8))
    inner = [span for span in recorded.spans if span.name == "inner"]
    stages = {span.span_id: span for span in recorded.spans if span.name == "one"}
    assert [stages[span.parent_id].batch for span in inner] == [span.batch for span in inner] == [0, 1]
    assert recorded.values == [("found", 7.0, ""), ("found", 8.0, "")]


def test_every_batch_is_a_trace_of_its_own_even_inside_a_span_of_the_caller() -> None:
    with recording() as recorded, api.span("outside"):
        run(STAGES, numbered(1, 2))
    roots = [span for span in recorded.spans if span.name == "batch"]
    assert [root.parent_id for root in roots] == [0, 0]
    assert len({root.trace_id for root in roots}) == 2


def test_waiting_since_arrival_is_a_span_of_the_batch() -> None:
    with recording(epoch_offset_ns=CLOCK.epoch_offset_ns) as recorded:
        batch = Batch(0, ["a"], 1, source_time_ns=1_000)
        (finished,) = run(STAGES, iter([Numbered(0, 0, batch)]))
    waited = recorded.named("queue source")
    assert waited.start_ns == 1_000 + CLOCK.epoch_offset_ns
    assert waited.end_ns == finished.start_ns + CLOCK.epoch_offset_ns
    assert waited.parent_id == recorded.named("batch").span_id


def test_every_thread_that_runs_a_stage_or_the_source_has_torchs_state() -> None:
    seen: list[tuple[str, bool, bool]] = []

    def look(value: Any) -> Any:
        name = threading.current_thread().name
        seen.append((name, torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return value

    def source() -> Iterator[Numbered]:
        look(None)
        yield from numbered(1)

    list(PipelinedExecutor({"one": look, "two": look}, inference=Inference("cpu", autocast="bfloat16")).run(source()))
    assert seen == [("source", True, True), ("one", True, True), ("two", True, True)]


def test_stages_run_beside_each_other() -> None:
    both = threading.Barrier(2)

    def meet(value: int) -> int:
        both.wait(PATIENCE_S)
        return value

    def second(value: int) -> int:
        return meet(value) if value == 0 else value

    finished = run({"one": lambda x: meet(x) if x == 1 else x, "two": second}, numbered(0, 1))
    assert [one.error for one in finished] == [None, None]


def test_waiting_for_the_source_is_measured_apart_from_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: clock[0])
    paced, out = Pace(), executor({"stage": lambda x: x}).run
    running = out(paced)
    results: list[Finished] = []
    consumer = threading.Thread(target=lambda: results.extend(running))
    consumer.start()
    for batch in numbered("a", "b"):
        paced.wait_until_asked()
        until(lambda: len(results) == batch.index)  # noqa: B023 - called before the next turn
        clock[0] += 700
        paced.give(batch)
    paced.end()
    consumer.join(PATIENCE_S)
    assert [one.wait_ns for one in results] == [700, 700]
    assert [one.start_ns for one in results] == [700, 1400]


def test_a_finished_batch_does_not_wait_for_the_next_one() -> None:
    paced = Pace()
    with contextlib.closing(executor().run(paced)) as running:
        batches = numbered(1, 2)
        for expected in (4, 6):
            paced.give(next(batches))
            assert next(running).output == expected  # while the source blocks
        paced.end()
        assert list(running) == []


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [{}, {"add": 2, "breaks": 3, "after": 2}])
def test_an_error_is_the_batchs_and_names_its_stage(replicas: dict[str, int]) -> None:
    def breaks(value: int) -> int:
        if value == 2:
            raise ZeroDivisionError("told to")
        return value

    never: list[int] = []
    stages = {"add": lambda x: x + 1, "breaks": breaks, "after": never.append}
    with recording() as recorded:
        finished = run(stages, numbered(0, 1, 2), replicas=replicas)
    assert [one.stage for one in finished] == ["", "breaks", ""]
    assert finished[1].output is None
    assert isinstance(finished[1].error, ZeroDivisionError)
    assert sorted(never) == [1, 3]
    failed = {span.name: span for span in recorded.spans if span.batch == 1}
    assert set(failed) == {"batch", "queue add", "add", "queue breaks", "breaks"}
    for name in ("breaks", "batch"):
        assert (failed[name].status, failed[name].status_message) == ("ERROR", "ZeroDivisionError: told to")
    assert failed["batch"].events[0][2]["exception.type"] == "ZeroDivisionError"
    assert failed["add"].status == "UNSET"


def test_a_batch_without_items_runs_no_stage_and_opens_no_span() -> None:
    ran: list[Any] = []
    with recording() as recorded:
        empty = Numbered(1, 0, Batch(1, [], None, None, 0))
        finished = run({"stage": lambda x: ran.append(x) or x}, iter([*numbered("a"), empty]))
    assert ran == ["a"]
    assert (finished[1].output, finished[1].error) == (None, None)
    assert by_batch(recorded, 1) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", ["first", "second", "last"])
def test_what_is_no_exception_ends_the_run_after_the_batches_before(stop: type[BaseException], place: str) -> None:
    def stage(value: int) -> int:
        if value == 2:
            raise stop
        return value

    stages = {name: stage if name == place else (lambda x: x) for name in ("first", "second", "last")}
    with recording() as recorded:
        running = executor(stages).run(numbered(*range(9)))
        assert [next(running).output, next(running).output] == [0, 1]
        with pytest.raises(stop):
            next(running)
    assert "batch" in by_batch(recorded, 2)


def test_an_error_of_the_source_is_the_callers_after_the_batches_before() -> None:
    def source() -> Iterator[Numbered]:
        yield from numbered(1, 2, 3)
        raise OSError("gone")

    running = executor(replicas={"add": 3}).run(source())
    assert [next(running).output for _ in range(3)] == [4, 6, 8]
    with pytest.raises(OSError, match="gone"):
        next(running)


def test_what_holds_the_source_back_can_end_the_run() -> None:
    def wait_for_room() -> None:
        raise OSError("the recorder died")

    running = executor().run(numbered(1, 2), wait_for_room=wait_for_room)
    assert next(running).output == 4
    with pytest.raises(OSError, match="the recorder died"):
        next(running)


def test_a_thread_that_cannot_begin_ends_the_run() -> None:
    class Broken(Inference):
        @contextlib.contextmanager
        def __call__(self) -> Iterator[None]:  # type: ignore[override]
            if threading.current_thread().name == "double":
                raise RuntimeError("no such device")
            yield

    running = PipelinedExecutor(STAGES, inference=Broken("cpu")).run(numbered(1, 2))
    with pytest.raises(RuntimeError, match="no such device"):
        list(running)


@pytest.mark.parametrize("breaks", ["receive", "mark"])
def test_a_device_that_breaks_ends_the_run_and_every_span(breaks: str) -> None:
    class DeviceStream(HostStream):
        def __init__(self, name: str) -> None:
            self._name, self._calls = name, 0

        def receive(self, value: Any, mark: Any) -> None:
            self._fail_at("receive", 3)  # the first is for the thread itself

        def mark(self) -> None:
            self._fail_at("mark", 2)

        def _fail_at(self, what: str, call: int) -> None:
            self._calls += what == breaks
            if (what, self._name, self._calls) == (breaks, "double", call):
                raise RuntimeError("device-side assert")

    class Streams(HostStreams):
        def stream(self, name: str) -> DeviceStream:
            return DeviceStream(name)

    with recording() as recorded:
        running = executor(streams=Streams()).run(numbered(*range(9)))
        with pytest.raises(RuntimeError, match="device-side assert"):
            list(running)
    assert {span.batch for span in recorded.spans} == {span.batch for span in recorded.spans if span.name == "batch"}
    assert "batch" in by_batch(recorded, 1)


# -- back pressure ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue_size", [1, 3])
def test_a_slow_stage_holds_the_source_back(queue_size: int) -> None:
    gate, taken = Gate(), []

    def source() -> Iterator[Numbered]:
        for one in numbered(*range(30)):
            taken.append(one.index)
            yield one

    pipelined = executor({"quick": lambda x: x, "slow": gate}, queue_size=queue_size)
    with contextlib.closing(pipelined.run(source())) as running:
        results: list[Finished] = []
        consumer = threading.Thread(target=lambda: results.extend(running))
        consumer.start()
        gate.wait_until_reached()
        full = {"quick": (queue_size, queue_size), "slow": (queue_size, queue_size)}
        until(lambda: pipelined.depths() == full)
        # one in each stage, the queues, and the one on the source's thread
        until(lambda: len(taken) == 2 * queue_size + 3)
        gate.open()
        consumer.join(PATIENCE_S)
    assert [one.numbered.index for one in results] == list(range(30))
    assert pipelined.depths() == {"quick": (0, queue_size), "slow": (0, queue_size)}


def test_a_caller_that_does_not_take_holds_the_stages_back() -> None:
    ran: list[int] = []
    running = executor({"stage": lambda x: ran.append(x) or x}, queue_size=1).run(numbered(*range(30)))
    next(running)
    until(lambda: len(ran) == 3)  # the one taken, the one ready, and the one after it
    running.close()
    assert len(ran) == 3


def test_the_source_is_held_between_batches_outside_any_span() -> None:
    seen: list[Any] = []

    def wait_for_room() -> None:
        seen.append((threading.current_thread().name, api.trace.get_current_span()))

    with recording():
        list(executor().run(numbered(1, 2), wait_for_room=wait_for_room))
    assert seen == [("source", api.trace.INVALID_SPAN)] * 2


def test_out_of_order_behind_a_stage_with_several_threads_is_put_right() -> None:
    gate = Gate(lambda value: value == 0)
    later = Gate(lambda _value: False)
    pipelined = executor({"read": gate, "count": later}, replicas={"read": 2}, queue_size=2)
    results: list[Finished] = []
    consumer = threading.Thread(target=lambda: results.extend(pipelined.run(numbered(*range(6)))))
    consumer.start()
    gate.wait_until_reached()
    until(lambda: len(gate.calls) >= 3)  # others have overtaken batch 0
    assert later.calls == []
    gate.open()
    consumer.join(PATIENCE_S)
    assert later.calls == list(range(6))
    assert [one.numbered.index for one in results] == list(range(6))


# -- time-outs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["first", "second", "last"])
def test_a_stage_that_hangs_ends_the_run_and_is_left_behind(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: clock[0])
    gate = Gate(lambda value: value == 1)
    stages = {name: gate if name == place else (lambda x: x) for name in ("first", "second", "last")}
    with recording() as recorded:
        paced, batches = Pace(), numbered(0, 1)
        running = executor(stages, stage_timeout_s=0.01, grace_s=60.0).run(paced)
        paced.give(next(batches))
        assert next(running).output == 0
        paced.give(next(batches))
        gate.wait_until_reached()  # every other stage is idle
        paced.end()
        clock[0] += 11_000_000
        with pytest.raises(StageError, match=rf"batch 1: stage {place} ran for 0\.01 s, longer than .*=0.01 allows"):
            next(running)
        assert place in [thread.name for thread in threading.enumerate()]  # the run did not wait for it
        assert "batch" in by_batch(recorded, 1)  # ended, though its stage still has it
        (root,) = (span for span in recorded.spans if (span.name, span.batch) == ("batch", 1))
        assert f"stage {place} ran for" in root.status_message
        gate.open()
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == place])


def test_a_stage_that_was_too_slow_ends_the_run_also_when_it_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: clock[0])

    def slow(value: int) -> int:
        clock[0] += 400_000_000 if value == 1 else 0
        return value

    running = executor({"slow": slow, "rest": lambda x: x}, stage_timeout_s=0.3).run(numbered(0, 1, 2))
    assert next(running).output == 0
    with pytest.raises(StageError, match=r"batch 1: stage slow ran for 0\.40 s"):
        next(running)


def test_quick_stages_and_a_slow_source_are_within_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: clock[0])
    paced, results = Pace(), list[Finished]()
    running = executor(stage_timeout_s=0.001).run(paced)
    consumer = threading.Thread(target=lambda: results.extend(running))
    consumer.start()
    for one in numbered(1, 2):
        paced.wait_until_asked()
        clock[0] += 60_000_000_000
        paced.give(one)
        until(lambda: len(results) == one.index + 1)  # noqa: B023 - called before the next turn
    paced.end()
    consumer.join(PATIENCE_S)
    assert [one.output for one in results] == [4, 6]


# -- ending early ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", range(6))
@pytest.mark.parametrize("replicas", [{}, {"add": 2, "double": 2}])
def test_closing_after_any_batch_ends_every_span_and_thread(taken: int, replicas: dict[str, int]) -> None:
    with recording() as recorded:
        running = executor(replicas=replicas, queue_size=1).run(numbered(*range(9)))
        finished = [next(running) for _ in range(taken)]
        running.close()
    assert [one.numbered.index for one in finished] == list(range(taken))
    roots = [span for span in recorded.spans if span.name == "batch"]
    assert len({root.batch for root in roots}) == len(roots)
    assert {span.batch for span in recorded.spans} == {root.batch for root in roots}
    assert all(root.status == "UNSET" for root in roots if root.batch < taken)
    assert all(root.status_message in ("", UNFINISHED) for root in roots)


@pytest.mark.parametrize("place", ["first", "second", "last"])
def test_closing_while_a_stage_works_waits_for_it(place: str) -> None:
    gate = Gate(lambda value: value == 2)
    stages = {name: gate if name == place else (lambda x: x) for name in ("first", "second", "last")}
    with recording() as recorded:
        running = executor(stages, queue_size=1).run(numbered(*range(9)))
        next(running)
        gate.wait_until_reached()
        threading.Timer(0.02, gate.open).start()
        running.close()
    assert all(thread.name != place for thread in threading.enumerate())
    assert {span.batch for span in recorded.spans} == {span.batch for span in recorded.spans if span.name == "batch"}


def test_closing_does_not_wait_long_for_a_stage_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(lambda value: value == 2)
    paced, batches = Pace(), numbered(1, 2)
    stages = {"hangs": gate, "next": lambda x: x}
    with recording() as recorded, caplog.at_level(logging.WARNING, logger="mlotel.execute"):
        running = executor(stages, grace_s=0.02).run(paced)
        paced.give(next(batches))
        assert next(running).output == 1
        paced.give(next(batches))
        gate.wait_until_reached()
        paced.end()
        running.close()
    (logged,) = caplog.messages  # on a busy machine another thread may also need longer
    assert re.fullmatch(r"threads still running after 0.02 s: hangs(, \w+)*", logged)
    (root,) = (span for span in recorded.spans if (span.name, span.batch) == ("batch", 1))
    assert (root.status, root.status_message) == ("ERROR", UNFINISHED)
    gate.open()


def test_closing_leaves_a_source_that_blocks_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    paced = Pace()
    running = executor(grace_s=0.02).run(paced)
    paced.give(next(numbered(1)))
    next(running)
    with caplog.at_level(logging.WARNING, logger="mlotel.execute"):
        running.close()
    (logged,) = caplog.messages
    assert re.fullmatch(r"threads still running after 0.02 s: (\w+, )*source", logged)
    paced.end()


def test_closing_the_source_first_ends_the_run_in_order() -> None:
    paced = Pace()
    running = executor(grace_s=0.0).run(paced)
    for batch in numbered(1, 2):
        paced.give(batch)
    paced.end()  # as closing a live source does
    assert [one.output for one in running] == [4, 6]


def test_a_batch_that_arrives_too_late_is_left_in_the_source() -> None:
    paced = Pace()
    with recording() as recorded:
        pipelined = executor(grace_s=PATIENCE_S)
        running = pipelined.run(paced)
        batches = numbered(1, 2)
        paced.give(next(batches))
        next(running)

        def give_once_it_is_closed() -> None:
            until(lambda: not pipelined._queues[0].put(0, None))
            paced.give(next(batches))

        giving = threading.Thread(target=give_once_it_is_closed)
        giving.start()
        running.close()
        giving.join(PATIENCE_S)
    assert {span.batch for span in recorded.spans} == {0}


def test_a_run_that_was_never_begun_needs_no_end() -> None:
    before = threading.active_count()
    executor().run(numbered(1)).close()
    assert threading.active_count() == before


@pytest.mark.parametrize("place", ["first", "second", "last", "source"])
def test_ctrl_c_while_the_caller_waits(place: str) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        interrupt_from(place)
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_from(place: str) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupts(value: int) -> int:
        if value == 3:
            signal.pthread_kill(main, signal.SIGINT)
        return value

    def source() -> Iterator[Numbered]:
        for one in numbered(*range(9)):
            if place == "source":
                interrupts(one.index)
            yield one

    stages = {name: interrupts if name == place else (lambda x: x) for name in ("first", "second", "last")}
    taken: list[int] = []

    def consume() -> None:
        with contextlib.closing(executor(stages, queue_size=1).run(source())) as running:
            taken.extend(one.numbered.index for one in running)
            signal.sigtimedwait([], PATIENCE_S)  # the signal may arrive after the last batch

    with recording() as recorded, pytest.raises(KeyboardInterrupt):
        consume()
    assert {span.batch for span in recorded.spans} == {span.batch for span in recorded.spans if span.name == "batch"}
    assert taken == list(range(len(taken)))


# -- naming the stage of NaN -----------------------------------------------------------------------------------------


def test_outputs_run_on_this_thread_and_never_beside_the_stages_own() -> None:
    gate = Gate(lambda value: value == 1)
    inside: list[int] = []
    most: list[int] = []

    def counted(value: int) -> int:
        inside.append(value)
        most.append(len(inside))
        gate(value)
        inside.pop()
        return value

    pipelined = executor({"counted": counted, "next": lambda x: x + 1})
    with contextlib.closing(pipelined.run(numbered(1, 2))) as running:
        consumer = threading.Thread(target=lambda: list(running))
        consumer.start()
        gate.wait_until_reached()
        asked: list[Any] = []
        asking = threading.Thread(target=lambda: asked.extend(pipelined.outputs(5)))
        asking.start()
        gate.open()
        asking.join(PATIENCE_S)
        consumer.join(PATIENCE_S)
    assert asked == [("counted", 5), ("next", 6)]
    assert max(most) == 1


def test_outputs_do_not_wait_for_a_stage_that_hangs() -> None:
    gate = Gate()
    pipelined = executor({"hangs": gate}, grace_s=0.02)
    with contextlib.closing(pipelined.run(numbered(1))) as running:
        consumer = threading.Thread(target=lambda: list(running))
        consumer.start()
        gate.wait_until_reached()
        with pytest.raises(StageError, match="stage hangs has been busy"):
            list(pipelined.outputs(1))
        gate.open()
        consumer.join(PATIENCE_S)
