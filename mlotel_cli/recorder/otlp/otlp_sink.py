"""The OTLP sink of a run: it sends spans and metrics over HTTP, each from a thread of its own, with exact accounting.

`add` never blocks: spans wait in a bounded queue that drops whole batches, the oldest first. Every span handed to
`add` is sent, lost or queued, never two of these; after `close`, sent or lost. A request without an answer in time is
sent again with the same spans and counted once; a server may therefore get a span twice, but never half a request.
Prometheus and OTLP read the same `Measurements`; metrics are cumulative, so a lost export loses no count.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from mlotel_cli.config.otlp_settings import find_target, resource_of_environment, unsupported
from mlotel_cli.errors import UsageError
from mlotel_cli.recorder.measurements import Measurements
from mlotel_cli.recorder.otlp.senders import MetricSender, Say, SpanSender
from mlotel_cli.records import SpanRecord
from mlotel_cli.summary import OtlpCounts, SenderCounts
from mlotel_cli.wire import Opening

CLOSE_S = 5.0
"""The longest that the end of a run waits for a collector."""


class OtlpSink:
    """Sends spans and metrics, as far as they have a sender; without one it does nothing."""

    def __init__(self, spans: SpanSender | None = None, metrics: MetricSender | None = None) -> None:
        """Start the threads of the senders that are not None."""
        self._spans = spans
        self._metrics = metrics
        self._senders = [sender for sender in (spans, metrics) if sender is not None]
        for sender in self._senders:
            sender.start()

    @property
    def sends_spans(self) -> bool:
        """Whether spans have a target."""
        return self._spans is not None

    @property
    def sends_metrics(self) -> bool:
        """Whether metrics have a target."""
        return self._metrics is not None

    def add(self, spans: Sequence[SpanRecord]) -> None:
        """Take ended spans. Never blocks."""
        if self._spans is not None:
            self._spans.add(spans)

    def describe(self) -> OtlpCounts | None:
        """Return the targets and what became of what was handed over; None when nothing is sent."""
        if not self._senders:
            return None
        spans = SenderCounts() if self._spans is None else self._spans.describe()
        return OtlpCounts(**asdict(spans), metrics=None if self._metrics is None else self._metrics.describe())

    def close(self, timeout_s: float) -> None:
        """Send what waits and the metrics a last time, within about `timeout_s`; the rest counts as lost."""
        deadline = time.monotonic() + timeout_s
        for sender in self._senders:
            sender.stop(deadline=deadline)
        for sender in self._senders:
            sender.join(deadline=deadline)


def create_otlp(
    opening: Opening, *, measurements: Measurements, say: Say, environ: Mapping[str, str] = os.environ
) -> OtlpSink:
    """Start what the run's settings and the standard variables ask for.

    Settings that cannot work are reported through `say`, and nothing is sent. Metrics count from the start of the run,
    or from now for a recorder that replaces one.

    Args:
        opening: the run; its identity overrides OTEL_RESOURCE_ATTRIBUTES.
        measurements: the metrics; read on the thread that sends them.
        say: takes one line for the user, on any thread.
        environ: the environment variables; not used with `from_environment: False`, when another SDK obeys them.
    """
    options = opening.otlp
    environ = environ if options.from_environment else {}
    try:
        traces = find_target("traces", asdict(options), environ=environ)
        metrics = find_target("metrics", asdict(options), environ=environ)
    except UsageError as error:  # commands check earlier; a loop of the user's own does not
        say(f"OTLP: {error}. Nothing is sent.")
        return OtlpSink()
    if (traces or metrics) and (problem := unsupported(environ)) is not None:
        say(f"OTLP: {problem}")
    known = {name: value for name, value in opening.identity.items() if value is not None}
    resource = resource_of_environment(environ) | known
    span_sender = metric_sender = None
    if traces is not None:
        span_sender = SpanSender(traces, resource=resource, queue_size=options.queue_size, say=say)
    if metrics is not None:
        metric_sender = MetricSender(
            metrics,
            resource=resource,
            measurements=measurements,
            interval_s=options.metrics_interval_s,
            started_ns=time.time_ns() if opening.restarts else opening.started_ns,
            say=say,
        )
    return OtlpSink(span_sender, metric_sender)


def notes(counts: OtlpCounts | None) -> list[str]:
    """Return one sentence for each signal that lost something."""
    if counts is None:
        return []
    lines = [f"{_loss('traces', 'spans', counts)}; every span is in spans.parquet"] if counts.lost else []
    metrics = counts.metrics
    return [*lines, _loss("metrics", "data points", metrics)] if metrics and metrics.lost else lines


def _loss(signal: str, what: str, counts: SenderCounts) -> str:
    why = f" ({counts.detail})" if counts.detail else ""
    handed = counts.sent + counts.lost
    return f"OTLP {signal}: {counts.lost} of {handed} {what} did not reach {counts.endpoint}{why}"
