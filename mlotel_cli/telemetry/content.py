"""The content of a span besides its times: attributes, events, links, status and recorded values.

It follows the rules of the OpenTelemetry API. Values are copied when they are set; calls after the end log a warning
and do nothing.
"""

import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, Status, StatusCode
from opentelemetry.util.types import AnyValue, Attributes

from mlotel_cli.telemetry.attributes import PLAIN, clean_all, text
from mlotel_cli.telemetry.stamping import Stamping

MAX_INT = 1 << 63
# Two threads may set a span's first attribute at once. Reentrant: the garbage collector may end a generator's span
# while this thread holds the lock.
_creating = threading.RLock()


class SpanContent(trace.Span):
    """The base of `span.Span`, which adds times and parent and defines `end`."""

    __slots__ = (
        "_attributes",
        "_description",
        "_end",
        "_events",
        "_links",
        "_name",
        "_record_exception",
        "_recorded",
        "_stamping",
        "_status",
        "_status_on_exception",
    )

    # span.Span sets these itself: a call of a method here would cost more than all the assignments.
    _attributes: Any
    _description: str
    _end: int | None
    _events: list[tuple[int, str, dict[str, Any]]] | None
    _links: Any
    _name: str
    _record_exception: bool
    _recorded: list[tuple[str, float, str]] | None
    _stamping: Stamping
    _status: StatusCode
    _status_on_exception: bool

    def _is_open(self, call: str) -> bool:
        if self._end is None:
            return True
        self._stamping.faults.add("ended", f"{call} on the ended span {self._name!r} is ignored")
        return False

    def _clean(self, attributes: Mapping[str, Any] | None, call: str) -> dict[str, Any]:
        return clean_all(attributes, self._stamping.faults, call=call, span=self._name)

    def set_attributes(self, attributes: Mapping[str, AnyValue]) -> None:
        """Set several attributes. Values are copied; tensors are refused (see `attributes.clean`)."""
        if self._is_open("set_attributes"):
            cleaned = self._clean(attributes, "set_attributes")
            with _creating:
                if self._attributes is None:
                    self._attributes = {}
            self._attributes.update(cleaned)

    def set_attribute(self, key: str, value: AnyValue) -> None:
        """Set one attribute. The value is copied; a tensor is refused (see `attributes.clean`)."""
        if self._end is None and self._attributes is not None and type(value) in PLAIN and type(key) is str and key:
            self._attributes[key] = value
        else:
            self.set_attributes({key: value})

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event, at `timestamp` (ns since the epoch) or now."""
        if self._is_open("add_event"):
            stamping = self._stamping
            when = stamping.now() if timestamp is None else self._to_clock(timestamp, "time of an event")
            with _creating:
                if self._events is None:
                    self._events = []
            self._events.append((when + stamping.epoch_offset_ns, text(name), self._clean(attributes, "add_event")))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Link to another span. An invalid context without attributes or trace state is ignored, as in the SDK."""
        if (context.is_valid or attributes or context.trace_state) and self._is_open("add_link"):
            with _creating:
                if self._links is None:
                    self._links = []
            self._links.append((context, self._clean(attributes, "add_link")))

    def update_name(self, name: str) -> None:
        """Rename the span."""
        if self._is_open("update_name"):
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status by OpenTelemetry's rules: OK is final, UNSET does nothing, only ERROR keeps a description."""
        if not self._is_open("set_status") or self._status is StatusCode.OK:
            return
        if isinstance(status, Status):
            status, description = status.status_code, status.description
        if cast("Any", status) in (StatusCode.OK, StatusCode.ERROR):
            self._status = status
            self._description = text(description) if status is StatusCode.ERROR and description else ""

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add the event `exception` with OpenTelemetry's attributes: type, message, stacktrace, escaped."""
        kind = type(exception)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        described: dict[str, AnyValue] = {
            "exception.type": f"{module}{kind.__qualname__}",
            "exception.message": _message(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**described, **(attributes or {})}, timestamp)

    def record(self, name: str, value: float, unit: str) -> None:
        """Add a domain value to the batch's row; see `mlotel_cli.record`."""
        if self._is_open("record"):
            with _creating:
                if self._recorded is None:
                    self._recorded = []
            self._recorded.append((text(name), value, text(unit)))

    def _take_exception(self, error: BaseException, *, escaped: bool) -> None:
        """Record an Exception. GeneratorExit, KeyboardInterrupt and the like are not errors of the span's work."""
        if not isinstance(error, Exception) or self._end is not None:
            return
        if self._record_exception:
            self.record_exception(error, escaped=escaped)
        if self._status_on_exception:
            self.set_status(StatusCode.ERROR, f"{type(error).__name__}: {_message(error)}")

    def _to_clock(self, time_ns: Any, name: str) -> int:
        """Convert ns since the epoch to the process clock; return the current time when `time_ns` is not a time."""
        stamping = self._stamping
        if isinstance(time_ns, float):
            time_ns = int(time_ns) if 0 <= time_ns < MAX_INT else None
        if hasattr(time_ns, "__index__") and 0 <= int(time_ns) < MAX_INT:
            return int(time_ns) - stamping.epoch_offset_ns
        stamping.faults.add(
            "time", f"{name} of span {self._name!r} must be a number of ns since the epoch; the current time is used"
        )
        return stamping.now()

    # -- reading, for span processors -----------------------------------------------------------------------------

    def is_recording(self) -> bool:
        """Return True until the span has ended."""
        return self._end is None

    @property
    def name(self) -> str:
        """The span's name."""
        return self._name

    @property
    def attributes(self) -> Mapping[str, Any]:
        """A copy of the attributes set so far."""
        return dict(self._attributes or {})

    @property
    def status(self) -> Status:
        """Status code and description."""
        return Status(self._status, self._description or None)

    @property
    def events(self) -> Sequence[tuple[int, str, Mapping[str, Any]]]:
        """The events so far: (time in ns since the epoch, name, attributes) each."""
        return tuple(self._events or ())

    @property
    def links(self) -> Sequence[Link]:
        """The links added so far."""
        return tuple(Link(context, attributes) for context, attributes in self._links or ())

    @property
    def stamping(self) -> Stamping:
        """The clock, ids and exits that the run's spans share."""
        return self._stamping


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a __str__ that raises must not hide the error itself
        return "<its text cannot be read>"
