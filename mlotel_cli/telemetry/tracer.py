"""The OpenTelemetry API, implemented to stamp and nothing more.

A span costs two clock readings, one context switch and one append; everything else (naming, joining, writing)
happens in the recorder process. Tracers ask their provider for the backend at every span, so that two runs in one
process and a tracer obtained before the first run both work. Spans may start and end on any thread.
"""

import itertools
import logging
import os
import random
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation import _SPAN_KEY  # pyright: ignore[reportPrivateUsage]
from opentelemetry.util.types import AnyValue, Attributes

from mlotel_cli.records import BATCH_INDEX
from mlotel_cli.telemetry.attributes import clean
from mlotel_cli.telemetry.clock import CLOCK, Clock
from mlotel_cli.telemetry.decorate import decorate
from mlotel_cli.telemetry.faults import Faults

logger = logging.getLogger("mlotel.telemetry")

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_put = dict.__setitem__  # Context refuses item assignment; a fresh one is ours until it is attached
_thread = threading.local()


class _PublicContext:
    """The current context through OpenTelemetry's public API, for a runtime context that is not a ContextVar."""

    def get(self) -> Context:
        return context_api.get_current()

    def set(self, context: Context) -> None:
        context_api.attach(context)


def _find_current() -> "ContextVar[Context] | _PublicContext":
    """Where the current context lives; the ContextVar itself saves two calls a span."""
    runtime: Any = context_api._RUNTIME_CONTEXT  # pyright: ignore[reportPrivateUsage]
    variable = getattr(runtime, "_current_context", None)
    return variable if isinstance(variable, ContextVar) else _PublicContext()


_current = _find_current()


class LocalTrace:
    """What the spans of one trace (or of one batch in it) share in this process."""

    __slots__ = ("batch", "opened", "root_id", "trace_id")

    def __init__(self, trace_id: int, *, batch: int | None, root_id: int) -> None:
        """Start counting the spans that are opened; `batch` is the index of the batch they belong to."""
        self.trace_id = trace_id
        self.batch = batch
        self.root_id = root_id
        self.opened = itertools.count()  # next() is atomic, `+= 1` is not


class Processor(Protocol):
    """The part of the SDK's SpanProcessor that is called here."""

    def on_start(self, span: Any, parent_context: Context | None = None) -> None: ...
    def on_end(self, span: Any) -> None: ...
    def shutdown(self) -> None: ...
    def force_flush(self, timeout_millis: int = 30_000) -> bool: ...


class Backend(Protocol):
    """What a span becomes. Both members take the arguments of the OpenTelemetry method of the same purpose."""

    @property
    def start_span(self) -> Callable[..., trace.Span]: ...
    @property
    def current_span(self) -> Callable[..., Any]: ...


class Span(trace.Span):
    """A span that is being timed. Times inside are ns of the process clock; `start_time` and `end_time` are dates."""

    __slots__ = (
        "_attributes",
        "_context",
        "_description",
        "_end",
        "_events",
        "_kind",
        "_links",
        "_name",
        "_on_exception",
        "_parent",
        "_previous",
        "_recorded",
        "_recording",
        "_span_id",
        "_start",
        "_start_time",
        "_status",
        "_thread",
        "_trace",
        "_tracer",
    )

    def __init__(
        self,
        tracer: "Tracer",
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> None:
        """Prepare and start; the arguments are those of `opentelemetry.trace.Tracer.start_span`."""
        self._prepare(tracer, name, context, kind, attributes, links, start_time)
        self._on_exception = (record_exception, set_status_on_exception)
        self._begin(_current.get() if context is None else context)

    def _prepare(
        self,
        tracer: "Tracer",
        name: str,
        context: Context | None,
        kind: SpanKind,
        attributes: Attributes,
        links: Sequence[Link] | None,
        start_time: int | None,
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._context = context
        self._kind = kind
        self._attributes: Any = attributes
        self._links: Any = links
        self._start_time = start_time
        self._end: int | None = None
        self._events: list[tuple[int, str, dict[str, Any]]] | None = None
        self._recorded: list[tuple[str, float, str]] | None = None
        self._status = StatusCode.UNSET
        self._description = ""
        self._previous: Context | None = None

    def _begin(self, context: Context) -> None:
        recording: Recording = self._tracer.provider.backend  # type: ignore[assignment]
        self._recording = recording
        self._span_id = span_id = next(recording.ids)
        parent: Any = context.get(_SPAN_KEY)
        local = getattr(parent, "_trace", None)
        if local is not None:
            self._parent = parent
        else:
            self._parent, local = _adopt(parent, recording, span_id)
        if self._attributes is not None or self._links is not None:
            local = self._take_given(local, recording)
        self._trace: LocalTrace = local
        next(local.opened)
        try:
            self._thread: str = _thread.name
        except AttributeError:
            self._thread = _thread.name = threading.current_thread().name
        if recording.processors:
            for processor in recording.processors:
                processor.on_start(self, context)
        start = self._start_time
        self._start: int = recording.now() if start is None else start - recording.epoch_offset_ns

    def _take_given(self, local: LocalTrace, recording: "Recording") -> LocalTrace:
        """Copy what was passed at the start; a batch index opens a local trace of its own."""
        given, links = self._attributes, self._links
        self._attributes = None
        if given:
            self.set_attributes(given)
            index = given.get(BATCH_INDEX)
            if index is not None:
                local = LocalTrace(local.trace_id, batch=int(index), root_id=self._span_id)
        self._links = None
        for link in links or ():
            self.add_link(link.context, link.attributes)
        return local

    # -- ending ---------------------------------------------------------------------------------------------------

    def end(self, end_time: int | None = None) -> None:
        """End the span now, or at `end_time` (ns since the epoch). Further calls are ignored with a warning."""
        recording = self._recording
        if self._end is not None:
            recording.faults.add("ended", f"span {self._name!r} was ended twice; the second call is ignored")
            return
        if recording.synchronize is not None:
            recording.synchronize()
        self._end = recording.now() if end_time is None else end_time - recording.epoch_offset_ns
        recording.emit(self)
        if recording.processors:
            recording.notify_ended(self)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """End the span; an Exception is recorded and sets the status, as asked for at the start."""
        if exc_val is not None:
            self._take_exception(exc_val)
        if self._end is None:
            self.end()

    def _take_exception(self, error: BaseException) -> None:
        if not isinstance(error, Exception) or self._end is not None:
            return
        record, set_status = self._on_exception
        if record:
            self.record_exception(error)
        if set_status:
            self.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")

    # -- what a span carries --------------------------------------------------------------------------------------

    def _is_open(self, call: str) -> bool:
        if self._end is None:
            return True
        self._recording.faults.add("ended", f"{call} on the ended span {self._name!r} is ignored")
        return False

    def _clean(self, attributes: Mapping[str, Any] | None, call: str) -> dict[str, Any]:
        cleaned: dict[str, Any] = {}
        for key, value in (attributes or {}).items():
            if type(key) is not str or not key:
                self._recording.faults.add("attribute", f"{call}: attribute name {key!r} is no text; it is left out")
                continue
            try:
                cleaned[key] = clean(value)
            except TypeError as error:
                self._recording.faults.add("attribute", f"{call}: attribute {key!r} of span {self._name!r}: {error}")
        return cleaned

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        """Set several attributes; values are copied."""
        if self._is_open("set_attributes"):
            cleaned = self._clean(attributes, "set_attributes")
            if self._attributes is None:
                self._attributes = cleaned
            else:
                self._attributes.update(cleaned)

    def set_attribute(self, key: str, value: AnyValue) -> None:
        """Set one attribute; the value is copied. Tensors are refused (see `attributes.clean`)."""
        if self._is_open("set_attribute"):
            cleaned = self._clean({key: value}, "set_attribute")
            if self._attributes is None:
                self._attributes = cleaned
            else:
                self._attributes.update(cleaned)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event, at `timestamp` (ns since the epoch) or now."""
        if self._is_open("add_event"):
            recording = self._recording
            when = recording.now() + recording.epoch_offset_ns if timestamp is None else timestamp
            if self._events is None:
                self._events = []
            self._events.append((when, name, self._clean(attributes, "add_event")))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Link to another span; an invalid context is ignored."""
        if context.is_valid and self._is_open("add_link"):
            if self._links is None:
                self._links = []
            self._links.append((context, self._clean(attributes, "add_link")))

    def update_name(self, name: str) -> None:
        """Rename the span."""
        if self._is_open("update_name"):
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status by OpenTelemetry's rules: OK is final, UNSET changes nothing, only ERROR keeps a text."""
        if not self._is_open("set_status") or self._status is StatusCode.OK:
            return
        if isinstance(status, Status):
            status, description = status.status_code, status.description
        if status is not StatusCode.UNSET:
            self._status = status
            self._description = (description or "") if status is StatusCode.ERROR else ""

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add the event `exception` with OpenTelemetry's attributes: type, message, stacktrace, escaped."""
        kind = type(exception)
        module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
        described: dict[str, AnyValue] = {
            "exception.type": f"{module}{kind.__qualname__}",
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**described, **(attributes or {})}, timestamp)

    def record(self, name: str, value: float, unit: str) -> None:
        """Keep a domain value for the batch's row; see `mlotel_cli.record`."""
        if self._is_open("record"):
            if self._recorded is None:
                self._recorded = []
            self._recorded.append((name, value, unit))

    # -- reading, as span processors do ---------------------------------------------------------------------------

    def get_span_context(self) -> SpanContext:
        """Identity of the span, always sampled."""
        return SpanContext(self._trace.trace_id, self._span_id, is_remote=False, trace_flags=_SAMPLED)

    def is_recording(self) -> bool:
        """True until the span has ended."""
        return self._end is None

    @property
    def name(self) -> str:
        """The span's name."""
        return self._name

    @property
    def kind(self) -> SpanKind:
        """The span's kind."""
        return self._kind

    @property
    def attributes(self) -> Mapping[str, Any]:
        """A copy of the attributes set so far."""
        return dict(self._attributes or {})

    @property
    def parent(self) -> SpanContext | None:
        """Context of the parent; None for a root."""
        return None if self._parent is None else self._parent.get_span_context()

    @property
    def start_time(self) -> int:
        """Start, ns since the epoch."""
        return self._start + self._recording.epoch_offset_ns

    @property
    def end_time(self) -> int | None:
        """End, ns since the epoch; None while it runs."""
        return None if self._end is None else self._end + self._recording.epoch_offset_ns

    @property
    def status(self) -> tuple[StatusCode, str | None]:
        """Status code and its description."""
        return self._status, self._description or None

    @property
    def events(self) -> Sequence[tuple[int, str, Mapping[str, Any]]]:
        """(time in ns since the epoch, name, attributes) each."""
        return tuple(self._events or ())

    @property
    def links(self) -> Sequence[tuple[SpanContext, Mapping[str, Any]]]:
        """(context, attributes) each."""
        return tuple(self._links or ())

    @property
    def scope(self) -> str:
        """Name of the instrumenting module."""
        return self._tracer.scope

    @property
    def resource_attributes(self) -> Mapping[str, Any]:
        """Identity of the run, for the resource of exported spans."""
        return self._recording.resource_attributes

    @property
    def batch(self) -> int | None:
        """Index of the batch it belongs to."""
        return self._trace.batch

    def count_opened(self) -> int:
        """Spans opened so far in this trace or batch, this one included. Off the hot path."""
        return int(repr(self._trace.opened)[len("count(") : -1])  # the one way to read a count without taking from it

    def pack(self) -> tuple[Any, ...]:
        """The ended span as plain objects, in the order of `recorder.assemble.unpack`."""
        local, offset, links = self._trace, self._recording.epoch_offset_ns, self._links
        return (
            "span",
            local.trace_id,
            self._span_id,
            0 if self._parent is None else _span_id(self._parent),
            self.count_opened() if local.root_id == self._span_id else None,
            local.batch,
            self._name,
            self._kind.name,
            self._tracer.scope,
            self._thread,
            self._start + offset,
            (self._end or self._start) + offset,
            None,
            self._status.name,
            self._description,
            self._attributes,
            self._events,
            [(link.trace_id, link.span_id, given) for link, given in links] if links else None,
            self._recorded,
        )


def _span_id(parent: trace.Span) -> int:
    return parent._span_id if isinstance(parent, Span) else parent.get_span_context().span_id


def _adopt(parent: Any, recording: "Recording", span_id: int) -> tuple[trace.Span | None, LocalTrace]:
    """Join the trace of a foreign parent (a remote caller's, say), or begin a new one."""
    if isinstance(parent, trace.Span) and parent.get_span_context().is_valid:
        return parent, LocalTrace(parent.get_span_context().trace_id, batch=None, root_id=span_id)
    return None, LocalTrace(recording.new_trace_id(), batch=None, root_id=span_id)


class CurrentSpan(Span):
    """A span that starts, and becomes the current one, when its `with` block is entered; also a decorator."""

    __slots__ = ("_end_on_exit",)

    def __init__(
        self,
        tracer: "Tracer",
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> None:
        """Prepare; the arguments are those of `opentelemetry.trace.Tracer.start_as_current_span`."""
        self._prepare(tracer, name, context, kind, attributes, links, start_time)
        self._on_exception = (record_exception, set_status_on_exception)
        self._end_on_exit = end_on_exit

    def __enter__(self) -> Self:
        """Start the span and make it the current one."""
        previous = _current.get()
        self._previous = previous
        self._begin(previous if self._context is None else self._context)
        context = Context(previous if self._context is None else self._context)
        _put(context, _SPAN_KEY, self)
        _current.set(context)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """End the span and make the one before it current again."""
        if exc_val is not None:
            self._take_exception(exc_val)
        if self._end_on_exit and self._end is None:
            self.end()
        if _current.get().get(_SPAN_KEY) is self:
            self._restore()

    def _restore(self) -> None:
        """Go back to the context before; past spans that a generator ended while this one was open."""
        previous = self._previous
        self._previous = None
        while previous is not None:
            _current.set(previous)
            outer: Any = previous.get(_SPAN_KEY)
            previous = outer._previous if getattr(outer, "_end", None) is not None else None

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate: every call of `function` gets a span of its own."""
        record, set_status = self._on_exception
        arguments = (self._name, self._context, self._kind, self._attributes, self._links, self._start_time)
        return decorate(function, self._tracer, (*arguments, record, set_status))


class Tracer(trace.Tracer):
    """Opens spans in whatever backend its provider has at that moment."""

    def __init__(self, provider: "Provider", scope: str) -> None:
        """`scope` is the name of the instrumenting module."""
        self.provider = provider
        self.scope = scope

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
        return self.provider.backend.start_span(
            self, name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
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
        return self.provider.backend.current_span(
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

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        """A tracer whose scope is `instrumenting_module_name`."""
        return Tracer(self, instrumenting_module_name)

    def add_span_processor(self, span_processor: Processor) -> None:
        """Also feed an SDK span processor; spans then cost what that processor costs on top."""
        self.processors = (*self.processors, span_processor)
        if isinstance(self.backend, Recording):
            self.backend.processors = self.processors

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush every added processor."""
        return all([processor.force_flush(timeout_millis) for processor in self.processors])

    def shutdown(self) -> None:
        """Shut every added processor down."""
        for processor in self.processors:
            processor.shutdown()


class Recording:
    """The `otel` backend: spans become stamps.

    Attributes:
        now: monotonic clock, ns.
        emit: takes an ended span; called on the thread that ends it.
        synchronize: called before a span's end is stamped, to wait for the device; None on a CPU.
        faults: where wrong use is counted.
    """

    __slots__ = (
        "emit",
        "epoch_offset_ns",
        "faults",
        "ids",
        "new_trace_id",
        "now",
        "processors",
        "resource_attributes",
        "synchronize",
    )
    start_span = Span
    current_span = CurrentSpan

    def __init__(
        self,
        emit: Callable[[Span], None],
        *,
        clock: Clock = CLOCK,
        first_id: int | None = None,
        faults: Faults | None = None,
        synchronize: Callable[[], None] | None = None,
        resource_attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """`first_id` makes ids predictable: span ids count up from it, and so do trace ids."""
        self.emit = emit
        self.now = clock.now
        self.epoch_offset_ns = clock.epoch_offset_ns
        # Random start and counting up: as unique as random per span within 2^63, at a third of its cost.
        self.ids = itertools.count(random.SystemRandom().getrandbits(62) + 1 if first_id is None else first_id)
        self.new_trace_id: Callable[[], int] = (
            _random_trace_id if first_id is None else itertools.count(first_id).__next__
        )
        self.faults = faults or Faults()
        self.synchronize = synchronize
        self.resource_attributes = resource_attributes or {}
        self.processors: tuple[Processor, ...] = ()

    def notify_ended(self, span: Span) -> None:
        """Hand the ended span to the added SDK processors, as the ReadableSpan they expect."""
        from mlotel_cli.telemetry.sdk import readable

        for processor in self.processors:
            try:
                processor.on_end(readable(span))
            except Exception as error:  # a processor must not break the workload
                self.faults.add("processor", f"{type(processor).__name__}.on_end raised {error!r}")


def _random_trace_id() -> int:
    return int.from_bytes(os.urandom(16), "big") or 1
