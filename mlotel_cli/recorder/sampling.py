"""Decides which traces of a monitor are sent, once a batch's row is known: no slow or failed batch is missed.

It has no thread and no files; the recorder's loop calls it. Spans and batches that wait are bounded in number, and so
are the decisions it remembers for spans that come late.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mlotel_cli.recorder.sketch import GROWTH, RollingSketch
from mlotel_cli.records import BatchRecord, SpanRecord

Reason = Literal["failed", "slow", "background"]

SLOT_S = 10.0
NUM_SLOTS = 30
"""The rolling p99 is that of the last five minutes."""
ENOUGH = 400
"""Batches that a p99 needs."""
_THRESHOLD_EVERY_S = 1.0
_FAILED = ("failed", "skipped", "incomplete")
_LOW_64 = (1 << 64) - 1


@dataclass(slots=True)
class _Pending:
    """The spans of a batch that has no row yet."""

    trace_id: int
    spans: list[SpanRecord] = field(default_factory=list[SpanRecord])


class TailSampler:
    """Keeps the spans of a batch until its row says whether they are worth sending.

    It keeps a batch that failed (or was skipped, or never completed), a slow batch, and a random share of the others:
    the background. A batch is slow above `slow_ms`; without that setting, when it took more than 2 % longer than the
    p99 of the last five minutes, once 400 batches were measured. The share is taken by trace id, by the rule of
    OpenTelemetry's TraceIdRatioBased sampler, so that other services which sample by ratio keep the same traces.

    Attributes:
        kept: number of kept batches by reason; the first reason of the three counts.
        dropped: number of batches that were not kept.
        overflowed: number of spans that found no room here; their batches are sent without them.
    """

    def __init__(
        self,
        *,
        slow_ms: float | None,
        background_rate: float,
        max_spans: int = 100_000,
        max_batches: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold at most `max_spans` spans of at most `max_batches` batches."""
        self._slow_ms = slow_ms
        self._bound = round(background_rate * (1 << 64))
        self._max_spans = max_spans
        self._max_batches = max_batches
        self._clock = clock
        self._pending: OrderedDict[int, _Pending] = OrderedDict()
        self._num_spans = 0
        self._decided: OrderedDict[int, bool] = OrderedDict()
        self._ready: list[SpanRecord] = []
        self._latencies = RollingSketch(NUM_SLOTS)
        self._rotated_at = self._looked_at = clock()
        self._rolling_ms: float | None = None
        self.kept: Counter[Reason] = Counter()
        self.dropped = 0
        self.overflowed = 0

    @property
    def threshold_ms(self) -> float | None:
        """Latency above which a batch is slow now; None while too few batches were measured."""
        return self._rolling_ms if self._slow_ms is None else self._slow_ms

    def add(self, span: SpanRecord) -> None:
        """Take an ended span. One without a batch is kept when it failed or belongs to the background."""
        index = span.batch
        if index is None:
            if span.status == "ERROR" or self._is_of_background(span.trace_id):
                self._ready.append(span)
            return
        pending = self._pending.get(index)
        if pending is None:
            if (is_kept := self._decided.get(index)) is not None:
                if is_kept:
                    self._ready.append(span)
                return
            pending = self._pending[index] = _Pending(span.trace_id)
        pending.spans.append(span)
        self._num_spans += 1
        while self._num_spans > self._max_spans or len(self._pending) > self._max_batches:
            self._evict()

    def decide(self, record: BatchRecord) -> list[SpanRecord]:
        """Return the batch's spans when it is kept, else an empty list. Call it once, with the batch's row."""
        pending = self._pending.pop(record.batch, None)
        spans = [] if pending is None else pending.spans
        self._num_spans -= len(spans)
        reason = self._reason(record, pending)
        self._decided[record.batch] = reason is not None
        if len(self._decided) > self._max_batches:
            self._decided.popitem(last=False)
        if record.latency_ms is not None and record.status not in _FAILED:
            self._latencies.add(record.latency_ms)
        if reason is None:
            self.dropped += 1
            return []
        self.kept[reason] += 1
        return spans

    def ready(self) -> list[SpanRecord]:
        """Return, once, spans that wait for no row: late ones of kept batches, and kept ones without a batch."""
        ready, self._ready = self._ready, []
        return ready

    def describe(self) -> dict[str, int]:
        """Return the numbers of batches kept, by reason, and dropped, and of spans that found no room."""
        kept = {f"kept_{reason}": self.kept[reason] for reason in ("failed", "slow", "background")}
        return {**kept, "dropped": self.dropped, "spans_overflowed": self.overflowed}

    def _reason(self, record: BatchRecord, pending: _Pending | None) -> Reason | None:
        self._roll()
        if record.status in _FAILED:
            return "failed"
        threshold_ms = self.threshold_ms
        if threshold_ms is not None and record.latency_ms is not None and record.latency_ms > threshold_ms:
            return "slow"
        return "background" if pending is not None and self._is_of_background(pending.trace_id) else None

    def _roll(self) -> None:
        """End the slots that are over by the clock, and read the threshold again once a second."""
        now = self._clock()
        while now - self._rotated_at >= SLOT_S:
            self._latencies.rotate()
            self._rotated_at += SLOT_S
            if now - self._rotated_at > SLOT_S * NUM_SLOTS:  # the process slept: no latency is recent
                self._latencies = RollingSketch(NUM_SLOTS)
                self._rotated_at = now
        if now - self._looked_at >= _THRESHOLD_EVERY_S or (self._rolling_ms is None and self._slow_ms is None):
            self._looked_at = now
            recent = self._latencies.sketch()
            p99_ms = recent.quantiles(0.99)[0] if recent.count >= ENOUGH else None
            self._rolling_ms = None if p99_ms is None else p99_ms * GROWTH

    def _is_of_background(self, trace_id: int) -> bool:
        return trace_id & _LOW_64 < self._bound

    def _evict(self) -> None:
        """Drop the waiting spans of the oldest batch, which has no row yet."""
        _, pending = self._pending.popitem(last=False)
        self._num_spans -= len(pending.spans)
        self.overflowed += len(pending.spans)
