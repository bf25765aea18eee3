"""Converted spans equal those of the OpenTelemetry SDK field by field; the SDK's spans become rows without loss."""

import enum
import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import opentelemetry.sdk.trace as sdk_trace
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import IdGenerator, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from mlotel_cli.telemetry.clock import Clock
from mlotel_cli.telemetry.convert import pack, readable
from mlotel_cli.telemetry.tracer import Provider, Recording
from tests.support.telemetry import Telemetry
from tests.support.wire import received

REMOTE = SpanContext(0xAB, 0xCD, True, TraceFlags(TraceFlags.SAMPLED), TraceState([("vendor", "x")]))


class CountingIds(IdGenerator):
    def __init__(self) -> None:
        self._spans, self._traces = itertools.count(1), itertools.count(1)

    def generate_span_id(self) -> int:
        return next(self._spans)

    def generate_trace_id(self) -> int:
        return next(self._traces)


# -- programs: the same random calls for both providers ---------------------------------------------------------------


@dataclass
class Planned:
    """One span of a random program: how it is opened, what is called on it, what happens inside, how it is left."""

    options: dict[str, Any]
    current: bool
    calls: list[tuple[Any, ...]]
    end: str
    children: list["Planned"] = field(default_factory=list)


values = st.one_of(
    st.text(max_size=3),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    st.binary(max_size=3),
    st.none(),
    st.lists(st.one_of(st.integers(0, 9), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9), max_size=2),
)
attributes = st.dictionaries(st.sampled_from(["a", "b", "c"]), values, max_size=3)
times = st.integers(1, 2**60)
contexts = st.sampled_from(
    [SpanContext(1, 2, False), SpanContext(0, 0, False), SpanContext(0, 3, True, trace_state=TraceState([("k", "v")]))]
)
descriptions = st.one_of(st.none(), st.just("why"))
calls = st.one_of(
    st.tuples(st.just("set_attribute"), st.sampled_from("abc"), values),
    st.tuples(st.just("set_attributes"), attributes),
    st.tuples(st.just("add_event"), st.text(max_size=3), st.none() | attributes, st.none() | times),
    st.tuples(st.just("add_link"), contexts, st.none() | attributes),
    st.tuples(st.just("update_name"), st.sampled_from(["renamed", ""])),
    st.tuples(st.just("set_status"), st.sampled_from(list(StatusCode)), st.none()),
    st.tuples(st.just("set_status"), st.just(StatusCode.ERROR), descriptions),
    st.builds(lambda text: ("set_status", Status(StatusCode.ERROR, text)), descriptions),
    st.builds(
        lambda given, escaped: ("record_exception", ValueError("v"), given, 5, escaped), attributes, st.booleans()
    ),
)
options = st.fixed_dictionaries(
    {"name": st.sampled_from(["detector", "reader", ""])},
    optional={
        "kind": st.sampled_from(list(SpanKind)),
        "attributes": attributes,
        "links": st.lists(st.builds(Link, contexts, attributes), max_size=2),
        "start_time": times,
        "record_exception": st.booleans(),
        "set_status_on_exception": st.booleans(),
        "context": st.sampled_from([trace.set_span_in_context(NonRecordingSpan(REMOTE))]),
    },
)
ends = st.sampled_from(["leave", "raise", "end first", "end later"])
programs = st.recursive(
    st.builds(Planned, options, st.booleans(), st.lists(calls, max_size=4), ends),
    lambda inner: st.builds(
        Planned, options, st.booleans(), st.lists(calls, max_size=3), ends, st.lists(inner, max_size=3)
    ),
    max_leaves=5,
)


def perform(planned: Planned, tracer: trace.Tracer) -> None:
    """Make the calls of a program."""
    given = dict(planned.options)
    if planned.current:
        manager: Any = tracer.start_as_current_span(**given, end_on_exit=planned.end != "end later")
    else:
        manager = tracer.start_span(**given)
    span: Any = None
    try:
        with manager as span:
            for method, *arguments in planned.calls:
                getattr(span, method)(*arguments)
            for child in planned.children:
                perform(child, tracer)
            if planned.end == "end first":
                span.end(end_time=77)
            elif planned.end == "raise":
                raise KeyError("stage failed")
    except KeyError:
        pass
    if planned.end == "end later" and planned.current:
        span.end()


def as_fields(span: ReadableSpan) -> dict[str, Any]:
    """Return all fields of a ReadableSpan; of a stack trace only the last line, because its frames differ."""

    def plain(given: Any) -> dict[str, Any]:
        named = dict(given or {})
        if "exception.stacktrace" in named:
            named["exception.stacktrace"] = named["exception.stacktrace"].strip().splitlines()[-1]
        return named

    return {
        "name": span.name,
        "context": span.context,
        "context again": span.get_span_context(),
        "parent": span.parent,
        "is_remote": span.parent and span.parent.is_remote,
        "kind": span.kind,
        "times": (span.start_time, span.end_time),
        "status": (span.status.status_code, span.status.description),
        "attributes": plain(span.attributes),
        "events": [(event.name, event.timestamp, plain(event.attributes)) for event in span.events],
        "links": [(link.context, plain(link.attributes)) for link in span.links],
        "resource": span.resource,
        "scope": span.instrumentation_scope,
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
    }


@contextmanager
def sdk_clock() -> Iterator[None]:
    """Make the SDK read the times 10, 20, 30, ... too."""
    real, sdk_trace.time_ns = sdk_trace.time_ns, itertools.count(10, 10).__next__  # type: ignore[assignment]
    try:
        yield
    finally:
        sdk_trace.time_ns = real


def run(program: list[Planned]) -> tuple[list[ReadableSpan], list[ReadableSpan]]:
    """Run the program; return the spans that an SDK exporter gets from the SDK's provider, and from mlotel's."""
    scope = ("lib", "1.2", "https://schema", {"scope": "x"})
    theirs, ours = InMemorySpanExporter(), InMemorySpanExporter()
    sdk = TracerProvider(id_generator=CountingIds(), shutdown_on_exit=False)
    sdk.add_span_processor(SimpleSpanProcessor(theirs))
    with sdk_clock():
        for planned in program:
            perform(planned, sdk.get_tracer(*scope))
    provider = Provider(
        Recording(lambda _: None, clock=Clock(itertools.count(10, 10).__next__, epoch_offset_ns=0), first_id=1)
    )
    provider.add_span_processor(SimpleSpanProcessor(ours))
    for planned in program:
        perform(planned, provider.get_tracer(*scope))
    provider.shutdown()
    return list(theirs.get_finished_spans()), list(ours.get_finished_spans())


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(programs, min_size=1, max_size=2))
def test_the_same_calls_give_the_same_spans_as_the_sdk(program: list[Planned]) -> None:
    theirs, ours = run(program)
    assert [as_fields(span) for span in ours] == [as_fields(span) for span in theirs]


def test_the_same_json_as_the_sdk() -> None:
    events = [("add_event", "decoded", {"boxes": [1, 2]}, 5), ("add_link", SpanContext(1, 2, False), {"a": None})]
    inner = Planned({"name": "stage", "attributes": {"a": [0.5]}, "kind": SpanKind.CLIENT}, False, events, "leave")
    (ours_inner, ours), (theirs_inner, theirs) = run(
        [Planned({"name": "batch"}, True, [("set_status", StatusCode.ERROR, "why")], "leave", [inner])]
    )
    assert ours.to_json() == theirs.to_json()
    assert ours_inner.to_json() == theirs_inner.to_json()


def test_the_resource_is_the_run_s_identity_and_the_environment_s(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=lab")
    telemetry.recording.resource_attributes = {"service.name": "lpr", "mlotel.run.id": "f00", "git.commit": None}
    with telemetry.span("stage") as span:
        pass
    given = readable(span).resource.attributes
    assert {key: given.get(key) for key in ("service.name", "mlotel.run.id", "deployment.environment")} == {
        "service.name": "lpr",
        "mlotel.run.id": "f00",
        "deployment.environment": "lab",
    }
    assert "git.commit" not in given
    assert readable(span).resource is readable(span).resource


# -- foreign spans on their way to the recorder -----------------------------------------------------------------------


class Plate(str, enum.Enum):  # noqa: UP042 - a StrEnum's text is its value
    GERMAN = "D"


def test_a_foreign_span_arrives_as_it_was() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(id_generator=CountingIds(), shutdown_on_exit=False, resource=Resource({}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with sdk_clock(), ExitStack() as stack:
        tracer = provider.get_tracer("lib")
        stack.enter_context(tracer.start_as_current_span("batch"))
        span = stack.enter_context(tracer.start_as_current_span("stage", kind=SpanKind.CLIENT, attributes={"a": [1]}))
        span.set_attributes({"plate": Plate.GERMAN, "score": np.float64(0.5), "mlotel.data.n": 3})
        span.set_attribute("mlotel.data.n.unit", "{box}")
        span.add_event("event", {"sizes": (1, 2)}, 5)
        span.add_link(SpanContext(7, 8, False), {"b": 1})
        span.set_status(StatusCode.ERROR, "why")
    stage = exporter.get_finished_spans()[0]
    packed = pack(stage, batch=3, opened=None, thread="worker")
    stamp = received(packed)
    span_record = stamp.span
    assert (span_record.trace_id, span_record.span_id, span_record.parent_id, span_record.batch) == (1, 2, 1, 3)
    assert (span_record.name, span_record.kind, span_record.scope, span_record.thread) == (
        *("stage", "CLIENT", "lib", "worker"),
    )
    assert (span_record.start_ns, span_record.end_ns, span_record.device_ns) == (20, 30, None)
    assert (span_record.status, span_record.status_message) == ("ERROR", "why")
    assert span_record.attributes == {
        "a": (1,),
        "plate": "D",
        "score": 0.5,
        "mlotel.data.n": 3,
        "mlotel.data.n.unit": "{box}",
    }
    assert type(span_record.attributes["plate"]) is str
    assert type(span_record.attributes["score"]) is float
    assert span_record.events == [(5, "event", {"sizes": (1, 2)})]
    assert span_record.links == [(7, 8, {"b": 1})]
    assert (stamp.opened, stamp.recorded) == (None, [("n", 3.0, "{box}")])
    assert json.dumps(span_record.attributes)


def test_a_span_of_mlotel_arrives_as_it_was(telemetry: Telemetry) -> None:
    with telemetry.span("batch", attributes={"batch.index": 2}) as batch:
        batch.record("n", 4.0, "{box}")
        batch.add_event("event", {"a": 1})
        batch.add_link(REMOTE)
    stamp = received(batch.pack())
    assert (stamp.opened, stamp.recorded, stamp.span.batch) == (1, [("n", 4.0, "{box}")], 2)
    assert (stamp.span.attributes, stamp.span.links) == ({"batch.index": 2}, [(0xAB, 0xCD, {})])
    assert stamp.span.events == [(batch.start_time + 10, "event", {"a": 1})]


def test_several_values_of_one_name_all_arrive() -> None:
    span = ReadableSpan("stage", attributes={"mlotel.data.n": (1, 2.5), "mlotel.data.m": "no number"})
    assert pack(span, batch=0, opened=None, thread="")[-1] == [("n", 1.0, ""), ("n", 2.5, "")]


def test_a_span_without_identity_or_times_does_no_harm() -> None:
    packed = pack(ReadableSpan("stage"), batch=None, opened=None, thread="")
    assert packed[:3] == (0, 0, 0)
    assert (packed.start_ns, packed.end_ns) == (0, 0)
    assert received(packed).span.name == "stage"
