"""A span that only stamps: two clock readings, one context switch, one append.

Everything else (naming, joining, writing) happens in the recorder process. Spans may start and end on any thread. This
module does not know the provider; `tracer` does.
"""

# pyright: reportPrivateUsage=false
# The two functions at the end belong to the classes, and OpenTelemetry has no public name for its context key.

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, cast

from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.propagation import _SPAN_KEY
from opentelemetry.util.types import Attributes

from mlotel_cli.records import BATCH_INDEX, KIND
from mlotel_cli.telemetry.attributes import clean_all, text
from mlotel_cli.telemetry.content import MAX_INT, SpanContent
from mlotel_cli.telemetry.current import CURRENT
from mlotel_cli.telemetry.decorate import decorate
from mlotel_cli.telemetry.stamping import LocalTrace, Stamping
from mlotel_cli.wire import SPAN, PackedSpan

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
# Context forbids item assignment, but nothing else sees a new one before it is attached.
_put: Callable[[Context, str, trace.Span], None] = cast("Any", dict).__setitem__
_thread = threading.local()


class Span(SpanContent):
    """A span with its times: internally ns of the process clock; `start_time` and `end_time` are ns since the epoch."""

    __slots__ = (
        "_branch",
        "_context",
        "_end_on_exit",
        "_kind",
        "_mark",
        "_parent_id",
        "_span_id",
        "_start",
        "_start_time",
        "_thread",
        "_trace",
        "_tracer",
    )

    def __init__(
        self,
        stamping: Stamping,
        tracer: Any,
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
        """Prepare; after `tracer` the arguments are those of `opentelemetry.trace.Tracer.start_as_current_span`."""
        self._stamping = stamping
        self._tracer = tracer
        self._name = name
        self._context = context
        self._kind = kind
        self._attributes = attributes
        self._links = links
        self._start_time = start_time
        self._record_exception = record_exception
        self._status_on_exception = set_status_on_exception
        self._end_on_exit = end_on_exit
        self._end = None
        self._events = None
        self._recorded = None
        self._status = StatusCode.UNSET
        self._description = ""

    @classmethod
    def start(cls, stamping: Stamping, tracer: Any, *arguments: Any) -> Self:
        """Start a span without making it current; the arguments are those of `Tracer.start_span`."""
        span = cls(stamping, tracer, *arguments)
        span._begin(CURRENT.get() if span._context is None else span._context)
        return span

    def _begin(self, context: Context) -> None:
        """Find the parent in `context` and stamp the start."""
        stamping = self._stamping
        self._span_id = span_id = next(stamping.ids)
        parent: Any = context.get(_SPAN_KEY)
        local = parent._branch if type(parent) is CurrentSpan else None
        if local is not None:
            self._parent_id: int = parent._span_id
        else:
            self._parent_id, local = _adopt(parent, stamping, span_id)
        if self._attributes is not None or self._links is not None:
            local = self._take_given(local)
        self._branch: LocalTrace | None = local
        self._trace: LocalTrace = local
        next(local.opened)
        try:
            self._thread: str = _thread.name
        except AttributeError:
            self._thread = _thread.name = text(threading.current_thread().name)
        given = self._start_time
        self._start: int = stamping.now() if given is None else self._to_clock(given, "start_time")
        device = stamping.device
        # A span of waiting in a queue needs no device time.
        self._mark = None if device is None or KIND in (self._attributes or ()) else device.begin()
        if stamping.processors:
            stamping.notify_started(self, context)

    def _take_given(self, local: LocalTrace) -> LocalTrace:
        """Copy the attributes and links passed at the start; a batch index begins a local trace of its own."""
        given, links, faults = self._attributes, self._links, self._stamping.faults
        self._attributes = self._links = None
        for link in links or ():
            if link:
                self.add_link(link.context, link.attributes)
        if not given:
            return local
        self._attributes = clean_all(given, faults, call="start", span=self._name)
        index = self._attributes.get(BATCH_INDEX)
        if type(index) is int and 0 <= index < MAX_INT:
            return local.begin_batch(index, self._span_id)
        if BATCH_INDEX in given:
            faults.add(
                "batch",
                f"{BATCH_INDEX}={given[BATCH_INDEX]!r}: allowed: a whole number from 0; the span begins no batch",
            )
        return local

    # -- ending ---------------------------------------------------------------------------------------------------

    def end(self, end_time: int | None = None) -> None:
        """End the span now, or at `end_time` (ns since the epoch). Further calls log a warning and do nothing."""
        stamping = self._stamping
        if self._end is not None:
            stamping.faults.add("ended", f"span {self._name!r} was ended twice; the second call is ignored")
            return
        try:
            if self._mark is not None and stamping.device is not None:
                stamping.device.finish(self._mark)
        except Exception as error:  # CUDA raises the error of an earlier kernel here
            self._take_exception(error, escaped=True)
            raise
        finally:
            self._end = stamping.now() if end_time is None else self._to_clock(end_time, "end_time")
            stamping.emit(self)
            if stamping.processors:
                stamping.notify_ended(self)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """End the span; an Exception is recorded and sets the status where the start's arguments ask for it."""
        try:
            if exc_val is not None:
                self._take_exception(exc_val, escaped=True)
        finally:
            if self._end is None:
                self.end()

    # -- identity -------------------------------------------------------------------------------------------------

    def get_span_context(self) -> SpanContext:
        """Return the identity of the span, always sampled."""
        return SpanContext(self._trace.trace_id, self._span_id, False, _SAMPLED, self._trace.state)

    context = property(get_span_context)

    @property
    def kind(self) -> SpanKind:
        """The span's kind."""
        return self._kind

    @property
    def parent(self) -> SpanContext | None:
        """Context of the parent; None for a root."""
        local = self._trace
        if local.caller is not None and local.root_id == self._span_id:
            return local.caller
        return SpanContext(local.trace_id, self._parent_id, False, _SAMPLED, local.state) if self._parent_id else None

    @property
    def start_time(self) -> int:
        """Start, ns since the epoch."""
        return self._start + self._stamping.epoch_offset_ns

    @property
    def end_time(self) -> int | None:
        """End, ns since the epoch; None before the end."""
        return None if self._end is None else self._end + self._stamping.epoch_offset_ns

    @property
    def tracer(self) -> Any:
        """The tracer that opened the span."""
        return self._tracer

    @property
    def batch(self) -> int | None:
        """Index of the batch that the span belongs to; None outside any."""
        return self._trace.batch

    def count_opened(self) -> int:
        """Count the spans opened so far in this trace or batch, this one included. Too slow for the hot path."""
        return self._trace.count_opened()

    def is_resolved(self) -> bool:
        """Return whether the span may be packed: its device time is known or unavailable. On the hand-over thread."""
        device = self._stamping.device
        return self._mark is None or device is None or device.resolve(self._mark)

    def pack(self) -> PackedSpan:
        """Return the ended span as it goes to the recorder."""
        local, offset, links = self._trace, self._stamping.epoch_offset_ns, self._links
        end = self._start if self._end is None else self._end
        mark, device_ns, lag_ns = self._mark, None, None
        if mark is not None and mark.device_ns is not None:
            device_ns, lag_ns = mark.device_ns, None if mark.end_ns is None else max(0, mark.end_ns - end)
            end += lag_ns or 0
        return (
            SPAN,
            local.trace_id,
            self._span_id,
            self._parent_id,
            local.count_opened() if local.root_id == self._span_id else None,
            local.batch,
            text(self._name),
            self._kind.name,
            self._tracer.scope,
            self._thread,
            self._start + offset,
            end + offset,
            device_ns,
            lag_ns,
            self._status.name,
            self._description,
            self._attributes,
            self._events,
            [(link.trace_id, link.span_id, given) for link, given in links] if links else None,
            self._recorded,
        )


class CurrentSpan(Span):
    """A span that starts and becomes current when its `with` block is entered; also a decorator."""

    __slots__ = ("_previous", "_token")

    def __enter__(self) -> Self:
        """Start the span and make it current.

        Raises:
            RuntimeError: when it was entered before: every `with` block needs a span of its own.
        """
        try:
            given = self._context
            del self._context
        except AttributeError:
            raise RuntimeError(f"span {self._name!r} was entered before; open a new one") from None
        previous = CURRENT.get()
        self._begin(previous if given is None else given)
        context = Context(previous)
        _put(context, _SPAN_KEY, self)
        self._previous = previous
        self._token: Any = CURRENT.set(context)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """End the span and make the previous one current again."""
        try:
            if exc_val is not None:
                self._take_exception(exc_val, escaped=False)
            if self._end_on_exit and self._end is None:
                self.end()
        finally:
            self._leave()

    def _leave(self) -> None:
        """Restore the previous context. A generator may end its spans in any order, on any thread and in any task."""
        current: Any = CURRENT.get().get(_SPAN_KEY)
        previous = self._previous
        if current is not self:
            self._branch = None
            self._previous = _running(previous)
            if type(current) is CurrentSpan:
                self._token = None
                return  # the current span was opened after this one; its own end will skip this one
        try:
            CURRENT.reset(self._token)
        except ValueError:  # the span was entered in another thread or task, where it may stay current
            self._branch = None
            if current is not self:
                return
            CURRENT.set(_running(previous))
        else:
            outer: Any = previous.get(_SPAN_KEY)
            if type(outer) is CurrentSpan and outer._branch is None:
                CURRENT.set(_running(previous))
        self._token = None

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate: every call of `function` gets a span of its own."""
        arguments = (self._name, self._context, self._kind, self._attributes, self._links, self._start_time)
        return decorate(function, self._tracer, (*arguments, self._record_exception, self._status_on_exception))


def _running(context: Context) -> Context:
    """Return `context`, or the nearest previous one whose span was not ended out of order."""
    span: Any = context.get(_SPAN_KEY)
    while type(span) is CurrentSpan and span._branch is None:
        context = span._previous
        span = context.get(_SPAN_KEY)
    return context


def _adopt(parent: Any, stamping: Stamping, span_id: int) -> tuple[int, LocalTrace]:
    """Return parent id and local trace for a parent other than an open CurrentSpan; None begins a new trace."""
    if type(parent) is CurrentSpan:
        parent = _running(parent._previous).get(_SPAN_KEY)
    if isinstance(parent, Span):
        return parent._span_id, parent._trace
    if isinstance(parent, trace.Span):
        caller = parent.get_span_context()
        if caller.is_valid:
            return caller.span_id, LocalTrace(caller.trace_id, root_id=span_id, caller=caller)
    return 0, LocalTrace(stamping.new_trace_id(), root_id=span_id)
