"""OTLP over HTTP: spans and metrics of a run, each from a thread of its own, with exact accounting.

`add` never blocks: spans wait in a bounded queue that drops whole batches, the oldest first. Every span handed to
`add` is sent, lost or queued, never two of these; after `close`, sent or lost. A request that was not answered in time
is sent again with the same spans, and counted once; a server may therefore see a span twice, never half a request.
Prometheus and OTLP read the same `Measurements`; metrics are cumulative, so a lost export loses no count.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mlotel_cli.config.otlp_settings import Target, find_target, resource_of_environment, unsupported
from mlotel_cli.errors import UsageError
from mlotel_cli.recorder.measurements import Measurements
from mlotel_cli.recorder.otlp.span_queue import SpanQueue
from mlotel_cli.records import SpanRecord

if TYPE_CHECKING:
    from mlotel_cli.recorder.otlp.delivery import Delivery

logger = logging.getLogger("mlotel.recorder")

MAX_SPANS = 512
"""Spans in one request."""
SEND_EVERY_S = 1.0
"""How long spans wait for a request to fill."""
BEHIND_S = 0.3
"""Spans that arrive so long after their end say that the main loop is behind; hand-overs are 50 ms apart."""
CLOCK_SET_S = 30.0
"""No main loop is that far behind: the wall clock was set."""
SHARE = 0.2
"""Of a core, for sending while it is; down to a tenth of that, the further it is behind."""
QUEUE_SIZE = 20_000
METRICS_EVERY_S = 15.0
CLOSE_S = 5.0
"""What the end of a run waits for a collector, at most."""
_GRACE_S = 0.5

Say = Callable[[str], None]


class Export(Protocol):
    """What the recorder needs of OTLP; `OtlpExport` or `NullOtlp`."""

    def add(self, spans: Sequence[SpanRecord]) -> None:
        """Take ended spans. Never blocks."""
        ...

    def describe(self) -> dict[str, Any] | None:
        """Where it goes and what became of it; None when it goes nowhere."""
        ...

    def close(self, timeout_s: float) -> None:
        """Send what waits, within `timeout_s`."""
        ...


class NullOtlp:
    """Sends nothing."""

    def add(self, spans: Sequence[SpanRecord]) -> None:
        """Do nothing."""

    def describe(self) -> None:
        """None: there is nothing to describe."""

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
    """Start what `settings` (the fields of `OtlpConfig`) and the standard variables ask for.

    Settings that cannot work are said, and nothing is sent.

    Args:
        settings: `telemetry.otlp`; `from_environment: False` leaves the environment to somebody else.
        environ: the environment.
        resource: what identifies the run; it wins over OTEL_RESOURCE_ATTRIBUTES.
        measurements: what is exported as metrics; asked on the thread that sends them.
        say: takes one line for the user, on any thread.
        started_ns: start of the run, ns since the epoch, from which metrics count; None is now.
    """
    environ = environ if settings.get("from_environment", True) else {}
    try:
        traces = find_target("traces", settings, environ=environ)
        metrics = find_target("metrics", settings, environ=environ)
    except UsageError as error:  # the commands check before they start; a loop of the user's own does not
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
    """Both signals of a run, as far as they are wanted."""

    def __init__(self, spans: "SpanSender | None", metrics: "MetricSender | None") -> None:
        """Start their threads."""
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
        """`endpoint`, `sent`, `lost`, `queued`, `retried` of spans, `detail` of what is wrong; `metrics` likewise."""
        nothing = {"endpoint": None, **asdict(Counts())}
        spans = nothing if self._spans is None else self._spans.describe()
        return {**spans, "metrics": None if self._metrics is None else self._metrics.describe()}

    def close(self, timeout_s: float) -> None:
        """Send what waits and a last export of the metrics, within about `timeout_s`; the rest is lost, and counted."""
        deadline = time.monotonic() + timeout_s
        senders = [sender for sender in (self._spans, self._metrics) if sender is not None]
        for sender in senders:
            sender.stop(deadline=deadline)
        for sender in senders:
            sender.join(deadline=deadline)


@dataclass(slots=True)
class Counts:
    """What became of what was handed over. Metrics count data points."""

    sent: int = 0
    lost: int = 0
    queued: int = 0
    retried: int = 0
    detail: str = ""


class Sender(ABC):
    """A thread that delivers to one target. Subclasses say what, and count it under the lock."""

    def __init__(self, target: Target, *, say: Say, give_up_s: float = 300.0) -> None:
        """Prepare; `start` starts the thread. What cannot be delivered for `give_up_s` is lost."""
        self.target = target
        self._give_up_s = give_up_s
        self.counts = Counts()
        self._say = say
        self._changed = threading.Condition()
        self._stopping = False
        self._abandoned = False
        self._in_flight = 0
        self._delivery: Delivery | None = None
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name=f"mlotel-otlp-{target.signal}", daemon=True)

    def start(self) -> None:
        """Start the thread, which imports what it needs."""
        self._thread.start()

    def stop(self, *, deadline: float) -> None:
        """Send what waits until `deadline`, a reading of `time.monotonic`, and end."""
        with self._changed:
            self._stopping = True
            self._deadline = deadline
            if self._delivery is not None:
                self._delivery.stop(deadline=deadline)
            self._changed.notify_all()

    def join(self, *, deadline: float) -> None:
        """Wait for the end; what then still waits or is under way is lost, even if it arrives after all."""
        self._thread.join(max(0.0, deadline - time.monotonic()) + _GRACE_S)
        with self._changed:
            self._abandoned = True
            self.counts.lost += self._in_flight + self._forget()
            self._in_flight = 0

    def describe(self) -> dict[str, Any]:
        """The sender's part of run.json."""
        with self._changed:
            if self._delivery is not None:
                self.counts.retried, self.counts.detail = self._delivery.retried, self._delivery.detail
            self.counts.queued = self._waiting() + self._in_flight
            return {"endpoint": self.target.url, **asdict(self.counts)}

    def _work(self) -> None:
        from mlotel_cli.recorder.otlp.delivery import Delivery
        from mlotel_cli.recorder.otlp.http_client import Client

        client = Client(self.target)
        with self._changed:
            self._delivery = Delivery(self.target, client, say=self._say, give_up_s=self._give_up_s)
            if self._stopping:
                self._delivery.stop(deadline=self._deadline)
        try:
            self._run(self._delivery)
        except Exception as error:  # a remote sink never ends the recorder
            logger.exception("OTLP %s stopped", self.target.signal)
            self._say(f"OTLP {self.target.signal} to {self.target.url}: stopped ({error!r})")
        client.close()

    @abstractmethod
    def _run(self, delivery: "Delivery") -> None:
        """Send until stopped; on the thread."""

    def _waiting(self) -> int:
        return 0

    def _forget(self) -> int:
        return 0

    def _send(self, delivery: "Delivery", payload: bytes, *, count: int) -> bool:
        """Deliver `count` things that are counted as under way. False when they did not arrive."""
        answer = delivery.deliver(payload)
        lost = min(answer.rejected, count) if answer.verdict == "taken" else count
        self._settle(sent=count - lost, lost=lost)
        return answer.verdict in ("taken", "refused")

    def _settle(self, *, sent: int = 0, lost: int = 0, in_flight: int = 0) -> None:
        with self._changed:
            if not self._abandoned:
                self.counts.sent += sent
                self.counts.lost += lost
                self._in_flight = in_flight


class SpanSender(Sender):
    """Spans, in requests of up to 512."""

    def __init__(self, target: Target, *, resource: Mapping[str, Any], queue_size: int, say: Say) -> None:
        """Hold at most `queue_size` spans."""
        super().__init__(target, say=say)
        self._resource = resource
        self._queue = SpanQueue(queue_size)
        self._lag_s = 0.0

    def add(self, spans: Sequence[SpanRecord]) -> None:
        """Take ended spans."""
        with self._changed:
            if self._stopping:
                self.counts.lost += len(spans)
                return
            if spans:
                self._lag_s = (time.time_ns() - spans[-1].end_ns) / 1e9
            dropped = self._queue.dropped
            self._queue.add(spans)
            self.counts.lost += self._queue.dropped - dropped
            if len(self._queue) >= MAX_SPANS:
                self._changed.notify_all()

    def _run(self, delivery: "Delivery") -> None:
        from mlotel_cli.recorder.otlp.encode import encode_resource

        resource = encode_resource(self._resource)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or len(self._queue) >= MAX_SPANS, SEND_EVERY_S)
                spans = self._queue.take(MAX_SPANS)
                self._in_flight = len(spans)
                stopping = self._stopping
            if spans:
                began = time.thread_time()
                arrived = self._send_spans(delivery, spans, resource=resource)
                if self._stopping and (delivery.is_over or not arrived):
                    return  # `join` counts what is left
                self._rest(time.thread_time() - began)
            elif stopping:
                return

    def _rest(self, worked_s: float) -> None:
        """While the main loop is behind, leave the interpreter to it: what falls behind then is this sink."""
        with self._changed:
            if BEHIND_S < self._lag_s < CLOCK_SET_S:
                share = SHARE * max(BEHIND_S / self._lag_s, 0.1)
                self._changed.wait_for(lambda: self._stopping, worked_s * (1 / share - 1))

    def _send_spans(self, delivery: "Delivery", spans: Sequence[SpanRecord], *, resource: Any) -> bool:
        from mlotel_cli.recorder.otlp.encode import encodable, encode_spans

        try:
            payload = encode_spans(spans, resource=resource)
        except Exception as error:  # what cannot be expressed must not stop what can
            kept = encodable(spans)
            lost = len(spans) - len(kept)
            logger.warning("OTLP: %d spans cannot be expressed and are lost: %r", lost, error)
            self._settle(lost=lost, in_flight=len(kept))
            return not kept or self._send(delivery, encode_spans(kept, resource=resource), count=len(kept))
        return self._send(delivery, payload, count=len(spans))

    def _waiting(self) -> int:
        return len(self._queue)

    def _forget(self) -> int:
        return self._queue.clear()


class MetricSender(Sender):
    """Everything measured, every `interval_s` and at the end."""

    def __init__(
        self,
        target: Target,
        *,
        resource: Mapping[str, Any],
        measurements: Measurements,
        interval_s: float,
        started_ns: int,
        say: Say,
    ) -> None:
        """Ask `measurements` every `interval_s`; what is not delivered by the next time is superseded."""
        super().__init__(target, say=say, give_up_s=interval_s)
        self._resource = resource
        self._measurements = measurements
        self._interval_s = interval_s
        self._started_ns = started_ns

    def _run(self, delivery: "Delivery") -> None:
        from mlotel_cli.recorder.otlp.encode import encode_resource

        resource = encode_resource(self._resource)
        stopping = False
        while not stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, self._interval_s)
                stopping = self._stopping
            try:
                count, payload = self._measure(resource)
            except Exception as error:  # the next time may do better
                logger.warning("OTLP: metrics were not exported: %r", error)
                continue
            if count:
                with self._changed:
                    self._in_flight = count
                self._send(delivery, payload, count=count)

    def _measure(self, resource: Any) -> tuple[int, bytes]:
        """Data points, and the request that holds them."""
        from mlotel_cli.recorder.otlp.encode import count_points, encode_metrics

        families = self._measurements.families()
        times = {"started_ns": self._started_ns, "now_ns": time.time_ns()}
        return count_points(families), encode_metrics(families, resource=resource, **times)


def notes(described: Mapping[str, Any] | None) -> list[str]:
    """What a reader of the run should know: one sentence for each signal that lost something."""
    if described is None:
        return []
    metrics: Mapping[str, Any] | None = described["metrics"]
    lines = [f"{_loss('traces', 'spans', described)}; every span is in spans.parquet"] if described["lost"] else []
    return [*lines, _loss("metrics", "data points", metrics)] if metrics and metrics["lost"] else lines


def _loss(signal: str, what: str, part: Mapping[str, Any]) -> str:
    why = f" ({part['detail']})" if part["detail"] else ""
    lost, handed = part["lost"], part["sent"] + part["lost"]
    return f"OTLP {signal}: {lost} of {handed} {what} did not reach {part['endpoint']}{why}"
