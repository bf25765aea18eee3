"""The description of a series: `describe` computes it and run.json stores it. This module does not import numpy."""

from dataclasses import dataclass, field

Interval = tuple[float, float]
"""Lower and upper bound."""


@dataclass(slots=True)
class Intervals:
    """95 % intervals; None where there are too few effective values."""

    mean: Interval | None = None
    p50: Interval | None = None
    p90: Interval | None = None
    p95: Interval | None = None
    p99: Interval | None = None


@dataclass(slots=True)
class Description:
    """Figures of a series, in the unit of its values; None where there are too few effective values.

    Attributes:
        count: number of values.
        effective_n: number of independent values with as much information.
        mean: mean.
        p50: median.
        p90: 90th percentile.
        p95: 95th percentile.
        p99: 99th percentile.
        max: largest value.
        ci95: intervals of mean and percentiles.
    """

    count: int = 0
    effective_n: int | None = None
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None
    ci95: Intervals = field(default_factory=Intervals)

    def figure(self, name: str) -> float | None:
        """Return mean, p50, p90, p95, p99 or max by its name, for the columns of tables."""
        return getattr(self, name)
