"""Picks the batches of a run that are worth a look. It reads lazily, so that a run of any size fits.

It knows tables, not run directories: a table is the folder of its parts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli.columns import DataType, StageColumn, parse_columns
from mlotel_cli.figures import format_ms
from mlotel_cli.records import COUNTED
from mlotel_cli.store.reading import query_table

if TYPE_CHECKING:
    import polars as pl

NUM_WORST = 3
NUM_FAILED = 5
MIN_FOR_P95 = 20
"""Fewer batches have no useful 95th percentile."""
_NUM_REASONS = 2


@dataclass(frozen=True, slots=True)
class Pick:
    """A batch worth a look.

    Attributes:
        batch: its index.
        latency_ms: None when it never ended.
        status: how it ended.
        role: median | p95 | worst | failed.
        why: the stages that took longer than usual, or the error.
    """

    batch: int
    latency_ms: float | None
    status: str
    role: str
    why: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The picks of a run. They include only the first few of its `num_failed` failed batches."""

    picks: list[Pick]
    num_batches: int
    num_traced: int
    num_failed: int


def choose(batches: Path, spans: Path) -> Choice:
    """Pick median, p95, worst and failed batches of those that have spans; the arguments are the tables' folders."""
    import polars as pl

    traced = query_table(spans, lambda frame: frame.filter(pl.col("batch").is_not_null()).select("batch").unique())
    figures = query_table(batches, lambda frame: _figures(frame, traced))
    if not traced.height or not figures.height:  # a batch has spans before it is complete and has a row
        return Choice([], int(figures["num_batches"][0]) if figures.height else 0, traced.height, 0)
    figure = figures.row(0, named=True)
    picks: dict[int, Pick] = {}
    picked = query_table(batches, lambda frame: _picked(frame, traced, figure))
    times = _times(picked.schema)
    for row in picked.iter_rows(named=True):
        role = row["role"]
        why = {"median": "", "failed": row["error"] or ""}.get(role)
        pick = Pick(
            row["batch"], row["latency_ms"], row["status"], role, _longer(row, figure, times) if why is None else why
        )
        picks.setdefault(pick.batch, pick)
    return Choice(list(picks.values()), figure["num_batches"], traced.height, figure["num_failed"])


def _conditions(traced: "pl.DataFrame") -> "tuple[pl.Expr, pl.Expr]":
    """Return which batches were completed and which failed, of those that have spans."""
    import polars as pl

    has_spans = pl.col("batch").is_in(traced["batch"].implode())
    went_through = pl.col("status").is_in(COUNTED) & pl.col("latency_ms").is_not_null()
    return has_spans & went_through, has_spans & ~pl.col("status").is_in(COUNTED)


def _figures(frame: "pl.LazyFrame", traced: "pl.DataFrame") -> "pl.LazyFrame":
    """Return one row: counts, quantiles of the latency, and the median of every stage's time by its column's name."""
    import polars as pl

    ended, failed = _conditions(traced)
    latency = pl.col("latency_ms").filter(ended)
    return frame.select(
        pl.col([time.name for time in _times(frame.collect_schema())]).filter(ended).median(),
        num_batches=pl.len(),
        num_ended=ended.sum(),
        num_failed=failed.sum(),
        p50=latency.quantile(0.5, "linear"),
        p95=latency.quantile(0.95, "linear"),
    )


def _picked(frame: "pl.LazyFrame", traced: "pl.DataFrame", figure: Mapping[str, Any]) -> "pl.LazyFrame":
    """Return the rows of the picks, each with its role; a batch with two roles has two rows."""
    import polars as pl

    ended, failed = _conditions(traced)
    latency = pl.col("latency_ms")
    found: dict[str, pl.LazyFrame] = {}
    if figure["num_ended"]:
        found["median"] = frame.filter(ended).bottom_k(1, by=(latency - figure["p50"]).abs())
    if figure["num_ended"] >= MIN_FOR_P95:
        found["p95"] = frame.filter(ended).bottom_k(1, by=(latency - figure["p95"]).abs())
    found["worst"] = frame.filter(ended).top_k(NUM_WORST, by=latency).sort(latency, descending=True)
    found["failed"] = frame.filter(failed).bottom_k(NUM_FAILED, by="batch").sort("batch")
    return pl.concat([rows.with_columns(role=pl.lit(role)) for role, rows in found.items()])


def _times(schema: Mapping[str, DataType]) -> list[StageColumn]:
    return [time for time in parse_columns(schema).times if time.measure in ("host_ms", "queue_ms")]


def _longer(row: Mapping[str, Any], medians: Mapping[str, Any], times: Iterable[StageColumn]) -> str:
    """Return, as text, the stages and queues that are furthest above their median in this batch."""
    over: list[tuple[float, str]] = []
    for time in times:
        value, median = row[time.name], medians.get(time.name)
        if value is None or median is None or value <= median:
            continue
        label = f"queue {time.stage}" if time.measure == "queue_ms" else time.stage
        ratio = f" ({value / median:.1f} x)" if median > 0 and time.measure == "host_ms" else ""
        over.append((value - median, f"{label} +{format_ms((value - median) * 1e6)} ms{ratio}"))
    over.sort(key=lambda each: -each[0])
    threshold = 0.1 * over[0][0] if over else 0.0
    return ", ".join(text for excess, text in over[:_NUM_REASONS] if excess >= threshold)
