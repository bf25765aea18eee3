"""Spans as OTLP JSON: an ExportTraceServiceRequest in protobuf's JSON mapping, as OTLP defines it. Pure.

OTLP differs from protobuf's own mapping in the ids, which are hexadecimal instead of base64. 64-bit integers are text,
enumerations numbers. Any collector takes it at POST /v1/traces with content type application/json.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mlotel_cli.records import SpanRecord

DEVICE_NS = "mlotel.device_ns"
"""Attribute that carries a span's device time; OTLP has no field for it."""
_KINDS = {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
_CODES = {"UNSET": 0, "OK": 1, "ERROR": 2}
_INT64 = range(-(1 << 63), 1 << 63)


def export_request(spans: Sequence[SpanRecord], *, resource: Mapping[str, Any]) -> dict[str, Any]:
    """The request, for `json.dump`; `resource` holds the resource's attributes."""
    by_scope: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for span in spans:
        by_scope[span.scope].append(_span(span))
    attributes = {name: value for name, value in resource.items() if value is not None}
    scope_spans = [{"scope": {"name": name}, "spans": each} for name, each in by_scope.items()]
    return {"resourceSpans": [{"resource": {"attributes": _attributes(attributes)}, "scopeSpans": scope_spans}]}


def _span(span: SpanRecord) -> dict[str, Any]:
    attributes = dict(span.attributes)
    if span.device_ns is not None:
        attributes[DEVICE_NS] = span.device_ns
    encoded: dict[str, Any] = {
        "traceId": f"{span.trace_id:032x}",
        "spanId": f"{span.span_id:016x}",
        "name": span.name,
        "kind": _KINDS.get(span.kind, 0),
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(attributes),
        "events": [
            {"timeUnixNano": str(time_ns), "name": name, "attributes": _attributes(given)}
            for time_ns, name, given in span.events
        ],
        "links": [
            {"traceId": f"{trace_id:032x}", "spanId": f"{span_id:016x}", "attributes": _attributes(given)}
            for trace_id, span_id, given in span.links
        ],
        "status": {"code": _CODES.get(span.status, 0), "message": span.status_message},
    }
    if span.parent_id:
        encoded["parentSpanId"] = f"{span.parent_id:016x}"
    return encoded


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    """An AnyValue; JSON has no infinity, protobuf's mapping spells it."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)} if value in _INT64 else {"stringValue": str(value)}
    if isinstance(value, float):
        finite = value == value and abs(value) != float("inf")
        return {"doubleValue": value if finite else _spelled(value)}
    if isinstance(value, Mapping):
        return {"kvlistValue": {"values": _attributes(cast("Mapping[str, Any]", value))}}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {"arrayValue": {"values": [_value(item) for item in cast("Sequence[Any]", value)]}}
    return {} if value is None else {"stringValue": str(value)}


def _spelled(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
