"""What W&B gets: rows in batch order, valid keys, merged rows when they come too fast, the worst samples.

Pure and standard library only. It knows how a BatchRecord becomes a W&B row, not how a row is sent.
"""

import heapq
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mlotel_cli.records import BatchRecord, Sample

AXIS = "batch"
"""The key on the x axis of every chart."""
MERGED = "batches_merged"
"""Only in a row that stands for several batches: their number."""
SECTIONS = ("latency", "device", "queue", "accuracy", "data")
"""First part of every key except the two above; W&B makes a panel section of each."""

Row = dict[str, float]

_NOT_IN_A_KEY = re.compile(r"\W")


@dataclass(slots=True)
class KeyNames:
    """Makes the last part of a W&B key from any name; two names never share one.

    W&B sorts and filters only by keys of letters, digits and underscores, and `define_metric("latency/*")` does not
    match a key with a dot. Every other character becomes an underscore; a name whose key is taken gets `_2`, `_3`, ...
    in order of first appearance.

    Attributes:
        taken: keys in use; pass those that no name may get.
    """

    taken: set[str]
    _keys: dict[str, str] = field(default_factory=dict[str, str])

    def __getitem__(self, name: str) -> str:
        """Return the key of `name`, the same on every call."""
        if name not in self._keys:
            plain = _NOT_IN_A_KEY.sub("_", name) or "_"
            key, count = plain, 1
            while key in self.taken:
                count += 1
                key = f"{plain}_{count}"
            self.taken.add(key)
            self._keys[name] = key
        return self._keys[name]

    @property
    def renamed(self) -> dict[str, str]:
        """Name by key, for each name that differs from its key."""
        return {key: name for name, key in self._keys.items() if name != key}


class RowBuilder:
    """Makes one wide row of a record; it has no key for a value that the record lacks."""

    def __init__(self) -> None:
        self._stages = KeyNames({"batch"})
        self._metrics = KeyNames(set())
        self._recorded = KeyNames(set())

    def row(self, record: BatchRecord) -> Row:
        """Return the row of `record`, of any status."""
        row: Row = {AXIS: record.batch}
        if record.latency_ms is not None:
            row["latency/batch_ms"] = record.latency_ms
        for name, times in record.stages.items():
            key = self._stages[name]
            if times.calls:  # a stage that a batch only waited for has no latency
                row[f"latency/{key}_ms"] = times.host_ms
            if times.device_ms is not None:
                row[f"device/{key}_ms"] = times.device_ms
            if times.queue_ms is not None:
                row[f"queue/{key}_ms"] = times.queue_ms
        for name, value in record.accuracy.items():
            row[f"accuracy/{self._metrics[name]}"] = value
        for name, value in record.data.items():
            row[f"data/{self._recorded[name]}"] = value
        return row

    @property
    def renamed(self) -> dict[str, str]:
        """Name by W&B key, for stages, metrics and recorded values whose key differs from the name."""
        sections = (("latency/{}_ms", self._stages), ("accuracy/{}", self._metrics), ("data/{}", self._recorded))
        return {form.format(key): name for form, names in sections for key, name in names.renamed.items()}


class BatchOrder:
    """Puts records back into batch order.

    Records come in completion order. A missing batch holds back those behind it until more than `max_waiting` wait or
    the first of them has waited `max_wait_s`. If it comes later still, it goes out at once, out of order.
    """

    def __init__(
        self, *, max_waiting: int = 1000, max_wait_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._heap: list[tuple[int, int, BatchRecord]] = []
        self._num_pushed = 0
        self._next_batch = 0
        self._stalled_since: float | None = None

    def __len__(self) -> int:
        """Return the number of records that wait."""
        return len(self._heap)

    def push(self, record: BatchRecord) -> None:
        """Take one record."""
        self._num_pushed += 1
        heapq.heappush(self._heap, (record.batch, self._num_pushed, record))

    def ready(self) -> Iterator[BatchRecord]:
        """Remove and yield the records that are due now, in order."""
        while self._heap and (self._heap[0][0] <= self._next_batch or self._gave_up()):
            batch, _, record = heapq.heappop(self._heap)
            self._next_batch = max(self._next_batch, batch + 1)
            self._stalled_since = None
            yield record

    def rest(self) -> Iterator[BatchRecord]:
        """Remove and yield all records that wait, in order, across gaps."""
        while self._heap:
            yield heapq.heappop(self._heap)[2]

    def _gave_up(self) -> bool:
        if self._stalled_since is None:
            self._stalled_since = self._clock()
        waited_s = self._clock() - self._stalled_since
        return len(self._heap) > self._max_waiting or waited_s >= self._max_wait_s


class RowMerger:
    """Merges rows when they come faster than the W&B service takes them.

    Up to `rows_per_minute` rows pass unchanged (a token bucket that starts full, so a run of fewer rows is never
    merged). Above that rate, rows wait and become one: each key's unweighted mean over the rows that have it, the axis
    of the last row, and the number of rows under `batches_merged`.

    Attributes:
        num_merges: rows handed out that stand for several.
        num_merged: rows that they stand for.
    """

    def __init__(self, *, rows_per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = rows_per_minute
        self._per_second = rows_per_minute / 60
        self._clock = clock
        self._tokens = rows_per_minute
        self._refilled = clock()
        self._waiting: list[Row] = []
        self.num_merges = 0
        self.num_merged = 0

    def add(self, row: Row) -> tuple[Row, int] | None:
        """Take a row. Returns the row to log now, with the number of batches in it, or None."""
        self._waiting.append(row)
        return self.due()

    def due(self) -> tuple[Row, int] | None:
        """Return what waits, merged into one row, once the service would take it."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._refilled) * self._per_second)
        self._refilled = now
        if self._tokens < 1:
            return None
        closed = self.close()
        self._tokens -= closed is not None
        return closed

    def close(self) -> tuple[Row, int] | None:
        """Return what waits, merged into one row, at any rate."""
        rows, self._waiting = self._waiting, []
        if not rows:
            return None
        if len(rows) > 1:
            self.num_merges += 1
            self.num_merged += len(rows)
        return _merge(rows), len(rows)


def _merge(rows: list[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    values: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            values.setdefault(key, []).append(value)
    means = {key: sum(column) / len(column) for key, column in values.items()}
    return means | {AXIS: rows[-1][AXIS], MERGED: len(rows)}


class WorstSamples:
    """Keeps the `count` samples with the lowest mean score seen so far, in memory of that size.

    A sample without a score is left out; one with a NaN score is worse than all others. Of two equals the earlier one
    stays.
    """

    def __init__(self, *, count: int = 20) -> None:
        self._count = count
        self._heap: list[tuple[float, int, int, Sample]] = []
        self._num_seen = 0

    def add(self, batch: int, samples: Iterable[Sample]) -> None:
        """Take the samples of one batch."""
        for sample in samples:
            scores = [score for score in sample.scores.values() if score is not None]
            if not scores:
                continue
            self._num_seen += 1
            mean = sum(scores) / len(scores)
            badness = math.inf if math.isnan(mean) else -mean
            entry = (badness, -self._num_seen, batch, sample)
            if len(self._heap) < self._count:
                heapq.heappush(self._heap, entry)
            elif entry > self._heap[0]:
                heapq.heapreplace(self._heap, entry)

    def table(self) -> tuple[list[str], list[list[str | float | bytes | None]]]:
        """Return columns and rows, worst first; both are empty when no sample was scored. Images are PNG bytes."""
        entries = sorted(self._heap, reverse=True)
        names = list(dict.fromkeys(name for entry in entries for name in entry[3].scores))
        rows: list[list[str | float | bytes | None]] = [
            [sample.id, *(sample.scores.get(name) for name in names), sample.prediction, sample.target, batch]
            for _, _, batch, sample in entries
        ]
        columns = ["id", *names, "prediction", "target", "batch"]
        if any(entry[3].image for entry in entries):
            columns.append("image")
            for row, entry in zip(rows, entries, strict=True):
                row.append(entry[3].image)
        return (columns, rows) if rows else ([], [])
