"""Lanes, rows and ticks."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.trace.waterfall import lay_out, ticks
from tests.support.traces import EPOCH_NS, Trace, pipelined


def shape(*traces: Trace) -> dict[str, list[tuple[str, str, int]]]:
    waterfall = lay_out([span for trace in traces for span in trace.spans])
    return {lane.name: [(bar.span.name, bar.kind, bar.row) for bar in lane.bars] for lane in waterfall.lanes}


def test_one_lane_a_thread_and_waiting_lies_where_it_waited_for() -> None:
    assert shape(pipelined()) == {
        "batch": [("batch", "batch", 0)],
        "detector": [("queue detector", "waiting", 0), ("detector", "compute", 0), ("resize", "compute", 1)],
        "reader": [("queue reader", "waiting", 0), ("reader", "compute", 0)],
    }
    waterfall = lay_out(pipelined().spans)
    assert (waterfall.start_ns, waterfall.end_ns, waterfall.duration_ns) == (EPOCH_NS, EPOCH_NS + 10**8, 10**8)


def test_a_sequential_batch_has_one_thread() -> None:
    trace = Trace(0, 0, 10, thread="MainThread")
    one = trace.add("one", 0, 5, thread="MainThread")
    inner = trace.add("inner", 1, 4, thread="MainThread", parent=one)
    trace.add("innermost", 2, 3, thread="MainThread", parent=inner)
    trace.add("two", 5, 10, thread="MainThread")
    rows = {name: row for name, _, row in shape(trace)["MainThread"]}
    assert rows == {"one": 0, "inner": 1, "innermost": 2, "two": 0}


def test_batches_that_wait_at_once_lie_below_each_other() -> None:
    lanes = shape(pipelined(0), pipelined(1, 5), pipelined(2, 300))
    assert [row for _, _, row in lanes["batch"]] == [0, 1, 0]
    waiting = [row for name, _, row in lanes["reader"] if name == "queue reader"]
    assert waiting == [0, 1, 0]


def test_a_stage_that_was_never_reached_waits_where_others_ran_it() -> None:
    stuck = Trace(1, 200, 250)
    stuck.wait("reader", 200, 250, thread="detector")
    renamed = pipelined()
    renamed.spans[-1].thread = "reader-1"
    assert "reader-1" in shape(renamed, stuck)
    assert shape(stuck)["reader"] == [("queue reader", "waiting", 0)]


def test_lanes_come_in_the_order_in_which_a_batch_meets_them() -> None:
    late = pipelined(0)
    late.spans[2].thread = "detector-1"  # this replica took the first batch
    late.spans[3].thread = "detector-1"
    assert list(shape(late, pipelined(1, 50))) == ["batch", "detector", "detector-1", "reader"]


def test_a_thread_called_batch_is_a_lane_of_its_own() -> None:
    trace = Trace(0, 0, 10)
    trace.add("work", 0, 5, thread="batch")
    waterfall = lay_out(trace.spans)
    assert [(lane.name, lane.bars[0].kind) for lane in waterfall.lanes] == [("batch", "batch"), ("batch", "compute")]


def test_a_batch_below_a_span_that_is_in_none() -> None:
    trace = pipelined()
    trace.root.parent_id = 12345
    assert shape(trace) == shape(pipelined())


def test_arrival_before_pick_up_counts() -> None:
    trace = Trace(0, 10, 20)
    trace.wait("source", 2, 10)
    assert lay_out(trace.spans).start_ns == EPOCH_NS + 2_000_000


def test_no_span_is_no_picture() -> None:
    with pytest.raises(ValueError, match="needs a span"):
        lay_out([])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.sampled_from("ab")), max_size=12))
def test_bars_of_a_row_never_overlap(spans: list[tuple[int, int, str]]) -> None:
    trace = Trace(0, 0, 100)
    for start, length, thread in spans:
        trace.add("s", start, start + length, thread=thread)
    for lane in lay_out(trace.spans).lanes:
        for row in range(lane.num_rows):
            bars = [bar.span for bar in lane.bars if bar.row == row]
            assert bars, "a row without bar"
            assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(bars))


@pytest.mark.parametrize(
    ("duration_ns", "at_most", "expected"),
    [
        (100_000_000, 5, [0, 20, 40, 60, 80, 100]),
        (100_000_000, 4, [0, 50, 100]),
        (99_000_000, 10, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]),
        (7_300_000, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_ticks_are_round(duration_ns: int, at_most: int, expected: list[int]) -> None:
    assert [tick / 1e6 for tick in ticks(duration_ns, at_most=at_most)] == expected


@given(st.integers(1, 10**13), st.integers(1, 30))
def test_ticks_are_few_and_inside(duration_ns: int, at_most: int) -> None:
    found = ticks(duration_ns, at_most=at_most)
    assert found[0] == 0
    assert len(found) <= at_most + 1
    assert found[-1] <= duration_ns
