"""One batch under way: its spans, how it fails, and that it ends once, whichever thread ends it first."""

from collections.abc import Callable
from typing import Any

import pytest

from mlotel_cli.execute.batches import Numbered
from mlotel_cli.execute.in_flight import InFlight
from mlotel_cli.records import BATCH_INDEX, BATCH_SIZE, KIND, Batch
from mlotel_cli.telemetry import api
from tests.support.spans import Recorded, recording


def in_flight(*, size: int = 2, arrived_ns: int | None = None) -> InFlight:
    batch = Batch(5, ["a", "b"], 20, None, size, arrived_ns)
    return InFlight(Numbered(7, 1, batch), ticket=3, tracer=api.PROVIDER.get_tracer("mlotel"), start_ns=50, wait_ns=9)


def told(recorded: Recorded) -> list[tuple[str, str]]:
    return [(span.name, span.status) for span in recorded.spans]


def raises(error: BaseException) -> Callable[[Any], Any]:
    def stage(value: Any) -> Any:
        raise error

    return stage


def test_a_batch_that_passes_two_stages() -> None:
    with recording() as recorded:
        one = in_flight()
        one.offer("half")
        one.take()
        one.run("half", lambda value: value // 2)
        one.run("more", lambda value: value + 1)
        one.end()
    assert recorded.tree() == [("batch", None), ("queue half", "batch"), ("half", "batch"), ("more", "batch")]
    assert recorded.named("batch").attributes == {BATCH_INDEX: 7, BATCH_SIZE: 2}
    assert recorded.named("queue half").attributes == {KIND: "queue"}
    finished = one.finished()
    assert (finished.output, finished.error, finished.stage) == (11, None, "")
    assert (finished.numbered.index, finished.start_ns, finished.wait_ns) == (7, 50, 9)
    assert finished.busy_ns > 0
    assert (one.ticket, one.is_over) == (3, True)


def test_the_stages_span_is_current_inside_it() -> None:
    with recording() as recorded:
        one = in_flight()

        def stage(value: Any) -> Any:
            with api.span("inside"):
                return value

        one.run("stage", stage)
        one.end()
    assert recorded.tree() == [("batch", None), ("stage", "batch"), ("inside", "stage")]


def test_a_stage_that_raises_ends_the_batch_with_its_name() -> None:
    error = ValueError("no plate")
    with recording() as recorded:
        one = in_flight()
        one.run("reader", raises(error))
        one.end()  # has no effect
    assert told(recorded) == [("reader", "ERROR"), ("batch", "ERROR")]
    assert recorded.named("batch").status_message == "ValueError: no plate"
    finished = one.finished()
    assert (finished.output, finished.error, finished.stage) == (None, error, "reader")
    assert one.is_over


def test_an_interrupt_inside_a_stage_is_raised_after_the_batch_has_ended() -> None:
    with recording() as recorded:
        one = in_flight()
        with pytest.raises(KeyboardInterrupt):
            one.run("reader", raises(KeyboardInterrupt()))
    assert told(recorded) == [("reader", "UNSET"), ("batch", "UNSET")]
    assert (one.is_over, one.finished().error) == (True, None)  # the batch has not failed


def test_a_batch_without_items_has_no_spans_and_no_output() -> None:
    with recording() as recorded:
        one = in_flight(size=0, arrived_ns=10)
        one.offer("stage")
        one.take()
        one.end()
    assert (recorded.spans, one.is_over, one.finished().output) == ([], True, None)


def test_live_input_has_waited_since_its_arrival() -> None:
    with recording() as recorded:
        in_flight(arrived_ns=30).end()
    arrival = recorded.named("queue source")
    assert (arrival.end_ns - arrival.start_ns, arrival.attributes) == (20, {KIND: "queue"})
    assert ("queue source", "batch") in recorded.tree()


def test_abandoned_it_ends_its_wait_and_its_root_and_says_why() -> None:
    with recording() as recorded:
        one = in_flight()
        one.offer("reader")
        one.abandon("the run ended before it")
        one.end()
    assert told(recorded) == [("queue reader", "UNSET"), ("batch", "ERROR")]
    assert recorded.named("batch").status_message == "the run ended before it"
    assert one.is_over


def test_abandoned_after_its_end_it_stays_as_it_was() -> None:
    with recording() as recorded:
        one = in_flight()
        one.run("stage", lambda value: value)
        one.end()
        one.abandon("too late")
    assert told(recorded) == [("stage", "UNSET"), ("batch", "UNSET")]
    assert one.finished().output == 20


def test_an_error_that_the_device_reports_at_the_end_is_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("CUDA error: an illegal memory access")

    class Root:
        def end(self) -> None:
            raise error

    with recording():
        one = in_flight()
        one.run("stage", lambda value: value)
        one._root = Root()  # type: ignore[assignment]
        one.end()
    finished = one.finished()
    assert (finished.output, finished.error, finished.stage) == (None, error, "")
