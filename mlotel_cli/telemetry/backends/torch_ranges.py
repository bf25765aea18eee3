"""The backend for torch.profiler: a span becomes an annotation in its trace.

An annotation has only a name, so category and batch are part of the name. It begins and ends on one thread. Spans from
`start_span`, which may end on another thread, are left out and counted.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.trace import INVALID_SPAN, INVALID_SPAN_CONTEXT, Link, NonRecordingSpan, SpanKind
from opentelemetry.trace.propagation import _SPAN_KEY  # pyright: ignore[reportPrivateUsage]
from opentelemetry.util.types import Attributes

from mlotel_cli.records import BATCH_INDEX, KIND
from mlotel_cli.telemetry.current import CURRENT
from mlotel_cli.telemetry.decorate import decorate
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.kept import KeptValues

PREFIX = "mlotel"
"""Annotations are named mlotel|<category>|<batch, or empty>|<name>."""


class TorchRange(NonRecordingSpan):
    """One annotation, also a decorator. A batch's root is the current span while it is entered."""

    def __init__(self, tracer: trace.Tracer, name: str, category: str, batch: int | None, *arguments: Any) -> None:
        """Prepare; `arguments` are the other arguments of `start_as_current_span`, for the decorator."""
        super().__init__(INVALID_SPAN_CONTEXT)
        self.batch = batch
        self.thread = 0
        self._label = f"{PREFIX}|{category}|{'' if batch is None else batch}|{name}"
        self._tracer, self._name, self._arguments = tracer, name, arguments
        self._token: Any = None

    def __enter__(self) -> Self:
        """Begin the annotation."""
        from torch.profiler import record_function

        self.thread = threading.get_ident()
        if self.batch is not None:
            given: Context | None = self._arguments[0]
            self._token = CURRENT.set(trace.set_span_in_context(self, given))
        self._record: Any = record_function(self._label)
        self._record.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """End the annotation."""
        self._record.__exit__(None, None, None)
        if self._token is not None:
            CURRENT.reset(self._token)

    def __call__(self, function: Any) -> Any:
        """Decorate `function`."""
        return decorate(function, self._tracer, (self._name, *self._arguments[:7]))


class TorchRanges:
    """The backend. It records only while a `TraceFile` is entered.

    Attributes:
        faults: counts spans that an annotation cannot show.
        values: the values of `record()`.
    """

    def __init__(self, *, faults: Faults | None = None) -> None:
        """Count in `faults`, or in new Faults."""
        self.faults = faults or Faults()
        self.values = KeptValues()

    @staticmethod
    def current_span(
        backend: "TorchRanges",
        tracer: trace.Tracer,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> AbstractContextManager[trace.Span]:
        """Return an annotation; arguments as in `start_as_current_span`."""
        batch, category = _identify(kind, attributes)
        if batch is None:
            parent: Any = (CURRENT.get() if context is None else context).get(_SPAN_KEY)
            if type(parent) is TorchRange and parent.thread != threading.get_ident():
                batch = parent.batch
        others = (context, kind, attributes, links, start_time, record_exception, set_status_on_exception)
        return TorchRange(tracer, name, category, batch, *others)

    @staticmethod
    def start_span(backend: "TorchRanges", _tracer: trace.Tracer, name: str, *_others: Any) -> trace.Span:
        """Count the span as a fault and return an invalid one: an annotation cannot end on another thread."""
        backend.faults.add("started", f"span {name!r} from start_span is not in torch.profiler's trace")
        return INVALID_SPAN


class TraceFile:
    """Profiles the process while it is entered, and writes the Chrome trace on exit."""

    def __init__(self, path: Path) -> None:
        """Write to `path`."""
        self._path = path

    def __enter__(self) -> None:
        """Begin to profile; imports torch."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile: Any = profile(activities=activities)
        self._profile.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """End, and write the file."""
        self._profile.__exit__(exc_type, exc_val, exc_tb)
        self._profile.export_chrome_trace(str(self._path))


def _identify(kind: SpanKind, attributes: Mapping[str, Any] | None) -> tuple[int | None, str]:
    index = attributes.get(BATCH_INDEX) if attributes else None
    if index is not None:
        return int(index), "batch"
    return None, str(attributes[KIND]) if attributes and KIND in attributes else kind.name.lower()
