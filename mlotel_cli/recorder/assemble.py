"""From stamps to rows: collects the spans of each batch until all that were opened have ended and it is settled.

Pure bookkeeping: no clock of its own, no files. Spans come in any order, of many batches at once.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlotel_cli.records import BATCH_SIZE, KIND, RECORDED, SCORED, BatchRecord, Sample, SpanRecord, StageTime, Status

_REMEMBERED = 10_000
"""Finished batches whose index is remembered, to tell a late span from a new batch."""
_OPEN_LIMIT = 100_000
"""Unfinished batches kept at most; a program that never ends its roots must not fill the memory."""


@dataclass(slots=True)
class Stamp:
    """A span as it came through the pipe, with its `record()` values.

    `opened` is None but for the root of a batch, where it counts the spans opened in it; -1 where nobody can know.
    """

    span: SpanRecord
    opened: int | None
    recorded: list[tuple[str, float, str]]


@dataclass(slots=True)
class Settled:
    """What the mode says of a batch once it is done with it. `opened` is None where nobody can know."""

    batch: int
    source_batch: int
    repeat: int
    size: int
    status: Status
    opened: int | None
    start_ns: int
    source_wait_ms: float | None = None
    source_time_ns: int | None = None
    accuracy: dict[str, float] = field(default_factory=dict[str, float])
    samples: list[Sample] = field(default_factory=list[Sample])
    error: str = ""


@dataclass(slots=True)
class _Open:
    spans: list[SpanRecord] = field(default_factory=list[SpanRecord])
    recorded: list[tuple[str, float, str]] = field(default_factory=list[tuple[str, float, str]])
    root: SpanRecord | None = None
    settled: Settled | None = None
    settled_at: float = 0.0

    def is_complete(self) -> bool:
        settled = self.settled
        if settled is None:
            return False
        if settled.opened is None:
            return False  # whether a child is still open is unknown: wait for `settle_s`
        return len(self.spans) >= settled.opened


def unpack(packed: tuple[Any, ...]) -> Stamp:
    """The inverse of `telemetry.tracer.Span.pack`; recorded values of foreign spans are taken from attributes."""
    (
        _,
        trace_id,
        span_id,
        parent_id,
        opened,
        batch,
        name,
        kind,
        scope,
        thread,
        start_ns,
        end_ns,
        device_ns,
        status,
        message,
        attributes,
        events,
        links,
        recorded,
    ) = packed
    attributes = attributes or {}
    span = SpanRecord(
        trace_id,
        span_id,
        parent_id,
        batch,
        name,
        kind,
        scope,
        thread,
        start_ns,
        end_ns,
        device_ns,
        status,
        message,
        attributes,
        events or (),
        links or (),
    )
    return Stamp(span, opened, recorded or (_recorded(attributes) if attributes else []))


def _recorded(attributes: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    return [
        (name.removeprefix(RECORDED), float(value), str(attributes.get(f"{name}.unit", "")))
        for name, value in attributes.items()
        if name.startswith(RECORDED) and isinstance(value, int | float)
    ]


class Assembler:
    """Joins stamps and settlements by batch index; `finished` yields rows as they become complete.

    Attributes:
        late: spans that came after their row was written.
        overflowed: spans whose stage name was beyond `max_names`.
    """

    def __init__(self, *, settle_s: float, max_names: int = 200, settle_roots: bool = False) -> None:
        """A settled batch waits at most `settle_s` for spans that have not ended.

        With `settle_roots`, a batch is settled by the end of its root span: nobody else speaks for it.
        """
        self._settle_roots = settle_roots
        self._settle_s = settle_s
        self._max_names = max_names
        self._open: dict[int, _Open] = {}
        self._finished: OrderedDict[int, None] = OrderedDict()
        self._names: set[str] = set()
        self._waiting: set[int] = set()
        self.late = 0
        self.overflowed = 0

    def add(self, stamp: Stamp, *, now: float) -> None:
        """Take an ended span; spans outside any batch are nobody's row."""
        index = stamp.span.batch
        if index is None:
            return
        if index in self._finished:
            self.late += 1
            return
        entry = self._open.get(index)
        if entry is None:
            entry = self._open[index] = _Open()
        entry.spans.append(stamp.span)
        if stamp.recorded:
            entry.recorded.extend(stamp.recorded)
        if stamp.opened is not None:
            entry.root = stamp.span
            if self._settle_roots:
                self.settle(_settled_by_root(stamp.span, stamp.opened), now=now)
        if entry.settled is not None:
            self._waiting.add(index)

    def settle(self, settled: Settled, *, now: float) -> None:
        """The mode is done with the batch; `now` is the recorder's clock in seconds."""
        if settled.batch in self._finished:
            return
        entry = self._open.setdefault(settled.batch, _Open())
        entry.settled, entry.settled_at = settled, now
        self._waiting.add(settled.batch)

    def finished(self, *, now: float, closing: bool = False) -> Iterator[BatchRecord]:
        """Rows that are complete, or that waited long enough, in the order in which they were settled.

        With `closing`, everything that is left: unsettled batches become `incomplete`.
        """
        for index in sorted(self._open if closing else self._waiting):
            entry = self._open[index]
            settled = entry.settled
            complete = entry.is_complete()
            if not complete and not closing and (settled is None or now - entry.settled_at < self._settle_s):
                continue
            yield self._finish(index, entry)
        if not closing and len(self._open) > _OPEN_LIMIT:
            oldest = min(self._open)
            yield self._finish(oldest, self._open[oldest])

    def _finish(self, index: int, entry: _Open) -> BatchRecord:
        del self._open[index]
        self._waiting.discard(index)
        self._finished[index] = None
        if len(self._finished) > _REMEMBERED:
            self._finished.popitem(last=False)
        return self._row(index, entry)

    def _row(self, index: int, entry: _Open) -> BatchRecord:
        root, settled = entry.root, entry.settled
        missing = max(0, (settled.opened or 0) - len(entry.spans)) if settled else 0
        if settled is None:
            start = root.start_ns if root else min(span.start_ns for span in entry.spans)
            settled = Settled(index, index, 0, 0, "incomplete", None, start)
        never_ended = missing > 0 or (root is None and settled.opened != 0)
        record = BatchRecord(
            batch=index,
            source_batch=settled.source_batch,
            repeat=settled.repeat,
            start_ns=root.start_ns if root else settled.start_ns,
            size=settled.size,
            status="incomplete" if never_ended and settled.status in ("scored", "done") else settled.status,
            source_wait_ms=settled.source_wait_ms,
            accuracy=settled.accuracy,
            samples=settled.samples,
            error=settled.error or (f"{missing} opened spans never ended" if missing else ""),
            spans_missing=missing,
        )
        if root is not None:
            started = root.start_ns if settled.source_time_ns is None else settled.source_time_ns
            record.latency_ms = (root.end_ns - started) / 1e6
        self._add_stages(record, entry)
        record.data, record.units = _mean_recorded(entry.recorded)
        if self._settle_roots:
            record.accuracy = _scores(entry.spans)
            if record.accuracy and record.status == "done":
                record.status = "scored"
        return record

    def _add_stages(self, record: BatchRecord, entry: _Open) -> None:
        """Sum the internal spans by name; other kinds (a client's request, say) are no stages."""
        stages = record.stages
        for span in sorted(entry.spans, key=lambda span: span.start_ns):
            if span is entry.root or span.kind != "INTERNAL":
                continue
            kind = span.attributes.get(KIND) if span.attributes else None
            if kind is not None and kind != "queue":
                continue
            name = span.name.removeprefix("queue ") if kind == "queue" else span.name
            if name not in self._names:
                if len(self._names) >= self._max_names:
                    self.overflowed += 1
                    continue
                self._names.add(name)
            time = stages.get(name)
            if time is None:
                time = stages[name] = StageTime()
            duration_ms = (span.end_ns - span.start_ns) / 1e6
            if kind == "queue":
                time.queue_ms = (time.queue_ms or 0.0) + duration_ms
                continue
            time.host_ms += duration_ms
            time.calls += 1
            if span.device_ns is not None:
                time.device_ms = (time.device_ms or 0.0) + span.device_ns / 1e6


def _settled_by_root(root: SpanRecord, opened: int) -> Settled:
    """What can be said of a batch by its root span alone."""
    index, failed = root.batch or 0, root.status == "ERROR"
    size = root.attributes.get(BATCH_SIZE, 1)
    return Settled(
        batch=index,
        source_batch=index,
        repeat=0,
        size=int(size) if isinstance(size, int | float) else 1,
        status="failed" if failed else "done",
        opened=None if opened < 0 else opened,
        start_ns=root.start_ns,
        error=root.status_message if failed else "",
    )


def _scores(spans: list[SpanRecord]) -> dict[str, float]:
    """Values of `score()`; scored twice, the later span wins."""
    return {
        key.removeprefix(SCORED): float(value)
        for span in spans
        for key, value in (span.attributes or {}).items()
        if key.startswith(SCORED) and isinstance(value, int | float)
    }


def _mean_recorded(recorded: list[tuple[str, float, str]]) -> tuple[dict[str, float], dict[str, str]]:
    values: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    for name, value, unit in recorded:
        values.setdefault(name, []).append(value)
        if unit:
            units[name] = unit
    return {name: sum(given) / len(given) for name, given in values.items()}, units
