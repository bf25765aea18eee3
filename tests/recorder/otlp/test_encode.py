"""Spans and metrics as OTLP, compared field by field; spans also with what OpenTelemetry's own encoder makes."""

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlotel_cli.recorder.measurements import Family, HistogramPoint, Point
from mlotel_cli.recorder.otlp.encode import count_points, encode_metrics, encode_resource, encode_spans
from mlotel_cli.records import SpanRecord
from tests.support.otlp_receiver import attributes

RESOURCE = encode_resource({"service.name": "s", "git.commit": None})


def span(**changes) -> SpanRecord:
    fields = dict(
        trace_id=(1 << 127) + 5,
        span_id=(1 << 63) + 7,
        parent_id=9,
        batch=None,
        name="reader",
        kind="INTERNAL",
        scope="lpr",
        thread="",
        start_ns=1_700_000_000_000_000_001,
        end_ns=1_700_000_000_000_000_099,
    )
    return SpanRecord(**(fields | changes))


def decoded(*spans: SpanRecord):
    return ExportTraceServiceRequest.FromString(encode_spans(spans, resource=RESOURCE)).resource_spans[0]


def only(record: SpanRecord):
    (scope,) = decoded(record).scope_spans
    (one,) = scope.spans
    return one


def test_every_field_of_a_span():
    given = {"s": "x", "i": -3, "f": 1.5, "b": True, "y": b"\0\1", "n": None, "l": [1, 2], "m": {"k": ["v"]}}
    one = only(
        span(
            status="ERROR",
            status_message="no",
            kind="CLIENT",
            attributes=given,
            events=[(5, "e", {"a": 1})],
            links=[(3, 4, {"why": "x"})],
        )
    )
    assert (one.trace_id, one.span_id) == (((1 << 127) + 5).to_bytes(16), ((1 << 63) + 7).to_bytes(8))
    assert one.parent_span_id == (9).to_bytes(8)
    assert (one.start_time_unix_nano, one.end_time_unix_nano) == (1_700_000_000_000_000_001, 1_700_000_000_000_000_099)
    assert (one.name, one.kind, one.status.code, one.status.message) == ("reader", 3, 2, "no")
    assert attributes(one.attributes) == given
    (event,) = one.events
    assert (event.time_unix_nano, event.name, attributes(event.attributes)) == (5, "e", {"a": 1})
    (link,) = one.links
    assert (link.trace_id, link.span_id, attributes(link.attributes)) == (
        (3).to_bytes(16),
        (4).to_bytes(8),
        {"why": "x"},
    )


def test_a_root_has_no_parent():
    assert only(span(parent_id=0)).parent_span_id == b""


@pytest.mark.parametrize(
    ("kind", "number"), [("INTERNAL", 1), ("SERVER", 2), ("CLIENT", 3), ("PRODUCER", 4), ("CONSUMER", 5)]
)
def test_kinds(kind, number):
    assert only(span(kind=kind)).kind == number


@pytest.mark.parametrize(("status", "number"), [("UNSET", 0), ("OK", 1), ("ERROR", 2)])
def test_statuses(status, number):
    assert only(span(status=status)).status.code == number


def test_batch_device_time_and_thread_are_attributes_unless_given():
    added = attributes(only(span(batch=4, device_ns=11, thread="t")).attributes)
    assert added == {"batch.index": 4, "mlotel.device_ns": 11, "thread.name": "t"}
    assert attributes(only(span(batch=4, attributes={"batch.index": 9})).attributes) == {"batch.index": 9}
    assert attributes(only(span()).attributes) == {}


def test_spans_are_grouped_by_scope_in_order():
    group = decoded(span(scope="a", name="1"), span(scope="b", name="2"), span(scope="a", name="3"))
    assert [(s.scope.name, [one.name for one in s.spans]) for s in group.scope_spans] == [
        ("a", ["1", "3"]),
        ("b", ["2"]),
    ]


def test_the_resource_says_who_measured_and_leaves_out_what_is_unknown():
    found = attributes(decoded(span()).resource.attributes)
    assert found["service.name"] == "s"
    assert (found["telemetry.sdk.name"], found["telemetry.sdk.language"]) == ("mlotel_cli", "python")
    assert "git.commit" not in found


def test_what_protobuf_does_not_take_is_text():
    name = "caf\udce9"
    found = attributes(only(span(name=name, attributes={name: name, "big": 1 << 70, "odd": object})).attributes)
    assert found["caf\\udce9"] == "caf\\udce9"
    assert found["big"] == str(1 << 70)
    assert found["odd"] == str(object)


def test_times_before_the_epoch_are_the_epoch():
    assert only(span(start_ns=-1, end_ns=1 << 70)).start_time_unix_nano == 0


# -- metrics -----------------------------------------------------------------------------------------------------------

FAMILIES = [
    Family("calls", "counter", "{call}", "Calls.", points=[Point(3, {"span.name": "a"}), Point(4, {"span.name": "b"})]),
    Family("depth", "gauge", "{batch}", "Depth.", points=[Point(2.5)]),
    Family(
        "duration",
        "histogram",
        "s",
        "How long.",
        bounds=[0.1, 1],
        histograms=[HistogramPoint([1, 0, 2], 7.5, {"k": "v"})],
    ),
]


def metrics():
    payload = encode_metrics(FAMILIES, resource=RESOURCE, started_ns=100, now_ns=200)
    (group,) = ExportMetricsServiceRequest.FromString(payload).resource_metrics
    assert attributes(group.resource.attributes)["service.name"] == "s"
    (scope,) = group.scope_metrics
    assert scope.scope.name == "mlotel_cli"
    return scope.metrics


def test_a_counter_is_a_cumulative_sum_since_the_start():
    metric = metrics()[0]
    assert (metric.name, metric.unit, metric.description) == ("calls", "{call}", "Calls.")
    assert (metric.sum.is_monotonic, metric.sum.aggregation_temporality) == (True, 2)
    assert [(p.as_double, attributes(p.attributes)) for p in metric.sum.data_points] == [
        (3, {"span.name": "a"}),
        (4, {"span.name": "b"}),
    ]
    assert {(p.start_time_unix_nano, p.time_unix_nano) for p in metric.sum.data_points} == {(100, 200)}


def test_a_gauge_has_a_time_and_no_start():
    (point,) = metrics()[1].gauge.data_points
    assert (point.as_double, point.start_time_unix_nano, point.time_unix_nano) == (2.5, 0, 200)


def test_a_histogram_keeps_its_buckets():
    histogram = metrics()[2].histogram
    (point,) = histogram.data_points
    assert histogram.aggregation_temporality == 2
    assert (list(point.bucket_counts), list(point.explicit_bounds)) == ([1, 0, 2], [0.1, 1])
    assert (point.count, point.sum, attributes(point.attributes)) == (3, 7.5, {"k": "v"})
    assert (point.start_time_unix_nano, point.time_unix_nano) == (100, 200)


def test_points_are_counted_as_sent():
    assert count_points(FAMILIES) == 4
