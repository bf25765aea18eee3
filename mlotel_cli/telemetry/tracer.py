"""The OpenTelemetry API's provider and tracer, dispatching to whatever backend the process has at that moment.

Tracers ask their provider for the backend at every span, so that two runs in one process and a tracer obtained before
the first run both work.
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
    """What a span becomes.

    Both members are called with the backend, the tracer, and then the arguments of the tracer's method.
    """

    @property
    def start_span(self) -> Callable[..., trace.Span]:
        """Start a span that is not the current one."""
        ...

    @property
    def current_span(self) -> Callable[..., Any]:
        """A context manager and decorator that opens a span and makes it current."""
        ...


class Recording(Stamping):
    """The `otel` backend: spans become stamps."""

    __slots__ = ()
    start_span = Span.start
    current_span = CurrentSpan


class Tracer(trace.Tracer):
    """Opens spans in whatever backend its provider has at that moment."""

    def __init__(
        self,
        provider: "Provider",
        scope: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> None:
        """`scope` is the name of the instrumenting module."""
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
        """A context manager, or decorator, that opens a span and makes it current."""
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
    """The process's TracerProvider. `backend` may change between runs; tracers follow."""

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
        """A tracer whose scope is `instrumenting_module_name`."""
        return Tracer(self, instrumenting_module_name or "", instrumenting_library_version, schema_url, attributes)

    def add_span_processor(self, span_processor: Processor) -> None:
        """Also feed an SDK span processor; spans then cost what that processor costs on top.

        It is shut down when the process ends, as the SDK's own provider does.
        """
        if not self.processors:
            atexit.register(self.shutdown)
        self.processors = (*self.processors, span_processor)
        if isinstance(self.backend, Stamping):
            self.backend.processors = self.processors

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush every added processor; True when all of them could."""
        return all([self._ask(processor, "force_flush", timeout_millis) is not False for processor in self.processors])

    def shutdown(self) -> None:
        """Shut every added processor down."""
        atexit.unregister(self.shutdown)
        for processor in self.processors:
            self._ask(processor, "shutdown")

    def _ask(self, processor: Processor, method: str, *arguments: Any) -> Any:
        try:
            return getattr(processor, method)(*arguments)
        except Exception as error:  # the others must still be asked
            self._faults.add("processor", f"{type(processor).__name__}.{method} raised {error!r}")
            return False
