"""The OpenTelemetry API's provider and tracer. They pass every span to the process's current backend.

Tracers read the backend from their provider at every span. A tracer that user code obtained before the first run
therefore works, and so does a second run in the same process.
"""

import atexit
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.trace import Link, SpanKind
from opentelemetry.util.types import Attributes

from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.span import CurrentSpan, Span
from mlotel_cli.telemetry.stamping import Processor, Stamping

__all__ = ["Backend", "Provider", "Recording", "Span", "Tracer"]


class Backend(Protocol):
    """Turns spans into nothing, stamps or a profiler's ranges.

    Both members are called with the backend, the tracer, and then the arguments of the tracer's method.
    """

    @property
    def start_span(self) -> Callable[..., trace.Span]:
        """Start a span without making it current."""
        ...

    @property
    def current_span(self) -> Callable[..., Any]:
        """Open a span and make it current; a context manager and decorator."""
        ...


class Recording(Stamping):
    """The `otel` backend: spans become stamps."""

    __slots__ = ()
    start_span = Span.start
    current_span = CurrentSpan


class Tracer(trace.Tracer):
    """Opens spans in its provider's current backend."""

    def __init__(
        self,
        provider: "Provider",
        scope: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> None:
        """Take the name of the instrumenting module as `scope`."""
        self.provider = provider
        self.scope = scope
        self.version = version
        self.schema_url = schema_url
        self.attributes = attributes

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        """Start a span without making it current."""
        backend = self.provider.backend
        return backend.start_span(
            backend, self, name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
        )

    def start_as_current_span(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Any:
        """Return a context manager, also a decorator, that opens a span and makes it current."""
        backend = self.provider.backend
        return backend.current_span(
            backend,
            self,
            name,
            context,
            kind,
            attributes,
            links,
            start_time,
            record_exception,
            set_status_on_exception,
            end_on_exit,
        )


class Provider(trace.TracerProvider):
    """The process's TracerProvider. `backend` may change between runs; tracers then use the new one."""

    def __init__(self, backend: Backend) -> None:
        """Start with `backend`."""
        self.backend = backend
        self.processors: tuple[Processor, ...] = ()
        self._faults = Faults()

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        """Return a tracer whose scope is `instrumenting_module_name`."""
        return Tracer(self, instrumenting_module_name or "", instrumenting_library_version, schema_url, attributes)

    def add_span_processor(self, span_processor: Processor) -> None:
        """Pass every span to an SDK span processor too, which adds that processor's cost to every span.

        The processor is shut down when the process ends, as the SDK's own provider does it.
        """
        if not self.processors:
            atexit.register(self.shutdown)
        self.processors = (*self.processors, span_processor)
        if isinstance(self.backend, Stamping):
            self.backend.processors = self.processors

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush every added processor; return True when all of them succeeded."""
        return all([self._call(processor, "force_flush", timeout_millis) is not False for processor in self.processors])

    def shutdown(self) -> None:
        """Shut every added processor down."""
        atexit.unregister(self.shutdown)
        for processor in self.processors:
            self._call(processor, "shutdown")

    def _call(self, processor: Processor, method: str, *arguments: Any) -> Any:
        try:
            return getattr(processor, method)(*arguments)
        except Exception as error:  # the other processors must still be called
            self._faults.add("processor", f"{type(processor).__name__}.{method} raised {error!r}")
            return False
