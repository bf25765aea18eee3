"""A series in numbers: what `describe` makes and run.json keeps. It needs no numpy to be read."""

from dataclasses import dataclass, field

Interval = tuple[float, float]
"""Lower and upper bound."""


@dataclass(slots=True)
class Intervals:
    """95 % intervals; None is what cannot be said from so few effective values."""

    mean: Interval | None = None
    p50: Interval | None = None
    p90: Interval | None = None
    p95: Interval | None = None
    p99: Interval | None = None


@dataclass(slots=True)
class Description:
    """Figures of a series, in its own unit; None is what cannot be said from so few effective values.

    Attributes:
        count: number of values.
        effective_n: number of independent values that say as much.
        mean: mean.
        p50: median, and further percentiles.
        p90: 90 %.
        p95: 95 %.
        p99: 99 %.
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
        """One of mean, p50, p90, p95, p99, max by its name, as columns of tables have it."""
        return getattr(self, name)
