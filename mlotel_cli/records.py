"""The data types of the package: Batch in the pipeline, SpanRecord and BatchRecord in the recorder.

Standard library only, so that both processes and every layer can import it cheaply. It does not know how records are
measured or written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Status = Literal["scored", "done", "skipped", "failed", "incomplete"]
"""How a batch ended.

scored: finished and scored; done: finished without a score; skipped: it or its score failed with
`eval.on_error=skip`; failed: it ended the run; incomplete: one of its spans never ended.
"""
COUNTED: tuple[Status, ...] = ("scored", "done")
"""Statuses whose latencies count. The latency of a batch that failed or never ended is meaningless."""

Recorded = tuple[str, float, str]
"""A value given to `record()`: its name, the value, its unit."""
AttributeValue = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]

BATCH_INDEX = "batch.index"
"""Attribute of a batch's root span: the number that joins spans, rows, samples and W&B steps."""
BATCH_SIZE = "batch.size"
"""Attribute of a batch's root span: the number of items in it."""
KIND = "mlotel.kind"
"""Attribute of spans that are not stages; the value `queue` means waiting before a stage."""
QUEUE = "queue"
"""Value of `mlotel.kind` of a span in which a batch waits, and the first word of its name."""
RECORDED = "mlotel.data."
"""Prefix of the attributes that hold `record()` values in spans of another OpenTelemetry SDK."""
SCORED = "mlotel.accuracy."
"""Prefix of the attributes that hold `score()` values: the accuracy of a batch in the user's own loop."""
BATCH_SPAN = "batch"
"""Name of a batch's root span."""


@dataclass(slots=True)
class Batch:
    """The input of the pipeline for one step, from a source.

    Attributes:
        index: position in the source, from 0.
        ids: one stable name per item, `size` of them.
        data: the pipeline's input, of any type.
        targets: the metrics compare the output with it; None when there is nothing to score.
        size: number of items; throughput counts them.
        source_time_ns: arrival on the `perf_counter_ns` clock for live input, where latency starts; None for a data
            set.
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
    time between its two device events, None without them. `lag_ns` is how long the device worked after the host's end;
    `end_ns` is the later of the two ends. `events` are (time_ns, name, attributes), `links` (trace_id, span_id,
    attributes).
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


def recorded_in(attributes: Mapping[str, Any]) -> list[Recorded]:
    """The values that `record()` left in the attributes of a span of another OpenTelemetry SDK."""
    found: list[Recorded] = []
    for name, given in attributes.items():
        if name.startswith(RECORDED):
            unit = str(attributes.get(f"{name}.unit", ""))
            values = cast("tuple[Any, ...]", given) if isinstance(given, tuple | list) else (given,)
            found += [(name.removeprefix(RECORDED), float(v), unit) for v in values if isinstance(v, int | float)]
    return found


SpanRole = Literal["batch", "compute", "waiting"]
"""The role of a span in its batch: the root, work, or waiting in a queue."""


def span_role(span: SpanRecord) -> SpanRole:
    """Return the role of a span. A batch's root may have a parent outside the batch, such as an epoch."""
    if not span.parent_id or BATCH_INDEX in span.attributes:
        return "batch"
    return "waiting" if span.attributes.get(KIND) == QUEUE else "compute"


@dataclass(slots=True)
class StageTime:
    """The time of one stage in one batch, summed over its `calls` spans of the same name. Milliseconds.

    `host_ms` ends when the result exists, which on CUDA is `lag_ms` after the host's end.
    """

    host_ms: float = 0.0
    device_ms: float | None = None
    queue_ms: float | None = None
    calls: int = 0
    lag_ms: float | None = None


@dataclass(slots=True)
class Sample:
    """One item of a batch: its id, its scores, and prediction and target as JSON text when they are small.

    `image` is a small PNG, for the worst samples of a metric with `sample_image`.
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
        batch: index in the run, which rises over all repeats; joins rows, spans and samples.
        source_batch: index in the source.
        repeat: number of the pass over the source, from 0.
        start_ns: start of the batch, ns since the epoch.
        size: number of items.
        status: how the batch ended.
        latency_ms: time from the start (for live input: the arrival) to the end of the root span; None when the root
            never ended.
        source_wait_ms: how long the executor waited for the source.
        stages: time by stage name, in order of first appearance.
        accuracy: the batch's score by metric name; a metric without a per-batch score is absent.
        data: values of `record()` by name; the mean when recorded several times.
        units: unit by recorded name, for values with a unit.
        error: why the batch was skipped or failed; empty otherwise.
        spans_missing: number of opened children that never ended.
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
    """Return `text` with escapes for characters that UTF-8 cannot encode, as in a file name of another encoding."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
