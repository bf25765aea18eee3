"""The sequential executor: spans, parents, order, errors, waiting for the source."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from mlotel_cli.execute import Finished, Numbered, SequentialExecutor
from mlotel_cli.records import BATCH_INDEX, BATCH_SIZE, KIND, Batch
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.clock import CLOCK
from tests.support.spans import STEP_NS, recording


def numbered(*data: Any, size: int = 2) -> Iterator[Numbered]:
    return iter([Numbered(i, 0, Batch(i, ["a", "b"], value, None, size)) for i, value in enumerate(data)])


def run(stages: Any, batches: Iterable[Numbered]) -> list[Finished]:
    return list(SequentialExecutor(stages).run(iter(batches)))


STAGES: dict[str, Callable[[Any], Any]] = {"add": lambda x: x + 1, "double": lambda x: x * 2}


def test_stages_run_in_order_and_outputs_pass_through() -> None:
    finished = run(STAGES, numbered(1, 5))
    assert [(one.output, one.error, one.stage) for one in finished] == [(4, None, ""), (12, None, "")]
    assert [one.numbered.index for one in finished] == [0, 1]


def test_spans_parents_times_and_attributes_are_exact() -> None:
    with recording() as recorded:
        (finished,) = run(STAGES, numbered(1))
    assert recorded.names() == ["add", "double", "batch"]  # in the order in which they end
    add, double, root = recorded.spans
    assert [(s.name, s.start_ns // STEP_NS, s.end_ns // STEP_NS) for s in recorded.spans] == [
        ("add", 2, 3),
        ("double", 4, 5),
        ("batch", 1, 6),
    ]
    assert (root.parent_id, add.parent_id, double.parent_id) == (0, root.span_id, root.span_id)
    assert (root.span_id, root.trace_id) == (1, 1)
    assert root.attributes == {BATCH_INDEX: 0, BATCH_SIZE: 2}
    assert [span.batch for span in recorded.spans] == [0, 0, 0]
    assert {span.scope for span in recorded.spans} == {"mlotel"}
    assert finished.root.get_span_context().span_id == root.span_id
    assert finished.root.count_opened() == 3  # type: ignore[attr-defined]


def test_every_batch_is_a_trace_of_its_own_even_inside_a_span_of_the_caller() -> None:
    with recording() as recorded, api.span("outside"):
        run(STAGES, numbered(1, 2))
    roots = [span for span in recorded.spans if span.name == "batch"]
    assert [root.parent_id for root in roots] == [0, 0]
    assert len({root.trace_id for root in roots}) == 2


def test_a_callable_opens_its_own_spans_below_the_root() -> None:
    def pipeline(value: int) -> int:
        with api.span("mine"), api.span("inner"):
            return value + 1

    with recording() as recorded:
        (finished,) = run(pipeline, numbered(1))
    assert finished.output == 2
    assert recorded.tree() == [("batch", None), ("mine", "batch"), ("inner", "mine")]


def test_an_error_is_the_batchs_and_names_its_stage() -> None:
    def breaks(value: int) -> int:
        if value == 2:
            raise ZeroDivisionError("told to")
        return value

    never: list[int] = []
    with recording() as recorded:
        finished = run({"add": lambda x: x + 1, "breaks": breaks, "after": never.append}, numbered(0, 1, 2))
    assert [one.stage for one in finished] == ["", "breaks", ""]
    assert finished[1].output is None
    assert isinstance(finished[1].error, ZeroDivisionError)
    assert never == [1, 3]
    failed = [span for span in recorded.spans if span.batch == 1]
    assert [(span.name, span.status, span.status_message) for span in failed] == [
        ("add", "UNSET", ""),
        ("breaks", "ERROR", "ZeroDivisionError: told to"),
        ("batch", "ERROR", "ZeroDivisionError: told to"),
    ]
    assert failed[1].events[0][2]["exception.type"] == "ZeroDivisionError"


def test_an_error_of_a_callable_has_no_stage_to_name() -> None:
    def pipeline(value: int) -> int:
        raise ValueError(value)

    (finished,) = run(pipeline, numbered(1))
    assert (finished.stage, repr(finished.error)) == ("", "ValueError(1)")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_ends_the_run(stop: type[BaseException]) -> None:
    def stage(value: int) -> None:
        raise stop

    with recording() as recorded, pytest.raises(stop):
        run({"stage": stage}, numbered(1))
    assert recorded.names() == ["stage", "batch"]  # both ended


def test_a_batch_without_items_runs_no_stage_and_opens_no_span() -> None:
    ran: list[Any] = []
    with recording() as recorded:
        (finished,) = run({"stage": ran.append}, numbered(None, size=0))
    assert (ran, recorded.spans, finished.output, finished.error) == ([], [], None, None)
    assert not finished.root.is_recording()


def test_waiting_for_the_source_is_measured_apart_from_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])

    def source() -> Iterator[Numbered]:
        for one in numbered("a", "b"):
            clock[0] += 700
            yield one

    def stage(value: str) -> str:
        clock[0] += 50
        return value

    finished: list[Finished] = []
    for one in SequentialExecutor({"stage": stage}).run(source()):
        clock[0] += 10_000  # the time of scoring is not part of a wait
        finished.append(one)
    assert [one.wait_ns for one in finished] == [700, 700]
    assert [one.start_ns for one in finished] == [700, 700 + 50 + 10_000 + 700]


def test_one_batch_is_taken_at_a_time() -> None:
    taken: list[int] = []

    def source() -> Iterator[Numbered]:
        for one in numbered(1, 2, 3):
            taken.append(one.index)
            yield one

    running = SequentialExecutor(STAGES).run(source())
    next(running)
    assert taken == [0]


def test_an_error_of_the_source_is_the_callers() -> None:
    def source() -> Iterator[Numbered]:
        yield from numbered(1)
        raise OSError("gone")

    running = SequentialExecutor(STAGES).run(source())
    assert next(running).output == 4
    with pytest.raises(OSError, match="gone"):
        next(running)


def test_waiting_since_arrival_is_a_span_of_the_batch() -> None:
    with recording(epoch_offset_ns=CLOCK.epoch_offset_ns) as recorded:
        arrived_ns = time.perf_counter_ns() - 5_000_000
        batch = Batch(0, ["a"], 1, source_time_ns=arrived_ns)
        (finished,) = run(STAGES, [Numbered(0, 0, batch)])
    waited = recorded.named("queue source")
    assert ("queue source", "batch") in recorded.tree()
    assert waited.attributes == {KIND: "queue"}
    assert waited.start_ns == arrived_ns + CLOCK.epoch_offset_ns
    assert waited.end_ns == finished.start_ns + CLOCK.epoch_offset_ns


def test_an_arrival_in_the_future_is_no_negative_wait() -> None:
    with recording(epoch_offset_ns=CLOCK.epoch_offset_ns) as recorded:
        batch = Batch(0, ["a"], 1, source_time_ns=time.perf_counter_ns() + 10**12)
        run(STAGES, [Numbered(0, 0, batch)])
    waited = recorded.named("queue source")
    assert waited.start_ns == waited.end_ns


def test_it_is_held_back_between_batches_outside_any_span() -> None:
    seen: list[Any] = []

    def wait_for_room() -> None:
        seen.append(api.trace.get_current_span())

    with recording():
        seen.extend(
            one.numbered.index for one in SequentialExecutor(STAGES).run(numbered(1, 2), wait_for_room=wait_for_room)
        )
    assert seen == [0, api.trace.INVALID_SPAN, 1, api.trace.INVALID_SPAN]


def test_outputs_of_each_stage_and_no_queue() -> None:
    executor = SequentialExecutor(STAGES)
    assert list(executor.outputs(4)) == [("add", 5), ("double", 10)]
    assert list(SequentialExecutor(lambda x: x).outputs(4)) == []
    assert executor.depths() == {}
