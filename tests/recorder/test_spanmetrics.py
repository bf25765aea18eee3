"""Spans and batches as metrics: the connector's names, its dimensions, and a bound on names."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.recorder.measurements import Family
from mlotel_cli.recorder.spanmetrics import (
    DURATION_BOUNDS_S,
    VALUE_BOUNDS,
    Distribution,
    SpanMetrics,
    clean,
    one_two_five,
)
from mlotel_cli.records import BatchRecord, SpanRecord, StageTime

IDENTITY = {"service.name": "lpr", "mlotel.run.id": "abc"}


def span(name="reader", *, ms=1.5, kind="INTERNAL", status="UNSET", batch=0) -> SpanRecord:
    return SpanRecord(1, 2, 0, batch, name, kind, "scope", "Main", 10**18, 10**18 + round(ms * 1e6), status=status)


def row(batch=0, **fields) -> BatchRecord:
    return BatchRecord(
        **{"batch": batch, "source_batch": batch, "repeat": 0, "start_ns": 0, "size": 4, "status": "done"} | fields
    )


def family(metrics: SpanMetrics, name: str) -> Family:
    (found,) = [family for family in metrics.families() if family.name == name]
    return found


def numbers(metrics: SpanMetrics, name: str, key: str) -> dict[str, float]:
    return {point.attributes[key]: point.value for point in family(metrics, name).points}


def test_duration_and_calls_by_name_kind_and_status():
    metrics = SpanMetrics(IDENTITY)
    for ms in (0.1, 1.5, 2.0, 70_000.0):
        metrics.add_span(span(ms=ms))
    metrics.add_span(span(status="ERROR"))
    metrics.add_span(span("get", kind="CLIENT", batch=None))
    durations = family(metrics, "traces.span.metrics.duration")
    assert (durations.kind, durations.unit, len(durations.bounds)) == ("histogram", "s", 19)
    first = durations.histograms[0]
    assert first.attributes == {
        "service.name": "lpr",
        "span.name": "reader",
        "span.kind": "SPAN_KIND_INTERNAL",
        "status.code": "STATUS_CODE_UNSET",
    }
    at = dict(zip([*durations.bounds, math.inf], first.counts, strict=True))
    assert {bound: count for bound, count in at.items() if count} == {0.0001: 1, 0.002: 2, math.inf: 1}
    assert first.total == pytest.approx(70.0036)
    calls = family(metrics, "traces.span.metrics.calls")
    assert [
        (p.attributes["span.name"], p.attributes["span.kind"], p.attributes["status.code"], p.value)
        for p in calls.points
    ] == [
        ("reader", "SPAN_KIND_INTERNAL", "STATUS_CODE_UNSET", 4),
        ("reader", "SPAN_KIND_INTERNAL", "STATUS_CODE_ERROR", 1),
        ("get", "SPAN_KIND_CLIENT", "STATUS_CODE_UNSET", 1),
    ]


def test_names_beyond_the_limit_are_counted_together_and_nothing_grows():
    metrics = SpanMetrics(IDENTITY, max_names=2)
    for number in range(1000):
        metrics.add_span(span(f"made up {number}"))
    metrics.add_span(span("made up 1", status="ERROR"))  # a known name may have a new status
    counts = {
        (point.attributes["span.name"], point.attributes["status.code"]): point.value
        for point in family(metrics, "traces.span.metrics.calls").points
    }
    assert counts == {
        ("made up 0", "STATUS_CODE_UNSET"): 1,
        ("made up 1", "STATUS_CODE_UNSET"): 1,
        ("made up 1", "STATUS_CODE_ERROR"): 1,
        ("other", "STATUS_CODE_UNSET"): 998,
    }
    assert metrics.overflowed == 998
    (unnamed,) = family(metrics, "mlotel.spans.unnamed").points
    assert unnamed.value == 998
    assert len(metrics._by_key) == 3


def test_names_that_look_the_same_once_cleaned_are_one_series():
    metrics = SpanMetrics(IDENTITY)
    for name in ("x" * 200 + "a", "x" * 200 + "b", "bad \udc80", "bad \\udc80"):
        metrics.add_span(span(name))
    calls = family(metrics, "traces.span.metrics.calls").points
    assert [(len(point.attributes["span.name"]), point.value) for point in calls] == [(200, 2), (10, 2)]
    assert clean("ok") == "ok"


def test_a_batch_gives_latency_device_queue_items_and_status():
    metrics = SpanMetrics(IDENTITY)
    stages = {"reader": StageTime(5.0, 3.0, 1.0, 1), "detector": StageTime(5.0, None, None, 1)}
    metrics.add_batch(row(latency_ms=8.0, stages=stages))
    metrics.add_batch(row(1, status="skipped", latency_ms=None))
    (latency,) = family(metrics, "mlotel.batch.latency").histograms
    assert (latency.count, latency.total, latency.attributes) == (1, 0.008, {"service.name": "lpr"})
    (device,) = family(metrics, "mlotel.stage.device.duration").histograms
    assert (device.attributes["stage"], device.total) == ("reader", 0.003)
    (queue,) = family(metrics, "mlotel.stage.queue.duration").histograms
    assert (queue.attributes["stage"], queue.total) == ("reader", 0.001)
    assert numbers(metrics, "mlotel.batches", "status") == {"done": 1, "skipped": 1}
    assert [point.value for point in family(metrics, "mlotel.items").points] == [8]


def test_statuses_that_are_expected_are_there_before_the_first_batch():
    metrics = SpanMetrics({"service.name": "lpr"}, statuses=("done", "failed"))
    metrics.add_batch(BatchRecord(0, 0, 0, 0, 4, "done"))
    points = family(metrics, "mlotel.batches").points
    assert {point.attributes["status"]: point.value for point in points} == {"done": 1, "failed": 0}


def test_recorded_values_are_distributions_with_their_unit():
    metrics = SpanMetrics(IDENTITY)
    for value in (0.0, -1.0, 3.0, math.nan, math.inf):
        metrics.add_batch(row(data={"plates": value}, units={"plates": "{plate}"}))
    (values,) = family(metrics, "mlotel.data.value").histograms
    assert values.attributes == {"service.name": "lpr", "data.name": "plates", "data.unit": "{plate}"}
    assert (values.count, values.counts[0], values.total) == (3, 2, 2.0)
    assert [point.value for point in family(metrics, "mlotel.data.not_finite").points] == [2]


def test_nothing_that_changes_from_run_to_run_is_on_a_series():
    metrics = SpanMetrics(IDENTITY)
    metrics.add_span(span())
    metrics.add_batch(row(latency_ms=1.0))
    for each in metrics.families():
        for point in (*each.points, *each.histograms):
            assert "abc" not in point.attributes.values()
            assert point.attributes["service.name"] == "lpr"


def test_a_run_without_a_service_name_has_opentelemetrys_default():
    metrics = SpanMetrics({})
    metrics.add_span(span())
    assert numbers(metrics, "traces.span.metrics.calls", "service.name") == {"unknown_service": 1}


# -- distributions -----------------------------------------------------------------------------------------------------


def test_duration_bounds_are_one_two_five_from_100_us_to_60_s():
    assert (
        *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
        *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 60.0),
    ) == DURATION_BOUNDS_S


def test_value_bounds_start_at_zero_because_prometheus_drops_the_sum_below_it():
    assert VALUE_BOUNDS[:5] == (0.0, 0.001, 0.002, 0.005, 0.01)
    assert VALUE_BOUNDS[-2:] == (50_000.0, 100_000.0)
    assert one_two_five(low=0, high=1) == (1.0, 2.0, 5.0, 10.0)


def test_a_bound_is_inclusive():
    series = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        series.add(value)
    assert (series.counts, series.total) == ([2, 2, 1], 7.5)


@given(st.lists(st.floats(-1e6, 1e6)))
def test_counts_are_those_of_numpy(values):
    series = Distribution(VALUE_BOUNDS)
    for value in values:
        series.add(value)
    edges = np.array(VALUE_BOUNDS)
    expected = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    assert series.counts == expected.tolist()
    assert series.point({}).count == len(values)


def test_a_point_is_a_copy_that_no_later_value_changes():
    series = Distribution((10.0,))
    series.add(4)
    point = series.point({"name": "x"}, scale=0.5)
    series.add(20)
    assert (point.counts, point.total, point.attributes) == ([1, 0], 2.0, {"name": "x"})
