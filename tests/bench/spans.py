"""Cost of one span: ours and the OpenTelemetry SDK's, in turn, in one process."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

ROUNDS = 15
SPANS = 4_000


def measure() -> dict[str, float]:
    """Microseconds per span inside a root span, by kind: the median of rounds that alternate between the kinds."""
    from opentelemetry import trace

    early = trace.get_tracer("early")  # a ProxyTracer, as module-level tracers are

    from mlotel_cli.telemetry import api
    from mlotel_cli.telemetry.off import OFF
    from mlotel_cli.telemetry.tracer import Recording

    api.install()
    late = trace.get_tracer("late")
    sdk, shutdown = _sdk_tracer()
    recording = Recording(deque(maxlen=1_000).append)
    attributes = {"image.width": 640, "image.height": 360}
    kinds: dict[str, tuple[Any, Callable[[], Any]]] = {
        "mlotel, bare": (recording, lambda: late.start_as_current_span("stage")),
        "mlotel, span() alias": (recording, lambda: api.span("stage")),
        "mlotel, two attributes": (recording, lambda: late.start_as_current_span("stage", attributes=attributes)),
        "mlotel, early proxy tracer": (recording, lambda: early.start_as_current_span("stage")),
        "mlotel off, span() alias": (OFF, lambda: api.span("stage")),
        "mlotel off, tracer": (OFF, lambda: late.start_as_current_span("stage")),
        "OpenTelemetry SDK + BatchSpanProcessor": (OFF, lambda: sdk.start_as_current_span("stage")),
        "same, two attributes": (OFF, lambda: sdk.start_as_current_span("stage", attributes=attributes)),
    }
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        for _ in range(ROUNDS):
            for kind, (backend, open_span) in kinds.items():
                api.use(backend)
                root = sdk if "SDK" in kind or kind.startswith("same") else late
                with root.start_as_current_span("root"):
                    costs[kind].append(_cost_us(open_span))
    finally:
        api.use(OFF)
        shutdown()
    return {kind: statistics.median(each) for kind, each in costs.items()}


def _cost_us(open_span: Callable[[], Any]) -> float:
    """Per span, without what the loop and the call of `open_span` cost."""
    start = time.perf_counter_ns()
    for _ in range(SPANS):
        with open_span():
            pass
    measured = time.perf_counter_ns() - start
    nothing = _nothing
    start = time.perf_counter_ns()
    for _ in range(SPANS):
        nothing()
    return (measured - (time.perf_counter_ns() - start)) / SPANS / 1e3


def _nothing() -> None:
    pass


def _sdk_tracer() -> tuple[Any, Callable[[], None]]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider.get_tracer("sdk"), provider.shutdown
