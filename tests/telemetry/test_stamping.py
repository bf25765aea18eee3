"""Ids are unique, and the spans of a trace are counted on many threads."""

import itertools
import threading

import pytest
from opentelemetry.trace import INVALID_SPAN

from mlotel_cli.telemetry.stamping import LocalTrace, Stamping
from tests.support.telemetry import Telemetry
from tests.support.wire import message_of


def test_eight_threads_are_counted_exactly(telemetry: Telemetry) -> None:
    with telemetry.span("root", attributes={"batch.index": 7}) as root:
        context = root_context()
        go = threading.Barrier(8)

        def open_spans() -> None:
            go.wait()
            for _ in range(250):
                with telemetry.span("child", context=context):
                    pass

        threads = [threading.Thread(target=open_spans) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert root.count_opened() == 2001
    assert len({span.get_span_context().span_id for span in telemetry.ended}) == 2001
    assert {span.batch for span in telemetry.ended} == {7}


def root_context() -> object:
    from opentelemetry import context

    return context.get_current()


def test_counting_takes_nothing_from_the_count() -> None:
    local = LocalTrace(1, root_id=1)
    next(local.opened)
    assert [local.count_opened(), local.count_opened(), next(local.opened)] == [1, 1, 1]


def test_a_batch_counts_its_own_spans(telemetry: Telemetry) -> None:
    with telemetry.span("epoch") as epoch, telemetry.span("load"):
        pass
    assert epoch.count_opened() == 2
    with (
        telemetry.span("epoch") as epoch,
        telemetry.span("batch", attributes={"batch.index": 3}) as batch,
        telemetry.span("stage") as stage,
    ):
        pass
    assert (epoch.count_opened(), batch.count_opened()) == (1, 2)
    assert (epoch.batch, batch.batch, stage.batch) == (None, 3, 3)
    assert {span.get_span_context().trace_id for span in (epoch, batch, stage)} == {2}
    assert [message_of(span).opened for span in (epoch, batch, stage)] == [1, 2, None]


def test_ids_are_random_valid_and_different() -> None:
    ids = {next(Stamping(lambda _: None).ids) for _ in range(100)}
    traces = {Stamping(lambda _: None).new_trace_id() for _ in range(100)}
    assert len(ids) == len(traces) == 100
    assert all(0 < one < 1 << 63 for one in ids)
    assert all(0 < one < 1 << 128 for one in traces)


def test_ids_count_up_from_the_first() -> None:
    stamping = Stamping(lambda _: None, first_id=5)
    assert [*itertools.islice(stamping.ids, 2), stamping.new_trace_id(), stamping.new_trace_id()] == [5, 6, 5, 6]


class Broken:
    def on_start(self, *_: object) -> None:
        raise OSError("disk full")

    on_end = on_start


@pytest.mark.parametrize("method", ["notify_started", "notify_ended"])
def test_a_processor_that_raises_leaves_the_others_alone(telemetry: Telemetry, method: str) -> None:
    seen: list[object] = []

    class Working:
        def on_start(self, span: object, context: object = None) -> None:
            seen.append(span)

        on_end = on_start

    with telemetry.span("stage") as span:
        pass
    telemetry.recording.processors = (Broken(), Working())  # type: ignore[assignment]
    getattr(telemetry.recording, method)(span, *([None] if method == "notify_started" else []))
    assert len(seen) == 1
    assert telemetry.faults.counts() == {"processor": 1}
    assert INVALID_SPAN not in seen
