"""Encodes spans as OTLP JSON, for files and for collectors that take JSON.

OTLP JSON is protobuf's own JSON mapping (64-bit integers are text) with two differences: ids are hexadecimal instead
of base64, and enumerations are numbers. A collector takes it at POST /v1/traces with content type application/json.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlotel_cli.recorder.otlp.encode import encodable, encode_resource, encode_spans
from mlotel_cli.records import SpanRecord

_IDS = ("traceId", "spanId", "parentSpanId")


def export_request(spans: Iterable[SpanRecord], *, resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return an ExportTraceServiceRequest for `json.dump`; `resource` holds the resource's attributes.

    It leaves out spans that OTLP cannot express, such as those with ids of a foreign SDK that are too long.
    """
    encoded = encode_spans(encodable(spans), resource=encode_resource(resource))
    request = ExportTraceServiceRequest.FromString(encoded)
    return _with_hexadecimal_ids(MessageToDict(request, use_integers_for_enums=True))


def _with_hexadecimal_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_hexadecimal_ids(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64decode(item).hex() if name in _IDS else _with_hexadecimal_ids(item)
        for name, item in cast("dict[str, Any]", value).items()
    }
