"""The nouns that travel: a Batch through the pipeline, a SpanRecord and a BatchRecord through the recorder.

Standard library only, so that both processes and every layer can import it for free. It knows neither how a record
is measured nor where it is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["scored", "done", "skipped", "failed", "incomplete"]
"""How a batch ended.

scored: finished and scored; done: finished, nothing to score it by; skipped: it or its score failed and
`eval.on_error=skip`; failed: it ended the run; incomplete: a span of it never ended.
"""
COUNTED: tuple[Status, ...] = ("scored", "done")
"""Statuses whose latencies count. A batch that failed, or never ended, has no latency that says anything."""

AttributeValue = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]

BATCH_INDEX = "batch.index"
"""Attribute of a batch's root span: the number that joins spans, rows, samples and W&B steps."""
BATCH_SIZE = "batch.size"
"""Attribute of a batch's root span: the number of items in it."""
KIND = "mlotel.kind"
"""Attribute that marks spans which are no stage; the value `queue` means waiting before a stage."""
QUEUE = "queue"
"""Value of `mlotel.kind` of a span in which a batch waits, and the first word of its name."""
RECORDED = "mlotel.data."
"""Prefix of the attributes that carry `record()` values through a foreign OpenTelemetry SDK."""
SCORED = "mlotel.accuracy."
"""Prefix of the attributes that carry `score()` values: the accuracy of a batch whose loop is the user's own."""
BATCH_SPAN = "batch"
"""Name of a batch's root span."""


@dataclass(slots=True)
class Batch:
    """One step of work: what a source yields and a pipeline turns into an output.

    Attributes:
        index: position in the source, from 0.
        ids: one stable name per item, `size` of them.
        data: the pipeline's input, of any type.
        targets: what the metrics compare the output with; None when there is nothing to score.
        size: number of items; throughput counts them.
        source_time_ns: arrival on the `perf_counter_ns` clock for live input; None for a data set. Latency starts
            here when it is set.
    """

    index: int
    ids: Sequence[str]
    data: Any
    targets: Any = None
    size: int = 1
    source_time_ns: int | None = None


@dataclass(slots=True)
class SpanRecord:
    """One ended span. Times are nanoseconds since the epoch, on a clock anchored once per process.

    `parent_id` is 0 for a root. `batch` is the index of the batch it belongs to, None outside any. `device_ns` is the
    time between its two device events, None where there are none, and `lag_ns` how long the device went on after the
    host was done: `end_ns` is the later of the two. `events` are (time_ns, name, attributes), `links` (trace_id,
    span_id, attributes).
    """

    trace_id: int
    span_id: int
    parent_id: int
    batch: int | None
    name: str
    kind: str
    scope: str
    thread: str
    start_ns: int
    end_ns: int
    device_ns: int | None = None
    status: str = "UNSET"
    status_message: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    events: Sequence[tuple[int, str, Mapping[str, Any]]] = ()
    links: Sequence[tuple[int, int, Mapping[str, Any]]] = ()
    lag_ns: int | None = None


SpanRole = Literal["batch", "compute", "waiting"]
"""What a span is to its batch: the root, work, or waiting in a queue."""


def span_role(span: SpanRecord) -> SpanRole:
    """The role of a span. A batch's root may lie below a span that belongs to no batch, such as an epoch."""
    if not span.parent_id or BATCH_INDEX in span.attributes:
        return "batch"
    return "waiting" if span.attributes.get(KIND) == QUEUE else "compute"


@dataclass(slots=True)
class StageTime:
    """What one stage cost in one batch, summed over its `calls` spans of the same name. Milliseconds.

    `host_ms` ends when the result exists, which on CUDA is `lag_ms` after the host was done.
    """

    host_ms: float = 0.0
    device_ms: float | None = None
    queue_ms: float | None = None
    calls: int = 0
    lag_ms: float | None = None


@dataclass(slots=True)
class Sample:
    """One item of a batch: its id, its scores, and prediction and target as JSON text when they are small.

    `image` is a small PNG of it, for the worst samples of a metric that can draw one.
    """

    id: str
    scores: Mapping[str, float | None]
    prediction: str | None = None
    target: str | None = None
    image: bytes | None = None


@dataclass(slots=True)
class BatchRecord:
    """One row: the accuracy and the latencies of one batch, together.

    Attributes:
        batch: index in the run; rises over repeats, joins everything.
        source_batch: index in the source.
        repeat: which pass over the source, from 0.
        start_ns: start of the batch, ns since the epoch.
        size: number of items.
        status: how it ended.
        latency_ms: start (or arrival, for live input) to end of the root span; None when the root never ended.
        source_wait_ms: how long the executor waited for the source to deliver it.
        stages: time by stage name, in order of first appearance.
        accuracy: this batch's score by metric name; a metric without a per-batch score is absent.
        data: values given to `record()`, the mean of the batch when called several times.
        units: unit by recorded name, for those that have one.
        error: why it was skipped or failed; empty otherwise.
        spans_missing: opened children that never ended.
    """

    batch: int
    source_batch: int
    repeat: int
    start_ns: int
    size: int
    status: Status
    latency_ms: float | None = None
    source_wait_ms: float | None = None
    stages: dict[str, StageTime] = field(default_factory=dict[str, StageTime])
    accuracy: dict[str, float] = field(default_factory=dict[str, float])
    data: dict[str, float] = field(default_factory=dict[str, float])
    units: dict[str, str] = field(default_factory=dict[str, str])
    samples: list[Sample] = field(default_factory=list[Sample])
    error: str = ""
    spans_missing: int = 0


def valid_text(text: str) -> str:
    """Return `text` with escapes for what UTF-8 cannot hold, such as the bytes of a file name in another encoding."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
