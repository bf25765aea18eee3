"""A run's rows in, its summary out: what run.json, the closing table and W&B's summary show. Pure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlotel_cli.analysis.stats import describe

if TYPE_CHECKING:
    import polars as pl

COUNTED = ("scored", "done")
"""Statuses whose latencies count; a batch that failed or never ended has no latency to speak of."""


def summarise(batches: "pl.DataFrame", closing: Mapping[str, Any]) -> dict[str, Any]:
    """Summary of a run in run.json's form.

    Args:
        batches: the batches table, in any order.
        closing: what only the workload knows: `accuracy` (value by metric), `wall_s`, `scoring_s`, `warmup`,
            `telemetry`; all optional, because a killed workload says nothing.

    Returns:
        accuracy, latency_ms, throughput, data, batches (count by status), warmup, telemetry, budget. Latencies in
        milliseconds, throughput in items per second.
    """
    import polars as pl

    accuracy = {name: {"value": value, "ci95": None} for name, value in (closing.get("accuracy") or {}).items()}
    summary: dict[str, Any] = {
        "accuracy": accuracy,
        "latency_ms": {"batch": describe([]), "stages": {}},
        "throughput": {"items_per_s": None, "wall_items_per_s": None},
        "data": {},
        "batches": {},
        "warmup": closing.get("warmup"),
        "telemetry": dict(closing.get("telemetry") or {}),
        "budget": {"passed": None},
    }
    if not batches.height:
        return summary
    summary["batches"] = dict(batches.group_by("status").len().sort("status").iter_rows())
    counted = batches.filter(pl.col("status").is_in(COUNTED)).sort("batch")
    summary["latency_ms"] = {"batch": _describe(counted, "latency_ms"), "stages": _stages(counted)}
    if counted["source.wait_ms"].count():
        summary["latency_ms"]["source_wait"] = _describe(counted, "source.wait_ms")
    summary["throughput"] = _throughput(counted, closing)
    for column in counted.columns:
        if column.startswith("data."):
            summary["data"][column.removeprefix("data.")] = _describe(counted, column)
    return summary


def _describe(frame: "pl.DataFrame", column: str) -> dict[str, Any]:
    return describe(frame[column].drop_nulls().to_numpy())


def _stages(counted: "pl.DataFrame") -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = {}
    for column in counted.columns:
        name, _, measure = column.rpartition(".")
        kind = measure.removesuffix("_ms")
        if kind in ("host", "device", "queue") and measure.endswith("_ms"):
            stages.setdefault(name, {"host": None, "device": None, "queue": None})[kind] = _describe(counted, column)
    return stages


def _throughput(counted: "pl.DataFrame", closing: Mapping[str, Any]) -> dict[str, float | None]:
    """Items over wall time, with and without the time that scoring took.

    A workload that was killed cannot say how long it ran: then from the first start to the last end of its rows.
    """
    items = int(counted["size"].sum())
    wall_s: float | None = closing.get("wall_s")
    if wall_s is None and counted.height:
        ends = counted["start_ns"] + (counted["latency_ms"].fill_null(0.0) * 1e6).cast(int)
        wall_s = (int(ends.max()) - int(counted["start_ns"].min())) / 1e9  # type: ignore[arg-type]
    if not wall_s:
        return {"items_per_s": None, "wall_items_per_s": None}
    busy_s = wall_s - (closing.get("scoring_s") or 0.0)
    return {"items_per_s": items / busy_s if busy_s > 0 else None, "wall_items_per_s": items / wall_s}
