"""Which stage bounds a pipeline, how busy each stage is, and what a faster one would give. Pure.

Utilisation is time in the stage by wall time and replica. The stage with the highest utilisation bounds the
throughput; `pipeline_model` replays what a change to it would give, and says what is outside the model. On CUDA a stage
takes as long as the longer of host and device; that stages share one device is said, not modelled. That they share the
processor is an upper limit: where its cores are busy for a share s of the time, more threads give 1 / s at best, and so
does a faster stage once its part of the computing, taken to be that of its time, is saved.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlotel_cli.analysis.pipeline_model import PipelineModel, Station
from mlotel_cli.columns import SOURCE_WAIT, stage_column
from mlotel_cli.figures import significant
from mlotel_cli.records import COUNTED, KIND, SpanRecord, span_role
from mlotel_cli.store.traces import load_spans, traced_range
from mlotel_cli.summary import Bottleneck
from mlotel_cli.typed_json import from_json
from mlotel_cli.wire import Closing

if TYPE_CHECKING:
    import polars as pl

SOURCE = "source"
SCORING = "scoring"
MIN_BATCHES = 30
"""A shorter run says nothing: filling and draining the pipeline is too large a part of it."""
MAX_BATCHES = 5000
"""The analysis looks at the last batches of a longer run."""
BUSY_CORES = 0.85
"""From this share on, more threads cannot help much: the processor bounds the throughput, not a stage."""
BUSY_DEVICE = 0.5
"""From this share on, a sentence says that stages take the device from each other."""
MAX_ERROR = 0.25
"""With a larger error the stages' times do not explain the throughput, and there is no prediction."""
_MIN_COUNTED = 0.9
_TRACES_READ = 50
_WORTH_SAYING = 1.05
_SHOWN_FACTOR = 2


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """How the stages of a run were executed.

    Attributes:
        kind: pipelined | sequential; empty for a user's own loop.
        queue_size: batches that may wait before each stage.
        replicas: copies of a stage that work at once, by name; 1 where it is not named.
    """

    kind: str = ""
    queue_size: int = 2
    replicas: Mapping[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "ExecutorSettings":
        """By the run's configuration under `executor`; empty for a user's own loop."""
        return from_json(cls, {name: value for name, value in config.items() if value})

    @property
    def is_pipelined(self) -> bool:
        """Whether stages worked beside each other."""
        return self.kind == "pipelined"


def top_stages(spans: Iterable[SpanRecord]) -> list[str]:
    """Names of the spans directly below a root, in order of first appearance; what they call is part of them."""
    ordered = sorted(spans, key=lambda span: span.start_ns)
    roots = {span.span_id for span in ordered if span_role(span) == "batch"}
    return list(
        dict.fromkeys(
            span.name
            for span in ordered
            if span.parent_id in roots and span.kind == "INTERNAL" and KIND not in span.attributes
        )
    )


def find_in_run(
    batches: "pl.DataFrame", spans: Path, *, closing: Closing, executor: ExecutorSettings
) -> Bottleneck | None:
    """`find_bottleneck` of a run whose stages are named by its last traces. `spans` is the folder of that table."""
    known = traced_range(spans)
    if known is None:
        return None
    stages = top_stages(load_spans(spans, known[1] - _TRACES_READ, known[1]))
    return find_bottleneck(batches, stages, closing=closing, executor=executor)


def find_bottleneck(
    batches: "pl.DataFrame",
    stages: Sequence[str],
    *,
    closing: Closing,
    executor: ExecutorSettings,
) -> Bottleneck | None:
    """Which stage bounds the throughput, and what a change would give; None where there is too little to say.

    A pipelined run has the gains of a change of each stage, a sequential one that of overlapping the stages. A user's
    own loop has none: what may overlap there is not known.

    Args:
        batches: the batches table.
        stages: names of the stages, in order; see `top_stages`.
        closing: what the workload said at the end.
        executor: how the stages ran.
    """
    model = model_of(batches, stages, closing=closing, executor=executor)
    if model is None:
        return None
    utilisation = {each.name: each.busy_s / (model.measured_s * each.replicas) for each in model.stations}
    counted = _counted(batches)
    error = model.error
    found = Bottleneck(
        kind="pipelined" if model.is_pipelined else "sequential",
        stage=max(utilisation, key=lambda name: utilisation[name]),
        utilisation=utilisation,
        queue_ms={name: _mean(counted, stage_column(name, "queue_ms")) for name in stages},
        cores=closing.cores,
        cores_busy=_cores_busy(closing),
        device_busy=_device_busy(counted, stages, model.measured_s),
        model_error=error,
        num_batches=counted.height,
    )
    if model.is_pipelined and abs(error) <= MAX_ERROR:
        _add_gains(found, model, stages)
    elif executor.kind and not model.is_pipelined:
        found.overlap = min(model.gain_of_overlap(), _limit(found.cores_busy))
    found.sentences = sentences(found)
    return found


def model_of(
    batches: "pl.DataFrame", stages: Sequence[str], *, closing: Closing, executor: ExecutorSettings
) -> PipelineModel | None:
    """The model of a run, for other questions; arguments, and when it is None, as for `find_bottleneck`."""
    if len(stages) < 2 or not batches.height:
        return None
    rows = batches.sort("batch").tail(MAX_BATCHES)  # batches that failed on the way took time too
    if _counted(batches).height < max(MIN_BATCHES, _MIN_COUNTED * rows.height):
        return None
    wall_s = _wall_s(rows, closing, is_whole=rows.height == batches.height)
    caller_s = _caller_s(batches.height, closing)
    stations = _stations(rows, stages, executor=executor, caller_s=caller_s, wall_s=wall_s)
    if wall_s <= 0 or not any(station.busy_s for station in stations[1:-1]):
        return None
    return PipelineModel(stations, executor.queue_size, executor.is_pipelined, measured_s=wall_s)


def _counted(batches: "pl.DataFrame") -> "pl.DataFrame":
    """The last batches, without those that did not go through."""
    rows = batches.sort("batch").tail(MAX_BATCHES)
    return rows.filter(rows["status"].is_in(COUNTED))


def _cores_busy(closing: Closing) -> float | None:
    """Share of the time of all cores that the workload used."""
    wall_s, cpu_s, cores = closing.wall_s, closing.cpu_s, closing.cores
    return cpu_s / (wall_s * cores) if wall_s and cores and cpu_s is not None else None


def _device_busy(counted: "pl.DataFrame", stages: Sequence[str], wall_s: float) -> float | None:
    """Share of the time that stages have the device, gaps between kernels included; None without one."""
    busy_s = sum(sum(_seconds(counted, stage_column(name, "device_ms"))) for name in stages)
    return min(1.0, busy_s / wall_s) if busy_s else None


def _wall_s(rows: "pl.DataFrame", closing: Closing, *, is_whole: bool) -> float:
    """Wall time of the rows: as the workload told it, or, for a part of the rows, by when batches were picked up."""
    if is_whole and closing.wall_s:
        return closing.wall_s
    starts_ns = rows["start_ns"].sort().to_list()
    return (starts_ns[-1] - starts_ns[0]) / 1e9 * len(starts_ns) / max(1, len(starts_ns) - 1)


def _caller_s(num_batches: int, closing: Closing) -> float:
    """Mean time that the loop spends on the result of one batch."""
    return ((closing.scoring_s or 0.0) if closing.caller_s is None else closing.caller_s) / num_batches


def _stations(
    rows: "pl.DataFrame", stages: Sequence[str], *, executor: ExecutorSettings, caller_s: float, wall_s: float
) -> list[Station]:
    stations = [Station(SOURCE, _seconds(rows, SOURCE_WAIT))]
    stations += [
        Station(name, _stage_seconds(rows, name), executor.replicas.get(name, 1) if executor.is_pipelined else 1)
        for name in stages
    ]
    if not executor.is_pipelined:  # time outside the stages stays with the calling thread
        caller_s = max(caller_s, (wall_s - sum(station.busy_s for station in stations)) / rows.height)
    return [*stations, Station(SCORING, [caller_s] * rows.height)]


def _stage_seconds(rows: "pl.DataFrame", name: str) -> list[float]:
    host = _seconds(rows, stage_column(name, "host_ms"))
    device = _seconds(rows, stage_column(name, "device_ms"))
    return [max(pair) for pair in zip(host, device, strict=True)]


def _seconds(rows: "pl.DataFrame", column: str) -> list[float]:
    if column not in rows.columns:
        return [0.0] * rows.height
    return [value / 1e3 if value is not None and math.isfinite(value) else 0.0 for value in rows[column].to_list()]


def _mean(counted: "pl.DataFrame", column: str) -> float | None:
    values = [value for value in counted[column].to_list() if value is not None] if column in counted.columns else []
    return sum(values) / len(values) if values else None


def _add_gains(found: Bottleneck, model: PipelineModel, stages: Sequence[str]) -> None:
    """Add what a change would give by the model, and no more than the cores have left."""
    cores_busy = found.cores_busy
    whole_s = sum(station.busy_s for station in model.stations)
    faster: dict[str, float] = {}
    limited: list[str] = []
    for station in model.stations:
        gain = model.gain(faster={station.name: _SHOWN_FACTOR})
        saved = station.busy_s / whole_s * (1 - 1 / _SHOWN_FACTOR)
        limit = _limit(cores_busy, saved=saved)
        faster[station.name] = min(gain, limit)
        if limit < gain:
            limited.append(station.name)
    more = {station.name: station.replicas + 1 for station in model.stations}
    one_more = {name: min(model.gain(replicas={name: more[name]}), _limit(cores_busy)) for name in stages}
    found.twice_as_fast, found.one_replica_more, found.limited_by_cores = faster, one_more, limited


def _limit(cores_busy: float | None, *, saved: float = 0.0) -> float:
    """How much more the cores can do, where a change saves the share `saved` of the computing."""
    return max(1.0, 1 / (cores_busy * (1 - saved))) if cores_busy else math.inf


def sentences(found: Bottleneck) -> list[str]:
    """One or two plain sentences."""
    said = _pipelined(found) if found.kind == "pipelined" else _sequential(found)
    busy, device = found.cores_busy, found.device_busy
    if busy is not None and busy >= BUSY_CORES:
        said.append(
            f"this process keeps {busy:.0%} of {found.cores} cores busy: less computing helps, more threads do not"
        )
    if device is not None and device >= BUSY_DEVICE:
        said.append(
            f"the stages share one device and have it for {device:.0%} of the time: it bounds what can be gained"
        )
    return said


def _pipelined(found: Bottleneck) -> list[str]:
    stage, busy = found.stage, found.utilisation[found.stage]
    queue_ms = found.queue_ms.get(stage)
    waits = f", batches wait {significant(queue_ms, digits=2)} ms before it" if queue_ms is not None else ""
    if found.twice_as_fast is None:
        return [
            f"{stage} is the busiest stage: busy {busy:.0%} of the time{waits}",
            "the stages' times do not explain the throughput: much of the time goes by between them, in no span"
            if found.model_error < 0
            else "the stages' times do not explain the throughput: it is higher than they allow",
        ]
    gain = found.twice_as_fast[stage]
    if stage == SOURCE:
        stages = {name: share for name, share in found.utilisation.items() if name not in (SOURCE, SCORING)}
        next_busy = max(stages, key=lambda name: stages[name])
        return [
            f"the source bounds the pipeline: it is waited for {busy:.0%} of the time; "
            f"the busiest stage, {next_busy}, is busy {stages[next_busy]:.0%}"
        ]
    limited = " at best, for want of cores" if stage in (found.limited_by_cores or ()) else ""
    if stage == SCORING:
        return [f"scoring bounds the pipeline: busy {busy:.0%}; twice as fast would give {gain:.2g} x{limited}"]
    if (found.cores_busy or 0.0) >= BUSY_CORES:
        return [
            f"{stage} is the busiest stage: busy {busy:.0%}{waits}; but it is the processor that bounds the pipeline"
        ]
    if gain < _WORTH_SAYING:
        return [
            f"{stage} is the busiest stage: busy {busy:.0%}{waits}; no stage alone bounds the pipeline: "
            f"{stage} twice as fast would give {gain:.2f} x"
        ]
    return [f"{stage} bounds the pipeline: busy {busy:.0%}{waits}; twice as fast would give {gain:.2g} x{limited}"]


def _sequential(found: Bottleneck) -> list[str]:
    stage, busy, overlap = found.stage, found.utilisation[found.stage], found.overlap
    subject = {SOURCE: "waiting for the source", SCORING: "what is in no stage, such as scoring,"}.get(stage, stage)
    said = f"{subject} takes {busy:.0%} of the time"
    if stage == SOURCE:  # live input comes when it comes
        return [said]
    if overlap is None:
        return [said]
    if overlap < _WORTH_SAYING:
        return [f"{said}; overlapping the stages (executor=pipelined) would gain next to nothing"]
    return [f"{said}; overlapping the stages (executor=pipelined) would give {overlap:.2g} x at best"]
