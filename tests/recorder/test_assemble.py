"""Stamps in, rows out: exact figures, in whatever order the stamps come."""

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlotel_cli.recorder import assemble
from mlotel_cli.recorder.assemble import Assembler
from mlotel_cli.records import BATCH_SIZE, KIND, SCORED, BatchRecord, SpanRecord, StageTime
from mlotel_cli.wire import Settled, Stamp

MS = 1_000_000


def span(name, start_ms, end_ms, *, batch=0, kind="INTERNAL", device_ms=None, attributes=None, status="UNSET", **more):
    return SpanRecord(
        trace_id=1,
        span_id=1,
        parent_id=0,
        batch=batch,
        name=name,
        kind=kind,
        scope="test",
        thread="MainThread",
        start_ns=round(start_ms * MS),
        end_ns=round(end_ms * MS),
        device_ns=None if device_ms is None else round(device_ms * MS),
        status=status,
        status_message="it broke" if status == "ERROR" else "",
        attributes=attributes or {},
        **more,
    )


def child(*args, recorded=(), **kwargs):
    return Stamp(span(*args, **kwargs), None, list(recorded))


def root(start_ms, end_ms, *, opened, recorded=(), **kwargs):
    return Stamp(span("batch", start_ms, end_ms, **kwargs), opened, list(recorded))


def settled(batch=0, *, opened, status="scored", **fields):
    return Settled(batch, source_batch=batch, repeat=0, size=1, status=status, opened=opened, start_ns=0, **fields)


def take(assembler, *items, now=0.0):
    for item in items:
        if isinstance(item, Stamp):
            assembler.add(item, now=now)
        else:
            assembler.settle(item, now=now)
    return list(assembler.finished(now=now))


def one(assembler, *items, now=0.0) -> BatchRecord:
    (record,) = take(assembler, *items, now=now)
    return record


def test_a_row_is_there_once_the_last_of_root_children_and_settlement_came():
    items = [child("a", 1, 3), child("b", 3, 4), root(0, 5, opened=3), settled(opened=3, accuracy={"score": 0.5})]
    expected = BatchRecord(
        batch=0,
        source_batch=0,
        repeat=0,
        start_ns=0,
        size=1,
        status="scored",
        latency_ms=5.0,
        stages={"a": StageTime(host_ms=2.0, calls=1), "b": StageTime(host_ms=1.0, calls=1)},
        accuracy={"score": 0.5},
    )
    for seed in range(10):
        order = random.Random(seed).sample(items, len(items))
        assembler = Assembler(settle_s=5.0)
        for item in order[:-1]:
            assert take(assembler, item) == []
        assert one(assembler, order[-1]) == expected
        assert list(assembler.finished(now=9e9, closing=True)) == []


def test_rows_come_in_the_order_in_which_they_became_complete():
    assembler = Assembler(settle_s=5.0)
    assert take(assembler, root(0, 1, opened=2, batch=0), settled(0, opened=2)) == []
    rows = take(assembler, root(2, 3, opened=1, batch=1), settled(1, opened=1), child("a", 0, 9, batch=0))
    assert [row.batch for row in rows] == [1, 0]


def test_same_named_spans_are_summed_and_counted():
    record = one(
        Assembler(settle_s=5.0),
        child("reader", 1, 3, device_ms=0.5),
        child("reader", 4, 5),
        child("reader", 6, 9, device_ms=0.25),
        child("queue reader", 0, 1, attributes={KIND: "queue"}),
        child("queue reader", 3, 3.5, attributes={KIND: "queue"}),
        root(0, 10, opened=6),
        settled(opened=6),
    )
    assert record.stages == {"reader": StageTime(host_ms=6.0, device_ms=0.75, queue_ms=1.5, calls=3)}


def test_what_the_device_went_on_for_is_summed_too():
    spans = [child("reader", 1, 3, device_ms=2, lag_ns=MS), child("reader", 4, 5, device_ms=1, lag_ns=MS // 2)]
    record = one(Assembler(settle_s=5.0), *spans, root(0, 10, opened=3), settled(opened=3))
    assert record.stages == {"reader": StageTime(host_ms=3.0, device_ms=3.0, calls=2, lag_ms=1.5)}


def test_a_queue_without_its_stage_is_no_call():
    record = one(
        Assembler(settle_s=5.0),
        child("queue reader", 0, 1, attributes={KIND: "queue"}),
        root(0, 2, opened=2),
        settled(opened=2),
    )
    assert record.stages == {"reader": StageTime(host_ms=0.0, queue_ms=1.0, calls=0)}


def test_a_stage_may_be_called_queue_something():
    record = one(Assembler(settle_s=5.0), child("queue reader", 0, 1), root(0, 2, opened=2), settled(opened=2))
    assert list(record.stages) == ["queue reader"]


def test_stages_stand_in_the_order_of_their_first_start():
    stamps = [child("a", 5, 6), child("b", 4, 7), child("c", 3, 4), child("a", 1, 2), root(0, 8, opened=5)]
    assert list(one(Assembler(settle_s=5.0), *stamps, settled(opened=5)).stages) == ["a", "c", "b"]


def test_other_kinds_of_span_are_no_stages_but_are_waited_for():
    assembler = Assembler(settle_s=5.0)
    assert take(assembler, child("a", 0, 1), root(0, 3, opened=4), settled(opened=4)) == []
    assert take(assembler, child("GET", 0, 1, kind="CLIENT")) == []
    record = one(assembler, child("marker", 0, 1, attributes={KIND: "note"}))
    assert list(record.stages) == ["a"]
    assert record.status == "scored"


def test_spans_outside_any_batch_are_in_no_row():
    assembler = Assembler(settle_s=5.0)
    assert take(assembler, child("setup", 0, 1, batch=None)) == []
    assert list(assembler.finished(now=9e9, closing=True)) == []
    assert assembler.late == 0


def test_a_child_that_never_ends_makes_the_batch_incomplete_after_settle_s():
    assembler = Assembler(settle_s=5.0)
    items = (child("a", 0, 1), root(0, 2, opened=4), settled(opened=4, accuracy={"score": 1.0}))
    assert take(assembler, *items, now=10.0) == []
    assert list(assembler.finished(now=14.99)) == []
    (record,) = assembler.finished(now=15.0)
    assert (record.status, record.spans_missing) == ("incomplete", 2)
    assert record.error == "2 opened spans never ended"
    assert (record.latency_ms, record.accuracy) == (2.0, {"score": 1.0})


def test_a_batch_that_was_not_settled_says_so():
    assembler = Assembler(settle_s=5.0)
    assert take(assembler, child("a", 0, 1, batch=0), root(0, 2, opened=2), child("a", 3, 4, batch=1)) == []
    through, cut_off = assembler.finished(now=0.1, closing=True)
    assert (through.status, through.error) == ("incomplete", "it went through, but was never settled")
    assert (cut_off.status, cut_off.error) == ("incomplete", "its root span never ended")


def test_settle_s_counts_from_the_settlement_not_from_the_first_span():
    assembler = Assembler(settle_s=5.0)
    take(assembler, child("a", 0, 1), now=0.0)
    take(assembler, settled(opened=3), now=100.0)
    assert list(assembler.finished(now=104.9)) == []
    assert len(list(assembler.finished(now=105.0))) == 1


def test_a_batch_that_waits_holds_no_later_one():
    assembler = Assembler(settle_s=5.0)
    take(assembler, settled(0, opened=2), now=0.0)
    assert one(assembler, root(0, 1, opened=1, batch=1), settled(1, opened=1), now=1.0).batch == 1
    assert [row.batch for row in assembler.finished(now=5.0)] == [0]


def test_a_root_that_never_ends_leaves_no_latency():
    assembler = Assembler(settle_s=5.0)
    take(assembler, child("a", 0, 1), settled(opened=2), now=0.0)
    (record,) = assembler.finished(now=6.0)
    assert (record.status, record.latency_ms, record.spans_missing) == ("incomplete", None, 1)


def test_a_batch_without_any_span_is_complete_at_once():
    record = one(Assembler(settle_s=5.0), settled(opened=0))
    assert (record.status, record.latency_ms, record.stages) == ("scored", None, {})


@pytest.mark.parametrize("status", ["skipped", "failed", "dropped"])
def test_what_the_mode_said_is_not_overwritten_by_missing_spans(status):
    assembler = Assembler(settle_s=5.0)
    take(assembler, root(0, 1, opened=2), settled(opened=2, status=status, error="stage a raised"))
    (record,) = assembler.finished(now=5.0)
    assert (record.status, record.error, record.spans_missing) == (status, "stage a raised", 1)


def test_a_span_after_its_row_is_late_and_changes_nothing():
    assembler = Assembler(settle_s=5.0)
    one(assembler, root(0, 1, opened=1), settled(opened=1))
    assert take(assembler, child("a", 0, 9), settled(opened=1)) == []
    assert assembler.late == 1
    assert list(assembler.finished(now=9e9, closing=True)) == []


def test_a_finished_batch_is_remembered_for_millions_of_batches():
    finished = assemble._Indexes()
    for index in range(300_000):
        finished.add(index)
    assert 0 in finished
    assert 299_999 in finished
    assert 300_000 not in finished
    assert len(finished._blocks) == 293


def test_remembering_is_bounded_for_scattered_indexes():
    finished = assemble._Indexes()
    indexes = [-(10**9), *range(0, 20_000 * 1024, 1024)]
    for index in indexes:
        finished.add(index)
        assert index in finished
    assert len(finished._blocks) == 10_000
    assert 0 not in finished


def test_closing_writes_what_is_left():
    assembler = Assembler(settle_s=5.0)
    take(assembler, child("a", 3, 4, batch=2), child("a", 1, 2, batch=2))
    take(assembler, root(7, 9, opened=1, batch=1, attributes={BATCH_SIZE: 8}), settled(0, opened=2))
    rows = list(assembler.finished(now=0.1, closing=True))
    assert [(row.batch, row.status, row.start_ns, row.size) for row in rows] == [
        (0, "incomplete", 0, 1),
        (1, "incomplete", 7 * MS, 8),
        (2, "incomplete", 1 * MS, 0),
    ]
    assert [row.latency_ms for row in rows] == [None, 2.0, None]


def test_names_beyond_the_limit_are_counted():
    assembler = Assembler(settle_s=5.0, max_names=2)
    stamps = [child(name, 0, 1, recorded=[(name, 1.0, "")]) for name in "abcc"]
    record = one(assembler, *stamps, root(0, 1, opened=5), settled(opened=5))
    assert list(record.stages) == list(record.data) == ["a", "b"]
    assert assembler.overflowed == 4
    assert record.status == "scored"
    again = one(assembler, child("b", 0, 1, batch=1), root(0, 1, opened=2, batch=1), settled(1, opened=2))
    assert list(again.stages) == ["b"]


def test_recorded_values_are_averaged_and_keep_their_unit():
    record = one(
        Assembler(settle_s=5.0),
        child("a", 0, 1, recorded=[("boxes", 1.0, ""), ("boxes", 2.0, "{box}")]),
        root(0, 1, opened=2, recorded=[("boxes", 6.0, ""), ("size", 5.0, "By")]),
        settled(opened=2),
    )
    assert record.data == {"boxes": 3.0, "size": 5.0}
    assert record.units == {"boxes": "{box}", "size": "By"}


def test_live_input_is_late_from_its_arrival_on():
    record = one(Assembler(settle_s=5.0), root(10, 12, opened=1), settled(opened=1, source_time_ns=4 * MS))
    assert record.latency_ms == 8.0
    assert record.start_ns == 10 * MS


class TestSettleRoots:
    """The end of the root settles a batch."""

    def test_the_root_says_index_size_and_how_it_ended(self):
        assembler = Assembler(settle_s=5.0, settle_roots=True)
        record = one(assembler, child("a", 0, 1, batch=7), root(0, 2, opened=2, batch=7, attributes={BATCH_SIZE: 16}))
        assert (record.batch, record.source_batch, record.size, record.status) == (7, 7, 16, "done")

    def test_a_root_before_its_children_waits_for_them(self):
        assembler = Assembler(settle_s=5.0, settle_roots=True)
        assert take(assembler, root(0, 2, opened=2)) == []
        assert one(assembler, child("a", 0, 1)).stages == {"a": StageTime(host_ms=1.0, calls=1)}

    def test_an_error_of_the_root_is_the_batchs(self):
        record = one(Assembler(settle_s=5.0, settle_roots=True), root(0, 2, opened=1, status="ERROR"))
        assert (record.status, record.error) == ("failed", "it broke")

    def test_where_the_number_of_spans_is_unknown_the_row_waits_settle_s(self):
        assembler = Assembler(settle_s=6.0, settle_roots=True)
        assert take(assembler, child("a", 0, 1), root(0, 2, opened=-1), now=1.0) == []
        assert take(assembler, child("b", 0, 1), now=6.9) == []
        (record,) = assembler.finished(now=7.0)
        assert (record.status, list(record.stages), record.spans_missing) == ("done", ["a", "b"], 0)

    def test_scores_are_attributes_of_any_span_and_the_later_one_wins(self):
        record = one(
            Assembler(settle_s=5.0, settle_roots=True),
            child("a", 0, 1, attributes={SCORED + "recall": 0.25, SCORED + "text": "high"}),
            child("b", 1, 2, attributes={SCORED + "recall": 0.75}),
            root(0, 2, opened=3, attributes={SCORED + "precision": 1}),
        )
        assert record.accuracy == {"recall": 0.75, "precision": 1.0}
        assert record.status == "scored"

    def test_a_failed_batch_keeps_its_score_and_its_status(self):
        stamp = root(0, 2, opened=1, status="ERROR", attributes={SCORED + "recall": 1.0})
        record = one(Assembler(settle_s=5.0, settle_roots=True), stamp)
        assert (record.status, record.accuracy) == ("failed", {"recall": 1.0})

    @pytest.mark.parametrize("size", ["many", math.nan, math.inf])
    def test_a_size_that_is_no_number_counts_as_one(self, size):
        record = one(Assembler(settle_s=5.0, settle_roots=True), root(0, 1, opened=1, attributes={BATCH_SIZE: size}))
        assert record.size == 1

    def test_without_it_a_root_settles_nothing(self):
        assembler = Assembler(settle_s=5.0)
        assert take(assembler, root(0, 1, opened=1, attributes={SCORED + "recall": 1.0})) == []
        assert list(assembler.finished(now=9e9)) == []


def test_batches_that_never_end_are_let_go_oldest_first(monkeypatch):
    monkeypatch.setattr(assemble, "OPEN_LIMIT", 10)
    assembler = Assembler(settle_s=5.0)
    for index in reversed(range(15)):
        assembler.add(child("a", 0, 1, batch=index), now=0.0)
    rows = list(assembler.finished(now=0.0))
    assert [row.batch for row in rows] == [14, 13, 12, 11, 10]
    assert {row.status for row in rows} == {"incomplete"}
    assert take(assembler, child("a", 0, 1, batch=14)) == []
    assert assembler.late == 1


def test_an_open_batch_takes_memory_by_its_names_not_its_spans():
    assembler = Assembler(settle_s=5.0)
    for start in range(10_000):
        assembler.add(child("a", start, start + 1), now=0.0)
    (entry,) = assembler._open.values()
    assert entry.num_spans == 10_000
    assert entry.stages["a"].host_ns == 10_000 * MS
    assert len(entry.stages) == 1


# -- any order at all ---------------------------------------------------------------------------------------------

SPANS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 50),
        st.integers(0, 50),
        st.sampled_from([None, 1.5]),
        st.booleans(),
    ),
    max_size=5,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(
    batches=st.lists(st.tuples(SPANS, st.booleans()), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
    own_loop=st.booleans(),
)
def test_any_interleaving_gives_each_batch_one_row_equal_to_the_direct_sum(batches, seed, own_loop):
    draw = random.Random(seed)
    items, expected = [], {}
    for index, (spans, lacks_one) in enumerate(batches):
        opened = 1 + len(spans) + lacks_one
        status = "incomplete" if lacks_one else "scored"
        items.append(root(0, 200, opened=opened, batch=index, attributes={SCORED + "s": index / 8}))
        items += [
            child(
                f"queue {name}" if waits else name,
                start,
                start + length,
                batch=index,
                device_ms=device,
                attributes={KIND: "queue"} if waits else None,
            )
            for name, start, length, device, waits in spans
        ]
        if not own_loop:
            items.append(settled(index, opened=opened, accuracy={"s": index / 8}))
        expected[index] = (status, 200.0, {"s": index / 8}, _directly(spans), int(lacks_one))
    draw.shuffle(items)
    assembler = Assembler(settle_s=5.0, settle_roots=own_loop)
    rows, now = [], 0.0
    for item in items:
        rows += take(assembler, item, now=now)
        now += draw.choice([0.0, 0.01])  # below settle_s in all: only what lacks a span may be incomplete
    rows += assembler.finished(now=now + 5.0, closing=draw.random() < 0.5)
    assert sorted(row.batch for row in rows) == sorted(expected)
    for row in rows:
        got = (row.status, row.latency_ms, row.accuracy, row.stages, row.spans_missing)
        assert got == expected[row.batch]
    assert assembler.late == 0


def _directly(spans):
    stages = {}
    for name, _, length, device, waits in spans:
        time = stages.setdefault(name, StageTime())
        if waits:
            time.queue_ms = (time.queue_ms or 0.0) + length
        else:
            time.host_ms += length
            time.calls += 1
            if device is not None:
                time.device_ms = (time.device_ms or 0.0) + device
    return stages
