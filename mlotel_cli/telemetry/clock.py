"""The process's clock: `perf_counter_ns`, anchored once to the wall clock.

Differences stay monotonic when the wall clock is set, and every time can be converted to a date.
"""

import time
from collections.abc import Callable


class Clock:
    """Monotonic nanoseconds and their date.

    Attributes:
        now: reads the monotonic clock, ns.
        epoch_offset_ns: added to a reading, it gives nanoseconds since the epoch.
    """

    __slots__ = ("epoch_offset_ns", "now")

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns, *, epoch_offset_ns: int | None = None) -> None:
        """Anchor `now` to the wall clock; a test passes `epoch_offset_ns` instead."""
        self.now = now
        self.epoch_offset_ns = _measure_offset(now) if epoch_offset_ns is None else epoch_offset_ns


def _measure_offset(now: Callable[[], int]) -> int:
    """Return wall clock minus `now`, from the tightest of five readings: the thread may be descheduled during one."""
    best = min(((now(), time.time_ns(), now()) for _ in range(5)), key=lambda reading: reading[2] - reading[0])
    return best[1] - (best[0] + best[2]) // 2


CLOCK = Clock()
"""All runs of the process share it, so that their spans are comparable."""
