"""What a batch's latency is made of."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.trace.critical_path import critical_path, shares
from tests.support.traces import EPOCH_NS, Trace, pipelined


def steps(trace: Trace) -> list[tuple[str, str, float, float]]:
    return [
        (step.name, step.kind, (step.start_ns - EPOCH_NS) / 1e6, (step.end_ns - EPOCH_NS) / 1e6)
        for step in critical_path(trace.spans)
    ]


def test_a_pipelined_batch() -> None:
    assert steps(pipelined()) == [
        ("queue detector", "waiting", 0, 10),
        ("detector", "compute", 10, 15),
        ("resize", "compute", 15, 25),
        ("detector", "compute", 25, 40),
        ("queue reader", "waiting", 40, 60),
        ("reader", "compute", 60, 99),
        ("batch", "untraced", 99, 100),
    ]
    assert shares(critical_path(pipelined().spans)) == {"waiting": 0.3, "compute": 0.69, "untraced": 0.01}


def test_each_step_says_which_stage_it_lies_in() -> None:
    trace = pipelined()
    trace.add("deeper", 16, 20, thread="detector", parent=trace.spans[3])
    stages = [(step.name, step.stage) for step in critical_path(trace.spans)]
    assert stages[1:6] == [(name, "detector") for name in ("detector", "resize", "deeper", "resize", "detector")]
    assert (stages[0], stages[-1]) == (("queue detector", "queue detector"), ("batch", "batch"))


def test_spans_may_be_nested_as_deep_as_calls_are() -> None:
    trace = Trace(0, 0, 3000)
    parent = trace.root
    for depth in range(1, 1401):
        parent = trace.add("again", depth, 3000 - depth, parent=parent, thread="t")
    assert len(steps(trace)) == 2 * 1400 + 1


def test_a_span_that_is_its_own_parent_ends_the_walk() -> None:
    trace = Trace(0, 0, 10)
    odd = trace.add("odd", 2, 8)
    odd.span_id = odd.parent_id  # as a foreign SDK with ids of its own may give
    assert steps(trace) == [("batch", "untraced", 0, 10)]


def test_what_ran_beside_a_longer_span_is_not_on_the_path() -> None:
    trace = Trace(0, 0, 20)
    trace.add("first", 0, 5)
    trace.add("long", 5, 20)
    trace.add("short", 6, 19)
    assert [name for name, *_ in steps(trace)] == ["first", "long"]


def test_of_two_that_overlap_the_later_end_counts_from_its_start() -> None:
    trace = Trace(0, 0, 15)
    trace.add("a", 0, 10)
    trace.add("b", 5, 15)
    assert steps(trace) == [("a", "compute", 0, 5), ("b", "compute", 5, 15)]


def test_waiting_before_pick_up_is_on_it() -> None:
    trace = Trace(0, 10, 20)
    trace.wait("source", 2, 10)
    trace.add("work", 10, 20)
    assert steps(trace) == [("queue source", "waiting", 2, 10), ("work", "compute", 10, 20)]


def test_a_child_that_outlives_its_batch_is_cut() -> None:
    trace = Trace(0, 0, 10)
    trace.add("work", 4, 30)
    assert steps(trace) == [("batch", "untraced", 0, 4), ("work", "compute", 4, 10)]


def test_a_batch_below_a_span_that_is_in_none() -> None:
    trace = pipelined()
    trace.root.parent_id = 12345  # an epoch of the user's own loop
    assert len(steps(trace)) == 7


def test_a_batch_whose_root_never_ended_has_none() -> None:
    assert critical_path(pipelined().spans[1:]) == []
    assert shares([]) == {}


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 40), st.booleans()), max_size=10))
def test_steps_follow_each_other_over_the_whole_batch(spans: list[tuple[int, int, bool]]) -> None:
    trace = Trace(0, 0, 100)
    for start, length, is_nested in spans:
        parent = trace.spans[-1] if is_nested else trace.root
        trace.add(f"s{len(trace.spans)}", start, start + length, parent=parent)
    found = steps(trace)
    assert found[0][2] == 0
    assert found[-1][3] == 100
    assert all(a[3] == b[2] for a, b in itertools.pairwise(found))
    assert all(end > start for _, _, start, end in found)
