"""Which stage bounds a pipeline, how busy each one is, and what a faster one would give. Pure.

Utilisation is time in the stage by wall time and replica. The stage with the highest one bounds the throughput; what a
change to it would give is replayed by `pipeline_model`, which says what is outside the model. On CUDA a stage takes
what the longer of host and device takes; that stages share one device is said, not modelled. That they share the
processor is an upper limit: where its cores are busy for a share s of the time, more threads give 1 / s at best, and so
does a faster stage once its part of the computing, taken to be that of its time, is saved.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli.analysis.pipeline_model import PipelineModel, Station
from mlotel_cli.columns import SOURCE_WAIT, stage_column
from mlotel_cli.figures import significant
from mlotel_cli.records import COUNTED, KIND, SpanRecord, span_role
from mlotel_cli.store.traces import load_spans, traced_range

if TYPE_CHECKING:
    import polars as pl

SOURCE = "source"
SCORING = "scoring"
MIN_BATCHES = 30
"""Fewer say nothing: filling and draining the pipeline is too large a part of them."""
MAX_BATCHES = 5000
"""Of a longer run the last ones are looked at."""
BUSY_CORES = 0.85
"""From this share on, more threads cannot help much: it is the processor that bounds the throughput, and no stage."""
BUSY_DEVICE = 0.5
"""From this share on, what stages on one device take from each other is worth a word."""
MAX_ERROR = 0.25
"""Beyond this, the stages' times do not explain the throughput, and no prediction is made."""
_MIN_COUNTED = 0.9
_TRACES_READ = 50
_WORTH_SAYING = 1.05
_SHOWN_FACTOR = 2


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
    batches: "pl.DataFrame", spans: Path, *, closing: Mapping[str, Any], executor: Mapping[str, Any]
) -> dict[str, Any] | None:
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
    closing: Mapping[str, Any],
    executor: Mapping[str, Any],
) -> dict[str, Any] | None:
    """What run.json says under `bottleneck`; None where there is too little to say anything.

    Args:
        batches: the batches table.
        stages: names of the stages, in order; see `top_stages`.
        closing: what the workload said at the end: `wall_s`, `scoring_s`, `caller_s`, `cpu_s`, `cores`, all optional.
        executor: its configuration: kind, queue_size, replicas; empty for a user's own loop.

    Returns:
        kind, stage (that is busiest), utilisation and queue_ms by stage, the share of time that cores and device are
        busy, model_error, and the gains: `twice_as_fast` and `one_replica_more` by stage for a pipelined run,
        `overlap` for a sequential one; `limited_by_cores` names those that would be more on a larger processor, and
        `sentences` says it in words.
    """
    model = model_of(batches, stages, closing=closing, executor=executor)
    if model is None:
        return None
    utilisation = {each.name: each.busy_s / (model.measured_s * each.replicas) for each in model.stations}
    counted = _counted(batches)
    error = model.error
    found: dict[str, Any] = {
        "kind": "pipelined" if model.is_pipelined else "sequential",
        "stage": max(utilisation, key=lambda name: utilisation[name]),
        "utilisation": utilisation,
        "queue_ms": {name: _mean(counted, stage_column(name, "queue_ms")) for name in stages},
        "cores": closing.get("cores"),
        "cores_busy": _cores_busy(closing),
        "device_busy": _device_busy(counted, stages, model.measured_s),
        "model_error": error,
        "num_batches": counted.height,
    }
    if model.is_pipelined and abs(error) <= MAX_ERROR:
        found |= _gains(model, stages, cores_busy=found["cores_busy"])
    elif executor and not model.is_pipelined:  # of a user's own loop nobody knows what may overlap
        found["overlap"] = _overlap(model, found["cores_busy"])
    found["sentences"] = sentences(found)
    return found


def model_of(
    batches: "pl.DataFrame", stages: Sequence[str], *, closing: Mapping[str, Any], executor: Mapping[str, Any]
) -> PipelineModel | None:
    """The model of a run, to ask it anything; arguments as for `find_bottleneck`, None where that says nothing."""
    if len(stages) < 2 or not batches.height:
        return None
    rows = batches.sort("batch").tail(MAX_BATCHES)  # those that failed on the way took their time too
    if _counted(batches).height < max(MIN_BATCHES, _MIN_COUNTED * rows.height):
        return None
    wall_s = _wall_s(rows, closing, is_whole=rows.height == batches.height)
    caller_s = _caller_s(batches.height, closing)
    stations = _stations(rows, stages, executor=executor, caller_s=caller_s, wall_s=wall_s)
    if wall_s <= 0 or not any(station.busy_s for station in stations[1:-1]):
        return None
    return PipelineModel(
        stations, int(executor.get("queue_size") or 2), executor.get("kind") == "pipelined", measured_s=wall_s
    )


def _counted(batches: "pl.DataFrame") -> "pl.DataFrame":
    """The last batches, of those that went through."""
    rows = batches.sort("batch").tail(MAX_BATCHES)
    return rows.filter(rows["status"].is_in(COUNTED))


def _cores_busy(closing: Mapping[str, Any]) -> float | None:
    """Share of the time of all cores that went by in this process."""
    wall_s, cpu_s, cores = closing.get("wall_s"), closing.get("cpu_s"), closing.get("cores")
    return float(cpu_s) / (wall_s * cores) if wall_s and cores and cpu_s is not None else None


def _device_busy(counted: "pl.DataFrame", stages: Sequence[str], wall_s: float) -> float | None:
    """Share of the time that stages have the device, gaps between kernels included; None without one."""
    busy_s = sum(sum(_seconds(counted, stage_column(name, "device_ms"))) for name in stages)
    return min(1.0, busy_s / wall_s) if busy_s else None


def _overlap(model: PipelineModel, cores_busy: float | None) -> float:
    """What overlapping gives, and no more than the cores have left."""
    return min(model.gain_of_overlap(), _limit(cores_busy))


def _wall_s(rows: "pl.DataFrame", closing: Mapping[str, Any], *, is_whole: bool) -> float:
    """Wall time of the rows; where the workload did not say, or of a part, by when batches were picked up."""
    if is_whole and closing.get("wall_s"):
        return float(closing["wall_s"])
    starts_ns = rows["start_ns"].sort().to_list()
    return (starts_ns[-1] - starts_ns[0]) / 1e9 * len(starts_ns) / max(1, len(starts_ns) - 1)


def _caller_s(num_batches: int, closing: Mapping[str, Any]) -> float:
    """What the loop that takes the results does with one, on average."""
    spent = closing.get("caller_s")
    return float(closing.get("scoring_s") or 0.0 if spent is None else spent) / num_batches


def _stations(
    rows: "pl.DataFrame", stages: Sequence[str], *, executor: Mapping[str, Any], caller_s: float, wall_s: float
) -> list[Station]:
    replicas: Mapping[str, int] = executor.get("replicas") or {}
    is_pipelined = executor.get("kind") == "pipelined"
    stations = [Station(SOURCE, _seconds(rows, SOURCE_WAIT))]
    stations += [
        Station(name, _stage_seconds(rows, name), int(replicas.get(name, 1)) if is_pipelined else 1) for name in stages
    ]
    if not is_pipelined:  # what is in no stage is the calling thread's, and would still be
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


def _gains(model: PipelineModel, stages: Sequence[str], *, cores_busy: float | None) -> dict[str, Any]:
    """What a change would give by the model, and no more than the cores have left."""
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
    return {"twice_as_fast": faster, "one_replica_more": one_more, "limited_by_cores": limited}


def _limit(cores_busy: float | None, *, saved: float = 0.0) -> float:
    """How much more the cores can do, where that share of the computing is saved."""
    return max(1.0, 1 / (cores_busy * (1 - saved))) if cores_busy else math.inf


def sentences(found: Mapping[str, Any]) -> list[str]:
    """One or two plain sentences."""
    said = _pipelined(found) if found["kind"] == "pipelined" else _sequential(found)
    busy = found.get("cores_busy")
    if busy is not None and busy >= BUSY_CORES:
        said.append(
            f"this process keeps {busy:.0%} of {found['cores']} cores busy: less computing helps, more threads do not"
        )
    device = found.get("device_busy")
    if device is not None and device >= BUSY_DEVICE:
        said.append(
            f"the stages share one device and have it for {device:.0%} of the time: it bounds what can be gained"
        )
    return said


def _pipelined(found: Mapping[str, Any]) -> list[str]:
    stage, busy = found["stage"], found["utilisation"][found["stage"]]
    queue_ms = found["queue_ms"].get(stage)
    waits = f", batches wait {significant(queue_ms, digits=2)} ms before it" if queue_ms is not None else ""
    if "twice_as_fast" not in found:
        return [
            f"{stage} is the busiest stage: busy {busy:.0%} of the time{waits}",
            "the stages' times do not explain the throughput: much of the time goes by between them, in no span"
            if found["model_error"] < 0
            else "the stages' times do not explain the throughput: it is higher than they allow",
        ]
    gain = found["twice_as_fast"][stage]
    if stage == SOURCE:
        stages = {name: share for name, share in found["utilisation"].items() if name not in (SOURCE, SCORING)}
        next_busy = max(stages, key=lambda name: stages[name])
        return [
            f"the source bounds the pipeline: it is waited for {busy:.0%} of the time; "
            f"the busiest stage, {next_busy}, is busy {stages[next_busy]:.0%}"
        ]
    limited = " at best, for want of cores" if stage in found["limited_by_cores"] else ""
    if stage == SCORING:
        return [f"scoring bounds the pipeline: busy {busy:.0%}; twice as fast would give {gain:.2g} x{limited}"]
    if (found.get("cores_busy") or 0.0) >= BUSY_CORES:
        return [
            f"{stage} is the busiest stage: busy {busy:.0%}{waits}; but it is the processor that bounds the pipeline"
        ]
    if gain < _WORTH_SAYING:
        return [
            f"{stage} is the busiest stage: busy {busy:.0%}{waits}; no stage alone bounds the pipeline: "
            f"{stage} twice as fast would give {gain:.2f} x"
        ]
    return [f"{stage} bounds the pipeline: busy {busy:.0%}{waits}; twice as fast would give {gain:.2g} x{limited}"]


def _sequential(found: Mapping[str, Any]) -> list[str]:
    stage, busy = found["stage"], found["utilisation"][found["stage"]]
    subject = {SOURCE: "waiting for the source", SCORING: "what is in no stage, such as scoring,"}.get(stage, stage)
    said = f"{subject} takes {busy:.0%} of the time"
    if stage == SOURCE:  # live input comes when it comes
        return [said]
    overlap = found.get("overlap")
    if overlap is None:
        return [said]
    if overlap < _WORTH_SAYING:
        return [f"{said}; overlapping the stages (executor=pipelined) would gain next to nothing"]
    return [f"{said}; overlapping the stages (executor=pipelined) would give {overlap:.2g} x at best"]
