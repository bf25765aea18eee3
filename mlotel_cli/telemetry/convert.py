"""Converts spans to the OpenTelemetry SDK's form, and the SDK's spans to the recorder's form, without loss."""

from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mlotel_cli.records import recorded_in
from mlotel_cli.telemetry.attributes import clean_all, text
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.wire import SpanMessage

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


def pack(span: ReadableSpan, *, batch: int | None, opened: int | None, thread: str) -> SpanMessage:
    """An ended SDK span as it goes to the recorder; `opened` is that of `SpanMessage`."""
    context, parent, scope = span.context, span.parent, span.instrumentation_scope
    attributes = _plain(span.attributes, span.name)
    start_ns = int(span.start_time or 0)
    events = [(int(event.timestamp), text(event.name), _plain(event.attributes, span.name)) for event in span.events]
    links = [(each.context.trace_id, each.context.span_id, _plain(each.attributes, span.name)) for each in span.links]
    return SpanMessage(
        trace_id=context.trace_id if context else 0,
        span_id=context.span_id if context else 0,
        parent_id=parent.span_id if parent else 0,
        opened=opened,
        batch=batch,
        name=text(span.name),
        kind=span.kind.name,
        scope=text(scope.name) if scope else "",
        thread=text(thread),
        start_ns=start_ns,
        end_ns=start_ns if span.end_time is None else int(span.end_time),
        status=span.status.status_code.name,
        status_message=text(span.status.description or ""),
        attributes=attributes,
        events=events or None,
        links=links or None,
        recorded=recorded_in(attributes) or None,
    )


def _plain(attributes: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Return plain copies: the SDK keeps subclasses (a str Enum, numpy's float64), which cannot be marshalled."""
    return clean_all(attributes, _faults, call="attributes", span=name)
