"""Encodes spans and metrics as OTLP's protobuf messages. Pure.

Every span gets these attributes, unless it has them: `batch.index` of its batch, `mlotel.device_ns` (the time between
its two device events) and `thread.name`.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from mlotel_cli.recorder.measurements import Family
from mlotel_cli.records import BATCH_INDEX, SpanRecord, valid_text

DEVICE_NS = "mlotel.device_ns"
"""Attribute: the time between the two device events of a span, in nanoseconds."""
THREAD = "thread.name"
"""Attribute, OpenTelemetry's: the thread that opened the span."""
SCOPE = "mlotel_cli"
"""Scope of the metrics and name of this SDK."""
_SAMPLED = 1
_INT64 = 1 << 63
_UINT64 = 1 << 64


def encode_resource(attributes: Mapping[str, Any]) -> Resource:
    """Return the resource of a run: `attributes` but for those that are None, and the name of this SDK."""
    sdk = {
        "telemetry.sdk.name": SCOPE,
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": _version(),
    }
    known = {name: value for name, value in attributes.items() if value is not None}
    return Resource(attributes=_attributes({**known, **sdk}))


def encode_spans(spans: Iterable[SpanRecord], *, resource: Resource) -> bytes:
    """Return one export request; spans keep their order within a scope."""
    scopes: dict[str, ScopeSpans] = {}
    for record in spans:
        scope = scopes.get(record.scope)
        if scope is None:
            scope = scopes[record.scope] = ScopeSpans(scope=InstrumentationScope(name=valid_text(record.scope)))
        scope.spans.append(_span(record))
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=list(scopes.values()))]
    )
    return request.SerializeToString()


def encodable(spans: Iterable[SpanRecord]) -> list[SpanRecord]:
    """Return those of `spans` that OTLP can express; ids of a foreign SDK may be too long."""
    kept: list[SpanRecord] = []
    for span in spans:
        try:
            _span(span)
        except (ValueError, TypeError, OverflowError, AttributeError):
            continue
        kept.append(span)
    return kept


def encode_metrics(families: Sequence[Family], *, resource: Resource, started_ns: int, now_ns: int) -> bytes:
    """Return one export request. All values are cumulative, from the start of the run."""
    metrics = [_metric(family, started_ns=started_ns, now_ns=now_ns) for family in families]
    scope = ScopeMetrics(scope=InstrumentationScope(name=SCOPE, version=_version()), metrics=metrics)
    request = ExportMetricsServiceRequest(resource_metrics=[ResourceMetrics(resource=resource, scope_metrics=[scope])])
    return request.SerializeToString()


def count_points(families: Sequence[Family]) -> int:
    """Return the number of data points in `families`, as OTLP counts them."""
    return sum(len(family.points) + len(family.histograms) for family in families)


def _span(record: SpanRecord) -> Span:
    attributes = dict(record.attributes)
    if record.batch is not None:
        attributes.setdefault(BATCH_INDEX, record.batch)
    if record.device_ns is not None:
        attributes.setdefault(DEVICE_NS, record.device_ns)
    if record.thread:
        attributes.setdefault(THREAD, record.thread)
    return Span(
        trace_id=record.trace_id.to_bytes(16, "big"),
        span_id=record.span_id.to_bytes(8, "big"),
        parent_span_id=record.parent_id.to_bytes(8, "big") if record.parent_id else b"",
        flags=_SAMPLED,
        name=valid_text(record.name),
        kind=cast("Any", f"SPAN_KIND_{record.kind}"),
        start_time_unix_nano=_time(record.start_ns),
        end_time_unix_nano=_time(record.end_ns),
        attributes=_attributes(attributes),
        events=[
            Span.Event(time_unix_nano=_time(time_ns), name=valid_text(name), attributes=_attributes(given))
            for time_ns, name, given in record.events
        ],
        links=[
            Span.Link(
                trace_id=trace_id.to_bytes(16, "big"), span_id=span_id.to_bytes(8, "big"), attributes=_attributes(given)
            )
            for trace_id, span_id, given in record.links
        ],
        status=Status(code=cast("Any", f"STATUS_CODE_{record.status}"), message=valid_text(record.status_message)),
    )


def _metric(family: Family, *, started_ns: int, now_ns: int) -> Metric:
    metric = Metric(name=family.name, unit=family.unit, description=family.description)
    if family.kind == "histogram":
        points = [
            HistogramDataPoint(
                attributes=_attributes(point.attributes),
                start_time_unix_nano=_time(started_ns),
                time_unix_nano=_time(now_ns),
                count=point.count,
                sum=point.total,
                bucket_counts=list(point.counts),
                explicit_bounds=list(family.bounds),
            )
            for point in family.histograms
        ]
        temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
        metric.histogram.CopyFrom(Histogram(data_points=points, aggregation_temporality=temporality))
        return metric
    numbers = [
        NumberDataPoint(
            attributes=_attributes(point.attributes),
            start_time_unix_nano=_time(started_ns) if family.kind == "counter" else 0,
            time_unix_nano=_time(now_ns),
            as_double=point.value,
        )
        for point in family.points
    ]
    if family.kind == "counter":
        temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
        metric.sum.CopyFrom(Sum(data_points=numbers, is_monotonic=True, aggregation_temporality=temporality))
    else:
        metric.gauge.CopyFrom(Gauge(data_points=numbers))
    return metric


def _attributes(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=valid_text(key), value=_value(value)) for key, value in attributes.items()]


def _value(value: Any) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=valid_text(value))
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):  # OTLP has no type for a number beyond 64 bits
        return AnyValue(int_value=value) if -_INT64 <= value < _INT64 else AnyValue(string_value=str(value))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    if value is None:
        return AnyValue()
    if isinstance(value, Mapping):
        given = cast("Mapping[Any, Any]", value)
        return AnyValue(kvlist_value=KeyValueList(values=_attributes({str(key): each for key, each in given.items()})))
    if isinstance(value, Sequence):
        return AnyValue(array_value=ArrayValue(values=[_value(each) for each in cast("Sequence[Any]", value)]))
    return AnyValue(string_value=valid_text(str(value)))


def _time(time_ns: int) -> int:
    return min(max(0, time_ns), _UINT64 - 1)


def _version() -> str:
    try:
        return version("mlotel")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0"
