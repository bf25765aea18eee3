"""Spans and batches as metrics, counted once for Prometheus and OTLP.

Names follow OpenTelemetry Collector's spanmetrics connector, so that dashboards made for it work. Every span counts,
also one whose trace is not kept. Memory is bounded by the number of names and does not grow with time.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TypeVar

from mlotel_cli.recorder.measurements import Family, HistogramPoint, Point
from mlotel_cli.records import BatchRecord, SpanRecord, valid_text


def one_two_five(*, low: int, high: int) -> tuple[float, ...]:
    """Return 1, 2 and 5 times each power of ten from `low` to `high - 1`, then 10 to the power of `high`."""
    return (*(float(f"{digit}e{power}") for power in range(low, high) for digit in (1, 2, 5)), float(f"1e{high}"))


DURATION_BOUNDS_S = (*(bound for bound in one_two_five(low=-4, high=2) if bound < 60), 60.0)
"""Seconds: 1-2-5 from 100 us to 60 s."""
VALUE_BOUNDS = (0.0, *one_two_five(low=-3, high=5))
"""For values of any unit: one bucket up to zero, then 1-2-5 from 0.001 to 100,000.

No bound is below zero, because Prometheus has neither sum nor count of a histogram with one.
"""

OTHER = "other"
"""The name under which spans beyond `max_names` are counted together."""
_BOUNDS_NS = tuple(round(bound * 1e9) for bound in DURATION_BOUNDS_S)
_NAME_LIMIT = 200
_SpanKey = tuple[str, str, str]
Key = TypeVar("Key")


class Distribution:
    """A histogram of one series with fixed bounds, from the start of the run.

    One thread adds, any thread may read. `bounds` are inclusive and rise; `counts` has one entry per bound and one
    more for values above the last.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def add(self, value: float) -> None:
        """Count one value, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def point(self, attributes: Mapping[str, str], *, scale: float = 1.0) -> HistogramPoint:
        """Return a copy of what was counted so far, the total times `scale`."""
        total = self.total
        return HistogramPoint(self.counts.copy(), total * scale, attributes)


class SpanMetrics:
    """Counts spans and batches on the recorder's main thread; any thread may call `families`.

    Attributes:
        service: the attribute that every series has.
        overflowed: number of spans whose name was beyond `max_names`; they count as `other`.
        not_finite: number of recorded values that were NaN or infinite; no distribution has them.
    """

    def __init__(self, identity: Mapping[str, object], *, max_names: int = 200, statuses: Sequence[str] = ()) -> None:
        """Begin at zero.

        Args:
            identity: what identifies the run. Series carry the service name only, which no new run changes.
            max_names: number of span names that have series of their own.
            statuses: batch statuses that have a series from the start: without one, Prometheus would not see a first
                failure as an increase.
        """
        self.service = {"service.name": str(identity.get("service.name") or "unknown_service")}
        self._max_names = max_names
        self._by_key: dict[_SpanKey, Distribution] = {}  # several may share a series of `_spans`
        self._names: set[str] = set()
        self._spans: dict[_SpanKey, Distribution] = {}
        self._device: dict[str, Distribution] = {}
        self._queue: dict[str, Distribution] = {}
        self._values: dict[str, Distribution] = {}
        self._units: dict[str, str] = {}
        self._latency = Distribution(DURATION_BOUNDS_S)
        self._statuses = dict.fromkeys(statuses, 0)
        self._items = 0
        self.overflowed = 0
        self.not_finite = 0

    def add_span(self, span: SpanRecord) -> None:
        """Count one ended span, in a batch or outside."""
        series = self._by_key.get((span.name, span.kind, span.status)) or self._find(span)
        series.add(span.end_ns - span.start_ns)

    def add_batch(self, record: BatchRecord) -> None:
        """Count a finished row. The assembler has bounded the number of its stage names."""
        self._statuses[record.status] = self._statuses.get(record.status, 0) + 1
        self._items += record.size
        if record.latency_ms is not None:
            self._latency.add(record.latency_ms / 1e3)
        for name, time in record.stages.items():
            if time.device_ms is not None:
                _series(self._device, name, DURATION_BOUNDS_S).add(time.device_ms / 1e3)
            if time.queue_ms is not None:
                _series(self._queue, name, DURATION_BOUNDS_S).add(time.queue_ms / 1e3)
        for name, value in record.data.items():
            if math.isfinite(value):
                _series(self._values, name, VALUE_BOUNDS).add(value)
            else:
                self.not_finite += 1
        if record.units:
            self._units.update(record.units)

    def families(self) -> Sequence[Family]:
        """Return everything counted so far."""
        durations = [
            series.point(self.service | _span_attributes(key), scale=1e-9) for key, series in list(self._spans.items())
        ]
        calls = [Point(point.count, point.attributes) for point in durations]
        statuses = [Point(count, self.service | {"status": name}) for name, count in list(self._statuses.items())]
        return [
            _histogram("traces.span.metrics.duration", "How long spans took, by name, kind and status.", durations),
            _counter("traces.span.metrics.calls", "{call}", "Ended spans, by name, kind and status.", calls),
            _histogram(
                "mlotel.batch.latency",
                "From the arrival of a batch, or its start where it has none, to its result.",
                [self._latency.point(self.service)],
            ),
            _histogram(
                "mlotel.stage.device.duration", "Device time of a stage in a batch.", self._stages(self._device)
            ),
            _histogram("mlotel.stage.queue.duration", "Waiting before a stage in a batch.", self._stages(self._queue)),
            Family(
                "mlotel.data.value",
                "histogram",
                "",
                "Values given to record(), the mean of each batch; the unit is an attribute.",
                bounds=VALUE_BOUNDS,
                histograms=[self._value(name, series) for name, series in list(self._values.items())],
            ),
            _counter("mlotel.batches", "{batch}", "Finished batches, by how they ended.", statuses),
            _counter("mlotel.items", "{item}", "Items in finished batches.", [Point(self._items, self.service)]),
            _counter(
                "mlotel.spans.unnamed",
                "{span}",
                f"Spans counted as {OTHER!r}, because there were too many names.",
                [Point(self.overflowed, self.service)],
            ),
            _counter(
                "mlotel.data.not_finite",
                "{value}",
                "Recorded values that were NaN or infinite, and are in no distribution.",
                [Point(self.not_finite, self.service)],
            ),
        ]

    def _find(self, span: SpanRecord) -> Distribution:
        """Return the series of a combination that `_by_key` does not have: a new one, or the one of `other`."""
        name = span.name
        if name not in self._names:
            if len(self._names) >= self._max_names:
                self.overflowed += 1
                return _series(self._spans, (OTHER, span.kind, span.status), _BOUNDS_NS)
            self._names.add(name)
        series = _series(self._spans, (clean(name), span.kind, span.status), _BOUNDS_NS)
        self._by_key[name, span.kind, span.status] = series
        return series

    def _stages(self, series: Mapping[str, Distribution]) -> list[HistogramPoint]:
        return [each.point(self.service | {"stage": clean(name)}) for name, each in list(series.items())]

    def _value(self, name: str, series: Distribution) -> HistogramPoint:
        return series.point(self.service | {"data.name": clean(name), "data.unit": clean(self._units.get(name, ""))})


def clean(name: str) -> str:
    """Return a name as an attribute value: valid text of a bounded length."""
    return valid_text(name)[:_NAME_LIMIT]


def _series(series: dict[Key, Distribution], key: Key, bounds: Sequence[float]) -> Distribution:
    found = series.get(key)
    if found is None:
        found = series[key] = Distribution(bounds)
    return found


def _span_attributes(key: _SpanKey) -> dict[str, str]:
    name, kind, status = key
    return {"span.name": name, "span.kind": f"SPAN_KIND_{kind}", "status.code": f"STATUS_CODE_{status}"}


def _histogram(name: str, description: str, points: Sequence[HistogramPoint]) -> Family:
    return Family(name, "histogram", "s", description, bounds=DURATION_BOUNDS_S, histograms=points)


def _counter(name: str, unit: str, description: str, points: Sequence[Point]) -> Family:
    return Family(name, "counter", unit, description, points)
