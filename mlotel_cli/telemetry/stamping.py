"""The clock, the ids and the exits that the spans of one run share.

It does not know the content of a span; `content` does.
"""

import itertools
import os
import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from opentelemetry.context.context import Context
from opentelemetry.trace import Span, SpanContext, TraceState

from mlotel_cli.telemetry.clock import CLOCK, Clock
from mlotel_cli.telemetry.device import DeviceTimer
from mlotel_cli.telemetry.faults import Faults


class LocalTrace:
    """The state that the spans of one trace, or of one batch in it, share in this process.

    Attributes:
        trace_id: the trace's id.
        batch: index of the batch; None outside any.
        root_id: id of the span that began it here.
        caller: the root's parent, when another SDK or process made it (a remote caller, say); None otherwise.
        state: the caller's W3C trace state; None without one.
        opened: counts the spans; next() is atomic, `+= 1` is not.
    """

    __slots__ = ("batch", "caller", "opened", "root_id", "state", "trace_id")

    def __init__(self, trace_id: int, *, root_id: int, caller: SpanContext | None = None) -> None:
        """Start with no span and outside any batch."""
        self.trace_id = trace_id
        self.batch: int | None = None
        self.root_id = root_id
        self.caller = caller
        self.state: TraceState | None = caller.trace_state if caller else None
        self.opened = itertools.count()

    def begin_batch(self, index: int, root_id: int) -> "LocalTrace":
        """Return the part of this trace that belongs to batch `index`."""
        batch = LocalTrace(self.trace_id, root_id=root_id, caller=self.caller if root_id == self.root_id else None)
        batch.batch, batch.state = index, self.state
        return batch

    def count_opened(self) -> int:
        """Count the spans opened so far, on any thread. Too slow for the hot path."""
        return int(repr(self.opened)[len("count(") : -1])  # only repr() reads an itertools.count without advancing it


class Processor(Protocol):
    """The methods of the SDK's SpanProcessor that are called here."""

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Take a span that has started."""
        ...

    def on_end(self, span: Any) -> None:
        """Take a span that has ended, as a ReadableSpan."""
        ...

    def shutdown(self) -> None:
        """Close; no more spans follow."""
        ...

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export the waiting spans; return False when that failed."""
        ...


class Stamping:
    """The clock, ids and exits of one run.

    Attributes:
        now: monotonic clock, ns.
        epoch_offset_ns: added to a reading of `now`, it gives ns since the epoch.
        emit: takes an ended span; called on the thread that ends it.
        device: measures device time without waiting for the device; None on a CPU.
        faults: counts wrong use.
        resource_attributes: identity of the run, for exported spans.
        processors: SDK span processors that the program added.
    """

    __slots__ = (
        "device",
        "emit",
        "epoch_offset_ns",
        "faults",
        "ids",
        "new_trace_id",
        "now",
        "processors",
        "resource_attributes",
    )

    def __init__(
        self,
        emit: Callable[[Any], None],
        *,
        clock: Clock = CLOCK,
        first_id: int | None = None,
        faults: Faults | None = None,
        device: DeviceTimer | None = None,
        resource_attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Draw random ids; `first_id` makes them predictable: span ids and trace ids count up from it."""
        self.emit = emit
        self.now = clock.now
        self.epoch_offset_ns = clock.epoch_offset_ns
        # Ids that count up from a random start collide no more often than random ones, at a third of their cost.
        self.ids = itertools.count(random.SystemRandom().getrandbits(62) + 1 if first_id is None else first_id)
        self.new_trace_id: Callable[[], int] = (
            _random_trace_id if first_id is None else itertools.count(first_id).__next__
        )
        self.faults = faults or Faults()
        self.device = device
        self.resource_attributes = resource_attributes or {}
        self.processors: tuple[Processor, ...] = ()

    def notify_started(self, span: Span, context: Context) -> None:
        """Pass the started span to the added SDK processors."""
        for processor in self.processors:
            try:
                processor.on_start(span, context)
            except Exception as error:  # a processor must not break the workload
                self.faults.add("processor", f"{type(processor).__name__}.on_start raised {error!r}")

    def notify_ended(self, span: Any) -> None:
        """Pass the ended span to the added SDK processors, as a ReadableSpan."""
        from mlotel_cli.telemetry.convert import readable

        view = readable(span)
        for processor in self.processors:
            try:
                processor.on_end(view)
            except Exception as error:  # a processor must not break the workload
                self.faults.add("processor", f"{type(processor).__name__}.on_end raised {error!r}")


def _random_trace_id() -> int:
    return int.from_bytes(os.urandom(16), "big") or 1
