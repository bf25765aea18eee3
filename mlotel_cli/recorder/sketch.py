"""Quantiles over the last minute in bounded memory: logarithmic buckets in slots of a second.

A quantile is within 1 % of a measured value: each bucket is 2 % wider than the one below it, and a quantile is the
middle of a bucket. Memory is bounded by the number of buckets (2,094 of either sign; latencies fill some tens) and of
slots.
"""

import math
from collections import deque
from dataclasses import dataclass, field

GROWTH = 1.02
SMALLEST, LARGEST = 1e-6, 1e12
"""A smaller value counts as zero, a larger one as the largest. As milliseconds they are a nanosecond and 30 years."""
_PER_LOG = 1 / math.log(GROWTH)
_FIRST = 1 - math.floor(math.log(SMALLEST) * _PER_LOG)


@dataclass(slots=True)
class Sketch:
    """The values of one stretch of time, counted in logarithmic buckets."""

    buckets: dict[int, int] = field(default_factory=dict[int, int])
    count: int = 0
    total: float = 0.0
    largest: float = -math.inf

    def add(self, value: float) -> None:
        """Count a finite value."""
        bucket = _bucket(value)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += value
        if value > self.largest:
            self.largest = value

    def merge(self, other: "Sketch", *, sign: int = 1) -> None:
        """Add what `other` counted. A `sign` of -1 takes it away again and leaves `largest` unchanged."""
        for bucket, count in other.buckets.items():
            left = self.buckets.get(bucket, 0) + sign * count
            if left:
                self.buckets[bucket] = left
            else:
                del self.buckets[bucket]
        self.count += sign * other.count
        self.total += sign * other.total
        if sign > 0 and other.largest > self.largest:
            self.largest = other.largest

    def quantiles(self, *shares: float) -> list[float | None]:
        """Return the values below which these shares lie, or None for each when nothing was counted.

        `shares` must rise.
        """
        if not self.count:
            return [None] * len(shares)
        found: list[float | None] = []
        ranks = iter([max(1, math.ceil(share * self.count)) for share in shares])
        rank, seen = next(ranks), 0
        for bucket, count in sorted(self.buckets.items()):
            seen += count
            while seen >= rank:
                found.append(min(middle(bucket), self.largest))
                if (rank := next(ranks, 0)) == 0:
                    return found
        raise AssertionError("the buckets hold fewer than were counted")


class RollingSketch:
    """The last `num_slots` slots of one series, and the current one, in which `add` counts a value."""

    __slots__ = ("_closed", "_slots", "add", "current")

    def __init__(self, num_slots: int = 60) -> None:
        self._slots: deque[Sketch] = deque(maxlen=num_slots)
        self._closed = Sketch()
        self._open()

    def _open(self) -> None:
        self.current = Sketch()
        self.add = self.current.add

    def rotate(self) -> Sketch:
        """End the current slot and begin another. Returns the one that ended."""
        if len(self._slots) == self._slots.maxlen:
            self._closed.merge(self._slots[0], sign=-1)
        ended = self.current
        self._slots.append(ended)
        self._closed.merge(ended)
        self._closed.largest = max(slot.largest for slot in self._slots)
        if not self._closed.count:
            self._closed.total = 0.0  # rounding may leave a rest
        self._open()
        return ended

    def sketch(self) -> Sketch:
        """Return all slots as one sketch, valid until the next `rotate`; the caller must not change it."""
        if not self.current.count:
            return self._closed
        both = Sketch(dict(self._closed.buckets), self._closed.count, self._closed.total, self._closed.largest)
        both.merge(self.current)
        return both


def mean(sketch: Sketch) -> float | None:
    """Return the mean, exact but for rounding; None when nothing was counted."""
    return sketch.total / sketch.count if sketch.count else None


def _bucket(value: float) -> int:
    """Return the number of the bucket of a value, which rises with it: 0 near zero, negative for negative values."""
    size = abs(value)
    if size < SMALLEST:
        return 0
    number = math.floor(math.log(min(size, LARGEST)) * _PER_LOG) + _FIRST
    return number if value > 0 else -number


def middle(bucket: int) -> float:
    """Return the value that a bucket stands for."""
    return 0.0 if not bucket else math.copysign(math.exp((abs(bucket) - _FIRST + 0.5) / _PER_LOG), bucket)
