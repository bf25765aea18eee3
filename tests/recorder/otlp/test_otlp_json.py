"""OTLP JSON, decoded by opentelemetry-proto's own messages."""

import base64
import json
import math
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from mlotel_cli.recorder.otlp.otlp_json import export_request
from mlotel_cli.records import SpanRecord
from tests.support.traces import Trace, pipelined


def decoded(text: str) -> ExportTraceServiceRequest:
    """OTLP's ids are hexadecimal, where protobuf's mapping has base64; all else is protobuf's."""

    def base64_ids(value: dict[str, Any]) -> dict[str, Any]:
        for name in ("traceId", "spanId", "parentSpanId"):
            if name in value:
                value[name] = base64.b64encode(bytes.fromhex(value[name])).decode()
        return value

    return ParseDict(json.loads(text, object_hook=base64_ids), ExportTraceServiceRequest())


def request(spans: list[SpanRecord], **resource: Any) -> ExportTraceServiceRequest:
    return decoded(json.dumps(export_request(spans, resource=resource), allow_nan=False))


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind) if kind else None


def pairs(attributes: Any) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in attributes}


def test_spans_decode_to_what_they_were() -> None:
    trace = pipelined(3)
    (resource,) = request(trace.spans, **{"service.name": "gate", "git.commit": None}).resource_spans
    attributes = pairs(resource.resource.attributes)
    assert attributes["service.name"] == "gate"
    assert attributes["telemetry.sdk.language"] == "python"
    assert "git.commit" not in attributes
    (scope,) = resource.scope_spans
    assert scope.scope.name == "mlotel"
    for encoded, span in zip(scope.spans, trace.spans, strict=True):
        assert int.from_bytes(encoded.trace_id, "big") == span.trace_id
        assert len(encoded.trace_id) == 16
        assert int.from_bytes(encoded.span_id, "big") == span.span_id
        assert encoded.parent_span_id == (span.parent_id.to_bytes(8, "big") if span.parent_id else b"")
        assert (encoded.name, encoded.kind) == (span.name, encoded.SPAN_KIND_INTERNAL)
        assert (encoded.start_time_unix_nano, encoded.end_time_unix_nano) == (span.start_ns, span.end_ns)
        assert encoded.flags == 1
        assert pairs(encoded.attributes) == {**span.attributes, "batch.index": 3, "thread.name": span.thread}


def test_status_kind_scope_events_links_and_device_time() -> None:
    trace = Trace(0, 0, 10)
    trace.add(
        "call",
        1,
        2,
        kind="CLIENT",
        scope="urllib",
        status="ERROR",
        status_message="gone",
        device_ns=77,
        events=((5, "exception", {"exception.type": "OSError"}),),
        links=((1 << 100, 9, {"why": "retry"}),),
    )
    ours, theirs = request(trace.spans).resource_spans[0].scope_spans
    assert (ours.scope.name, theirs.scope.name) == ("mlotel", "urllib")
    (span,) = theirs.spans
    assert span.kind == span.SPAN_KIND_CLIENT
    assert (span.status.code, span.status.message) == (span.status.STATUS_CODE_ERROR, "gone")
    assert ours.spans[0].status.code == span.status.STATUS_CODE_UNSET
    assert pairs(span.attributes) == {"mlotel.device_ns": 77, "batch.index": 0, "thread.name": "call"}
    (event,) = span.events
    assert (event.time_unix_nano, event.name, pairs(event.attributes)) == (
        5,
        "exception",
        {"exception.type": "OSError"},
    )
    (link,) = span.links
    assert (int.from_bytes(link.trace_id, "big"), int.from_bytes(link.span_id, "big")) == (1 << 100, 9)
    assert pairs(link.attributes) == {"why": "retry"}


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        1.5,
        math.inf,
        -math.inf,
        "",
        "a",
        [1, 2],
        [True],
        ["a"],
        {"a": [1]},
        None,
    ],
)
def test_attribute_values(value: Any) -> None:
    trace = Trace(0, 0, 1, attributes={"x": value})
    span = request(trace.spans).resource_spans[0].scope_spans[0].spans[0]
    found = pairs(span.attributes)["x"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_and_too_large_an_integer() -> None:
    trace = Trace(0, 0, 1, attributes={"nan": math.nan, "large": 2**63})
    found = pairs(request(trace.spans).resource_spans[0].scope_spans[0].spans[0].attributes)
    assert math.isnan(found["nan"])
    assert found["large"] == str(2**63)


def test_integers_are_text_and_ids_hexadecimal() -> None:
    span = export_request(pipelined().spans, resource={})["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert span["startTimeUnixNano"] == "1700000000000000000"
    assert span["traceId"] == f"{1 << 64:032x}"
    assert span["attributes"][0] == {"key": "batch.index", "value": {"intValue": "0"}}
    assert "parentSpanId" not in span
