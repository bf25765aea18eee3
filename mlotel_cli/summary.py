"""The summary of a run: what run.json holds under `summary`, typed.

The recorder fills it in and writes it; tables, comparisons and users read it. It knows neither how a figure is computed
(`analysis`) nor where the file lies (`store`). A field that is None was not measured, or could not be said.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from mlotel_cli.stats.description import Description, Interval
from mlotel_cli.typed_json import OPTIONAL, Json, from_json, to_json


@dataclass(slots=True)
class Score:
    """A metric over the run.

    Attributes:
        value: of the metric; None where it could not be computed.
        ci95: its 95 % interval.
    """

    value: float | None = None
    ci95: Interval | None = None


@dataclass(slots=True)
class StageLatency:
    """Milliseconds of a stage in each batch.

    Attributes:
        host: until the result exists.
        device: between the stage's two device events.
        queue: waiting before the stage.
        lag: how long the device went on after the host.
        verdict: what the stage waits for (`analysis.verdicts`).
    """

    host: Description | None = None
    device: Description | None = None
    queue: Description | None = None
    lag: Description | None = field(default=None, metadata=OPTIONAL)
    verdict: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(slots=True)
class Latency:
    """Milliseconds of each batch that went through.

    Attributes:
        batch: of the whole batch.
        stages: by name, in order of first appearance.
        source_wait: until the source delivered the batch.
    """

    batch: Description = field(default_factory=Description)
    stages: dict[str, StageLatency] = field(default_factory=dict[str, StageLatency])
    source_wait: Description | None = field(default=None, metadata=OPTIONAL)


@dataclass(slots=True)
class Throughput:
    """Items a second.

    Attributes:
        items_per_s: by wall time without scoring.
        wall_items_per_s: by wall time.
    """

    items_per_s: float | None = None
    wall_items_per_s: float | None = None


@dataclass(slots=True)
class Warmup:
    """Batches that ran before anything was measured.

    Attributes:
        batches: number of them.
        first_batch_ms: what the first one took.
        total_s: what all took.
    """

    batches: int = 0
    first_batch_ms: float | None = None
    total_s: float = 0.0


@dataclass(slots=True)
class Control:
    """Batches with telemetry against batches without it, in pairs of stretches.

    Attributes:
        pairs: number of pairs.
        batches_a_stretch: batches in each stretch.
        difference_ms: mean time of a batch with telemetry less that without.
        difference_ms_ci95: its 95 % interval.
        ratio: mean time of a batch with telemetry by that without.
        ratio_ci95: its 95 % interval.
    """

    pairs: int
    batches_a_stretch: int
    difference_ms: float
    difference_ms_ci95: Interval | None = None
    ratio: float | None = None
    ratio_ci95: Interval | None = None


@dataclass(slots=True)
class SenderCounts:
    """What became of spans, or of data points, on their way to a collector.

    Attributes:
        endpoint: URL; None where they go nowhere.
        sent: taken by the collector.
        lost: dropped.
        queued: still waiting.
        retried: requests that were sent again.
        detail: what is wrong.
    """

    endpoint: str | None = None
    sent: int = 0
    lost: int = 0
    queued: int = 0
    retried: int = 0
    detail: str = ""


@dataclass(slots=True)
class OtlpCounts(SenderCounts):
    """The same of spans, with `metrics` for the data points; None where the run sends none."""

    metrics: SenderCounts | None = None


@dataclass(slots=True)
class Telemetry:
    """What recording cost, and what it missed.

    Attributes:
        control: what telemetry costs a batch; UNSET without `eval.control`, None without one pair of stretches.
        profiled_faults: faults of the profiled process, by kind.
        device_abandoned: spans whose device did not come to their end in time.
        device_captured: spans without device time, because a CUDA graph was being captured.
        device_elsewhere: spans without device time, because another device was the current one.
        source_paused_s: how long the source was paused because the recorder was behind.
        faults: faults of telemetry in the workload, by kind.
        recorder_restarts: recorders that replaced one that died.
        batches_lost: batches that ran and are in no file.
        hot_path_us_per_batch: estimated cost of a batch's spans.
        spans_recorded: spans that arrived.
        spans_lost: spans that were handed over and did not arrive; None when the workload was killed.
        spans_late: spans that ended after their batch was written.
        spans_unnamed: spans that were counted under another name, because there were too many names.
        items_refused: messages that made no sense.
        otlp: delivery to a collector.
    """

    control: Control | UnsetType | None = UNSET
    profiled_faults: dict[str, int] | None = field(default=None, metadata=OPTIONAL)
    device_abandoned: int | None = field(default=None, metadata=OPTIONAL)
    device_captured: int | None = field(default=None, metadata=OPTIONAL)
    device_elsewhere: int | None = field(default=None, metadata=OPTIONAL)
    source_paused_s: float | None = field(default=None, metadata=OPTIONAL)
    faults: dict[str, int] | None = field(default=None, metadata=OPTIONAL)
    recorder_restarts: int | None = field(default=None, metadata=OPTIONAL)
    batches_lost: int | None = field(default=None, metadata=OPTIONAL)
    hot_path_us_per_batch: float | None = None
    spans_recorded: int | None = None
    spans_lost: int | None = None
    spans_late: int | None = None
    spans_unnamed: int | None = None
    items_refused: int | None = None
    otlp: OtlpCounts | None = None


@dataclass(slots=True)
class Bottleneck:
    """Which stage bounds the throughput, and what a change would give, as a factor of today's throughput.

    Attributes:
        kind: pipelined | sequential.
        stage: the busiest one; `source` and `scoring` count as stages.
        utilisation: share of the time that a stage works, by name.
        queue_ms: mean wait before a stage, by name.
        cores: processor cores that the run may use.
        cores_busy: share of their time that the process used.
        device_busy: share of the time that stages have the device.
        model_error: simulated by measured wall time, less one.
        num_batches: batches that were looked at.
        twice_as_fast: gain where a stage is twice as fast, by name.
        one_replica_more: gain of one more replica of a stage, by name.
        limited_by_cores: stages whose gain would be larger on a larger processor.
        overlap: gain of a pipelined executor, at best.
        sentences: the same as sentences.
    """

    kind: str = ""
    stage: str = ""
    utilisation: dict[str, float] = field(default_factory=dict[str, float])
    queue_ms: dict[str, float | None] = field(default_factory=dict[str, float | None])
    cores: int | None = None
    cores_busy: float | None = None
    device_busy: float | None = None
    model_error: float = 0.0
    num_batches: int = 0
    twice_as_fast: dict[str, float] | None = field(default=None, metadata=OPTIONAL)
    one_replica_more: dict[str, float] | None = field(default=None, metadata=OPTIONAL)
    limited_by_cores: list[str] | None = field(default=None, metadata=OPTIONAL)
    overlap: float | None = field(default=None, metadata=OPTIONAL)
    sentences: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Budget:
    """Whether the run kept its budget; None without one."""

    passed: bool | None = None


@dataclass(slots=True)
class Summary:
    """A run in figures.

    Attributes:
        accuracy: every metric over the run, by name.
        latency_ms: latency of batches and stages.
        throughput: items a second.
        data: recorded values, by name.
        batches: number of batches, by status.
        warmup: batches before the run; None where the workload did not say.
        telemetry: cost and losses of recording.
        budget: whether the run kept its budget.
        notes: what a reader of the figures should know, a sentence each.
        bottleneck: which stage bounds the throughput; None where there is too little to say.
    """

    accuracy: dict[str, Score] = field(default_factory=dict[str, Score])
    latency_ms: Latency = field(default_factory=Latency)
    throughput: Throughput = field(default_factory=Throughput)
    data: dict[str, Description] = field(default_factory=dict[str, Description])
    batches: dict[str, int] = field(default_factory=dict[str, int])
    warmup: Warmup | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)
    budget: Budget = field(default_factory=Budget)
    notes: list[str] = field(default_factory=list[str])
    bottleneck: Bottleneck | None = None

    def to_json(self) -> dict[str, Json]:
        """As run.json has it."""
        return to_json(self)

    @classmethod
    def from_json(cls, told: Mapping[str, object]) -> "Summary":
        """Read a summary, of an older version too: parts that are missing or null are empty.

        Raises:
            ValueError: a part has the wrong type.
        """
        return from_json(cls, {name: part for name, part in told.items() if part is not None})
