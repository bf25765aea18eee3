"""The typed schema of every configuration: what each key means, its default, and the range it may take.

It checks nothing itself; `config.check` does.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from mlotel_cli.config.policies import Retention, TrackerMode, bounded


class OnError(StrEnum):
    """What a batch that fails does to the run."""

    fail = "fail"
    skip = "skip"


class Backend(StrEnum):
    """What a span becomes."""

    otel = "otel"
    nvtx = "nvtx"
    off = "off"


class ExecutorKind(StrEnum):
    """How the stages of a pipeline are run."""

    sequential = "sequential"
    pipelined = "pipelined"


class Autocast(StrEnum):
    """What torch.autocast casts to."""

    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(slots=True)
class RunConfig:
    """`run`: what the run is called and where it is written."""

    name: str | None = None
    """Shown in tables and in W&B; null takes the name of the pipeline option."""
    dir: str = MISSING
    """The run directory. Only a single run has one of its own choosing; a sweep uses hydra.sweep.dir."""


@dataclass(slots=True)
class EvalSettings:
    """`eval`: how the data set is gone through."""

    warmup_batches: int = bounded(3, low=0)
    """Batches run once beforehand, unscored and in no file."""
    max_batches: int | None = bounded(None, low=1)
    """Stop after so many batches of a pass; null takes all."""
    repeats: int = bounded(1, low=1)
    """Passes over the data set."""
    on_error: OnError = OnError.fail
    """fail ends the run at the first batch that fails; skip counts it and goes on."""
    control: bool = False
    """Interleave stretches with telemetry off, and report what telemetry costs with its interval."""


@dataclass(slots=True)
class ExecutorConfig:
    """`executor`: how the stages are run."""

    kind: ExecutorKind = ExecutorKind.sequential
    """sequential: one batch after the other in one thread; pipelined: a thread per stage, several batches at once."""
    autocast: Autocast | None = None
    """dtype that torch casts to where that is safe, in every thread that runs a stage; null does not cast."""
    queue_size: int = bounded(2, low=1, high=10_000)
    """pipelined: batches that may wait before each stage."""
    replicas: dict[str, int] = field(default_factory=dict[str, int])
    """pipelined: threads per stage name, where more than one; the order of batches is restored behind them."""
    stage_timeout_s: float | None = bounded(None, low=0.001, high=86_400)
    """pipelined: a batch that a stage holds longer than this fails, and the run ends; null waits for ever."""


@dataclass(slots=True)
class OtlpConfig:
    """`telemetry.otlp`: traces and metrics to an OpenTelemetry collector, over HTTP.

    Left at null, the standard variables OTEL_EXPORTER_OTLP_* decide; without those too, nothing is sent.
    """

    endpoint: str | None = None
    """Base URL, such as http://127.0.0.1:4318; /v1/traces and /v1/metrics are appended."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    """Sent with every request."""
    timeout_s: float | None = bounded(None, low=0.1, high=600)
    """Seconds for one request; null: the standard variable, or 10. It is sent again for up to five minutes."""
    queue_size: int = bounded(20_000, low=1, high=10_000_000)
    """Spans that may wait to be sent; what does not fit is dropped and counted."""
    metrics_interval_s: float = bounded(15.0, low=0.1, high=3600)
    """Seconds between two metric exports."""


@dataclass(slots=True)
class TelemetryConfig:
    """`telemetry`: measuring and handing over."""

    backend: Backend = Backend.otel
    """nvtx: spans are ranges for nsys, rows have no latencies; off is a control run: spans cost next to nothing."""
    flush_ms: int = bounded(50, low=5, high=1000)
    """Milliseconds between two hand-overs to the recorder."""
    settle_s: float = bounded(5.0, low=0.1, high=3600)
    """Seconds after which a batch that is not complete is written as incomplete."""
    part_s: float = bounded(1.0, low=0.05, high=2)
    """Seconds between two Parquet parts."""
    strict: bool = False
    """True raises faults inside the telemetry instead of counting them."""
    max_names: int = bounded(200, low=1, high=10_000)
    """Distinct stage names kept apart; later ones are counted together."""
    slow_ms: float | None = bounded(None, low=0)
    """Monitor: a batch slower than this keeps its trace; null: one above the p99 of the last minutes."""
    background_rate: float = bounded(0.01, low=0, high=1)
    """Monitor: share of all other batches that keep their trace."""
    otlp: OtlpConfig = field(default_factory=OtlpConfig)


@dataclass(slots=True)
class TrackerConfig:
    """`tracker`: Weights & Biases."""

    mode: TrackerMode = TrackerMode.auto
    """auto | online | offline | disabled."""
    project: str = "mlotel"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null takes the account's default."""
    group: str | None = None
    """W&B group; null takes the sweep's name."""
    tags: list[str] = field(default_factory=list[str])
    """W&B tags."""
    notes: str | None = None
    """W&B notes."""
    init_timeout_s: float = bounded(5.0, low=0.5, high=60)
    """Seconds to reach the server before going offline."""
    finish_timeout_s: float = bounded(30.0, low=1, high=3600)
    """Seconds to wait for the upload at the end."""


@dataclass(slots=True)
class EvalConfig:
    """Everything `mlotel eval` can be told.

    Pipeline, data, metrics and optimize are open: they hold `_target_` and arguments.
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
    """Who records the ranges and the device's work."""

    nsys = "nsys"
    torch = "torch"


@dataclass(slots=True)
class ProfilerConfig:
    """`profiler`: who records, and how."""

    kind: ProfilerKind = ProfilerKind.nsys
    """nsys: Nsight Systems; torch: torch.profiler, in the process itself."""
    command: str = "nsys"
    """The program, or its path."""
    trace: str | None = None
    """What nsys traces; null: cuda,nvtx with a CUDA device, else nvtx."""
    cuda_graph_trace: str = "node"
    """node gives every kernel of a CUDA graph; graph, only the graph as a whole, disturbs less."""
    args: list[str] = field(default_factory=list[str])
    """More arguments of `nsys profile`."""
    timeout_s: float = bounded(120.0, low=1, high=86_400)
    """Seconds that the profiler may take to write its report after the last batch."""


@dataclass(slots=True)
class ProfileSettings:
    """`profile`: how much is recorded."""

    batches: int = bounded(100, low=1)
    """Batches recorded, after `eval.warmup_batches`; eval.max_batches and eval.repeats do not apply."""
    top_kernels: int = bounded(5, low=0)
    """Kernels listed by name per stage, those that took longest."""


@dataclass(slots=True)
class ProfileConfig(EvalConfig):
    """Everything `mlotel profile` can be told: what an evaluation can, and who profiles it."""

    profile: ProfileSettings = field(default_factory=ProfileSettings)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)


@dataclass(slots=True)
class HttpConfig:
    """`monitor.http`: /metrics, /healthz, /readyz and the status page."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = bounded(9464, low=0, high=65_535)
    """0 takes a free one; the terminal and run.json say which."""


@dataclass(slots=True)
class MonitorSettings:
    """`monitor`: a run on live input."""

    http: HttpConfig = field(default_factory=HttpConfig)
    window_s: float = bounded(15.0, low=0.5, high=3600)
    """Seconds that one W&B row sums up."""
    grace_s: float = bounded(10.0, low=0, high=3600)
    """After the first SIGTERM or SIGINT: seconds in which batches under way may finish."""
    on_error: OnError = OnError.skip
    """skip counts a batch that fails and goes on; fail ends the run."""
    max_batches: int | None = bounded(None, low=1)
    """End after so many batches; null runs until a signal or the source's end."""
    retention: Retention = field(default_factory=Retention)


@dataclass(slots=True)
class MonitorConfig(EvalConfig):
    """Everything `mlotel monitor` can be told: the pipeline of an evaluation, on live input.

    `data` is used by `source=data` only; `metrics` and `eval`, but for `eval.warmup_batches`, are not used.
    """

    source: dict[str, Any] = field(default_factory=dict[str, Any])
    monitor: MonitorSettings = field(default_factory=MonitorSettings)


@dataclass(slots=True)
class Job:
    """One run as the command line asked for it.

    Attributes:
        output_dir: the run directory; it exists.
        overrides: as given, without Hydra's own.
        sweep: name of the sweep that this run is part of; None for a single run.
        job_num: its number in the sweep, from 0; None for a single run.
        config_name: name of the primary configuration file.
    """

    output_dir: Path
    overrides: list[str]
    sweep: str | None
    job_num: int | None
    config_name: str
