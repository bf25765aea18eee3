"""The typed schema of every configuration: the meaning, the default and the range of each key.

`config.check` checks the values.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from mlotel_cli.config.policies import OtlpSettings, Retention, TrackerMode, TrackerOptions, bounded


class OnError(StrEnum):
    """What happens to the run when a batch fails."""

    fail = "fail"
    skip = "skip"


class Backend(StrEnum):
    """The backend of the spans."""

    otel = "otel"
    nvtx = "nvtx"
    off = "off"


class ExecutorKind(StrEnum):
    """How the executor runs the stages of a pipeline."""

    sequential = "sequential"
    pipelined = "pipelined"


class Autocast(StrEnum):
    """The dtype that torch.autocast casts to."""

    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(slots=True)
class RunConfig:
    """`run`: the name and the directory of the run."""

    name: str | None = None
    """Name in tables and in W&B; null takes the name of the pipeline option."""
    dir: str = MISSING
    """The run directory of a single run; a sweep uses hydra.sweep.dir."""


@dataclass(slots=True)
class EvalSettings:
    """`eval`: how the evaluation passes over the data set."""

    warmup_batches: int = bounded(3, low=0)
    """Batches that run first, without a score and without a row."""
    max_batches: int | None = bounded(None, low=1)
    """Most batches of a pass; null takes all."""
    repeats: int = bounded(1, low=1)
    """Passes over the data set."""
    on_error: OnError = OnError.fail
    """fail ends the run at the first batch that fails; skip counts the batch and continues."""
    control: bool = False
    """True interleaves stretches without telemetry, and reports the cost of telemetry with its interval."""


@dataclass(slots=True)
class ExecutorConfig:
    """`executor`: how the stages run."""

    kind: ExecutorKind = ExecutorKind.sequential
    """sequential: one batch after the other in one thread; pipelined: a thread per stage, several batches at once."""
    autocast: Autocast | None = None
    """dtype of torch.autocast in every thread that runs a stage; null does not cast."""
    queue_size: int = bounded(2, low=1, high=10_000)
    """pipelined: batches that may wait before each stage."""
    replicas: dict[str, int] = field(default_factory=dict[str, int])
    """pipelined: number of threads by stage name, where more than one; batches keep their order."""
    stage_timeout_s: float | None = bounded(None, low=0.001, high=86_400)
    """pipelined: a stage that needs longer than this for a batch ends the run; null sets no limit."""


@dataclass(slots=True)
class TelemetryConfig:
    """`telemetry`: what the spans measure, and how they reach the recorder."""

    backend: Backend = Backend.otel
    """otel measures; nvtx makes ranges for nsys, rows have no latencies; off does nothing, for control runs."""
    flush_ms: int = bounded(50, low=5, high=1000)
    """Milliseconds between two transfers to the recorder."""
    settle_s: float = bounded(5.0, low=0.1, high=3600)
    """Seconds after which an incomplete batch is written as incomplete."""
    part_s: float = bounded(1.0, low=0.05, high=2)
    """Seconds between two Parquet parts."""
    strict: bool = False
    """True raises faults of the telemetry instead of counting them."""
    max_names: int = bounded(200, low=1, high=10_000)
    """Most distinct stage names; all further names share one entry."""
    slow_ms: float | None = bounded(None, low=0)
    """Monitor: the traces of batches slower than this are kept; null: those above the p99 of the last minutes."""
    background_rate: float = bounded(0.01, low=0, high=1)
    """Monitor: share of the other batches whose traces are kept."""
    otlp: OtlpSettings = field(default_factory=OtlpSettings)


@dataclass(slots=True)
class TrackerConfig(TrackerOptions):
    """`tracker`: Weights & Biases."""

    mode: TrackerMode = TrackerMode.auto  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass(slots=True)
class EvalConfig:
    """The configuration of `mlotel eval`.

    pipeline, data, metrics and optimize have no schema: they hold `_target_` and its arguments.
    """

    seed: int = bounded(0, low=0, high=2**32 - 1)
    """Seeds Python, numpy and torch."""
    device: str = "auto"
    """auto | cpu | cuda | cuda:N."""
    run: RunConfig = field(default_factory=RunConfig)
    eval: EvalSettings = field(default_factory=EvalSettings)
    pipeline: dict[str, Any] = field(default_factory=dict[str, Any])
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    optimize: dict[str, Any] = field(default_factory=dict[str, Any])
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


class ProfilerKind(StrEnum):
    """The profiler that records the ranges and the device's work."""

    nsys = "nsys"
    torch = "torch"


@dataclass(slots=True)
class ProfilerConfig:
    """`profiler`: the profiler and its settings."""

    kind: ProfilerKind = ProfilerKind.nsys
    """nsys: Nsight Systems; torch: torch.profiler, in the process itself."""
    command: str = "nsys"
    """Name or path of nsys."""
    trace: str | None = None
    """nsys's --trace; null: cuda,nvtx with a CUDA device, else nvtx."""
    cuda_graph_trace: str = "node"
    """node records every kernel of a CUDA graph; graph records the graph as a whole, and slows the run less."""
    args: list[str] = field(default_factory=list[str])
    """More arguments of `nsys profile`."""
    timeout_s: float = bounded(120.0, low=1, high=86_400)
    """Seconds that the profiler may take to write its report after the last batch."""


@dataclass(slots=True)
class ProfileSettings:
    """`profile`: how much is recorded."""

    batches: int = bounded(100, low=1)
    """Batches to record, after `eval.warmup_batches`; eval.max_batches and eval.repeats do not apply."""
    top_kernels: int = bounded(5, low=0)
    """Number of longest kernels that are listed by name per stage."""


@dataclass(slots=True)
class ProfileConfig(EvalConfig):
    """The configuration of `mlotel profile`: that of an evaluation, and the profiler."""

    profile: ProfileSettings = field(default_factory=ProfileSettings)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)


@dataclass(slots=True)
class HttpConfig:
    """`monitor.http`: /metrics, /healthz, /readyz and the status page."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = bounded(9464, low=0, high=65_535)
    """0 chooses a free port, which the terminal and run.json show."""


@dataclass(slots=True)
class MonitorSettings:
    """`monitor`: a run on live input."""

    http: HttpConfig = field(default_factory=HttpConfig)
    window_s: float = bounded(15.0, low=0.5, high=3600)
    """Seconds that one W&B row summarises."""
    grace_s: float = bounded(10.0, low=0, high=3600)
    """Seconds that running batches have to finish after the first SIGTERM or SIGINT."""
    on_error: OnError = OnError.skip
    """skip counts a batch that fails and continues; fail ends the run."""
    max_batches: int | None = bounded(None, low=1)
    """Number of batches after which the run ends; null runs until a signal or the source's end."""
    retention: Retention = field(default_factory=Retention)


@dataclass(slots=True)
class MonitorConfig(EvalConfig):
    """The configuration of `mlotel monitor`: the pipeline of an evaluation, on live input.

    Only `source=data` uses `data`. `metrics` is not used, and of `eval` only `eval.warmup_batches`.
    """

    source: dict[str, Any] = field(default_factory=dict[str, Any])
    monitor: MonitorSettings = field(default_factory=MonitorSettings)


@dataclass(slots=True)
class Job:
    """One run of a command, single or in a sweep.

    Attributes:
        output_dir: the run directory; it exists.
        overrides: the overrides of the command line, without those of hydra.*.
        sweep: name of the sweep that this run is part of; None for a single run.
        job_num: its number in the sweep, from 0; None for a single run.
        config_name: name of the primary configuration file.
    """

    output_dir: Path
    overrides: list[str]
    sweep: str | None
    job_num: int | None
    config_name: str
