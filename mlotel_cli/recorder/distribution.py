"""Histograms with fixed bounds, from the start of the run: what Prometheus and OTLP export.

One thread adds, any thread reads: a reader copies a list at once, so what it sees was true a moment ago.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from mlotel_cli.recorder.measurements import HistogramPoint


def one_two_five(*, low: int, high: int) -> tuple[float, ...]:
    """Bounds 1, 2, 5 times each power of ten from `low` to `high - 1`, and 10 to the `high`; as decimals print them."""
    return (*(float(f"{digit}e{power}") for power in range(low, high) for digit in (1, 2, 5)), float(f"1e{high}"))


DURATION_BOUNDS_S = (*(bound for bound in one_two_five(low=-4, high=2) if bound < 60), 60.0)
"""Seconds: 1-2-5 from 100 us to 60 s."""
VALUE_BOUNDS = (0.0, *one_two_five(low=-3, high=5))
"""For values of any unit: what is negative or zero, then 1-2-5 from 0.001 to 100,000.

No bound below zero: Prometheus has neither sum nor count of a histogram that has one.
"""


class Distribution:
    """One series. `counts` has one entry per bound and one more for what is above the last."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Nothing counted yet; `bounds` are inclusive and rise."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def add(self, value: float) -> None:
        """Count one value, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def point(self, attributes: Mapping[str, str], *, scale: float = 1.0) -> HistogramPoint:
        """What was counted so far; the total times `scale`. Safe from any thread."""
        total = self.total
        return HistogramPoint(self.counts.copy(), total * scale, attributes)
