"""Rolling figures with a clock in the test's hand: rates, shares, quantiles, what leaves, what is bounded."""

import json
import math

import pytest

from mlotel_cli.recorder.live.live_state import MAX_EVENTS, MAX_NAMES, NUM_POINTS, LiveState
from mlotel_cli.recorder.workload import Workload
from mlotel_cli.records import BatchRecord, StageTime
from mlotel_cli.snapshot import (
    Gaps,
    LatencyFigures,
    QueueDepth,
    SinkHealth,
    SourceReport,
    StageNow,
    ValueNow,
)
from mlotel_cli.store.run_json import Totals
from mlotel_cli.typed_json import to_json
from mlotel_cli.wire import Report

PARQUET = {"parquet": SinkHealth(ok=True, sent=5)}


def row(batch=0, **fields) -> BatchRecord:
    return BatchRecord(
        **{"batch": batch, "source_batch": batch, "repeat": 0, "start_ns": 0, "size": 4, "status": "done"} | fields
    )


def publish(live: LiveState, *, now: float, workload: Workload | None = None):
    return live.publish(now=now, workload=workload or Workload(), sinks=PARQUET, http=None, ready=True)


def snapshot(live: LiveState, *, now: float):
    return publish(live, now=now).snapshot


def test_rates_are_over_the_last_minute_and_totals_over_the_run():
    live = LiveState(now=100.0)
    for second in range(200):
        for _ in range(3):
            live.add(row(), now=100.0 + second)
        live.drop(2)
        live.advance(now=101.0 + second)
    found = snapshot(live, now=300.0)
    assert (found.batches, found.items, found.uptime_s) == (600, 2400, 200.0)
    assert (found.batches_per_s, found.items_per_s, found.dropped_per_s) == (3.0, 12.0, 2.0)
    for second in range(59):
        live.advance(now=301.0 + second)
    assert snapshot(live, now=359.0).batches_per_s == pytest.approx(3 / 60)
    live.advance(now=360.0)
    found = snapshot(live, now=360.0)
    assert (found.batches_per_s, found.batches) == (0.0, 600)


def test_a_recorder_that_took_over_goes_on_counting():
    earlier = Totals.from_json({"batches": {"done": 90, "scored": 5, "skipped": 4, "failed": 1}, "items": 400})
    live = LiveState(now=50.0, earlier=earlier, earlier_s=3600.0)
    live.add(row(), now=50.5)
    live.add(row(status="failed"), now=50.5)
    live.advance(now=51.0)
    found = snapshot(live, now=51.0)
    assert (found.batches, found.items, found.failed, found.uptime_s) == (102, 408, 6, 3601.0)
    assert (found.batches_per_s, found.failed_per_s) == (2.0, 1.0)


def test_a_young_run_is_not_divided_by_a_whole_minute():
    live = LiveState(now=0.0)
    live.add(row(stages={"reader": StageTime(500.0, calls=1)}), now=0.5)
    live.advance(now=2.0)
    found = snapshot(live, now=2.0)
    assert found.batches_per_s == 0.5
    assert found.stages["reader"].busy == 0.25


def test_latency_stages_queues_and_values():
    live = LiveState(now=0.0)
    for number in range(1, 401):
        ms = number / 4
        stages = {"reader": StageTime(ms, None, ms / 10, 1), "detector": StageTime(2.0, calls=1)}
        live.add(row(latency_ms=ms, stages=stages, data={"score": -ms / 100}, units={"score": "1"}), now=0.5)
    live.advance(now=10.0)
    found = snapshot(live, now=10.0)
    assert found.latency_ms == LatencyFigures(
        count=400,
        p50=pytest.approx(50, rel=0.011),
        p95=pytest.approx(95, rel=0.011),
        p99=pytest.approx(99, rel=0.011),
        max=100.0,
    )
    assert found.stages["reader"] == StageNow(
        count=400,
        queue_count=400,
        p50_ms=pytest.approx(50, rel=0.011),
        p95_ms=pytest.approx(95, rel=0.011),
        queue_p50_ms=pytest.approx(5, rel=0.011),
        queue_p95_ms=pytest.approx(9.5, rel=0.011),
        busy=pytest.approx(0.4 * 50.125 / 10),
    )
    assert found.stages["detector"].queue_p50_ms is None
    assert found.data["score"] == ValueNow(mean=pytest.approx(-0.50125), p50=pytest.approx(-0.50, rel=0.011), unit="1")


@pytest.mark.parametrize(("num", "known"), [(71, ["p50"]), (72, ["p50", "p95"]), (368, ["p50", "p95", "p99"])])
def test_a_percentile_takes_as_many_batches_as_in_an_evaluation(num, known):
    live = LiveState(now=0.0)
    for _ in range(num):
        live.add(row(latency_ms=5.0, stages={"reader": StageTime(4.0, None, 1.0, 1)}), now=0.5)
    found = snapshot(live, now=1.0)
    assert [name for name in ("p50", "p95", "p99") if getattr(found.latency_ms, name) is not None] == known
    reader = found.stages["reader"]
    assert [reader.p95_ms is not None, reader.queue_p95_ms is not None] == [num >= 72] * 2


def test_before_anything_happened_every_figure_is_there_and_none():
    found = snapshot(LiveState(now=0.0), now=0.0)
    assert found.latency_ms == LatencyFigures(count=0, p50=None, p95=None, p99=None, max=None)
    assert (found.items_per_s, found.stages, found.source, found.queues) == (0.0, {}, None, {})
    assert (found.ready, found.http, found.sinks) == (True, None, PARQUET)
    json.dumps(to_json(found), allow_nan=False)


def test_a_batch_that_failed_counts_as_such_and_in_no_latency():
    live = LiveState(now=0.0)
    for number, status in enumerate(("failed", "skipped", "incomplete", "dropped", "scored")):
        live.add(row(number, status=status, latency_ms=1.0, error=f"because {status}"), now=0.5)
    live.advance(now=1.0)
    found = publish(live, now=1.0)
    assert (found.snapshot.failed, found.snapshot.batches, found.snapshot.failed_per_s) == (4, 5, 4.0)
    assert live._latency.window.sketch().count == 1
    assert [(event.batch, event.error) for event in found.failed][:2] == [
        (3, "because dropped"),
        (2, "because incomplete"),
    ]


def test_the_slowest_batch_of_a_second_is_listed_with_the_stage_that_took_longest():
    live = LiveState(now=0.0)
    live.slow_ms = 100.0
    waited = {"reader": StageTime(30.0, None, 90.0, 1), "detector": StageTime(60.0, calls=1)}
    for number, latency_ms in enumerate((100.0, 101.0, 300.0, 200.0)):
        live.add(row(number, latency_ms=latency_ms, start_ns=7, stages=waited), now=0.5)
    live.advance(now=1.0)
    live.add(row(9, latency_ms=150.0), now=1.5)
    live.advance(now=2.0)
    newest, before = publish(live, now=2.0).slow
    assert (newest.batch, newest.stage, newest.stage_ms) == (9, "", 0.0)
    assert (before.batch, before.latency_ms, before.start_ns, before.stage, before.stage_ms) == (
        2,
        300.0,
        7,
        "reader",
        120.0,
    )


def test_nothing_is_slow_before_there_is_a_threshold():
    live = LiveState(now=0.0)
    live.add(row(latency_ms=1e9), now=0.5)
    live.advance(now=1.0)
    assert publish(live, now=1.0).slow == ()


def test_charts_have_a_point_every_ten_seconds_for_half_an_hour():
    live = LiveState(now=0.0)
    live.drop(20)
    for second in range(2000):
        if second < 1990:
            live.add(
                row(latency_ms=float(second), data={"n": float(second)}, stages={"r": StageTime(2.0, calls=1)}),
                now=second,
            )
        live.advance(now=second + 1.0)
    charts = publish(live, now=2000.0).charts
    assert {len(points) for points in charts.values()} == {NUM_POINTS}
    assert charts["rate", "items"][-2:] == (4.0, 0.0)
    assert charts["latency", "p95"][-2:] == (pytest.approx(1989, rel=0.011), None)
    assert charts["data", "n"][-2] == pytest.approx(1984.5)
    assert charts["stage", "r"][0] == 2.0
    assert charts["rate", "dropped"][0] == 0.0  # 2.0 at first, which is more than half an hour ago


def test_a_long_silence_empties_the_window_at_once():
    live = LiveState(now=0.0)
    live.add(row(latency_ms=5.0), now=0.5)
    assert live.advance(now=1e6)
    found = snapshot(live, now=1e6)
    assert (found.latency_ms.p50, found.batches_per_s, found.batches) == (None, 0.0, 1)
    assert not live.advance(now=1e6 + 0.5)
    assert live.advance(now=1e6 + 1.0)


def test_memory_is_bounded_in_names_events_and_time():
    live = LiveState(now=0.0)
    live.slow_ms = 0.0
    for second in range(300):
        for number in range(5):
            name = f"made up {second} {number}"
            live.add(row(latency_ms=1.0, stages={name: StageTime(1.0, None, 1.0, 1)}, data={name: 1.0}), now=second)
            live.add(row(status="failed", error="x"), now=second)
        live.advance(now=second + 1.0)
    found = publish(live, now=300.0)
    assert len(found.snapshot.stages) == len(found.snapshot.data) == MAX_NAMES
    assert len(found.slow) == len(found.failed) == MAX_EVENTS
    assert len(live._latency.window._slots) == 60


def test_a_value_that_is_not_finite_is_in_no_figure():
    live = LiveState(now=0.0)
    live.add(row(data={"n": math.nan, "m": math.inf, "k": 1.0}), now=0.5)
    live.advance(now=1.0)
    assert list(snapshot(live, now=1.0).data) == ["k"]


def test_what_was_published_does_not_change_any_more():
    live = LiveState(now=0.0)
    live.add(row(status="failed"), now=0.5)
    live.add(row(data={"n": 1.0}), now=0.5)
    live.advance(now=1.0)
    before = publish(live, now=1.0)
    kept = json.dumps(to_json(before.snapshot))
    for second in range(1, 40):
        live.add(row(status="failed"), now=second)
        live.add(row(data={"n": 2.0}), now=second)
        live.advance(now=second + 1.0)
    assert json.dumps(to_json(before.snapshot)) == kept
    assert (len(before.failed), before.charts["data", "n"]) == (1, ())


def test_what_the_workload_says_is_in_the_snapshot():
    told = Report(SourceReport(state="connected", dropped={"full": 1}), {"a": (1, 2)}, gaps=Gaps(batches_lost=3))
    found = publish(LiveState(now=0.0), now=0.0, workload=Workload.of(told, now=0.0)).snapshot
    assert found.source == SourceReport(state="connected", dropped={"full": 1})
    assert (found.queues, found.gaps) == ({"a": QueueDepth(1, 2)}, Gaps(batches_lost=3))
