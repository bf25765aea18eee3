"""Cost of one span: ours, the OpenTelemetry SDK's and NVTX's, in turn, in one process."""

import resource
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

ROUNDS = 15
SPANS = 4_000
WARM_SPANS = 4_000
NVTX = "nvtx.annotate, bare"


def measure() -> dict[str, float]:
    """Microseconds per span inside a root span, by kind: the median of rounds that alternate between the kinds."""
    from opentelemetry import trace

    early = trace.get_tracer("early")  # a ProxyTracer, as module-level tracers are

    import nvtx

    from mlotel_cli.records import BATCH_INDEX
    from mlotel_cli.telemetry import api
    from mlotel_cli.telemetry.backends.nvtx import Nvtx
    from mlotel_cli.telemetry.backends.off import OFF
    from mlotel_cli.telemetry.tracer import Recording

    api.install()
    ranges = Nvtx()
    late = trace.get_tracer("late")
    sdk, flush, shutdown = sdk_tracer()
    recording = Recording(deque(maxlen=1_000).append)
    attributes = {"image.width": 640, "image.height": 360}
    kinds: dict[str, tuple[Any, Callable[[], Any]]] = {
        "mlotel, bare": (recording, lambda: late.start_as_current_span("stage")),
        "mlotel, span() alias": (recording, lambda: api.span("stage")),
        "mlotel, two attributes": (recording, lambda: late.start_as_current_span("stage", attributes=attributes)),
        "mlotel, early proxy tracer": (recording, lambda: early.start_as_current_span("stage")),
        "mlotel off, span() alias": (OFF, lambda: api.span("stage")),
        "mlotel off, tracer": (OFF, lambda: late.start_as_current_span("stage")),
        NVTX: (OFF, lambda: nvtx.annotate("stage")),
        "mlotel nvtx, tracer": (ranges, lambda: late.start_as_current_span("stage")),
        "mlotel nvtx, span() alias": (ranges, lambda: api.span("stage")),
        "OpenTelemetry SDK + BatchSpanProcessor": (OFF, lambda: sdk.start_as_current_span("stage")),
        "same, two attributes": (OFF, lambda: sdk.start_as_current_span("stage", attributes=attributes)),
    }
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        for _ in range(ROUNDS):
            for kind, (backend, open_span) in kinds.items():
                api.use(backend)
                root = sdk if "SDK" in kind or kind.startswith("same") else late
                with root.start_as_current_span("root", attributes={BATCH_INDEX: 0}):
                    costs[kind].append(_cost_us(open_span))
                flush()  # the SDK's exporting thread must not run into the next kind
    finally:
        api.use(OFF)
        shutdown()
    return {kind: statistics.median(each) for kind, each in costs.items()}


def grown_kib(num_ranges: int = 1_000_000) -> int:
    """How much the process's memory grows over so many ranges in batches of four, KiB; after a first tenth."""
    from opentelemetry import trace

    from mlotel_cli.records import BATCH_INDEX
    from mlotel_cli.telemetry import api
    from mlotel_cli.telemetry.backends.nvtx import Nvtx
    from mlotel_cli.telemetry.backends.off import OFF

    api.install()
    api.use(Nvtx())
    tracer = trace.get_tracer("late")

    def batches(first: int, last: int) -> int:
        for index in range(first, last):
            with tracer.start_as_current_span("batch", attributes={BATCH_INDEX: index}):
                for name in ("detector", "reader"):
                    with tracer.start_as_current_span(name):
                        pass
                tracer.start_span("started").end()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    try:
        before = batches(0, num_ranges // 40)
        return batches(num_ranges // 40, num_ranges // 4) - before
    finally:
        api.use(OFF)


def _cost_us(open_span: Callable[[], Any]) -> float:
    """Per span, without what the loop and the call of `open_span` cost; the first ones are not counted."""
    for _ in range(WARM_SPANS):
        with open_span():
            pass
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


def sdk_tracer() -> tuple[Any, Callable[[], Any], Callable[[], None]]:
    """A tracer of the SDK behind BatchSpanProcessor and an exporter that throws away; its flush and its shutdown."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider.get_tracer("sdk"), provider.force_flush, provider.shutdown
