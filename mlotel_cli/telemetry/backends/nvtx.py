"""The `nvtx` backend: a span becomes an NVTX range for nsys and every other NVTX tool.

The domain is `mlotel`, the category is the kind of the span, the colour depends on the name. A range that is entered
and left on one thread is pushed and popped. A range from `start_span`, which may end on another thread, is started and
ended; so is a range in an asyncio task, because tasks take turns on one thread and a pop would end the range that was
pushed last.

The batch index is the payload of a batch's root range, of its ranges on other threads, and of ranges in tasks. All
other ranges are joined to their batch by nesting (`profile.timeline`), which mistakes concurrent tasks on one thread
for parts of each other.

Ranges have no attributes, events or status: the setters of the returned spans do nothing.
"""

import asyncio
import contextlib
import os
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import nvtx
from nvtx.nvtx import (  # the public start_range would never free a payload
    libnvtx_start_range,  # pyright: ignore[reportUnknownVariableType]
)
from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, Link, NonRecordingSpan, SpanKind
from opentelemetry.trace.propagation import _SPAN_KEY  # pyright: ignore[reportPrivateUsage]
from opentelemetry.util.types import Attributes

from mlotel_cli.errors import UsageError
from mlotel_cli.records import BATCH_INDEX, KIND
from mlotel_cli.telemetry.current import CURRENT
from mlotel_cli.telemetry.decorate import decorate
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.kept import KeptValues

_nvtx: Any = nvtx  # it has no types
# The public function raises when there is no loop, which costs more than the range.
_running_loop: Callable[[], Any] = asyncio._get_running_loop  # pyright: ignore[reportPrivateUsage]
DOMAIN = "mlotel"
CAPTURE = "mlotel capture"
"""Name of the range during which nsys records, for `--nvtx-capture=mlotel capture@mlotel`."""
BATCH = "batch"
"""Category of a batch's root range; other categories are the span's kind, or the value of its `mlotel.kind`."""
OTHER = "(other spans)"
"""Name of ranges whose own name exceeds the limit of names: NVTX never frees a name."""
_CATEGORIES = {kind: kind.name.lower() for kind in SpanKind}
_INTERNAL = SpanKind.INTERNAL
_COLOURS = (
    *(0xFF4C78A8, 0xFFF58518, 0xFFE45756, 0xFF72B7B2, 0xFF54A24B, 0xFFEECA3B, 0xFFB279A2, 0xFFFF9DA6, 0xFF9D755D),
    *(0xFFBAB0AC, 0xFF1F77B4, 0xFF2CA02C, 0xFFD62728, 0xFF9467BD, 0xFF8C564B, 0xFFE377C2, 0xFF17BECF, 0xFFBCBD22),
)


def colour_of(name: str) -> int:
    """Return the colour (ARGB) of every range of that name, the same in every run."""
    return _COLOURS[zlib.crc32(name.encode()) % len(_COLOURS)]


class Range(nvtx.annotate, NonRecordingSpan):
    """A range of one name, pushed on entry and popped on exit. It has no state: all threads share one object.

    Entering returns the object itself: a span whose setters do nothing.
    """

    def __init__(self, name: str, *, category: str, payload: int | None = None) -> None:
        """Register name and category with NVTX."""
        _nvtx.annotate.__init__(
            self, message=name, color=colour_of(name), domain=DOMAIN, category=category, payload=payload
        )
        NonRecordingSpan.__init__(self, INVALID_SPAN_CONTEXT)
        # Newer versions of nvtx lack these attributes while no tool is attached.
        self.event: Any = getattr(self, "attributes", None)
        self.nvtx_domain: Any = getattr(self, "domain", None)


class NamedRange(Range):
    """A range that a tracer returns; also a decorator."""

    def __init__(self, name: str, *, category: str, tracer: trace.Tracer) -> None:
        """Keep `tracer`, the first that opened a span of this name, for the decorator."""
        super().__init__(name, category=category)
        self._tracer = tracer
        self._name = name

    def __call__(self, func: Any) -> Any:
        """Decorate `func`; every call asks the tracer for a new span, as another run may have begun."""
        return decorate(func, self._tracer, (self._name,))


class BatchRange(NonRecordingSpan):
    """The root range of a batch, or one of its ranges on another thread; current while it is entered."""

    def __init__(self, backend: "Nvtx", name: str, *, category: str, batch: int, arguments: tuple[Any, ...]) -> None:
        """Prepare; `arguments` are the tracer and those of `start_as_current_span`, for the decorator."""
        super().__init__(INVALID_SPAN_CONTEXT)
        self.batch = batch
        self.thread = 0
        self._range = backend.payload_range(name, category)
        self._lock = backend.lock
        self._arguments = arguments
        self._token: Any = None

    def __enter__(self) -> Self:
        """Push the range with the batch's index."""
        self.thread = threading.get_ident()
        given: Context | None = self._arguments[2]
        self._token = CURRENT.set(trace.set_span_in_context(self, given))
        event = self._range.event
        with self._lock:  # all threads share the event; NVTX copies it when the range is pushed
            if event is not None:
                event.payload = self.batch
            self._range.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Pop the range."""
        self._range.__exit__(None, None, None)
        CURRENT.reset(self._token)

    def __call__(self, func: Any) -> Any:
        """Decorate `func`."""
        tracer, *arguments = self._arguments
        return decorate(func, tracer, tuple(arguments[:8]))


class StartedRange(NonRecordingSpan):
    """A range that has begun; any thread may call `end`."""

    def __init__(self, range_: Range, *, batch: int | None, lock: threading.Lock) -> None:
        """Start the range; `batch` is the index of its batch where that is known."""
        super().__init__(INVALID_SPAN_CONTEXT)
        self.batch = batch
        self.thread = threading.get_ident()
        self._id: Any = None
        if range_.event is None:
            return
        with lock:
            if batch is not None:
                range_.event.payload = batch
            self._id = libnvtx_start_range(range_.event, range_.nvtx_domain.handle)

    def end(self, end_time: int | None = None) -> None:
        """End the range; a second call does nothing."""
        started, self._id = self._id, None
        if started is not None:
            _nvtx.end_range(started)


class TaskRange(NonRecordingSpan):
    """A range in a running asyncio loop; current while it is entered, so that its children know their batch."""

    def __init__(
        self, backend: "Nvtx", name: str, *, category: str, batch: int | None, arguments: tuple[Any, ...]
    ) -> None:
        """Prepare; `arguments` as for a BatchRange."""
        super().__init__(INVALID_SPAN_CONTEXT)
        self.batch = batch
        self.thread = 0
        self._backend, self._name, self._category = backend, name, category
        self._arguments = arguments
        self._started: StartedRange | None = None
        self._token: Any = None

    def __enter__(self) -> Self:
        """Start the range."""
        self.thread = threading.get_ident()
        given: Context | None = self._arguments[2]
        self._token = CURRENT.set(trace.set_span_in_context(self, given))
        self._started = self._backend.start(self._name, self._category, self.batch)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """End the range."""
        if self._started is not None:
            self._started.end()
        with contextlib.suppress(ValueError):  # another task may close an asynchronous generator
            CURRENT.reset(self._token)

    def __call__(self, func: Any) -> Any:
        """Decorate `func`."""
        tracer, *arguments = self._arguments
        return decorate(func, tracer, tuple(arguments[:8]))


class Nvtx:
    """The backend. One per process is enough; runs may share it.

    Attributes:
        faults: counts names beyond the limit.
        lock: held while a payload is set and its range begins.
        values: the values of `record()`.
    """

    def __init__(self, *, faults: Faults | None = None, max_names: int = 1_000) -> None:
        """Register at most `max_names` names; ranges of further names are named `OTHER`.

        Raises:
            UsageError: when NVTX is switched off.
        """
        if not nvtx.enabled():
            raise UsageError(
                f"NVTX_DISABLE={os.environ.get('NVTX_DISABLE')}: this variable switches NVTX off, so there would be no "
                "ranges; unset it"
            )
        self.faults = faults or Faults()
        self.lock = threading.Lock()
        self.values = KeptValues()
        self._max_names = max_names
        self._names: set[str] = set()
        self._internal: dict[str, NamedRange] = {}
        self._others: dict[tuple[str, str], NamedRange] = {}
        self._with_payload: dict[tuple[str, str], Range] = {}

    @staticmethod
    def current_span(
        backend: "Nvtx",
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
        """Return a range that is entered and left on one thread; arguments as in `start_as_current_span`."""
        parent: Any = (CURRENT.get() if context is None else context).get(_SPAN_KEY)
        # Nesting cannot join the children of a started range to their batch, so they have its index as payload.
        elsewhere = type(parent) in _BATCHED and (
            parent.thread != threading.get_ident() or (type(parent) is StartedRange and parent.batch is not None)
        )
        in_task = _running_loop() is not None
        if attributes is None and kind is _INTERNAL and end_on_exit and not elsewhere and not in_task:
            found = backend._internal.get(name)
            return backend._named(name, tracer) if found is None else found
        batch = _batch_in(attributes)
        category = _category(kind, attributes, is_root=batch is not None)
        if batch is None and (elsewhere or in_task) and type(parent) in _BATCHED:
            batch = parent.batch
        if not end_on_exit:
            started = backend.start(name, category, batch)
            return trace.use_span(started, record_exception=False, set_status_on_exception=False)
        if batch is None and not in_task:
            return backend._categorised(name, category, tracer)
        given = (tracer, name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception)
        if in_task or batch is None:
            return TaskRange(backend, name, category=category, batch=batch, arguments=given)
        return BatchRange(backend, name, category=category, batch=batch, arguments=given)

    @staticmethod
    def start_span(
        backend: "Nvtx",
        tracer: trace.Tracer,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        *_others: Any,
    ) -> trace.Span:
        """Start a range that may end on another thread; arguments as in `start_span`.

        A wait with an earlier start time (`queue source`) is left out: NVTX can only start a range now.
        """
        if start_time is not None and attributes and KIND in attributes:
            return trace.INVALID_SPAN
        batch = _batch_in(attributes)
        category = _category(kind, attributes, is_root=batch is not None)
        if batch is None:
            parent = trace.get_current_span(context)
            batch = getattr(parent, "batch", None) if type(parent) in _BATCHED else None
        return backend.start(name, category, batch)

    def payload_range(self, name: str, category: str) -> Range:
        """Return the range of that name and category whose payload the caller sets before it begins."""
        name = self._bounded(name)
        found = self._with_payload.get((name, category))
        if found is None:
            # NVTX caches attributes by content: with a payload they differ from those of the range without one.
            found = self._with_payload[name, category] = Range(name, category=category, payload=0)
        return found

    def start(self, name: str, category: str, batch: int | None) -> StartedRange:
        """Start a range."""
        if batch is None:
            name = self._bounded(name)
            return StartedRange(Range(name, category=category), batch=None, lock=self.lock)
        return StartedRange(self.payload_range(name, category), batch=batch, lock=self.lock)

    def _named(self, name: str, tracer: trace.Tracer) -> NamedRange:
        kept = self._bounded(name)
        if kept not in self._internal:
            self._internal[kept] = NamedRange(kept, category=_CATEGORIES[_INTERNAL], tracer=tracer)
        return self._internal[kept]

    def _categorised(self, name: str, category: str, tracer: trace.Tracer) -> NamedRange:
        key = (self._bounded(name), category)
        found = self._others.get(key)
        if found is None:
            found = self._others[key] = NamedRange(key[0], category=category, tracer=tracer)
        return found

    def _bounded(self, name: str) -> str:
        """Return `name`, or `OTHER` when there are too many names."""
        if name in self._names:
            return name
        if len(self._names) >= self._max_names:
            self.faults.add("names", f"more than {self._max_names} span names: {name!r} is shown as {OTHER!r}")
            return OTHER
        self._names.add(name)
        return name


class capture:  # noqa: N801 - used as a function
    """The range during which nsys records: `with capture(): ...`. Its name is registered, as nsys requires."""

    def __enter__(self) -> None:
        """Begin the range."""
        self._id: Any = _nvtx.start_range(CAPTURE, domain=DOMAIN)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """End the range, on any thread."""
        _nvtx.end_range(self._id)


_BATCHED = (BatchRange, StartedRange, TaskRange)


def _batch_in(attributes: Mapping[str, Any] | None) -> int | None:
    index = attributes.get(BATCH_INDEX) if attributes else None
    return None if index is None else int(index)


def _category(kind: SpanKind, attributes: Mapping[str, Any] | None, *, is_root: bool) -> str:
    if is_root:
        return BATCH
    return str(attributes[KIND]) if attributes and KIND in attributes else _CATEGORIES[kind]
