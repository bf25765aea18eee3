"""What the main loop feeds beside Parquet and W&B, and the little of it that an evaluation has: OTLP.

A monitor's are in `monitor`.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from mlotel_cli.recorder.machine import process_families
from mlotel_cli.recorder.measurements import Family, Measurements
from mlotel_cli.recorder.otlp.otlp_sink import OtlpSink, create_otlp
from mlotel_cli.recorder.spanmetrics import SpanMetrics
from mlotel_cli.records import BatchRecord, SpanRecord
from mlotel_cli.wire import Opening, ProcessReport, Report

SpanTaker = Callable[[SpanRecord], None]
Health = Mapping[str, Mapping[str, Any]]
"""By sink: ok, sent, lost, detail."""


class Exports(Protocol):
    """What the main loop feeds; closed by `end`, `deliver`, `close`, in this order."""

    @property
    def span_takers(self) -> Sequence[SpanTaker]:
        """Called with each span; none at all where nobody wants them."""
        ...

    def add_batch(self, record: BatchRecord) -> None:
        """A row is finished."""
        ...

    def take_report(self, report: Report) -> None:
        """Take what the workload reports once a second."""
        ...

    def tick(self) -> None:
        """Called after every frame, and a few times a second without one."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What run.json says of these sinks."""
        ...

    def end(self) -> None:
        """The run is over; what is measured stays to be read until `close`."""
        ...

    def deliver(self, timeout_s: float) -> Mapping[str, Any]:
        """Send what waits, within `timeout_s`; returns what the summary says of it under `telemetry`."""
        ...

    def close(self) -> None:
        """Finish; bounded in time."""
        ...


class NoExports:
    """A run with Parquet and W&B only."""

    span_takers: Sequence[SpanTaker] = ()

    def add_batch(self, record: BatchRecord) -> None:
        """Ignore it."""

    def take_report(self, report: Report) -> None:
        """Ignore it."""

    def tick(self) -> None:
        """Nothing is due."""

    def describe(self) -> Mapping[str, Any]:
        """Nothing to say."""
        return {}

    def end(self) -> None:
        """Nothing to do."""

    def deliver(self, timeout_s: float) -> Mapping[str, Any]:
        """Nothing to send."""
        return {"otlp": None}

    def close(self) -> None:
        """Nothing to finish."""


class OtlpExports(NoExports):
    """An evaluation's with OTLP: every span as it arrives, and metrics where those are wanted."""

    def __init__(self, opening: Opening, *, say: Callable[[str], None]) -> None:
        """Start sending, if the settings or the environment name somebody to send to."""
        self._metrics = SpanMetrics(opening.identity, max_names=opening.max_names)
        self._arrived: list[SpanRecord] = []
        self._otlp = start_otlp(opening, measurements=self, say=say)
        described = self._otlp.describe()
        self._counts = described is not None and described["metrics"] is not None
        takers = [self._arrived.append] if wants_spans(self._otlp) else []
        self.span_takers = (*takers, self._metrics.add_span) if self._counts else tuple(takers)

    def families(self) -> Sequence[Family]:
        """Everything measured so far; safe from any thread."""
        return [*self._metrics.families(), *process_families(ProcessReport())]

    def add_batch(self, record: BatchRecord) -> None:
        """Count a row."""
        if self._counts:
            self._metrics.add_batch(record)

    def tick(self) -> None:
        """Hand over what arrived."""
        if self._arrived:
            self._otlp.add(self._arrived)
            self._arrived.clear()

    def deliver(self, timeout_s: float) -> Mapping[str, Any]:
        """Send the rest."""
        self.tick()
        self._otlp.close(timeout_s)
        return {"otlp": self._otlp.describe()}


def wants_spans(otlp: OtlpSink) -> bool:
    """Whether spans go anywhere, and not only metrics."""
    described = otlp.describe()
    return described is not None and described["endpoint"] is not None


def start_otlp(opening: Opening, *, measurements: Measurements, say: Callable[[str], None]) -> OtlpSink:
    """Start what the settings and the environment ask for; counts begin with this recorder, not with the run."""
    return create_otlp(
        asdict(opening.otlp),
        environ=os.environ,
        resource=opening.identity,
        measurements=measurements,
        say=say,
        started_ns=time.time_ns() if opening.restarts else opening.started_ns,
    )
