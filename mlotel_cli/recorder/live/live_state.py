"""What happens now: rates, latencies and values of the last minute, and their course over the last half hour.

The recorder's main thread keeps it; once a second `publish` makes a copy that any thread may read. Memory is bounded,
however long the run and however fast the batches: slots of time, buckets of values, a limit on names.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from mlotel_cli.recorder.sketch import RollingSketch, Sketch, mean
from mlotel_cli.recorder.workload import Workload
from mlotel_cli.records import COUNTED, BatchRecord
from mlotel_cli.snapshot import LatencyFigures, SinkHealth, Snapshot, StageNow, ValueNow
from mlotel_cli.stats.thresholds import MIN_EFFECTIVE_N
from mlotel_cli.store.run_json import Totals

SLOT_S = 1.0
WINDOW_SLOTS = 60
POINT_SLOTS = 10
"""A chart has a point every ten seconds."""
NUM_POINTS = 180
"""A chart shows half an hour."""
_SLOTS_REMEMBERED = POINT_SLOTS * NUM_POINTS
MAX_NAMES = 64
"""At most so many stages and values are shown; metrics have a limit of their own."""
MAX_EVENTS = 8
_ARRIVALS = 10

Point = float | None


@dataclass(slots=True, frozen=True)
class Event:
    """A batch that was slow, or that failed.

    `stage` is the one that took longest, waiting before it included, and `stage_ms` is what it took.
    """

    batch: int
    start_ns: int
    latency_ms: float | None
    stage: str
    stage_ms: float
    error: str


@dataclass(slots=True, frozen=True)
class Published:
    """What other threads read: `snapshot` for the workload and the status page, the rest for the page.

    Attributes:
        at_s: when, on the recorder's clock.
        snapshot: the rolling figures.
        charts: by kind and name, oldest first, one point every ten seconds.
        slow: newest first, at most one a second.
        failed: newest first.
    """

    at_s: float
    snapshot: Snapshot
    charts: Mapping[tuple[str, str], tuple[Point, ...]]
    slow: tuple[Event, ...]
    failed: tuple[Event, ...]


class Series:
    """The last minute of a figure, and its course."""

    __slots__ = ("_interval", "course", "window")

    def __init__(self) -> None:
        self.window = RollingSketch(WINDOW_SLOTS)
        self.course: deque[tuple[Point, Point, Point]] = deque(maxlen=NUM_POINTS)
        self._interval = Sketch()

    def rotate(self, *, is_point: bool) -> None:
        """End a slot, and a point of the chart where `is_point`."""
        self._interval.merge(self.window.rotate())
        if is_point:
            p50, p95 = self._interval.quantiles(0.5, 0.95)
            self.course.append((mean(self._interval), p50, p95))
            self._interval = Sketch()


class Rates:
    """Counts of the last minute, and the rates of the last half hour."""

    __slots__ = ("_interval", "_slots", "course", "current", "total")

    def __init__(self) -> None:
        self._slots: deque[int] = deque(maxlen=WINDOW_SLOTS)
        self.course: deque[Point] = deque(maxlen=NUM_POINTS)
        self._interval = self.current = self.total = 0

    def add(self, count: int) -> None:
        """Add to the slot that goes on, and to the total."""
        self.current += count
        self.total += count

    def rotate(self, *, is_point: bool) -> None:
        """End a slot, and a point of the chart where `is_point`."""
        self._slots.append(self.current)
        self._interval += self.current
        self.current = 0
        if is_point:
            self.course.append(self._interval / (POINT_SLOTS * SLOT_S))
            self._interval = 0

    def per_s(self) -> float:
        """Return the rate over the slots that have ended."""
        return sum(self._slots) / (len(self._slots) * SLOT_S) if self._slots else 0.0


class LiveState:
    """Rolling statistics of batches. One thread does everything but read what was published.

    Attributes:
        slow_ms: latency above which a batch is listed as slow; None lists none.
        batch_s: when the last batch came, on the recorder's clock.
        usual_gap_s: between two batches, by the last few; 0 while there are not enough.
    """

    def __init__(self, *, now: float, earlier: Totals | None = None, earlier_s: float = 0.0) -> None:
        """Begin at `now` seconds of the recorder's clock, `earlier_s` into a run whose counts so far are `earlier`."""
        self._began = self._slot_began = now
        self._earlier_s = earlier_s
        self.slow_ms: float | None = None
        self._latency = Series()
        self._host: dict[str, Series] = {}
        self._queue: dict[str, Series] = {}
        self._data: dict[str, Series] = {}
        self._units: dict[str, str] = {}
        self._batches, self._items, self._failures, self._dropped = Rates(), Rates(), Rates(), Rates()
        if earlier is not None:
            self._batches.total, self._items.total = earlier.rows, earlier.items
            self._failures.total = earlier.rows - sum(earlier.batches[status] for status in COUNTED)
        self._slots = 0
        self._slowest: BatchRecord | None = None
        self._slow: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._failed: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.batch_s: float | None = None
        self.usual_gap_s = 0.0
        self._arrivals: deque[float] = deque(maxlen=_ARRIVALS)

    def add(self, record: BatchRecord, *, now: float) -> None:
        """Count a finished row."""
        self._batches.add(1)
        self._items.add(record.size)
        self.batch_s = now
        self._arrivals.append(now)
        if record.status not in COUNTED:
            self._failures.add(1)
            self._failed.appendleft(_event(record))
            return
        if record.latency_ms is not None:
            self._latency.window.add(record.latency_ms)
            slow_ms = self.slow_ms if self._slowest is None else self._slowest.latency_ms
            if slow_ms is not None and record.latency_ms > slow_ms:
                self._slowest = record
        for name, time in record.stages.items():
            if time.calls:
                self._add(self._host, name, time.host_ms)
            if time.queue_ms is not None:
                self._add(self._queue, name, time.queue_ms)
        for name, value in record.data.items():
            if math.isfinite(value):
                self._add(self._data, name, value)
        if record.units:
            self._units.update(record.units)

    def drop(self, count: int) -> None:
        """Count items that the source dropped."""
        self._dropped.add(count)

    def advance(self, *, now: float) -> bool:
        """End the slots that are over by now. Returns whether there were any, and it is time to publish."""
        over = int((now - self._slot_began) / SLOT_S)
        for _ in range(min(over, _SLOTS_REMEMBERED)):
            self._rotate()
        self._slot_began += over * SLOT_S
        if over > 0 and len(self._arrivals) > 2:
            self.usual_gap_s = median(later - earlier for earlier, later in pairwise(self._arrivals))
        return over > 0

    def publish(
        self, *, now: float, workload: Workload, sinks: Mapping[str, SinkHealth], http: str | None, ready: bool
    ) -> Published:
        """Return a copy of what is known now, for other threads."""
        seconds = max(min(now - self._began, WINDOW_SLOTS * SLOT_S), SLOT_S)
        snapshot = Snapshot(
            uptime_s=self._earlier_s + now - self._began,
            batches=self._batches.total,
            items=self._items.total,
            failed=self._failures.total,
            items_per_s=self._items.per_s(),
            batches_per_s=self._batches.per_s(),
            failed_per_s=self._failures.per_s(),
            dropped_per_s=self._dropped.per_s(),
            slow_ms=self.slow_ms,
            latency_ms=_latency(self._latency.window.sketch()),
            stages={name: self._stage(name, seconds=seconds) for name in self._host | self._queue},
            queues=dict(workload.queues),
            source=None if workload.heard_s is None else workload.source,
            gaps=workload.gaps,
            data={name: self._value(name, series) for name, series in self._data.items()},
            sinks=dict(sinks),
            http=http,
            ready=ready,
        )
        return Published(now, snapshot, self._charts(), tuple(self._slow), tuple(self._failed))

    def _add(self, series: dict[str, Series], name: str, value: float) -> None:
        found = series.get(name)
        if found is None:
            if len(series) >= MAX_NAMES:
                return
            found = series[name] = Series()
        found.window.add(value)

    def _rotate(self) -> None:
        self._slots += 1
        is_point = self._slots % POINT_SLOTS == 0
        for series in (self._latency, *self._host.values(), *self._queue.values(), *self._data.values()):
            series.rotate(is_point=is_point)
        for rates in (self._batches, self._items, self._failures, self._dropped):
            rates.rotate(is_point=is_point)
        if self._slowest is not None:
            self._slow.appendleft(_event(self._slowest))
            self._slowest = None

    def _stage(self, name: str, *, seconds: float) -> StageNow:
        host, queue = _counts(self._host.get(name)), _counts(self._queue.get(name))
        (p50_ms, p95_ms, _), (queue_p50_ms, queue_p95_ms, _) = _percentiles(host), _percentiles(queue)
        return StageNow(
            count=host.count,
            p50_ms=p50_ms,
            p95_ms=p95_ms,
            queue_count=queue.count,
            queue_p50_ms=queue_p50_ms,
            queue_p95_ms=queue_p95_ms,
            busy=host.total / 1e3 / seconds,
        )

    def _value(self, name: str, series: Series) -> ValueNow:
        counts = series.window.sketch()
        return ValueNow(mean(counts), counts.quantiles(0.5)[0], self._units.get(name, ""))

    def _charts(self) -> dict[tuple[str, str], tuple[Point, ...]]:
        charts: dict[tuple[str, str], tuple[Point, ...]] = {
            ("latency", "p50"): tuple(p50 for _, p50, _ in self._latency.course),
            ("latency", "p95"): tuple(p95 for _, _, p95 in self._latency.course),
            ("rate", "items"): tuple(self._items.course),
            ("rate", "dropped"): tuple(self._dropped.course),
        }
        for name, series in self._host.items():
            charts["stage", name] = tuple(p95 for _, _, p95 in series.course)
        for name, series in self._data.items():
            charts["data", name] = tuple(average for average, _, _ in series.course)
        return charts


def _latency(counts: Sketch) -> LatencyFigures:
    p50, p95, p99 = _percentiles(counts)
    return LatencyFigures(counts.count, p50, p95, p99, max=counts.largest if counts.count else None)


def _percentiles(counts: Sketch) -> tuple[float | None, float | None, float | None]:
    """p50, p95, p99; None where there are too few values for one, as in the table of an evaluation."""
    p50, p95, p99 = counts.quantiles(0.5, 0.95, 0.99)
    enough = MIN_EFFECTIVE_N
    return p50, p95 if counts.count >= enough["p95"] else None, p99 if counts.count >= enough["p99"] else None


def _counts(series: Series | None) -> Sketch:
    return series.window.sketch() if series else Sketch()


def _event(record: BatchRecord) -> Event:
    longest = {name: time.host_ms + (time.queue_ms or 0.0) for name, time in record.stages.items()}
    stage = max(longest, key=longest.__getitem__, default="")
    return Event(record.batch, record.start_ns, record.latency_ms, stage, longest.get(stage, 0.0), record.error)
