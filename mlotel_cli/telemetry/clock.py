"""One clock: `perf_counter_ns`, anchored once to the wall clock.

Differences are then monotonic even when the wall clock is set, and still every time has a date.
"""

import time
from collections.abc import Callable


class Clock:
    """Monotonic nanoseconds and their date.

    Attributes:
        now: reads the monotonic clock, ns.
        epoch_offset_ns: what to add to a reading for nanoseconds since the epoch.
    """

    __slots__ = ("epoch_offset_ns", "now")

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns, *, epoch_offset_ns: int | None = None) -> None:
        """Anchor `now` to the wall clock, or to `epoch_offset_ns` when a test says so."""
        self.now = now
        self.epoch_offset_ns = _measure_offset(now) if epoch_offset_ns is None else epoch_offset_ns


def _measure_offset(now: Callable[[], int]) -> int:
    """Wall clock minus `now`; the tightest of five readings, so that a descheduled one does not count."""
    best = min(((now(), time.time_ns(), now()) for _ in range(5)), key=lambda reading: reading[2] - reading[0])
    return best[1] - (best[0] + best[2]) // 2


CLOCK = Clock()
"""The process's clock: one anchor, so that spans of several runs in one process stay comparable."""
