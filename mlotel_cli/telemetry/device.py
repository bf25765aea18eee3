"""Measures device time: two events per span on the current stream, resolved without synchronising.

The workload's threads only record events. The hand-over thread queries them without waiting, and sends a span to the
recorder once its last event has passed. Events that have passed return to a pool.

An anchor converts device times to the host's clock: an event on an idle stream of its own, renewed every few seconds,
because CUDA reports times between events as 32-bit milliseconds.

Nothing is recorded while a CUDA graph is captured. The hand-over thread sets its own capture mode to relaxed, because
its queries would otherwise invalidate a capture on another thread. Only one device is measured: a span that begins
while another device is current gets no device time and is counted.

Device time includes time in which the device waited for the host: on an idle stream the first event passes at once.
"""

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Protocol

ANCHOR_EVERY_NS = 5_000_000_000
"""Over 5 s, 32-bit milliseconds have steps of half a microsecond."""
_RETRY_NS = 500_000_000
"""Time until the next try after an anchor failed: each try keeps the interpreter busy."""
_ANCHOR_TRIES = 5
_SPINS = 20_000
_RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED."""
_HIGH_PRIORITY = -1
"""Stages use streams of normal priority: torch hands out streams in turn from 32 of each priority."""

Obstacle = Literal["captured", "elsewhere"]
"""Why a span cannot be measured: a CUDA graph is being captured, or another device is current."""


class DeviceEvents(Protocol):
    """The events of one device. None of the methods waits for the device."""

    def new_event(self) -> Any:
        """Return an event with timing."""
        ...

    def record(self, event: Any) -> None:
        """Record the event on this thread's current stream."""
        ...

    def record_aside(self, event: Any) -> None:
        """Record the event on a stream without other work."""
        ...

    def has_passed(self, event: Any) -> bool:
        """Return whether the device has reached the event."""
        ...

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """Return the time between two events that have passed."""
        ...

    def obstacle(self) -> Obstacle | None:
        """Return why this thread's current stream cannot be measured; None when it can."""
        ...


class CudaEvents:
    """torch.cuda's events on one device: an event belongs to the device that it is first recorded on."""

    def __init__(self, device: str) -> None:
        """Measure `device`, such as cuda:1; without a number the current one."""
        import torch

        self._cuda: Any = torch.cuda
        self._index: int | None = None
        """Index of the device; None when there is only one."""
        if torch.cuda.device_count() > 1:
            given: Any = torch.device(device)
            self._index = torch.cuda.current_device() if given.index is None else given.index
        self._aside: Any = torch.cuda.Stream(device=device, priority=_HIGH_PRIORITY)
        self._querying = threading.local()

    def new_event(self) -> Any:
        """Return a torch.cuda.Event with timing."""
        return self._cuda.Event(enable_timing=True)

    def record(self, event: Any) -> None:
        """Record the event on the current stream."""
        event.record()

    def record_aside(self, event: Any) -> None:
        """Record the event on a stream of this object."""
        event.record(self._aside)

    def has_passed(self, event: Any) -> bool:
        """Query the event (cudaEventQuery).

        The calling thread first leaves CUDA's default capture mode, in which a query invalidates a capture on any other
        thread.
        """
        if not vars(self._querying):
            if self._index is not None:  # otherwise the first query would create a context on device 0
                self._cuda.set_device(self._index)
            self._querying.relaxed = relax_capture()
        return event.query()

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """Return the time between two events (cudaEventElapsedTime)."""
        return round(start.elapsed_time(end) * 1e6)

    def obstacle(self) -> Obstacle | None:
        """Check the current device, and whether the current stream is being captured."""
        if self._index is not None and self._cuda.current_device() != self._index:
            return "elsewhere"
        return "captured" if self._cuda.is_current_stream_capturing() else None


def relax_capture(library: str = "libcuda.so.1") -> bool:
    """Allow this thread to query events while another one captures a CUDA graph (cuThreadExchangeStreamCaptureMode).

    Returns:
        False when the driver library is missing or refuses; then a capture in the global mode fails while spans are
        recorded.
    """
    try:
        exchange = ctypes.CDLL(library).cuThreadExchangeStreamCaptureMode
    except (AttributeError, OSError):
        return False
    return exchange(ctypes.byref(ctypes.c_int(_RELAXED))) == 0


class Mark:
    """The two events of one span.

    Attributes:
        device_ns: time between them; None until they are resolved, and when they never are.
        end_ns: when the device passed the second event, on the host's clock.
        deadline_ns: when to stop waiting for the events, on the host's clock.
    """

    __slots__ = ("deadline_ns", "device_ns", "end", "end_ns", "start")

    def __init__(self, start: Any) -> None:
        """Take the first event, which is recorded."""
        self.start = start
        self.end: Any = None
        self.device_ns: int | None = None
        self.end_ns: int | None = None
        self.deadline_ns = 0


class DeviceTimer:
    """Measures the device time of spans. Any thread calls `begin` and `finish`; one thread calls the other methods.

    Attributes:
        created: events made so far.
        abandoned: spans whose events did not pass in time.
        captured: spans without a device time because a CUDA graph was being captured.
        elsewhere: spans without a device time because another device was current.
    """

    def __init__(
        self, events: DeviceEvents, *, now: Callable[[], int] = time.perf_counter_ns, patience_ns: int = 2_000_000_000
    ) -> None:
        """Use the spans' clock `now`; a span waits up to `patience_ns` after its end for its events."""
        self.created = 0
        self.abandoned = 0
        self.captured = 0
        self.elsewhere = 0
        self._events = events
        self._now = now
        self._patience_ns = patience_ns
        self._pool: deque[Any] = deque()  # its append and pop are atomic
        self._anchor: Any = None
        self._anchor_ns = 0
        self._next_anchor_ns: int | None = None

    @property
    def pooled(self) -> int:
        """Number of events in the pool."""
        return len(self._pool)

    def begin(self) -> Mark | None:
        """Record the event of a span's start, on the calling thread's stream; None where nothing can be measured."""
        if self._is_hindered():
            return None
        return Mark(self._record())

    def finish(self, mark: Mark) -> None:
        """Record the event of the span's end, on the calling thread's stream."""
        mark.deadline_ns = self._now() + self._patience_ns
        if self._is_hindered():
            self._pool.append(mark.start)
            mark.start = None
            return
        mark.end = self._record()

    def resolve(self, mark: Mark) -> bool:
        """Return whether the span's device time is known or given up.

        It does not wait for the events, but every few seconds it spins until a new anchor has passed.
        """
        if mark.end is None:
            return True
        if not (self._events.has_passed(mark.end) and self._events.has_passed(mark.start)):
            if self._now() < mark.deadline_ns:
                return False
            self.abandoned += 1
            mark.start = mark.end = None  # still in a stream, so they cannot return to the pool
            return True
        mark.device_ns = max(0, self._events.elapsed_ns(mark.start, mark.end))
        anchor, anchor_ns = self._nearest_anchor()
        if anchor is not None:
            mark.end_ns = anchor_ns + self._events.elapsed_ns(anchor, mark.end)
        self._pool.extend((mark.start, mark.end))
        mark.start = mark.end = None
        return True

    def anchor(self) -> bool:
        """Relate the device's clock to the host's by the tightest of a few tries.

        Returns:
            False when the device does not reach the anchor's event within `_SPINS` queries.
        """
        best: tuple[int, Any, int] | None = None
        for _ in range(_ANCHOR_TRIES):
            event = self._take()
            before = self._now()
            self._events.record_aside(event)
            for _ in range(_SPINS):
                if self._events.has_passed(event):
                    break
            else:
                if best is not None:
                    self._pool.append(best[1])
                return False
            after = self._now()
            if best is not None and best[0] <= after - before:
                self._pool.append(event)
                continue
            if best is not None:
                self._pool.append(best[1])
            best = (after - before, event, (before + after) // 2)
        if best is None:
            return False
        if self._anchor is not None:
            self._pool.append(self._anchor)
        _, self._anchor, self._anchor_ns = best
        return True

    def _nearest_anchor(self) -> tuple[Any, int]:
        now = self._now()
        if self._next_anchor_ns is None or now > self._next_anchor_ns:
            self._next_anchor_ns = now + (ANCHOR_EVERY_NS if self.anchor() else _RETRY_NS)
        return self._anchor, self._anchor_ns

    def _is_hindered(self) -> bool:
        obstacle = self._events.obstacle()
        if obstacle == "captured":
            self.captured += 1
        elif obstacle == "elsewhere":
            self.elsewhere += 1
        return obstacle is not None

    def _record(self) -> Any:
        event = self._take()
        self._events.record(event)
        return event

    def _take(self) -> Any:
        try:
            return self._pool.pop()
        except IndexError:
            self.created += 1
            return self._events.new_event()
