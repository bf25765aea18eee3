"""What the main loop feeds beside Parquet and W&B, and what an evaluation has of it: OTLP.

The exports of a monitor are in `monitor_exports`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlotel_cli.recorder.machine import process_families
from mlotel_cli.recorder.measurements import Family
from mlotel_cli.recorder.otlp.otlp_sink import create_otlp
from mlotel_cli.recorder.spanmetrics import SpanMetrics
from mlotel_cli.records import BatchRecord, SpanRecord
from mlotel_cli.summary import OtlpCounts
from mlotel_cli.wire import Opening, ProcessReport, Report

SpanTaker = Callable[[SpanRecord], None]


class Exports:
    """What the main loop feeds; here it does nothing. `end`, `deliver` and `close` are called last, in this order.

    Attributes:
        span_takers: called with each span.
    """

    span_takers: Sequence[SpanTaker] = ()

    def add_batch(self, record: BatchRecord) -> None:
        """Take a finished row."""

    def take_report(self, report: Report) -> None:
        """Take what the workload reports once a second."""

    def tick(self) -> None:
        """Do what is due; called after every frame, and a few times a second without one."""

    def describe(self) -> Mapping[str, Any]:
        """Return what run.json says of these sinks."""
        return {}

    def end(self) -> None:
        """Note that the run is over; what is measured stays readable until `close`."""

    def deliver(self, timeout_s: float) -> OtlpCounts | None:
        """Send what waits, within `timeout_s`; return what became of all that was sent, None without OTLP."""

    def close(self) -> None:
        """Stop, in bounded time."""


class OtlpExports(Exports):
    """The exports of an evaluation: every span as it arrives, and metrics where they have a target."""

    def __init__(self, opening: Opening, *, say: Callable[[str], None]) -> None:
        """Start sending, if the settings or the environment name a target."""
        self._metrics = SpanMetrics(opening.identity, max_names=opening.max_names)
        self._arrived: list[SpanRecord] = []
        self._otlp = create_otlp(opening, measurements=self.families, say=say)
        takers = [self._arrived.append] if self._otlp.sends_spans else []
        self.span_takers = (*takers, self._metrics.add_span) if self._otlp.sends_metrics else tuple(takers)

    def families(self) -> Sequence[Family]:
        """Return everything measured so far; safe from any thread."""
        return [*self._metrics.families(), *process_families(ProcessReport())]

    def add_batch(self, record: BatchRecord) -> None:
        """Count a row."""
        if self._otlp.sends_metrics:
            self._metrics.add_batch(record)

    def tick(self) -> None:
        """Hand over what arrived."""
        if self._arrived:
            self._otlp.add(self._arrived)
            self._arrived.clear()

    def deliver(self, timeout_s: float) -> OtlpCounts | None:
        """Send the rest."""
        self.tick()
        self._otlp.close(timeout_s)
        return self._otlp.describe()
