"""From stamps to rows: adds up the spans of each batch until all that were opened have ended and it is settled.

It has no clock and no files. Spans come in any order, of many batches at once. An open batch takes memory by the number
of its names, not of its spans.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from mlotel_cli.records import BATCH_SIZE, KIND, SCORED, BatchRecord, Recorded, SpanRecord, StageTime
from mlotel_cli.wire import Settled, Stamp

OPEN_LIMIT = 100_000
"""The largest number of unfinished batches: a program that never ends its roots must not fill the memory."""
_BLOCK_BITS = 10
_BLOCKS_REMEMBERED = 10_000


@dataclass(slots=True)
class _Stage:
    """Times of one name in one batch, in whole nanoseconds: a sum that no order of arrival changes."""

    first_ns: int
    calls: int = 0
    host_ns: int = 0
    device_ns: int | None = None
    queue_ns: int | None = None
    lag_ns: int | None = None

    def time(self) -> StageTime:
        return StageTime(
            host_ms=self.host_ns / 1e6,
            device_ms=None if self.device_ns is None else self.device_ns / 1e6,
            queue_ms=None if self.queue_ns is None else self.queue_ns / 1e6,
            calls=self.calls,
            lag_ms=None if self.lag_ns is None else self.lag_ns / 1e6,
        )


@dataclass(slots=True)
class _Open:
    """What is known so far of a batch that has no row yet."""

    first_ns: int
    num_spans: int = 0
    stages: dict[str, _Stage] = field(default_factory=dict[str, _Stage])
    recorded: dict[str, tuple[float, int]] = field(default_factory=dict[str, tuple[float, int]])
    units: dict[str, str] = field(default_factory=dict[str, str])
    scores: dict[str, float] = field(default_factory=dict[str, float])
    root: SpanRecord | None = None
    settled: Settled | None = None

    def is_complete(self) -> bool:
        settled = self.settled
        # opened None: whether a child is still open is unknown, so the batch waits for `settle_s`
        return settled is not None and settled.opened is not None and self.num_spans >= settled.opened


class _Indexes:
    """A set of batch indexes in little memory: a bit each, in blocks; the oldest blocks are forgotten.

    Ten million batches take 2 MB while their indexes are dense; at worst, with gaps above a thousand, the last 10,000
    are remembered.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}

    def __contains__(self, index: int) -> bool:
        return bool(self._blocks.get(index >> _BLOCK_BITS, 0) >> (index & ((1 << _BLOCK_BITS) - 1)) & 1)

    def add(self, index: int) -> None:
        number = index >> _BLOCK_BITS
        if number not in self._blocks and len(self._blocks) >= _BLOCKS_REMEMBERED:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[number] = self._blocks.get(number, 0) | 1 << (index & ((1 << _BLOCK_BITS) - 1))


class Assembler:
    """Joins stamps and settlements by batch index; `finished` yields rows as they become complete.

    Attributes:
        late: spans that came after their row was written.
        overflowed: spans and recorded values whose name was beyond `max_names`.
    """

    def __init__(self, *, settle_s: float, max_names: int = 200, settle_roots: bool = False) -> None:
        """A settled batch waits at most `settle_s` for spans that have not ended.

        With `settle_roots`, a batch is settled by the end of its root span: no mode settles it.
        """
        self._settle_roots = settle_roots
        self._settle_s = settle_s
        self._max_names = max_names
        self._open: dict[int, _Open] = {}
        self._finished = _Indexes()
        self._stage_names: set[str] = set()
        self._value_names: set[str] = set()
        self._complete: deque[int] = deque()
        self._waiting: deque[tuple[float, int]] = deque()
        self.late = 0
        self.overflowed = 0

    def add(self, stamp: Stamp, *, now: float) -> None:
        """Take an ended span; a span outside any batch is in no row."""
        span = stamp.span
        index = span.batch
        if index is None:
            return
        entry = self._entry(index, span.start_ns)
        if entry is None:
            self.late += 1
            return
        entry.num_spans += 1
        if stamp.opened is not None:
            entry.root = span
        elif span.kind == "INTERNAL":  # another kind, such as a client's request, is not a stage
            self._add_stage(entry, span)
        if stamp.recorded:
            self._add_recorded(entry, stamp.recorded)
        if self._settle_roots and span.attributes:
            _add_scores(entry, span.attributes)
        if self._settle_roots and stamp.opened is not None:
            self.settle(_settled_by_root(span, stamp.opened), now=now)
        elif entry.is_complete():
            self._complete.append(index)

    def settle(self, settled: Settled, *, now: float) -> None:
        """Take what the mode says of a batch; `now` is the recorder's clock in seconds."""
        index = settled.batch
        entry = self._entry(index, settled.start_ns)
        if entry is None:
            return
        entry.settled = settled
        if entry.is_complete():
            self._complete.append(index)
        else:
            self._waiting.append((now, index))

    def finished(self, *, now: float, closing: bool = False) -> Iterator[BatchRecord]:
        """Yield rows that are complete, in the order in which they became so; then those that waited long enough.

        With `closing`, yield everything that is left, by index; unsettled batches become `incomplete`.
        """
        while self._complete:
            yield from self._finish(self._complete.popleft())
        while self._waiting and (self._waiting[0][1] not in self._open or now - self._waiting[0][0] >= self._settle_s):
            yield from self._finish(self._waiting.popleft()[1])
        left = sorted(self._open) if closing else list(islice(self._open, max(0, len(self._open) - OPEN_LIMIT)))
        for index in left:
            yield from self._finish(index)

    def _entry(self, index: int, start_ns: int) -> _Open | None:
        """Return the batch's entry, a new one if need be; None when its row is written."""
        entry = self._open.get(index)
        if entry is None:
            if index in self._finished:
                return None
            entry = self._open[index] = _Open(start_ns)
        elif start_ns < entry.first_ns:
            entry.first_ns = start_ns
        return entry

    def _finish(self, index: int) -> Iterator[BatchRecord]:
        entry = self._open.pop(index, None)
        if entry is not None:
            self._finished.add(index)
            yield self._row(index, entry)

    def _row(self, index: int, entry: _Open) -> BatchRecord:
        root, settled = entry.root, entry.settled or _unsettled(index, entry)
        missing = max(0, (settled.opened or 0) - entry.num_spans)
        never_ended = missing > 0 or (root is None and settled.opened != 0)
        record = BatchRecord(
            batch=index,
            source_batch=settled.source_batch,
            repeat=settled.repeat,
            start_ns=root.start_ns if root else settled.start_ns,
            size=settled.size,
            status="incomplete" if never_ended and settled.status in ("scored", "done") else settled.status,
            source_wait_ms=settled.source_wait_ms,
            stages={name: stage.time() for name, stage in sorted(entry.stages.items(), key=_by_first)},
            accuracy=dict(settled.accuracy) or entry.scores,
            data={name: total / count for name, (total, count) in entry.recorded.items()},
            units=entry.units,
            samples=settled.samples,
            error=settled.error or (f"{missing} opened spans never ended" if missing else ""),
            spans_missing=missing,
        )
        if root is not None:
            started = root.start_ns if settled.source_time_ns is None else settled.source_time_ns
            record.latency_ms = (root.end_ns - started) / 1e6
        if entry.scores and record.status == "done":
            record.status = "scored"
        return record

    def _add_stage(self, entry: _Open, span: SpanRecord) -> None:
        kind = span.attributes.get(KIND) if span.attributes else None
        if kind is not None and kind != "queue":
            return
        name = span.name.removeprefix("queue ") if kind else span.name
        stage = entry.stages.get(name)
        if stage is None:
            if not self._has_room(self._stage_names, name):
                return
            stage = entry.stages[name] = _Stage(span.start_ns)
        elif span.start_ns < stage.first_ns:
            stage.first_ns = span.start_ns
        duration_ns = span.end_ns - span.start_ns
        if kind:
            stage.queue_ns = (stage.queue_ns or 0) + duration_ns
            return
        stage.calls += 1
        stage.host_ns += duration_ns
        if span.device_ns is not None:
            stage.device_ns = (stage.device_ns or 0) + span.device_ns
        if span.lag_ns is not None:
            stage.lag_ns = (stage.lag_ns or 0) + span.lag_ns

    def _add_recorded(self, entry: _Open, recorded: Sequence[Recorded]) -> None:
        for name, value, unit in recorded:
            if not self._has_room(self._value_names, name):
                continue
            total, count = entry.recorded.get(name, (0.0, 0))
            entry.recorded[name] = (total + value, count + 1)
            if unit:
                entry.units[name] = unit

    def _has_room(self, names: set[str], name: str) -> bool:
        """Return whether `name` may have a column and a W&B key; programs may invent names without end."""
        if name not in names:
            if len(names) >= self._max_names:
                self.overflowed += 1
                return False
            names.add(name)
        return True


def _by_first(item: tuple[str, _Stage]) -> int:
    return item[1].first_ns


def _unsettled(index: int, entry: _Open) -> Settled:
    """Return what is known of a batch that the mode never settled."""
    if entry.root is None:
        return Settled(index, index, 0, 0, "incomplete", None, entry.first_ns, error="its root span never ended")
    by_root = _settled_by_root(entry.root, -1)
    return replace(by_root, status="incomplete", error=by_root.error or "it went through, but was never settled")


def _settled_by_root(root: SpanRecord, opened: int) -> Settled:
    """Return what the root span says of its batch."""
    index, failed = root.batch or 0, root.status == "ERROR"
    size = root.attributes.get(BATCH_SIZE, 1)
    return Settled(
        batch=index,
        source_batch=index,
        repeat=0,
        size=int(size) if isinstance(size, int | float) and math.isfinite(size) else 1,
        status="failed" if failed else "done",
        opened=None if opened < 0 else opened,
        start_ns=root.start_ns,
        error=root.status_message if failed else "",
    )


def _add_scores(entry: _Open, attributes: Mapping[str, Any]) -> None:
    """Take the values of `score()`; of two spans the later one wins."""
    for key, value in attributes.items():
        if key.startswith(SCORED) and isinstance(value, int | float):
            entry.scores[key.removeprefix(SCORED)] = float(value)
