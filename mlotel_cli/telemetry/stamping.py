"""What the spans of one run share: the clock, the ids, and where an ended span goes.

It does not know what a span carries; `span` does.
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
    """What the spans of one trace, or of one batch in it, share in this process.

    Attributes:
        trace_id: the trace's id.
        batch: index of the batch; None outside any.
        root_id: the span that began it here.
        caller: the root's parent, where that is someone else's span (a remote caller's, say); None otherwise.
        state: the W3C trace state that the caller passed on; None without one.
        opened: counts the spans; next() is atomic, `+= 1` is not.
    """

    __slots__ = ("batch", "caller", "opened", "root_id", "state", "trace_id")

    def __init__(self, trace_id: int, *, root_id: int, caller: SpanContext | None = None) -> None:
        """Start counting, outside any batch."""
        self.trace_id = trace_id
        self.batch: int | None = None
        self.root_id = root_id
        self.caller = caller
        self.state: TraceState | None = caller.trace_state if caller else None
        self.opened = itertools.count()

    def begin_batch(self, index: int, root_id: int) -> "LocalTrace":
        """The part of this trace that batch `index` makes up."""
        batch = LocalTrace(self.trace_id, root_id=root_id, caller=self.caller if root_id == self.root_id else None)
        batch.batch, batch.state = index, self.state
        return batch

    def count_opened(self) -> int:
        """Spans opened so far, on any thread. Off the hot path."""
        return int(repr(self.opened)[len("count(") : -1])  # the one way to read a count without taking from it


class Processor(Protocol):
    """The part of the SDK's SpanProcessor that is called here."""

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """A span has started."""
        ...

    def on_end(self, span: Any) -> None:
        """A span has ended; `span` is a ReadableSpan."""
        ...

    def shutdown(self) -> None:
        """No more spans come."""
        ...

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what waits."""
        ...


class Stamping:
    """The clock, ids and exits of one run.

    Attributes:
        now: monotonic clock, ns.
        epoch_offset_ns: what to add to it for ns since the epoch.
        emit: takes an ended span; called on the thread that ends it.
        device: measures the device, without waiting for it; None on a CPU.
        faults: where wrong use is counted.
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
        self.device = device
        self.resource_attributes = resource_attributes or {}
        self.processors: tuple[Processor, ...] = ()

    def notify_started(self, span: Span, context: Context) -> None:
        """Show the started span to the added SDK processors."""
        for processor in self.processors:
            try:
                processor.on_start(span, context)
            except Exception as error:  # a processor must not break the workload
                self.faults.add("processor", f"{type(processor).__name__}.on_start raised {error!r}")

    def notify_ended(self, span: Any) -> None:
        """Hand the ended span to the added SDK processors, as the ReadableSpan that they expect."""
        from mlotel_cli.telemetry.convert import readable

        view = readable(span)
        for processor in self.processors:
            try:
                processor.on_end(view)
            except Exception as error:  # a processor must not break the workload
                self.faults.add("processor", f"{type(processor).__name__}.on_end raised {error!r}")


def _random_trace_id() -> int:
    return int.from_bytes(os.urandom(16), "big") or 1
