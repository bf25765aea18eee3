"""Spans and batches as metrics: counted once, read by Prometheus and OTLP.

Names follow OpenTelemetry Collector's spanmetrics connector, so that dashboards made for it work. Every span counts,
kept trace or not. Memory is bounded by the number of names, not by time.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from mlotel_cli.recorder.distribution import DURATION_BOUNDS_S, VALUE_BOUNDS, Distribution
from mlotel_cli.recorder.measurements import Family, HistogramPoint, Point
from mlotel_cli.records import BatchRecord, SpanRecord

OTHER = "other"
"""The name under which spans beyond `max_names` are counted together."""
_BOUNDS_NS = tuple(round(bound * 1e9) for bound in DURATION_BOUNDS_S)
_NAME_LIMIT = 200
_SpanKey = tuple[str, str, str]
Key = TypeVar("Key")


class SpanMetrics:
    """Counts on the recorder's main thread; `families` may be called from any.

    Attributes:
        overflowed: spans whose name was beyond `max_names`; they are counted as `other`.
        not_finite: recorded values that were NaN or infinite; they are in no distribution.
    """

    def __init__(self, identity: Mapping[str, object], *, max_names: int = 200, statuses: Sequence[str] = ()) -> None:
        """Nothing counted yet.

        Args:
            identity: names the service; every series carries that, and nothing that changes from run to run.
            max_names: span names kept apart.
            statuses: of batches, whose series are there from the start: Prometheus cannot tell a first failure from a
                series that is new.
        """
        self._service = {"service.name": str(identity.get("service.name") or "unknown_service")}
        self._max_names = max_names
        self._by_key: dict[_SpanKey, Distribution] = {}  # as spans name them; several may share one of `_spans`
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
        """Count one ended span, whether it belongs to a batch or not."""
        series = self._by_key.get((span.name, span.kind, span.status)) or self._find(span)
        series.add(span.end_ns - span.start_ns)

    def add_batch(self, record: BatchRecord) -> None:
        """Count a finished row; its stage names are bounded already, by the assembler."""
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
        """Everything counted so far."""
        durations = [
            series.point(self._service | _span_attributes(key), scale=1e-9) for key, series in list(self._spans.items())
        ]
        calls = [Point(point.count, point.attributes) for point in durations]
        statuses = [Point(count, self._service | {"status": name}) for name, count in list(self._statuses.items())]
        return [
            _histogram("traces.span.metrics.duration", "How long spans took, by name, kind and status.", durations),
            _counter("traces.span.metrics.calls", "{call}", "Ended spans, by name, kind and status.", calls),
            _histogram(
                "mlotel.batch.latency",
                "From the arrival of a batch, or its start where it has none, to its result.",
                [self._latency.point(self._service)],
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
            _counter("mlotel.items", "{item}", "Items in finished batches.", [Point(self._items, self._service)]),
            _counter(
                "mlotel.spans.unnamed",
                "{span}",
                f"Spans counted as {OTHER!r}, because there were too many names.",
                [Point(self.overflowed, self._service)],
            ),
            _counter(
                "mlotel.data.not_finite",
                "{value}",
                "Recorded values that were NaN or infinite, and are in no distribution.",
                [Point(self.not_finite, self._service)],
            ),
        ]

    def _find(self, span: SpanRecord) -> Distribution:
        """The series of a combination that is new, or that is beyond the bound."""
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
        return [each.point(self._service | {"stage": clean(name)}) for name, each in list(series.items())]

    def _value(self, name: str, series: Distribution) -> HistogramPoint:
        return series.point(self._service | {"data.name": clean(name), "data.unit": clean(self._units.get(name, ""))})


def clean(name: str) -> str:
    """A name as an attribute value: valid text of a bounded length."""
    return name.encode("utf-8", "backslashreplace").decode()[:_NAME_LIMIT]


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
