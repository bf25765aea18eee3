"""Tracers follow the provider's backend, SDK processors get its spans, and a program may start in any order."""

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.tracer import Provider, Tracer
from tests.support.telemetry import EPOCH_NS, Telemetry
from tests.support.wire import message_of


def run_program(program: str, **environment: str) -> str:
    """Run a program in a new process, as a process can set its TracerProvider only once; return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_classes_are_those_of_the_api(telemetry: Telemetry) -> None:
    assert isinstance(telemetry.provider, trace.TracerProvider)
    assert isinstance(telemetry.tracer, trace.Tracer)
    assert isinstance(telemetry.tracer.start_span("stage"), trace.Span)


def test_a_tracer_knows_its_scope(telemetry: Telemetry) -> None:
    tracer = telemetry.provider.get_tracer("lib", "1.2", "https://schema", {"a": 1})
    assert (tracer.scope, tracer.version, tracer.schema_url, tracer.attributes) == (
        *("lib", "1.2", "https://schema"),
        {"a": 1},
    )
    assert telemetry.provider.get_tracer(None).scope == ""  # type: ignore[arg-type]


def test_two_runs_one_after_the_other(telemetry: Telemetry) -> None:
    other = Telemetry()
    for recording in (telemetry.recording, other.recording, OFF):
        telemetry.provider.backend = recording
        with telemetry.tracer.start_as_current_span("stage"):
            telemetry.tracer.start_span("child").end()
    assert [span.name for span in telemetry.ended] == [span.name for span in other.ended] == ["child", "stage"]
    assert [message_of(span)[:3] for span in other.ended] == [(1, 2, 1), (1, 1, 0)]


def test_all_arguments_of_the_api_by_position_and_by_name(telemetry: Telemetry) -> None:
    kind, link = trace.SpanKind.CONSUMER, trace.Link(trace.SpanContext(5, 6, False))
    arguments = ("stage", Context(), kind, {"a": 1}, [link], 7, False, False)
    telemetry.tracer.start_span(*arguments).end(8)
    with pytest.raises(ValueError, match="x"), telemetry.tracer.start_as_current_span(*arguments, False) as span:
        raise ValueError("x")
    span.end(8)
    names = ("name", "context", "kind", "attributes", "links", "start_time")
    with telemetry.tracer.start_as_current_span(**dict(zip(names, arguments, strict=False))) as span:  # type: ignore[arg-type]
        pass
    for one in telemetry.ended:
        assert (one.name, one.kind, one.attributes, one.start_time, one.events) == ("stage", kind, {"a": 1}, 7, ())
        assert [given.context for given in one.links] == [link.context]
    assert [one.end_time for one in telemetry.ended[:2]] == [8, 8]


class Watching(SpanProcessor):
    """Keeps the spans that it receives."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.ended: list[ReadableSpan] = []
        self.calls: list[str] = []

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        assert span.start_time == EPOCH_NS + 10
        span.set_attribute("tenant", "a")
        self.started.append((span.name, span.context.span_id, span.attributes.get("given"), parent_context))

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.calls.append(f"flush {timeout_millis}")
        return True


class Broken(Watching):
    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        raise OSError("disk full")

    on_end = shutdown = force_flush = on_start  # type: ignore[assignment]


def test_a_processor_sees_the_start_and_the_end(telemetry: Telemetry) -> None:
    watching = Watching()
    telemetry.provider.add_span_processor(watching)
    with telemetry.span("stage", attributes={"given": 1}):
        assert watching.started == [("stage", 1, 1, Context())]
    (ended,) = watching.ended
    assert (ended.name, ended.attributes, ended.end_time) == ("stage", {"given": 1, "tenant": "a"}, EPOCH_NS + 20)
    assert telemetry.only().attributes["tenant"] == "a"
    telemetry.provider.force_flush(5)
    telemetry.provider.shutdown()
    assert watching.calls == ["flush 5", "shutdown"]


def test_processors_added_before_and_during_a_run_are_fed(telemetry: Telemetry) -> None:
    exporters = [InMemorySpanExporter() for _ in range(2)]
    for number, exporter in enumerate(exporters):
        telemetry.provider.add_span_processor(SimpleSpanProcessor(exporter))
        with telemetry.span(f"stage {number}"):
            pass
    telemetry.provider.shutdown()
    assert [[span.name for span in exporter.get_finished_spans()] for exporter in exporters] == [
        ["stage 0", "stage 1"],
        ["stage 1"],
    ]


def test_a_processor_that_raises_breaks_nothing(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    watching = Watching()
    telemetry.provider.add_span_processor(Broken())
    telemetry.provider.add_span_processor(watching)
    with telemetry.span("stage"):
        pass
    assert telemetry.provider.force_flush() is False
    telemetry.provider.shutdown()
    assert [span.name for span in watching.ended] == ["stage"]
    assert watching.calls == ["flush 30000", "shutdown"]
    assert telemetry.faults.counts() == {"processor": 2}
    assert [span.name for span in telemetry.ended] == ["stage"]
    assert "Broken.on_start raised OSError('disk full')" in caplog.text


def test_processors_are_shut_down_when_the_program_ends() -> None:
    program = """
        from collections import deque
        from opentelemetry import trace
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
        from mlotel_cli.telemetry import api
        from mlotel_cli.telemetry.tracer import Recording
        api.install()
        api.use(Recording(deque().append))
        trace.get_tracer_provider().add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(
            formatter=lambda span: span.name)))
        with trace.get_tracer("program").start_as_current_span("stage"):
            pass
    """
    assert run_program(program) == "stage"


def test_a_tracer_from_before_the_installation_records_afterwards() -> None:
    program = """
        from opentelemetry import trace
        tracer = trace.get_tracer("early", "1.0")

        @tracer.start_as_current_span("decorated")
        def decorated():
            return trace.get_current_span().get_span_context().is_valid

        print(type(tracer).__name__, decorated())
        with tracer.start_as_current_span("lost"):
            pass
        from mlotel_cli.telemetry import api
        from mlotel_cli.telemetry.tracer import Recording
        print(api.install(), api.install())
        ended = []
        for backend in (Recording(ended.append, first_id=1), api.OFF, Recording(ended.append, first_id=11)):
            api.use(backend)
            with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
                tracer.start_span("started").end()
            decorated()
        for span in ended:
            print(span.name, *span.pack()[1:4], span.tracer.scope, span.tracer.version)
    """
    assert run_program(program).splitlines() == [
        "ProxyTracer False",
        "True True",
        "started 1 3 2 early 1.0",
        "inner 1 2 1 early 1.0",
        "outer 1 1 0 early 1.0",
        "decorated 2 4 0 early 1.0",
        "started 11 13 12 early 1.0",
        "inner 11 12 11 early 1.0",
        "outer 11 11 0 early 1.0",
        "decorated 12 14 0 early 1.0",
    ]


def test_a_provider_of_its_own_per_test_is_no_global_state() -> None:
    first, second = Provider(OFF), Provider(OFF)
    assert isinstance(first.get_tracer("a"), Tracer)
    first.add_span_processor(Watching())
    assert second.processors == ()
    first.shutdown()
