"""The `off` backend: a span becomes nothing. For control runs and warm-up."""

from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN

from mlotel_cli.telemetry.decorate import decorate


class OffSpan:
    """Enters and leaves; as a decorator it asks the tracer again at every call, when a run may have begun."""

    __slots__ = ("_arguments", "tracer")

    def __init__(self, _backend: Any, tracer: trace.Tracer, *arguments: Any) -> None:
        """Remember the arguments of `start_as_current_span` for the decorator."""
        self.tracer = tracer
        self._arguments = arguments

    def __enter__(self) -> trace.Span:
        """Nothing to start."""
        return INVALID_SPAN

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def __call__(self, function: Any) -> Any:
        """Decorate `function`."""
        return decorate(function, self.tracer, self._arguments[:8])  # without end_on_exit: nobody else could end it


def _start_nothing(*_arguments: Any) -> trace.Span:
    return INVALID_SPAN


class Off:
    """The backend that records nothing."""

    __slots__ = ()
    start_span = staticmethod(_start_nothing)
    current_span = OffSpan


OFF = Off()
