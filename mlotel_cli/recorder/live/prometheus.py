"""Renders measurements in Prometheus' text format, with the names of OpenTelemetry's own Prometheus exporters."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString  # pyright: ignore[reportUnknownVariableType]

from mlotel_cli.recorder.measurements import Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "W": "watts", "Cel": "celsius"}


def render(families: Sequence[Family], identity: Mapping[str, object]) -> bytes:
    """Return the answer to a scrape. Only `target_info` has the identity of the run: other series outlive the run."""
    return generate_latest(_Collector(families, identity))


def metric_name(family: Family) -> str:
    """Return a family's name in Prometheus, such as process_cpu_time_seconds, without the `_total` of a counter."""
    name = re.sub(r"[^a-zA-Z0-9_:]", "_", family.name)
    unit = "ratio" if family.unit == "1" and family.kind == "gauge" else _UNIT_NAMES.get(family.unit, "")
    return f"{name}_{unit}" if unit and not name.endswith(unit) else name


class _Collector(Collector):
    """Gives `generate_latest` its metrics, without registering them."""

    def __init__(self, families: Sequence[Family], identity: Mapping[str, object]) -> None:
        self._families = families
        self._identity = identity

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            if family.points or family.histograms:
                yield _histogram(family) if family.kind == "histogram" else _numbers(family)
        known = {key: str(value) for key, value in self._identity.items() if value is not None}
        info = GaugeMetricFamily("target_info", "What is measured: the run.", labels=_labels(known))
        info.add_metric(list(known.values()), 1)
        yield info


def _numbers(family: Family) -> Metric:
    keys = _keys(family)
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(metric_name(family), family.description, labels=_labels(keys))
    for values, value in {_values(keys, point.attributes): point.value for point in family.points}.items():
        metric.add_metric(values, value)
    return metric


def _histogram(family: Family) -> Metric:
    keys = _keys(family)
    metric = HistogramMetricFamily(metric_name(family), family.description, labels=_labels(keys))
    bounds = [*(floatToGoString(bound) for bound in family.bounds), "+Inf"]
    for values, point in {_values(keys, point.attributes): point for point in family.histograms}.items():
        metric.add_metric(values, list(zip(bounds, accumulate(point.counts), strict=True)), point.total)
    return metric


def _keys(family: Family) -> list[str]:
    points = [*family.points, *family.histograms]
    return list(dict.fromkeys(key for point in points for key in point.attributes))


def _values(keys: Sequence[str], attributes: Mapping[str, str]) -> tuple[str, ...]:
    """Return label values. They are dict keys above: a series given twice makes Prometheus refuse the whole scrape."""
    return tuple(attributes.get(key, "") for key in keys)


def _labels(keys: Sequence[str] | Mapping[str, str]) -> list[str]:
    return [re.sub(r"[^a-zA-Z0-9_]", "_", key) for key in keys]
