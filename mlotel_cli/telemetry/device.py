"""When the device worked: two events per span on the current stream, resolved without synchronising.

The workload's threads record events and nothing else. The hand-over thread asks, without waiting, whether a span's last
event has passed, and only then the span goes to the recorder. Events go back to a pool once they have passed. Times of
the device are put on the host's clock through an anchor: an event on an idle stream of its own, taken anew every few
seconds, because CUDA gives times between events as 32-bit milliseconds. Nothing is recorded while a CUDA graph is
captured; the thread that asks for events is told apart from the capture, which its questions would break otherwise.
One device is measured: a span that begins while another one is current has no device time, and is counted.

Between two events the device may also have waited for the host: the first one passes at once on an idle stream.
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
"""Until an anchor that could not be had is asked for again: each such try keeps the interpreter busy."""
_ANCHOR_TRIES = 5
_SPINS = 20_000
_RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED."""
_HIGH_PRIORITY = -1
"""Streams of this priority are no stage's: torch hands out its streams in turn, 32 of each priority."""

Obstacle = Literal["captured", "elsewhere"]
"""Why nothing can be measured here: events would become part of a CUDA graph, or be those of another device."""


class EventBackend(Protocol):
    """What is needed of a device. Events are its own objects."""

    def new_event(self) -> Any:
        """An event with timing."""
        ...

    def record(self, event: Any) -> None:
        """Put it on the current stream of this thread; does not wait."""
        ...

    def record_aside(self, event: Any) -> None:
        """Put it on a stream that has nothing else to do; does not wait."""
        ...

    def has_passed(self, event: Any) -> bool:
        """Whether the device has come to it; does not wait."""
        ...

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """Time between two events that have passed."""
        ...

    def obstacle(self) -> Obstacle | None:
        """Why the current stream of this thread cannot be measured; None when it can."""
        ...


class CudaEvents:
    """torch.cuda's events on one device: an event belongs to the device that it is first recorded on."""

    def __init__(self, device: str) -> None:
        """`device` is the one to measure, such as cuda:1; without a number the current one."""
        import torch

        self._cuda: Any = torch.cuda
        self._index: int | None = None
        """Of the device, where there are several."""
        if torch.cuda.device_count() > 1:
            given: Any = torch.device(device)
            self._index = torch.cuda.current_device() if given.index is None else given.index
        self._aside: Any = torch.cuda.Stream(device=device, priority=_HIGH_PRIORITY)
        self._asking = threading.local()

    def new_event(self) -> Any:
        """An event with timing."""
        return self._cuda.Event(enable_timing=True)

    def record(self, event: Any) -> None:
        """On the current stream."""
        event.record()

    def record_aside(self, event: Any) -> None:
        """On the stream of our own."""
        event.record(self._aside)

    def has_passed(self, event: Any) -> bool:
        """CudaEventQuery, which in CUDA's default capture mode would break a capture on any other thread."""
        if not vars(self._asking):
            if self._index is not None:  # else the first question would make a context on device 0
                self._cuda.set_device(self._index)
            self._asking.relaxed = relax_capture()
        return event.query()

    def elapsed_ns(self, start: Any, end: Any) -> int:
        """CudaEventElapsedTime."""
        return round(start.elapsed_time(end) * 1e6)

    def obstacle(self) -> Obstacle | None:
        """Of the current device and stream."""
        if self._index is not None and self._cuda.current_device() != self._index:
            return "elsewhere"
        return "captured" if self._cuda.is_current_stream_capturing() else None


def relax_capture(library: str = "libcuda.so.1") -> bool:
    """Let this thread ask for events while another one captures a CUDA graph (cuThreadExchangeStreamCaptureMode).

    Returns:
        False where the driver cannot be asked; then a capture in the global mode fails while spans are recorded.
    """
    try:
        exchange = ctypes.CDLL(library).cuThreadExchangeStreamCaptureMode
    except (AttributeError, OSError):
        return False
    return exchange(ctypes.byref(ctypes.c_int(_RELAXED))) == 0


class Mark:
    """The two events of one span, until they are resolved.

    Attributes:
        device_ns: time between them; None until resolved, and where that never happened.
        end_ns: when the device passed the second one, on the host's clock.
        deadline_ns: when to give up, on the host's clock.
    """

    __slots__ = ("deadline_ns", "device_ns", "end", "end_ns", "start")

    def __init__(self, start: Any) -> None:
        """With the first event recorded."""
        self.start = start
        self.end: Any = None
        self.device_ns: int | None = None
        self.end_ns: int | None = None
        self.deadline_ns = 0


class DeviceTimer:
    """Gives spans their device time. `begin` and `finish` are called by any thread, the rest by one.

    Attributes:
        created: events made so far.
        abandoned: spans whose events did not pass in time.
        captured: spans without a device time because a CUDA graph was captured.
        elsewhere: spans without a device time because another device was current.
    """

    def __init__(
        self, events: EventBackend, *, now: Callable[[], int] = time.perf_counter_ns, patience_ns: int = 2_000_000_000
    ) -> None:
        """`now` is the clock of the spans; `patience_ns` is how long a span may wait for its events after it ended."""
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
        """Events that wait to be used again."""
        return len(self._pool)

    def begin(self) -> Mark | None:
        """At a span's start, on its thread; None where nothing can be measured."""
        if self._is_hindered():
            return None
        return Mark(self._record())

    def finish(self, mark: Mark) -> None:
        """At the span's end, on whatever thread."""
        mark.deadline_ns = self._now() + self._patience_ns
        if self._is_hindered():
            self._pool.append(mark.start)
            mark.start = None
            return
        mark.end = self._record()

    def resolve(self, mark: Mark) -> bool:
        """Whether the span need not wait any longer; never waits itself, but for a new anchor every few seconds."""
        if mark.end is None:
            return True
        if not (self._events.has_passed(mark.end) and self._events.has_passed(mark.start)):
            if self._now() < mark.deadline_ns:
                return False
            self.abandoned += 1
            mark.start = mark.end = None  # still in a stream: not to be used again
            return True
        mark.device_ns = max(0, self._events.elapsed_ns(mark.start, mark.end))
        anchor, anchor_ns = self._nearest_anchor()
        if anchor is not None:
            mark.end_ns = anchor_ns + self._events.elapsed_ns(anchor, mark.end)
        self._pool.extend((mark.start, mark.end))
        mark.start = mark.end = None
        return True

    def anchor(self) -> bool:
        """Connect the device's clock to the host's, by the tightest of a few tries; False when the device is stuck."""
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
