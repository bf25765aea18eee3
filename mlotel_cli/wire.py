"""Every message between the workload and its recorder, declared once and used by both ends.

The workload sends frames: four bytes of length (little-endian), then a marshalled list of tuples, one a message. The
first item of a tuple says which message it is. A span or a settlement is its fields in their declared order, because
marshal writes plain objects fastest; every other message is one JSON text. The recorder answers with one JSON object a
line.

Both processes run the same Python, so marshal's format is the same on both sides.
"""

import json
import marshal
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from mlotel_cli.config.policies import OtlpSettings, Retention, TrackerOptions
from mlotel_cli.records import Recorded, Sample, SpanRecord, Status, recorded_in
from mlotel_cli.snapshot import Gaps, QueueDepth, Snapshot, SourceReport
from mlotel_cli.summary import Telemetry, Warmup
from mlotel_cli.typed_json import to_json

Content = TypeVar("Content")

_LENGTH = struct.Struct("<I")
_UNWRITABLE = (TypeError, ValueError, OverflowError, RecursionError)
SPAN = "span"
_SETTLE, _OPEN, _INFO, _ATTACH, _REPORT, _CLOSE = "settle", "open", "info", "attach", "report", "close"


class SpanMessage(NamedTuple):
    """One ended span, as the workload hands it over. Times are nanoseconds since the epoch.

    Attributes:
        trace_id: id of the trace.
        span_id: id of the span.
        parent_id: 0 for a root.
        opened: for the root of a batch, how many spans were opened in the batch, -1 where that is unknown; None for
            every other span.
        batch: index of the batch; None outside any.
        name: of the span.
        kind: OpenTelemetry's span kind, such as INTERNAL.
        scope: name of the instrumenting module.
        thread: name of the thread that opened the span.
        start_ns: start.
        end_ns: end; on CUDA the later end of host and device.
        device_ns: time between the two device events; None without them.
        lag_ns: how long the device went on after the host; None without device events.
        status: UNSET | OK | ERROR.
        status_message: why it failed.
        attributes: of the span.
        events: (time_ns, name, attributes) each.
        links: (trace_id, span_id, attributes) each.
        recorded: values of `record()`.
    """

    trace_id: int
    span_id: int
    parent_id: int
    opened: int | None
    batch: int | None
    name: str
    kind: str
    scope: str
    thread: str
    start_ns: int
    end_ns: int
    device_ns: int | None = None
    lag_ns: int | None = None
    status: str = "UNSET"
    status_message: str = ""
    attributes: Mapping[str, Any] | None = None
    events: Sequence[tuple[int, str, Mapping[str, Any]]] | None = None
    links: Sequence[tuple[int, int, Mapping[str, Any]]] | None = None
    recorded: Sequence[Recorded] | None = None


@dataclass(slots=True)
class Stamp:
    """A span as the recorder receives it. `opened` and `recorded` are those of `SpanMessage`."""

    span: SpanRecord
    opened: int | None
    recorded: Sequence[Recorded]


@dataclass(slots=True)
class Settled:
    """How a batch ended, as the mode knows it. Times are nanoseconds since the epoch.

    Attributes:
        batch: index in the run.
        source_batch: index in the source.
        repeat: which pass over the source, from 0.
        size: number of items.
        status: how the batch ended.
        opened: number of spans opened in it; None where that is unknown.
        start_ns: when the executor picked it up.
        source_wait_ms: how long the executor waited for the source.
        source_time_ns: arrival of live input; latency then starts here.
        accuracy: the batch's score by metric.
        samples: its items with their scores.
        error: why it was skipped or failed.
    """

    batch: int
    source_batch: int
    repeat: int
    size: int
    status: Status
    opened: int | None
    start_ns: int
    source_wait_ms: float | None = None
    source_time_ns: int | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict[str, float])
    samples: list[Sample] = field(default_factory=list[Sample])
    error: str = ""


@dataclass(slots=True)
class OtlpOptions(OtlpSettings):
    """The keys of `telemetry.otlp`. With `from_environment` false the OTEL_EXPORTER_OTLP_* variables do not apply."""

    from_environment: bool = True


@dataclass(slots=True, kw_only=True)
class HttpOptions:
    """Where a monitor's recorder serves HTTP; `fd` is a socket that listens there already, inherited."""

    host: str = "127.0.0.1"
    port: int = 0
    fd: int | None = None


@dataclass(slots=True, kw_only=True)
class MonitorOptions:
    """What only the recorder of a monitor needs.

    Attributes:
        http: where it serves metrics, health and the status page.
        window_s: seconds that one W&B row sums up.
        slow_ms: a slower batch keeps its trace; None takes the p99 of the last minutes.
        background_rate: share of all other batches that keep their trace.
        retention: how much stays on disk.
        restarts: recorders of this run before this one.
    """

    http: HttpOptions = field(default_factory=HttpOptions)
    window_s: float = 15.0
    slow_ms: float | None = None
    background_rate: float = 0.01
    retention: Retention = field(default_factory=Retention)
    restarts: int = 0


@dataclass(slots=True, kw_only=True)
class Opening:
    """The first message: what the recorder must know of a run.

    Attributes:
        mode: eval | profile | monitor | loop (a program's own loop or SDK).
        name: the run's name.
        run_id: `mlotel.run.id`.
        started_ns: start, nanoseconds since the epoch.
        overrides: the command line's Hydra overrides.
        config: the resolved configuration, as plain values.
        identity: service.name, service.instance.id, mlotel.run.id, git.commit, config.hash.
        tracker: W&B.
        otlp: OTLP.
        monitor: for a monitor; None for every other mode.
        settle_s: how long a settled batch waits for spans that have not ended.
        part_s: seconds between Parquet parts.
        max_names: distinct stage names kept apart.
        settle_roots: the end of a root span settles its batch, because no mode does.
    """

    mode: str
    name: str
    run_id: str
    started_ns: int
    overrides: list[str] = field(default_factory=list[str])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    identity: dict[str, Any] = field(default_factory=dict[str, Any])
    tracker: TrackerOptions = field(default_factory=TrackerOptions)
    otlp: OtlpOptions = field(default_factory=OtlpOptions)
    monitor: MonitorOptions | None = None
    settle_s: float = 5.0
    part_s: float = 1.0
    max_names: int = 200
    settle_roots: bool = False

    @property
    def restarts(self) -> int:
        """Recorders of this run before this one."""
        return 0 if self.monitor is None else self.monitor.restarts


@dataclass(slots=True)
class Closing:
    """The last message: how the run ended, as only the workload knows it.

    Attributes:
        status: complete | failed | interrupted.
        error: why it failed.
        accuracy: every metric over the run; None where it cannot be computed.
        accuracy_ci95: [low, high] of the metrics that know their own interval.
        wall_s: seconds from the first batch to the last, scoring included.
        scoring_s: the part of it that scoring took, and that would not have passed without scoring.
        caller_s: seconds that scoring took, also beside running stages.
        cpu_s: processor time of all threads over `wall_s`.
        cores: processor cores that they may use.
        warmup: batches that ran before.
        telemetry: the counters of the workload's side; the recorder adds its own.
        span_cost_us: estimated cost of a span.
        spans_emitted: spans handed over; the link fills it in.
    """

    status: str = "complete"
    error: str = ""
    accuracy: dict[str, float | None] = field(default_factory=dict[str, float | None])
    accuracy_ci95: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    wall_s: float | None = None
    scoring_s: float | None = None
    caller_s: float | None = None
    cpu_s: float | None = None
    cores: int | None = None
    warmup: Warmup | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)
    span_cost_us: float | None = None
    spans_emitted: int = 0


@dataclass(slots=True, frozen=True)
class Info:
    """Something to add to run.json, as JSON text; its `config` goes to the tracker, its `notes` are appended."""

    text: str

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Info":
        """Return the message with `content`; a value that JSON has no type for becomes text."""
        return cls(json.dumps(content, default=str))

    @property
    def content(self) -> dict[str, Any]:
        """The mapping to add."""
        return json.loads(self.text)


@dataclass(slots=True)
class Attachment:
    """A table and files that the tracker keeps with the run.

    Attributes:
        name: name of the table.
        columns: its column names.
        rows: its rows.
        chart: column of labels, column of values, title of a bar chart.
        files: paths of an artifact.
    """

    name: str
    columns: list[str]
    rows: list[list[Any]]
    chart: tuple[str, str, str]
    files: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class ProcessReport:
    """The workload's process: resident memory, processor time since its start, process id."""

    rss_bytes: int | None = None
    cpu_s: float | None = None
    pid: int | None = None


@dataclass(slots=True)
class Report:
    """What a monitor's workload tells its recorder once a second. `queues` is by the stage that they are before."""

    source: SourceReport = field(default_factory=SourceReport)
    queues: dict[str, QueueDepth] = field(default_factory=dict[str, QueueDepth])
    process: ProcessReport = field(default_factory=ProcessReport)
    gaps: Gaps = field(default_factory=Gaps)


Message = SpanMessage | Settled | Opening | Info | Attachment | Report | Closing
"""What the workload sends."""
PackedSpan = tuple[Any, ...]
"""`SPAN` and the fields of a `SpanMessage`, as one plain tuple: the tracer's own spans skip the object for speed."""
Received = Stamp | Settled | Opening | Info | Attachment | Report | Closing
"""What the recorder reads; a span comes as a `Stamp`."""

_TAGS: Mapping[type[Any], str] = {Opening: _OPEN, Attachment: _ATTACH, Report: _REPORT, Closing: _CLOSE}
_CLASSES: Mapping[str, type[Any]] = {tag: kind for kind, tag in _TAGS.items()}


# -- from the workload to the recorder ---------------------------------------------------------------------------------


def encode(messages: Sequence[Message | PackedSpan], *, lose: Callable[[Message, Exception], None]) -> bytes:
    """Return one frame. A message that cannot be written is left out and passed to `lose` with the reason."""
    try:
        payload = marshal.dumps([each if type(each) is tuple else _pack(cast("Message", each)) for each in messages])
    except _UNWRITABLE:  # the others are kept
        alone = (_pack_alone(message, lose) for message in messages)
        payload = marshal.dumps([packed for packed in alone if packed is not None])
    return _LENGTH.pack(len(payload)) + payload


def split_frames(buffer: bytearray) -> Iterator[list[tuple[Any, ...]]]:
    """Take whole frames from the front of `buffer`; each is a list of packed messages for `unpack`.

    Raises:
        ValueError: for bytes that are no frame.
    """
    while len(buffer) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer)
        end = _LENGTH.size + length
        if len(buffer) < end:
            return
        try:
            frame = marshal.loads(buffer[_LENGTH.size : end])
        except (EOFError, TypeError, ValueError) as error:
            raise ValueError(f"the workload sent what cannot be read: {error}") from error
        del buffer[:end]
        yield frame


def unpack(packed: tuple[Any, ...]) -> Received:
    """The message that a packed one holds.

    Raises:
        ValueError, TypeError, LookupError: when it is none.
    """
    tag = packed[0]
    if tag == SPAN:
        return _unpack_span(packed)
    if tag == _SETTLE:
        *fields, samples = packed[1:]
        return Settled(*fields[:-1], samples=[Sample(*sample) for sample in samples], error=fields[-1])
    if tag == _INFO:
        return Info(packed[1])
    return _convert(json.loads(packed[1]), _CLASSES[tag])


def _pack(message: Message) -> tuple[Any, ...]:
    if type(message) is SpanMessage:
        return (SPAN, *message)
    if type(message) is Settled:
        return _pack_settled(message)
    if type(message) is Info:
        return (_INFO, message.text)
    return (_TAGS[type(message)], json.dumps(to_json(cast("Any", message)), default=str))


def _pack_alone(given: Message | PackedSpan, lose: Callable[[Message, Exception], None]) -> tuple[Any, ...] | None:
    message = SpanMessage(*given[1:]) if type(given) is tuple else cast("Message", given)
    try:
        packed = _pack(message)
        marshal.dumps(packed)
    except _UNWRITABLE as error:
        lose(message, error)
        return None
    return packed


def _unpack_span(packed: tuple[Any, ...]) -> Stamp:
    _, trace_id, span_id, parent_id, opened, batch, name, kind, scope, thread, start_ns, end_ns = packed[:12]
    device_ns, lag_ns, status, status_message, attributes, events, links, recorded = packed[12:]
    # Every field by its place: keywords would take twice as long, on the recorder's hottest path.
    # fmt: off
    span = SpanRecord(
        trace_id, span_id, parent_id, batch, name, kind, scope, thread, start_ns, end_ns, device_ns, status,
        status_message, attributes or {}, events or (), links or (), lag_ns,
    )
    # fmt: on
    return Stamp(span, opened, recorded or (recorded_in(attributes) if attributes else ()))


def _pack_settled(settled: Settled) -> tuple[Any, ...]:
    """Numbers that come from user code may be numpy's, which marshal does not write."""
    return (
        _SETTLE,
        settled.batch,
        int(settled.source_batch),
        settled.repeat,
        int(settled.size),
        settled.status,
        settled.opened,
        settled.start_ns,
        settled.source_wait_ms,
        settled.source_time_ns,
        {name: float(score) for name, score in settled.accuracy.items()},
        settled.error,
        [(each.id, _floats(each.scores), each.prediction, each.target, each.image) for each in settled.samples],
    )


def _floats(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if score is None else float(score) for name, score in scores.items()}


def to_plain(message: Settled | Closing) -> dict[str, Any]:
    """Return the message in JSON's types; bytes become base64 text, numbers of numpy plain ones."""
    return msgspec.to_builtins(message, enc_hook=lambda value: value.item() if hasattr(value, "item") else str(value))


def from_plain(content: Any, kind: type[Content]) -> Content:
    """The inverse of `to_plain`.

    Raises:
        ValueError: when `content` is no message of this kind.
    """
    return _convert(content, kind)


def _convert(content: Any, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


# -- from the recorder to the workload ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Answer:
    """One line of the recorder; exactly one field is set.

    Attributes:
        say: a line for the user.
        snapshot: the live figures of a monitor.
        result: run.json's content, once the run is over; the last answer.
    """

    say: str | None = None
    snapshot: Snapshot | None = None
    result: dict[str, Any] | None = None


def encode_answer(answer: Answer) -> str:
    """Return the line, with its end."""
    if answer.say is not None:
        content: dict[str, Any] = {"say": answer.say}
    elif answer.snapshot is not None:
        content = {"snapshot": to_json(answer.snapshot)}
    else:
        content = {"result": answer.result}
    return json.dumps(content, default=str) + "\n"


def decode_answer(line: str) -> Answer | None:
    """The answer in a line; None for half a line, which a recorder leaves that was killed while it wrote."""
    try:
        return _convert(json.loads(line), Answer)
    except ValueError:
        return None
