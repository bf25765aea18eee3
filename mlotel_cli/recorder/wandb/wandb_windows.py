"""What W&B gets of a monitor: one row per window of time, for any number of batches in it.

Pure. Quantiles are within 1 % of a measured value (`recorder.sketch`), means and maxima are exact. Memory does not grow
with the number of batches.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

from mlotel_cli.recorder.sketch import GROWTH, Sketch, mean, middle
from mlotel_cli.recorder.wandb.wandb_rows import KeyNames
from mlotel_cli.records import BatchRecord
from mlotel_cli.wire import Report

WINDOW_AXIS = "window"
"""The key on the x axis of every chart: the number of the window in the run, from 0."""
WALL_TIME = "wall_time"
"""End of the window, seconds since the epoch."""
WINDOW_SECTIONS = ("latency", "device", "queue", "data", "rate", "count", "drop", "source")
"""First part of every other key."""
MAX_BINS = 64
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(slots=True)
class Bins:
    """A histogram: `counts` of values between `edges`, of which there is one more."""

    counts: list[int]
    edges: list[float]


WindowRow = dict[str, float | Bins]


@dataclass(slots=True)
class Window:
    """The sums of one window, from which its row is made.

    Attributes:
        number: which window of the run, from 0.
        seconds: its length.
        ended_s: its end, seconds since the epoch.
        series: times in ms by section and name; the name of a stage begins with a slash.
        recorded: values given to `record()`, by name.
        status: number of batches by status.
        items: number of items in its batches.
        changes: how much each counter of the workload rose, by its W&B key.
        depths: items in each queue, by stage.
    """

    number: int
    seconds: float
    ended_s: float
    series: dict[tuple[str, str], Sketch] = field(default_factory=dict[tuple[str, str], Sketch])
    recorded: dict[str, Sketch] = field(default_factory=dict[str, Sketch])
    status: Counter[str] = field(default_factory=Counter[str])
    items: int = 0
    changes: dict[str, float] = field(default_factory=dict[str, float])
    depths: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def num_batches(self) -> int:
        """Number of batches in the window."""
        return sum(self.status.values())


class WindowBuilder:
    """Adds up batches and the workload's counters until a window is over. Not safe from several threads."""

    def __init__(self, *, window_s: float, started_s: float, now_s: float) -> None:
        """Count windows of `window_s` from `started_s`; a recorder that starts late begins in a later window.

        All times are seconds since the epoch.
        """
        self._window_s = window_s
        self._started_s = started_s
        self._counters: dict[str, float] = {}
        self._reported: dict[str, float] | None = None
        self._depths: dict[str, float] = {}
        self._begin(now_s)

    def add(self, record: BatchRecord) -> None:
        """Count one batch."""
        window = self._window
        window.status[record.status] += 1
        window.items += record.size
        if record.latency_ms is not None:
            self._count(("latency", "batch"), record.latency_ms)
        for name, time in record.stages.items():
            if time.calls:
                self._count(("latency", f"/{name}"), time.host_ms)
            if time.device_ms is not None:
                self._count(("device", f"/{name}"), time.device_ms)
            if time.queue_ms is not None:
                self._count(("queue", f"/{name}"), time.queue_ms)
        for name, value in record.data.items():
            if math.isfinite(value):
                window.recorded.setdefault(name, Sketch()).add(value)

    def take_report(self, report: Report) -> None:
        """Take a report of the workload: counters since the start of the run, and the present depths of queues."""
        source = report.source
        counters = {f"drop/{reason}": float(count) for reason, count in source.dropped.items()}
        counters["source/received"] = float(source.received)
        counters["source/reconnects"] = float(source.reconnects)
        if self._reported is None:  # a second recorder of the run starts from the counts it finds
            self._counters = counters if self._window.number else {}
        self._reported = counters
        self._depths = {name: float(depth) for name, (depth, _) in report.queues.items()}

    def due(self, now_s: float) -> Window | None:
        """End the window and return it once its time is over, else return None."""
        return self.close(now_s) if self._number(now_s) > self._window.number else None

    def close(self, now_s: float) -> Window:
        """End the window now, begin the next, and return the one that ended."""
        window = self._window
        end_s = self._started_s + (window.number + 1) * self._window_s
        window.ended_s = min(now_s, end_s)
        window.seconds = max(1e-3, window.ended_s - self._began_s)
        reported = self._reported or {}
        window.changes = {name: max(0.0, count - self._counters.get(name, 0.0)) for name, count in reported.items()}
        window.depths = dict(self._depths)
        self._counters = dict(reported)
        self._begin(now_s)
        return window

    def _begin(self, now_s: float) -> None:
        self._window = Window(self._number(now_s), 0.0, now_s)
        self._began_s = now_s

    def _number(self, now_s: float) -> int:
        return max(0, int((now_s - self._started_s) / self._window_s))

    def _count(self, series: tuple[str, str], value: float) -> None:
        if math.isfinite(value):
            self._window.series.setdefault(series, Sketch()).add(value)


class WindowRowBuilder:
    """Makes the row of a window; names of stages and values become valid keys."""

    def __init__(self) -> None:
        self._stages = KeyNames({"batch"})
        self._recorded = KeyNames(set())
        self._others = KeyNames(set())

    def row(self, window: Window) -> WindowRow:
        """Return the row of `window`."""
        row: WindowRow = {WINDOW_AXIS: window.number, WALL_TIME: window.ended_s}
        row["rate/batches_per_s"] = window.num_batches / window.seconds
        row["rate/items_per_s"] = window.items / window.seconds
        for status, count in {"done": 0, "failed": 0, **window.status}.items():
            row[f"count/{status}"] = count
        for (section, name), sketch in window.series.items():
            key = self._stages[name[1:]] if name.startswith("/") else name
            for share, value in zip(_SHARES, sketch.quantiles(*_SHARES.values()), strict=True):
                if value is not None:
                    row[f"{section}/{key}_{share}_ms"] = value
            row[f"{section}/{key}_max_ms"] = sketch.largest
        for name, sketch in window.recorded.items():
            key = self._recorded[name]
            row[f"data/{key}"] = bins(sketch)
            row[f"data/{key}_mean"] = mean(sketch) or 0.0
            row[f"data/{key}_p50"] = sketch.quantiles(0.5)[0] or 0.0
        for name, change in window.changes.items():
            section, _, rest = name.partition("/")
            row[f"{section}/{self._others[rest]}"] = change
        for name, depth in window.depths.items():
            row[f"queue/{self._stages[name]}_depth"] = depth
        return row

    @property
    def renamed(self) -> dict[str, str]:
        """Name by W&B key, where the two differ."""
        sections = (("latency/{}_p50_ms", self._stages), ("data/{}", self._recorded), ("drop/{}", self._others))
        return {form.format(key): name for form, names in sections for key, name in names.renamed.items()}


def bins(sketch: Sketch, *, max_bins: int = MAX_BINS) -> Bins:
    """Return a histogram with equal bins of a sketch, each value at the middle of its bucket."""
    values = sorted((middle(bucket), count) for bucket, count in sketch.buckets.items())
    low, high = values[0][0], min(values[-1][0], sketch.largest)
    if high <= low:
        width = abs(low) * (GROWTH - 1) or 1.0
        return Bins([sketch.count], [low - width / 2, low + width / 2])
    num = min(max_bins, 2 * len(values))
    width = (high - low) / num
    filled = [0] * num
    for value, count in values:
        filled[min(num - 1, int((value - low) / width))] += count
    return Bins(filled, [low + width * edge for edge in range(num + 1)])
