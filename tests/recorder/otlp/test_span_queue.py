"""Spans that wait: bounded, whole batches dropped, and every span accounted for."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mlotel_cli.recorder.otlp.span_queue import SpanQueue
from mlotel_cli.records import SpanRecord


def span(batch, number=0, *, trace=None) -> SpanRecord:
    trace = (batch or 0) if trace is None else trace
    return SpanRecord(trace, number, 0, batch, "s", "INTERNAL", "", "", 0, 1)


def names(spans) -> list[tuple]:
    return [(each.batch, each.span_id) for each in spans]


def test_batches_leave_in_order_of_their_first_span_and_whole():
    queue = SpanQueue(10)
    queue.add([span(0, 1), span(1, 1), span(0, 2), span(1, 2)])
    assert names(queue.take(3)) == [(0, 1), (0, 2)]
    assert names(queue.take(3)) == [(1, 1), (1, 2)]
    assert (queue.take(3), len(queue), queue.dropped) == ([], 0, 0)


def test_a_batch_larger_than_a_request_leaves_in_pieces():
    queue = SpanQueue(10)
    queue.add([span(0, n) for n in range(5)])
    assert [len(queue.take(2)) for _ in range(4)] == [2, 2, 1, 0]


def test_a_full_queue_drops_the_oldest_batch_and_what_comes_of_it_later():
    queue = SpanQueue(4)
    queue.add([span(0, 1), span(0, 2), span(1, 1), span(1, 2), span(2, 1), span(0, 3)])
    assert queue.dropped == 3
    assert names(queue.take(10)) == [(1, 1), (1, 2), (2, 1)]


def test_a_span_of_the_oldest_batch_that_finds_no_room_takes_its_batch_with_it():
    queue = SpanQueue(4)
    queue.add([span(0, 1), span(0, 2), span(1, 1), span(1, 2), span(0, 3)])
    assert queue.dropped == 3
    assert names(queue.take(10)) == [(1, 1), (1, 2)]


def test_what_fills_the_queue_alone_loses_its_newest_spans():
    queue = SpanQueue(3)
    queue.add([span(0, n) for n in range(5)])
    assert queue.dropped == 2
    assert names(queue.take(10)) == [(0, 0), (0, 1), (0, 2)]


def test_one_trace_around_all_batches_is_not_lost_as_one():
    queue = SpanQueue(4)
    queue.add([span(batch, n, trace=7) for batch in range(3) for n in range(2)])
    assert names(queue.take(10)) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_spans_outside_any_batch_come_again_after_a_loss():
    queue = SpanQueue(2)
    queue.add([span(None, 1, trace=7), span(1, 1), span(2, 1), span(None, 2, trace=7)])
    assert (None, 2) in names(queue.take(10))


def test_clearing_says_how_many():
    queue = SpanQueue(5)
    queue.add([span(0, 1), span(1, 1)])
    assert (queue.clear(), len(queue), queue.dropped) == (2, 0, 0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 8),
    st.lists(st.one_of(st.tuples(st.integers(0, 5), st.booleans()), st.integers(1, 4)), max_size=80),
)
def test_taken_dropped_and_waiting_are_all_there_was(size, steps):
    queue = SpanQueue(size)
    added, taken = 0, 0
    for step in steps:
        if isinstance(step, int):
            spans = queue.take(step)
            assert len(spans) <= step
            taken += len(spans)
        else:
            batch, has_batch = step
            queue.add([span(batch if has_batch else None, added, trace=batch)])
            added += 1
        assert len(queue) <= size
        assert taken + queue.dropped + len(queue) == added
