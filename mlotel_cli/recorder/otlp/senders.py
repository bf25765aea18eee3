"""The threads that send: one for the spans of a run, one for its metrics. Each delivers to one target and counts."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlotel_cli.config.otlp_settings import Target
from mlotel_cli.recorder.measurements import Measurements
from mlotel_cli.recorder.otlp.span_queue import SpanQueue
from mlotel_cli.records import SpanRecord
from mlotel_cli.summary import SenderCounts

if TYPE_CHECKING:
    from mlotel_cli.recorder.otlp.delivery import Delivery

logger = logging.getLogger("mlotel.recorder")

MAX_SPANS = 512
"""The largest number of spans in one request."""
SEND_EVERY_S = 1.0
"""How long spans wait for a request to fill."""
BEHIND_S = 0.3
"""The main loop is behind when spans arrive longer than this after their end; hand-overs are 50 ms apart."""
CLOCK_SET_S = 30.0
"""A longer delay means that the wall clock was set; the main loop is never that far behind."""
SHARE = 0.2
"""The share of a core that sending may use while the main loop is behind; the further behind, the less, to a tenth."""
_GRACE_S = 0.5

Say = Callable[[str], None]


class Sender(ABC):
    """A thread that delivers to one target. Subclasses produce the payloads and count under the lock."""

    def __init__(self, target: Target, *, say: Say, give_up_s: float = 300.0) -> None:
        """Prepare; `start` starts the thread. A payload that cannot be delivered for `give_up_s` is lost."""
        self.target = target
        self._give_up_s = give_up_s
        self.counts = SenderCounts(endpoint=target.url)
        self._say = say
        self._changed = threading.Condition()
        self._stopping = False
        self._abandoned = False
        self._in_flight = 0
        self._delivery: Delivery | None = None
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name=f"mlotel-otlp-{target.signal}", daemon=True)

    def start(self) -> None:
        """Start the thread, which imports the OTLP libraries."""
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
        """Wait for the end; all that is then still queued or being sent counts as lost, even if it arrives later."""
        self._thread.join(max(0.0, deadline - time.monotonic()) + _GRACE_S)
        with self._changed:
            self._abandoned = True
            self.counts.lost += self._in_flight + self._forget()
            self._in_flight = 0

    def describe(self) -> SenderCounts:
        """Return what became of what was handed over."""
        with self._changed:
            if self._delivery is not None:
                self.counts.retried, self.counts.detail = self._delivery.retried, self._delivery.detail
            self.counts.queued = self._waiting() + self._in_flight
            return replace(self.counts)

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
        """Send until stopped; runs on the thread."""

    def _waiting(self) -> int:
        return 0

    def _forget(self) -> int:
        return 0

    def _send(self, delivery: "Delivery", payload: bytes, *, count: int) -> bool:
        """Deliver `count` spans or points, which are in flight. Returns False without a final answer of the server."""
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
    """Sends spans, in requests of up to 512."""

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
                    return  # `join` counts the rest
                self._rest(time.thread_time() - began)
            elif stopping:
                return

    def _rest(self, worked_s: float) -> None:
        """Pause while the main loop is behind, so that it gets the interpreter and this sink falls behind instead."""
        with self._changed:
            if BEHIND_S < self._lag_s < CLOCK_SET_S:
                share = SHARE * max(BEHIND_S / self._lag_s, 0.1)
                self._changed.wait_for(lambda: self._stopping, worked_s * (1 / share - 1))

    def _send_spans(self, delivery: "Delivery", spans: Sequence[SpanRecord], *, resource: Any) -> bool:
        from mlotel_cli.recorder.otlp.encode import encodable, encode_spans

        try:
            payload = encode_spans(spans, resource=resource)
        except Exception as error:  # one span that cannot be expressed must not stop the others
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
    """Sends all measurements every `interval_s` and at the end."""

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
        """Read `measurements` every `interval_s`; a new export replaces one that is not delivered by then."""
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
            except Exception as error:  # the next export may succeed
                logger.warning("OTLP: metrics were not exported: %r", error)
                continue
            if count:
                with self._changed:
                    self._in_flight = count
                self._send(delivery, payload, count=count)

    def _measure(self, resource: Any) -> tuple[int, bytes]:
        """Return the number of data points and the request that holds them."""
        from mlotel_cli.recorder.otlp.encode import count_points, encode_metrics

        families = self._measurements()
        times = {"started_ns": self._started_ns, "now_ns": time.time_ns()}
        return count_points(families), encode_metrics(families, resource=resource, **times)
