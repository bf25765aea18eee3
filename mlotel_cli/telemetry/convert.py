"""Converts spans to the OpenTelemetry SDK's form, and the SDK's spans to the recorder's form, without loss."""

from collections.abc import Mapping
from typing import Any, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mlotel_cli.records import RECORDED
from mlotel_cli.telemetry.attributes import clean_all, text
from mlotel_cli.telemetry.faults import Faults

_resources: dict[tuple[tuple[str, Any], ...], Resource] = {}
_faults = Faults()


def readable(span: Any) -> ReadableSpan:
    """Return an ended `span.Span` as a ReadableSpan of the SDK.

    Its resource includes OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    """
    tracer = span.tracer
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=_resource(span.stamping.resource_attributes),
        attributes=span.attributes,
        events=[Event(name, attributes, timestamp) for timestamp, name, attributes in span.events],
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=InstrumentationScope(
            tracer.scope, tracer.version or "", tracer.schema_url, tracer.attributes
        ),
    )


def _resource(identity: Mapping[str, Any]) -> Resource:
    key = tuple(sorted(identity.items()))
    if key not in _resources:
        _resources[key] = Resource.create({name: value for name, value in key if value is not None})
    return _resources[key]


def pack(span: ReadableSpan, *, batch: int | None, opened: int | None, thread: str) -> tuple[Any, ...]:
    """An ended SDK span as `recorder.assemble.unpack` reads it; `opened` as in `recorder.assemble.Stamp`."""
    context, parent, scope = span.context, span.parent, span.instrumentation_scope
    attributes = _plain(span.attributes, span.name)
    start = int(span.start_time or 0)
    return (
        "span",
        context.trace_id if context else 0,
        context.span_id if context else 0,
        parent.span_id if parent else 0,
        opened,
        batch,
        text(span.name),
        span.kind.name,
        text(scope.name) if scope else "",
        text(thread),
        start,
        start if span.end_time is None else int(span.end_time),
        None,
        span.status.status_code.name,
        text(span.status.description or ""),
        attributes,
        [(int(event.timestamp), text(event.name), _plain(event.attributes, span.name)) for event in span.events]
        or None,
        [(link.context.trace_id, link.context.span_id, _plain(link.attributes, span.name)) for link in span.links]
        or None,
        _recorded(attributes),
    )


def _plain(attributes: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Return plain copies: the SDK keeps subclasses (a str Enum, numpy's float64), which cannot be marshalled."""
    return clean_all(attributes, _faults, call="attributes", span=name)


def _recorded(attributes: Mapping[str, Any]) -> list[tuple[str, float, str]] | None:
    """Return the values that `mlotel_cli.record` put into the attributes of an SDK span."""
    recorded: list[tuple[str, float, str]] = []
    for name, given in attributes.items():
        if name.startswith(RECORDED):
            unit = str(attributes.get(f"{name}.unit", ""))
            values = cast("tuple[Any, ...]", given) if isinstance(given, tuple) else (given,)
            recorded += [(name.removeprefix(RECORDED), float(v), unit) for v in values if isinstance(v, int | float)]
    return recorded or None
