"""The `off` backend, for control runs and warm-up: spans do nothing."""

import threading
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN

from mlotel_cli.telemetry.decorate import decorate


class OffSpan:
    """A context manager that does nothing. As a decorator it asks the tracer at every call: a run may have begun."""

    __slots__ = ("_arguments", "tracer")

    def __init__(self, _backend: Any, tracer: trace.Tracer, *arguments: Any) -> None:
        """Keep the arguments of `start_as_current_span` for the decorator."""
        self.tracer = tracer
        self._arguments = arguments

    def __enter__(self) -> trace.Span:
        """Start nothing."""
        return INVALID_SPAN

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """End nothing."""

    def __call__(self, function: Any) -> Any:
        """Decorate `function`."""
        return decorate(function, self.tracer, self._arguments[:8])  # without end_on_exit: the span ends with the call


def _start_nothing(*_arguments: Any) -> trace.Span:
    return INVALID_SPAN


class Off:
    """The backend that records nothing."""

    __slots__ = ()
    start_span = staticmethod(_start_nothing)
    current_span = OffSpan


OFF = Off()


class OffHere:
    """Records nothing on the thread that creates it, and passes the spans of all other threads to a backend."""

    def __init__(self, backend: Any) -> None:
        """Pass the spans of other threads to `backend`."""
        self._backend = backend
        self._thread = threading.get_ident()

    @staticmethod
    def start_span(here: "OffHere", tracer: trace.Tracer, *arguments: Any) -> trace.Span:
        """Start a span in the backend of the calling thread; arguments as in `start_span`."""
        backend = here.backend
        return backend.start_span(backend, tracer, *arguments)

    @staticmethod
    def current_span(here: "OffHere", tracer: trace.Tracer, *arguments: Any) -> Any:
        """Open a span in the backend of the calling thread; arguments as in `start_as_current_span`."""
        backend = here.backend
        return backend.current_span(backend, tracer, *arguments)

    @property
    def backend(self) -> Any:
        """The backend of the calling thread."""
        return OFF if threading.get_ident() == self._thread else self._backend
