"""The configuration of a run: its typed schema, the checks on its values, and building objects from it.

It knows neither Hydra's launch (launch.py) nor what a mode does with the values.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from hydra.errors import InstantiationException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from mlotel_cli.config_errors import CONFIG_EXCEPTIONS, did_you_mean, listed, readable
from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.hardware import check_device


def _bounded(default: Any, *, low: float, high: float | None = None) -> Any:
    """A number that `check` holds between `low` and `high`, both allowed; None is left alone."""
    return field(default=default, metadata={"low": low, "high": high})


class OnError(StrEnum):
    """What a batch that fails does to the run."""

    fail = "fail"
    skip = "skip"


class Backend(StrEnum):
    """What a span becomes."""

    otel = "otel"
    nvtx = "nvtx"
    off = "off"


class DeviceTime(StrEnum):
    """How the end of a span is found on CUDA."""

    synchronize = "synchronize"
    events = "events"


class ExecutorKind(StrEnum):
    """How the stages of a pipeline are run."""

    sequential = "sequential"


class Autocast(StrEnum):
    """What torch.autocast casts to."""

    bfloat16 = "bfloat16"
    float16 = "float16"


class TrackerMode(StrEnum):
    """Where W&B rows go; auto is online with a key, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


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

    warmup_batches: int = _bounded(3, low=0)
    """Batches run once beforehand, unscored and in no file."""
    max_batches: int | None = _bounded(None, low=1)
    """Stop after so many batches of a pass; null takes all."""
    repeats: int = _bounded(1, low=1)
    """Passes over the data set."""
    on_error: OnError = OnError.fail
    """fail ends the run at the first batch that fails; skip counts it and goes on."""
    control: bool = False
    """Interleave stretches with telemetry off, and report what telemetry costs with its interval."""


@dataclass(slots=True)
class ExecutorConfig:
    """`executor`: how the stages are run."""

    kind: ExecutorKind = ExecutorKind.sequential
    """sequential: one batch after the other in one thread."""
    autocast: Autocast | None = None
    """dtype that torch casts to where that is safe, in every thread that runs a stage; null does not cast."""


@dataclass(slots=True)
class TelemetryConfig:
    """`telemetry`: measuring and handing over."""

    backend: Backend = Backend.otel
    """nvtx: spans are ranges for nsys, rows have no latencies; off is a control run: spans cost next to nothing."""
    device_time: DeviceTime = DeviceTime.synchronize
    """On CUDA. synchronize: every span waits for the device at its end; events: measured without waiting."""
    flush_ms: int = _bounded(50, low=5, high=1000)
    """Milliseconds between two hand-overs to the recorder."""
    settle_s: float = _bounded(5.0, low=0.1, high=3600)
    """Seconds after which a batch that is not complete is written as incomplete."""
    part_s: float = _bounded(1.0, low=0.05, high=2)
    """Seconds between two Parquet parts."""
    strict: bool = False
    """True raises faults inside the telemetry instead of counting them."""
    max_names: int = _bounded(200, low=1, high=10_000)
    """Distinct stage names kept apart; later ones are counted together."""


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
    init_timeout_s: float = _bounded(5.0, low=0.5, high=60)
    """Seconds to reach the server before going offline."""
    finish_timeout_s: float = _bounded(30.0, low=1, high=3600)
    """Seconds to wait for the upload at the end."""


@dataclass(slots=True)
class EvalConfig:
    """Everything `mlotel eval` can be told.

    Pipeline, data, metrics and optimize are open: they hold `_target_` and arguments.
    """

    seed: int = _bounded(0, low=0, high=2**32 - 1)
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
    timeout_s: float = _bounded(120.0, low=1, high=86_400)
    """Seconds that the profiler may take to write its report after the last batch."""


@dataclass(slots=True)
class ProfileSettings:
    """`profile`: how much is recorded."""

    batches: int = _bounded(100, low=1)
    """Batches recorded, after `eval.warmup_batches`; eval.max_batches and eval.repeats do not apply."""
    top_kernels: int = _bounded(5, low=0)
    """Kernels listed by name per stage, those that took longest."""


@dataclass(slots=True)
class ProfileConfig(EvalConfig):
    """Everything `mlotel profile` can be told: what an evaluation can, and who profiles it."""

    profile: ProfileSettings = field(default_factory=ProfileSettings)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)


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


def check(cfg: DictConfig) -> None:
    """Refuse a composed configuration that cannot run; every rule about values is called from here.

    Raises:
        UsageError: naming the key, its value and what is allowed.
    """
    _check_readable(cfg)
    _check_typed(cfg, prefix="")
    for key in ("pipeline", "data", "optimize"):
        _check_target(cfg[key], key)
    for name, metric in cfg.metrics.items():
        _check_target(metric, f"metrics.{name}")
    check_device(cfg.device)


def resolve_device(cfg: DictConfig) -> None:
    """Replace `device: auto` so that its first reader, and not this call, pays for importing torch."""
    if not OmegaConf.has_resolver("mlotel_device"):
        from mlotel_cli.hardware import find_device

        OmegaConf.register_new_resolver("mlotel_device", find_device)
    if cfg.device == "auto":
        cfg.device = "${mlotel_device:}"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain Python values, references resolved, enums as text."""
    return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


def instantiate(node: Any, key: str) -> Any:
    """Build the object that the node at configuration path `key` describes; lists and mappings arrive as plain ones.

    Raises:
        UsageError: the `_target_` cannot be imported, or does not take these arguments.
        MlotelError: the constructor itself raised; an MlotelError of its own passes through.
    """
    from hydra.utils import instantiate as hydra_instantiate

    _check_target(node, key)
    _check_readable(node, prefix=f"{key}.")
    try:
        return hydra_instantiate(node) if "_convert_" in node else hydra_instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise _instantiation_error(error, node=node, key=key) from error


def _check_readable(node: DictConfig, *, prefix: str = "") -> None:
    """Refuse values that are missing, or that refer to something that is not there."""
    if missing := list(_missing_keys(node, prefix=prefix)):
        raise UsageError(f"{listed(missing)}: a value must be given, for example {missing[0]}=VALUE")


def _missing_keys(node: DictConfig | ListConfig, *, prefix: str) -> Iterator[str]:
    """Yield the keys without a value, and read every other one on the way."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if OmegaConf.is_missing(node, key):
            yield f"{prefix}{key}"
            continue
        try:
            value = node[key]  # pyright: ignore[reportCallIssue, reportArgumentType]
        except InterpolationToMissingValueError:
            continue  # what it refers to is missing, and yielded itself
        except CONFIG_EXCEPTIONS as error:
            raise readable(error) from error
        if isinstance(value, DictConfig | ListConfig) and not OmegaConf.is_interpolation(node, key):
            yield from _missing_keys(value, prefix=f"{prefix}{key}.")


def _check_typed(node: DictConfig, *, prefix: str) -> None:
    entries = fields(cast("Any", OmegaConf.get_type(node)))
    # `+key=value` adds to a typed group as well. At the top it is left to people who refer to it elsewhere.
    if prefix and (unknown := [str(key) for key in node if key not in [entry.name for entry in entries]]):
        hint = did_you_mean(unknown[0], [entry.name for entry in entries])
        raise UsageError(
            f"{prefix}{unknown[0]}: unknown key{hint} ({prefix[:-1]} has {listed(e.name for e in entries)})"
        )
    for entry in entries:
        value = node[entry.name]
        if "low" in entry.metadata and value is not None:
            low, high = entry.metadata["low"], entry.metadata["high"]
            # Written so that NaN, which compares false with everything, is refused.
            if not (value >= low and (high is None or value <= high)):
                allowed = f"at least {low}" if high is None else f"{low} to {high}"
                raise UsageError(f"{prefix}{entry.name}={value}: allowed: {allowed}")
        if isinstance(value, DictConfig) and is_dataclass(OmegaConf.get_type(value)):
            _check_typed(value, prefix=f"{prefix}{entry.name}.")


def _check_target(node: Any, key: str) -> None:
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise UsageError(f"{key}._target_: must be given: the import path of a class, such as package.module.Class")


def _instantiation_error(error: InstantiationException, *, node: DictConfig, key: str) -> MlotelError:
    text = str(error)
    found = re.search(r"^\s*full_key: (.*)$", text, re.MULTILINE)
    path = found.group(1) if found else key
    if path != key and not path.startswith(f"{key}."):
        path = f"{key}.{path}"
    cause = error.__cause__
    if isinstance(cause, MlotelError):
        return cause
    if text.startswith("Error locating target") and cause is not None:
        return _import_error(cause, key=path)
    if isinstance(cause, TypeError) and cause.__traceback__ is not None and cause.__traceback__.tb_next is None:
        return _call_error(cause, node=_node_at(node, key=key, path=path), key=path)
    if cause is not None:
        return MlotelError(f"{path}: {_target_in(text)} raised {type(cause).__name__}: {cause}")
    return UsageError(f"{path}: {text.splitlines()[0]}")


def _import_error(cause: BaseException, *, key: str) -> MlotelError:
    while isinstance(cause.__cause__, BaseException) and not isinstance(cause, MlotelError):
        cause = cause.__cause__
    if isinstance(cause, MlotelError):
        return cause
    return UsageError(f"{key}._target_: {type(cause).__name__}: {cause}")


def _call_error(cause: TypeError, *, node: DictConfig, key: str) -> UsageError:
    from hydra.utils import get_object

    target = str(node["_target_"])
    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except (TypeError, ValueError):
        return UsageError(f"{key}: {target}: {cause}")
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in parameters if p.name in named and p.default is p.empty]
    given = [str(name) for name in node if not str(name).startswith("_")]
    problems = [f"{key}.{n}: unknown argument{did_you_mean(n, named)}" for n in given if n not in named]
    problems += [f"{key}.{n}: a value must be given" for n in required if n not in given]
    reason = "\n".join(problems) or f"{key}: {cause}"
    return UsageError(f"{reason}\n{target} takes: {listed(named)}")


def _node_at(node: DictConfig, *, key: str, path: str) -> DictConfig:
    inner = path.removeprefix(key).lstrip(".")
    return cast("DictConfig", OmegaConf.select(node, inner)) if inner else node


def _target_in(text: str) -> str:
    found = re.search(r"'([^']+)'", text)
    return found.group(1) if found else "the constructor"
