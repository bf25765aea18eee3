"""Which stage bounds a pipeline, how busy each one is, and what a faster one would give. Pure.

Utilisation is time in the stage by wall time and replica. The stage with the highest one bounds the throughput; what a
change to it would give is replayed by `pipeline_model`, which says what is outside the model. On CUDA a stage takes
what the longer of host and device takes; that stages share one device is not modelled. That they share the processor
is, in one respect: where its cores are busy for a share s of the time, overlapping stages gives 1 / s at best.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli.analysis.pipeline_model import PipelineModel, Station
from mlotel_cli.analysis.summary import COUNTED
from mlotel_cli.analysis.trace import load_spans, traced_range
from mlotel_cli.analysis.waterfall import bar_kind
from mlotel_cli.records import KIND, SpanRecord

if TYPE_CHECKING:
    import polars as pl

SOURCE = "source"
SCORING = "scoring"
MIN_BATCHES = 30
"""Fewer say nothing: filling and draining the pipeline is too large a part of them."""
MAX_BATCHES = 5000
"""Of a longer run the last ones are looked at."""
BUSY_CORES = 0.85
"""From this share on, more threads cannot help much."""
MAX_ERROR = 0.25
"""Beyond this, the stages' times do not explain the throughput, and no prediction is made."""
_MIN_COUNTED = 0.9
_TRACES_READ = 50
_WORTH_SAYING = 1.05
_SHOWN_FACTOR = 2


def top_stages(spans: Iterable[SpanRecord]) -> list[str]:
    """Names of the spans directly below a root, in order of first appearance; what they call is part of them."""
    ordered = sorted(spans, key=lambda span: span.start_ns)
    roots = {span.span_id for span in ordered if bar_kind(span) == "batch"}
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
        kind, stage (that bounds), utilisation and queue_ms by stage, cores and the share of time that they are busy,
        model_error, and the gains: `twice_as_fast` and `one_replica_more` by stage for a pipelined run, `overlap` for
        a sequential one; `sentences` says it in words.
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
        "queue_ms": {name: _mean(counted, f"{name}.queue_ms") for name in stages},
        "cores": closing.get("cores"),
        "cores_busy": _cores_busy(closing),
        "model_error": error,
        "num_batches": counted.height,
    }
    if model.is_pipelined and abs(error) <= MAX_ERROR:
        found |= _gains(model, stages)
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
    counted = _counted(batches)
    num_rows = min(batches.height, MAX_BATCHES)
    if counted.height < max(MIN_BATCHES, _MIN_COUNTED * num_rows):
        return None
    wall_s = _wall_s(batches.sort("batch").tail(num_rows), closing, is_whole=num_rows == batches.height)
    caller_s = _caller_s(batches.height, closing)
    stations = _stations(counted, stages, executor=executor, caller_s=caller_s, wall_s=wall_s)
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


def _overlap(model: PipelineModel, cores_busy: float | None) -> float:
    """What overlapping gives, and no more than the cores have left."""
    gain = model.gain_of_overlap()
    return min(gain, max(1.0, 1 / cores_busy)) if cores_busy else gain


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
    counted: "pl.DataFrame", stages: Sequence[str], *, executor: Mapping[str, Any], caller_s: float, wall_s: float
) -> list[Station]:
    replicas: Mapping[str, int] = executor.get("replicas") or {}
    is_pipelined = executor.get("kind") == "pipelined"
    stations = [Station(SOURCE, _seconds(counted, "source.wait_ms"))]
    stations += [
        Station(name, _stage_seconds(counted, name), int(replicas.get(name, 1)) if is_pipelined else 1)
        for name in stages
    ]
    if not is_pipelined:  # what is in no stage is the calling thread's, and would still be
        caller_s = max(caller_s, (wall_s - sum(station.busy_s for station in stations)) / counted.height)
    return [*stations, Station(SCORING, [caller_s] * counted.height)]


def _stage_seconds(counted: "pl.DataFrame", name: str) -> list[float]:
    host, device = _seconds(counted, f"{name}.host_ms"), _seconds(counted, f"{name}.device_ms")
    return [max(pair) for pair in zip(host, device, strict=True)]


def _seconds(counted: "pl.DataFrame", column: str) -> list[float]:
    if column not in counted.columns:
        return [0.0] * counted.height
    return [value / 1e3 if value is not None and math.isfinite(value) else 0.0 for value in counted[column].to_list()]


def _mean(counted: "pl.DataFrame", column: str) -> float | None:
    values = [value for value in counted[column].to_list() if value is not None] if column in counted.columns else []
    return sum(values) / len(values) if values else None


def _gains(model: PipelineModel, stages: Sequence[str]) -> dict[str, Any]:
    more = {station.name: station.replicas + 1 for station in model.stations}
    return {
        "twice_as_fast": {station.name: model.gain(faster={station.name: _SHOWN_FACTOR}) for station in model.stations},
        "one_replica_more": {name: model.gain(replicas={name: more[name]}) for name in stages},
    }


def sentences(found: Mapping[str, Any]) -> list[str]:
    """One or two plain sentences."""
    said = _pipelined(found) if found["kind"] == "pipelined" else _sequential(found)
    busy = found.get("cores_busy")
    if busy is not None and busy >= BUSY_CORES:
        said.append(
            f"this process keeps {busy:.0%} of {found['cores']} cores busy: less computing helps, more threads do not"
        )
    return said


def _pipelined(found: Mapping[str, Any]) -> list[str]:
    stage, busy = found["stage"], found["utilisation"][found["stage"]]
    queue_ms = found["queue_ms"].get(stage)
    waits = f", batches wait {_ms(queue_ms)} before it" if queue_ms is not None else ""
    if "twice_as_fast" not in found:
        return [
            f"{stage} is the busiest stage: busy {busy:.0%} of the time{waits}",
            "the stages' times do not explain the throughput: the workload waits for something that is in no span",
        ]
    gain = found["twice_as_fast"][stage]
    if stage == SOURCE:
        stages = {name: share for name, share in found["utilisation"].items() if name not in (SOURCE, SCORING)}
        next_busy = max(stages, key=lambda name: stages[name])
        return [
            f"the source bounds the pipeline: it is waited for {busy:.0%} of the time; "
            f"the busiest stage, {next_busy}, is busy {stages[next_busy]:.0%}"
        ]
    if stage == SCORING:
        return [f"scoring bounds the pipeline: busy {busy:.0%}; twice as fast would give {gain:.2g} x"]
    if gain < _WORTH_SAYING:
        return [
            f"{stage} is the busiest stage: busy {busy:.0%}{waits}; no stage alone bounds the pipeline: "
            f"{stage} twice as fast would give {gain:.2f} x"
        ]
    return [f"{stage} bounds the pipeline: busy {busy:.0%}{waits}; twice as fast would give {gain:.2g} x"]


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


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"
