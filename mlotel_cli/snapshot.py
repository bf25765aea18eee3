"""What a monitor's recorder knows of the last minute: told to the workload once a second, and shown on the status page.

Rates, latencies and values are of the last 60 seconds; counts are since the start of the run. It knows neither how the
figures are kept (`recorder.live.live_state`) nor what they look like.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from mlotel_cli.typed_json import OPTIONAL


@dataclass(slots=True)
class LatencyFigures:
    """Latency of batches, milliseconds; None is what so few batches do not tell.

    Attributes:
        count: number of batches.
        p50: median, and further percentiles.
        p95: 95 %.
        p99: 99 %.
        max: largest.
    """

    count: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


@dataclass(slots=True)
class StageNow:
    """One stage; None is what so few batches do not tell, or what was not measured.

    Attributes:
        count: batches that went through it.
        p50_ms: median of its host time.
        p95_ms: 95 % of its host time.
        queue_count: batches that waited for it in a queue.
        queue_p50_ms: median of the wait.
        queue_p95_ms: 95 % of the wait.
        busy: share of the time in which it works.
    """

    count: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    queue_count: int = 0
    queue_p50_ms: float | None = None
    queue_p95_ms: float | None = None
    busy: float = 0.0


@dataclass(slots=True)
class ValueNow:
    """A recorded value: its mean, its median, and its unit, empty where it has none."""

    mean: float | None = None
    p50: float | None = None
    unit: str = ""


@dataclass(slots=True)
class SinkHealth:
    """One place where the recorder puts what it takes.

    Attributes:
        ok: whether it works.
        sent: rows, spans or answers that it took.
        lost: those that it dropped.
        queued: those that wait; None where nothing can wait.
        detail: what is wrong, or where it is.
    """

    ok: bool = True
    sent: int = 0
    lost: int = 0
    queued: int | None = field(default=None, metadata=OPTIONAL)
    detail: str | None = ""


class QueueDepth(NamedTuple):
    """A queue: batches that wait in it, and how many may."""

    depth: int
    capacity: int


@dataclass(slots=True)
class SourceReport:
    """A live source so far.

    Attributes:
        kind: of the source, such as video.
        state: connecting | connected | ended.
        received: items that arrived.
        dropped: items that never ran, by reason.
        reconnects: connections after the first one.
    """

    kind: str = ""
    state: str = ""
    received: int = 0
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    reconnects: int = 0


@dataclass(slots=True)
class Gaps:
    """What is missing from the record of a monitor so far: recorders replaced, and batches lost."""

    recorder_restarts: int = 0
    batches_lost: int = 0


@dataclass(slots=True)
class Snapshot:
    """The figures of one second.

    Attributes:
        uptime_s: since the start of the run.
        batches: however they ended.
        items: in all batches.
        failed: batches that did not go through.
        items_per_s: rate.
        batches_per_s: rate.
        failed_per_s: rate.
        dropped_per_s: rate of items that the source dropped.
        slow_ms: latency above which a batch is listed as slow; None lists none.
        latency_ms: of batches.
        stages: by name; `source` is the wait before the first one.
        queues: by the stage that they are before.
        source: as the workload reports it; None before its first report.
        gaps: as the workload reports them.
        data: recorded values, by name.
        sinks: by name.
        http: address of the status page; None where there is none.
        ready: whether batches can be expected.
    """

    uptime_s: float = 0.0
    batches: int = 0
    items: int = 0
    failed: int = 0
    items_per_s: float = 0.0
    batches_per_s: float = 0.0
    failed_per_s: float = 0.0
    dropped_per_s: float = 0.0
    slow_ms: float | None = None
    latency_ms: LatencyFigures = field(default_factory=LatencyFigures)
    stages: dict[str, StageNow] = field(default_factory=dict[str, StageNow])
    queues: dict[str, QueueDepth] = field(default_factory=dict[str, QueueDepth])
    source: SourceReport | None = None
    gaps: Gaps = field(default_factory=Gaps)
    data: dict[str, ValueNow] = field(default_factory=dict[str, ValueNow])
    sinks: dict[str, SinkHealth] = field(default_factory=dict[str, SinkHealth])
    http: str | None = None
    ready: bool = False
