"""A run's rows in, its summary out: what run.json, the closing table and W&B's summary show. Pure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlotel_cli.analysis.stats import describe

if TYPE_CHECKING:
    import polars as pl

COUNTED = ("scored", "done")
"""Statuses whose latencies count; a batch that failed or never ended has no latency to speak of."""


def summarise(batches: "pl.DataFrame", closing: Mapping[str, Any], *, mean_scores: bool = False) -> dict[str, Any]:
    """Summary of a run in run.json's form.

    Values that are not finite are in the rows; the figures here are without them.

    Args:
        batches: the batches table, in any order.
        closing: what only the workload knows: `accuracy` (value by metric), `wall_s`, `scoring_s`, `warmup`,
            `telemetry`; all optional, because a killed workload says nothing.
        mean_scores: the batches' own scores are all the accuracy there is, as in a user's own loop: then a metric's
            value is their mean over the items.

    Returns:
        accuracy, latency_ms, throughput, data, batches (count by status), warmup, telemetry, budget. Latencies in
        milliseconds, throughput in items per second.
    """
    import polars as pl

    values: dict[str, float | None] = dict(closing.get("accuracy") or {})
    summary: dict[str, Any] = {
        "accuracy": {},
        "latency_ms": {"batch": describe([]), "stages": {}},
        "throughput": {"items_per_s": None, "wall_items_per_s": None},
        "data": {},
        "batches": {},
        "warmup": closing.get("warmup"),
        "telemetry": dict(closing.get("telemetry") or {}),
        "budget": {"passed": None},
    }
    if mean_scores and batches.height:
        values |= _mean_scores(batches.filter(pl.col("status").is_in(COUNTED)))
    summary["accuracy"] = {name: {"value": value, "ci95": None} for name, value in values.items()}
    if not batches.height:
        return summary
    summary["batches"] = dict(batches.group_by("status").len().sort("status").iter_rows())
    counted = batches.filter(pl.col("status").is_in(COUNTED)).sort("batch")
    summary["latency_ms"] = {"batch": _describe(counted, "latency_ms"), "stages": _stages(counted)}
    if counted["source.wait_ms"].count():
        summary["latency_ms"]["source_wait"] = _describe(counted, "source.wait_ms")
    summary["throughput"] = _throughput(counted, closing)
    for column in counted.columns:
        if column.startswith("data.") and not _is_of_stage(counted, column):
            summary["data"][column.removeprefix("data.")] = _describe(counted, column)
    return summary


def _describe(frame: "pl.DataFrame", column: str) -> dict[str, Any]:
    values = frame[column]
    return describe(values.filter(values.is_finite().fill_null(False)).to_numpy())


def _is_of_stage(frame: "pl.DataFrame", column: str) -> bool:
    """Whether it is a stage's time or count. Beside a stage `data`, a recorded value `host_ms` would look the same.

    A recorded value or a score may be called anything; only a stage has a count of calls, and that is an integer.
    """
    import polars as pl

    name, _, measure = column.rpartition(".")
    if measure not in ("host_ms", "device_ms", "queue_ms", "calls"):
        return False
    if not column.startswith(("data.", "accuracy.")):
        return True
    return frame.schema.get(f"{name}.calls") == pl.Int64


def _stages(counted: "pl.DataFrame") -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = {}
    for column in counted.columns:
        name, _, measure = column.rpartition(".")
        if measure != "calls" and _is_of_stage(counted, column):
            times = stages.setdefault(name, {"host": None, "device": None, "queue": None})
            times[measure.removesuffix("_ms")] = _describe(counted, column)
    return stages


def _mean_scores(counted: "pl.DataFrame") -> dict[str, float | None]:
    """Mean score an item, by metric; None for a metric whose every score is not finite."""
    means: dict[str, float | None] = {}
    for column in counted.columns:
        if column.startswith("accuracy.") and not _is_of_stage(counted, column):
            given = counted.filter(counted[column].is_finite().fill_null(False))
            scores, sizes = given[column].to_numpy(), given["size"].to_numpy()
            means[column.removeprefix("accuracy.")] = float(scores @ sizes / sizes.sum()) if sizes.sum() else None
    return means


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
