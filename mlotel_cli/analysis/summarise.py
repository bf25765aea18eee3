"""A run's rows in, its summary out: what run.json, the closing table and W&B's summary show. Pure."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlotel_cli.analysis.verdicts import verdict_of_events
from mlotel_cli.columns import SOURCE_WAIT, BatchColumns, Measure, accuracy_column, parse_columns, stage_column
from mlotel_cli.records import COUNTED
from mlotel_cli.stats.bootstrap import grouped_bootstrap, segment_groups
from mlotel_cli.stats.describe import cold_start, describe, trend
from mlotel_cli.stats.description import Description, Interval
from mlotel_cli.summary import Latency, Score, StageLatency, Summary, Throughput
from mlotel_cli.wire import Closing

if TYPE_CHECKING:
    import polars as pl

_WORTH_SAYING = 0.02
"""A drift below this share of the mean is not worth a note, however significant."""


def summarise(batches: "pl.DataFrame", closing: Closing, *, mean_scores: bool = False) -> Summary:
    """Summary of a run, without its bottleneck and without what the recorder itself counts.

    Values that are not finite are in the rows; the figures here are without them.

    Args:
        batches: the batches table, in any order.
        closing: what only the workload knows.
        mean_scores: the batches' own scores are all the accuracy there is, as in a user's own loop: then a metric's
            value is their mean over the items.
    """
    import polars as pl

    values = dict(closing.accuracy)
    summary = Summary(warmup=closing.warmup, telemetry=replace(closing.telemetry))
    if mean_scores and batches.height:
        values |= _mean_scores(batches.filter(pl.col("status").is_in(COUNTED)), parse_columns(batches.schema))
    summary.accuracy = {name: Score(value) for name, value in values.items()}
    if not batches.height:
        return summary
    for name, score in summary.accuracy.items():
        score.ci95 = _bounds(closing.accuracy_ci95.get(name)) or _segment_interval(batches, name, score.value)
    summary.batches = dict(batches.group_by("status").len().sort("status").iter_rows())
    counted = batches.filter(pl.col("status").is_in(COUNTED)).sort("batch")
    columns = parse_columns(counted.schema)
    summary.latency_ms = Latency(_describe(counted, "latency_ms"), _stages(counted, columns))
    if counted[SOURCE_WAIT].count():
        summary.latency_ms.source_wait = _describe(counted, SOURCE_WAIT)
    summary.throughput = _throughput(counted, closing)
    summary.data = {name: _describe(counted, column) for name, column in columns.data.items()}
    summary.notes = _notes(counted)
    return summary


def _bounds(interval: Sequence[float] | None) -> Interval | None:
    return (interval[0], interval[1]) if interval else None


def _segment_interval(batches: "pl.DataFrame", name: str, value: float | None) -> Interval | None:
    """Interval of a metric whose value is the mean of its batches' scores, by resampling consecutive segments.

    None for any other metric: only it knows what its independent units are. Later passes repeat the first one's items
    and add nothing independent, so only the first counts.
    """
    import polars as pl

    column = accuracy_column(name)
    if value is None or column not in batches.columns:
        return None
    first = batches.filter((pl.col("repeat") == 0) & pl.col(column).is_finite() & (pl.col("size") > 0)).sort("batch")
    scores, sizes = first[column].to_numpy(), first["size"].to_numpy().astype(float)
    if not first.height or not math.isclose(float(scores @ sizes) / sizes.sum(), value, rel_tol=1e-6, abs_tol=1e-9):
        return None
    return grouped_bootstrap(scores * sizes, segment_groups(scores), denominators=sizes)


def _notes(counted: "pl.DataFrame") -> list[str]:
    """What a reader of the mean should know: a cold start, a drift within the run. One sentence each."""
    latency = counted["latency_ms"].drop_nulls().to_numpy()
    notes: list[str] = []
    if not latency.size:
        return notes
    cold = cold_start(latency)
    if cold is not None and cold.significant and cold.num_cold:
        batches = "batch was" if cold.num_cold == 1 else f"{cold.num_cold} batches were"
        notes.append(
            f"cold start: the first {batches} slower than the rest "
            f"({cold.first:.2f} ms against a median of {cold.rest_p50:.2f} ms); more warm-up would leave that out"
        )
    drift = trend(latency)
    if drift.significant and abs(drift.change) >= _WORTH_SAYING * float(latency.mean()):
        share = drift.change / float(latency.mean())
        notes.append(f"drift: the latency of a batch changed by {drift.change:+.2f} ms ({share:+.0%}) over the run")
    return notes


def _describe(frame: "pl.DataFrame", column: str) -> Description:
    values = frame[column]
    return describe(values.filter(values.is_finite().fill_null(False)).to_numpy())


def _stages(counted: "pl.DataFrame", columns: BatchColumns) -> dict[str, StageLatency]:
    times: dict[str, dict[Measure, Description]] = {}
    for column in columns.times:
        times.setdefault(column.stage, {})[column.measure] = _describe(counted, column.name)
    return {
        name: StageLatency(
            host=of.get("host_ms"),
            device=of.get("device_ms"),
            queue=of.get("queue_ms"),
            lag=of.get("lag_ms"),
            verdict=_verdict(counted, name) if "lag_ms" in of else None,
        )
        for name, of in times.items()
    }


def _verdict(counted: "pl.DataFrame", name: str) -> str | None:
    """What the stage waits for, by its mean times; None where no batch has all of them, of a single call."""
    import polars as pl

    host, device = pl.col(stage_column(name, "host_ms")), pl.col(stage_column(name, "device_ms"))
    lag, calls = pl.col(stage_column(name, "lag_ms")), pl.col(stage_column(name, "calls"))
    known = counted.filter(host.is_finite() & device.is_finite() & lag.is_finite() & (calls == 1))
    if not known.height:
        return None
    means = known.select(latency_ms=host.mean(), device_ms=device.mean(), lag_ms=pl.min_horizontal(device, lag).mean())
    queue = stage_column(name, "queue_ms")
    waited = known.select(pl.col(queue).fill_null(0.0).mean()).item() if queue in known.columns else None
    return verdict_of_events(**means.row(0, named=True), queue_ms=waited)


def _mean_scores(counted: "pl.DataFrame", columns: BatchColumns) -> dict[str, float | None]:
    """Mean score an item, by metric; None for a metric whose every score is not finite."""
    means: dict[str, float | None] = {}
    for name, column in columns.accuracy.items():
        given = counted.filter(counted[column].is_finite().fill_null(False))
        scores, sizes = given[column].to_numpy(), given["size"].to_numpy()
        means[name] = float(scores @ sizes / sizes.sum()) if sizes.sum() else None
    return means


def _throughput(counted: "pl.DataFrame", closing: Closing) -> Throughput:
    """Items over wall time, with and without the time that scoring took.

    A workload that was killed cannot say how long it ran: then from the first start to the last end of its rows.
    """
    items = int(counted["size"].sum())
    wall_s = closing.wall_s
    if wall_s is None and counted.height:
        ends = counted["start_ns"] + (counted["latency_ms"].fill_null(0.0) * 1e6).cast(int)
        wall_s = (int(ends.max()) - int(counted["start_ns"].min())) / 1e9  # type: ignore[arg-type]
    if not wall_s:
        return Throughput()
    busy_s = wall_s - (closing.scoring_s or 0.0)
    return Throughput(items / busy_s if busy_s > 0 else None, items / wall_s)
