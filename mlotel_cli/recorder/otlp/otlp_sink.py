"""The OTLP sink of a run: it sends spans and metrics over HTTP, each from a thread of its own, with exact accounting.

`add` never blocks: spans wait in a bounded queue that drops whole batches, the oldest first. Every span handed to
`add` is sent, lost or queued, never two of these; after `close`, sent or lost. A request without an answer in time is
sent again with the same spans and counted once; a server may therefore get a span twice, but never half a request.
Prometheus and OTLP read the same `Measurements`; metrics are cumulative, so a lost export loses no count.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from mlotel_cli.config.otlp_settings import find_target, resource_of_environment, unsupported
from mlotel_cli.errors import UsageError
from mlotel_cli.recorder.measurements import Measurements
from mlotel_cli.recorder.otlp.senders import MetricSender, Say, SinkCounts, SpanSender
from mlotel_cli.records import SpanRecord

QUEUE_SIZE = 20_000
METRICS_EVERY_S = 15.0
CLOSE_S = 5.0
"""The longest that the end of a run waits for a collector."""


class OtlpSink(Protocol):
    """What the recorder needs of OTLP: `OtlpExport` or `NullOtlp`."""

    def add(self, spans: Sequence[SpanRecord]) -> None:
        """Take ended spans. Never blocks."""
        ...

    def describe(self) -> dict[str, Any] | None:
        """Return the targets and what became of what was handed over; None when nothing is sent."""
        ...

    def close(self, timeout_s: float) -> None:
        """Send what waits, within `timeout_s`."""
        ...


class NullOtlp:
    """Sends nothing."""

    def add(self, spans: Sequence[SpanRecord]) -> None:
        """Do nothing."""

    def describe(self) -> None:
        """Return None."""

    def close(self, timeout_s: float) -> None:
        """Do nothing."""


def create_otlp(
    settings: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    resource: Mapping[str, Any],
    measurements: Measurements,
    say: Say,
    started_ns: int | None = None,
) -> "OtlpExport | NullOtlp":
    """Start what `settings` (the fields of `OtlpSettings`) and the standard variables ask for.

    Settings that cannot work are reported through `say`, and nothing is sent.

    Args:
        settings: `telemetry.otlp`; `from_environment: False` ignores `environ`, which another SDK then obeys.
        environ: the environment variables.
        resource: what identifies the run; it overrides OTEL_RESOURCE_ATTRIBUTES.
        measurements: the metrics; read on the thread that sends them.
        say: takes one line for the user, on any thread.
        started_ns: start of the run, from which metrics count, in ns since the epoch; None means now.
    """
    environ = environ if settings.get("from_environment", True) else {}
    try:
        traces = find_target("traces", settings, environ=environ)
        metrics = find_target("metrics", settings, environ=environ)
    except UsageError as error:  # commands check earlier; a loop of the user's own does not
        say(f"OTLP: {error}. Nothing is sent.")
        return NullOtlp()
    if traces is None and metrics is None:
        return NullOtlp()
    if (problem := unsupported(environ)) is not None:
        say(f"OTLP: {problem}")
    attributes = {**resource_of_environment(environ), **{k: v for k, v in resource.items() if v is not None}}
    span_sender = metric_sender = None
    if traces is not None:
        size = int(settings.get("queue_size") or QUEUE_SIZE)
        span_sender = SpanSender(traces, resource=attributes, queue_size=size, say=say)
    if metrics is not None:
        metric_sender = MetricSender(
            metrics,
            resource=attributes,
            measurements=measurements,
            interval_s=float(settings.get("metrics_interval_s") or METRICS_EVERY_S),
            started_ns=time.time_ns() if started_ns is None else started_ns,
            say=say,
        )
    return OtlpExport(span_sender, metric_sender)


class OtlpExport:
    """Sends both signals of a run, or the one that has a sender."""

    def __init__(self, spans: SpanSender | None, metrics: MetricSender | None) -> None:
        """Start the threads of the senders that are not None."""
        self._spans = spans
        self._metrics = metrics
        for sender in (spans, metrics):
            if sender is not None:
                sender.start()

    def add(self, spans: Sequence[SpanRecord]) -> None:
        """Take ended spans. Never blocks."""
        if self._spans is not None:
            self._spans.add(spans)

    def describe(self) -> dict[str, Any]:
        """Return `endpoint`, `sent`, `lost`, `queued`, `retried` and `detail` of spans; `metrics` holds the same."""
        nothing = {"endpoint": None, **asdict(SinkCounts())}
        spans = nothing if self._spans is None else self._spans.describe()
        return {**spans, "metrics": None if self._metrics is None else self._metrics.describe()}

    def close(self, timeout_s: float) -> None:
        """Send what waits and the metrics a last time, within about `timeout_s`; the rest counts as lost."""
        deadline = time.monotonic() + timeout_s
        senders = [sender for sender in (self._spans, self._metrics) if sender is not None]
        for sender in senders:
            sender.stop(deadline=deadline)
        for sender in senders:
            sender.join(deadline=deadline)


def notes(described: Mapping[str, Any] | None) -> list[str]:
    """Return one sentence for each signal that lost something, from what `describe` returned."""
    if described is None:
        return []
    metrics: Mapping[str, Any] | None = described["metrics"]
    lines = [f"{_loss('traces', 'spans', described)}; every span is in spans.parquet"] if described["lost"] else []
    return [*lines, _loss("metrics", "data points", metrics)] if metrics and metrics["lost"] else lines


def _loss(signal: str, what: str, part: Mapping[str, Any]) -> str:
    why = f" ({part['detail']})" if part["detail"] else ""
    lost, handed = part["lost"], part["sent"] + part["lost"]
    return f"OTLP {signal}: {lost} of {handed} {what} did not reach {part['endpoint']}{why}"
