"""Aggregated measurements for Prometheus and OTLP: OpenTelemetry's names, and the types of neither exporter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(slots=True)
class Point:
    """One time series' value now."""

    value: float
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class HistogramPoint:
    """One time series' distribution since the start.

    `counts` has one entry per bound and one more for values above the last; they are not cumulated.
    """

    counts: Sequence[int]
    total: float
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)


@dataclass(slots=True)
class Family:
    """All time series of one name.

    Attributes:
        name: OpenTelemetry's, with dots, such as `traces.span.metrics.duration`.
        kind: counter (only rises, from 0 at the start of the run), gauge or histogram.
        unit: UCUM text, such as "s", "By", "1" or "{batch}".
        description: one sentence.
        points: of a counter or gauge.
        bounds: upper bounds of a histogram's buckets, inclusive, rising.
        histograms: of a histogram.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    points: Sequence[Point] = ()
    bounds: Sequence[float] = ()
    histograms: Sequence[HistogramPoint] = ()


Measurements = Callable[[], Sequence[Family]]
"""Returns everything measured so far, on any thread."""
