"""Traces of single batches, read back: which ones are worth a look, and their spans. Lazily, whatever the run's size.

It knows tables, not run directories: a table is the folder of its parts.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli.analysis.runs import query_table
from mlotel_cli.analysis.summary import COUNTED
from mlotel_cli.analysis.waterfall import format_ms
from mlotel_cli.records import SpanRecord

if TYPE_CHECKING:
    import polars as pl

    Query = Callable[[pl.LazyFrame], pl.LazyFrame]

NUM_WORST = 3
NUM_FAILED = 5
MIN_FOR_P95 = 20
"""Fewer batches have no 95th percentile to speak of."""
_NUM_REASONS = 2


@dataclass(frozen=True, slots=True)
class Pick:
    """A batch worth a look.

    Attributes:
        batch: its index.
        latency_ms: None when it never ended.
        status: how it ended.
        role: median | p95 | worst | failed.
        why: what sets it apart: the stages that took longer than usual, or the error.
    """

    batch: int
    latency_ms: float | None
    status: str
    role: str
    why: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What there is to look at. Of `num_failed` failed batches only the first few are among the picks."""

    picks: list[Pick]
    num_batches: int
    num_traced: int
    num_failed: int


def choose(batches: Path, spans: Path) -> Choice:
    """Pick median, p95, worst and failed batches of those that have spans.

    Args:
        batches: folder of the batches table.
        spans: folder of the spans table.
    """
    import polars as pl

    traced = query_table(spans, lambda frame: frame.filter(pl.col("batch").is_not_null()).select("batch").unique())
    counts = query_table(batches, lambda frame: frame.select(pl.len()))
    num_batches = int(counts.item()) if counts.height else 0
    if not traced.height:
        return Choice([], num_batches, 0, 0)
    if not num_batches:  # the first row comes when a batch is complete; its spans may be there before
        return Choice([], 0, traced.height, 0)

    def with_spans(frame: "pl.LazyFrame") -> "pl.LazyFrame":
        return frame.join(traced.lazy(), on="batch", how="semi")

    ended = pl.col("status").is_in(COUNTED) & pl.col("latency_ms").is_not_null()
    bad = ~pl.col("status").is_in([*COUNTED, "dropped"])

    def slowest(frame: "pl.LazyFrame") -> "pl.LazyFrame":
        return with_spans(frame.filter(ended)).top_k(NUM_WORST, by="latency_ms")

    def first_failed(frame: "pl.LazyFrame") -> "pl.LazyFrame":
        return with_spans(frame.filter(bad)).bottom_k(NUM_FAILED, by="batch").sort("batch")

    times = _time_columns(batches)
    medians = query_table(batches, lambda frame: frame.filter(ended).select(pl.col(times).median()))
    picks: dict[int, Pick] = {}
    for role, row in [
        *_typical(batches, ended, with_spans),
        *(("worst", row) for row in _rows(batches, slowest)),
    ]:
        why = "" if role == "median" else _what_took_longer(row, medians)
        picks.setdefault(row["batch"], Pick(row["batch"], row["latency_ms"], row["status"], role, why))
    for row in _rows(batches, first_failed):
        error = str(row.get("error") or "")
        picks[row["batch"]] = Pick(row["batch"], row["latency_ms"], row["status"], "failed", error)
    total = query_table(batches, lambda frame: with_spans(frame.filter(bad)).select(pl.len()))
    return Choice(list(picks.values()), num_batches, traced.height, int(total.item()))


def _typical(batches: Path, ended: "pl.Expr", with_spans: "Query") -> list[tuple[str, dict[str, Any]]]:
    """The batches closest to median and, where there are enough, p95."""
    import polars as pl

    latency = pl.col("latency_ms")
    quantiles = query_table(
        batches,
        lambda frame: with_spans(frame.filter(ended)).select(
            n=pl.len(), p50=latency.quantile(0.5, "linear"), p95=latency.quantile(0.95, "linear")
        ),
    )
    count, p50, p95 = quantiles.row(0)
    wanted = [("median", p50)] if count else []
    if count >= MIN_FOR_P95:
        wanted.append(("p95", p95))
    found: list[tuple[str, dict[str, Any]]] = []
    for role, value in wanted:
        away = (latency - value).abs()

        def closest(frame: "pl.LazyFrame", away: "pl.Expr" = away) -> "pl.LazyFrame":
            return with_spans(frame.filter(ended)).bottom_k(1, by=away)

        found += [(role, row) for row in _rows(batches, closest)]
    return found


def _rows(table: Path, query: "Query") -> list[dict[str, Any]]:
    return query_table(table, query).to_dicts()


def _time_columns(batches: Path) -> list[str]:
    """Columns of stage times; a recorded value or a score may be called anything."""
    names = query_table(batches, lambda frame: frame.head(0)).columns
    ends = (".host_ms", ".queue_ms")
    return [name for name in names if name.endswith(ends) and not name.startswith(("data.", "accuracy."))]


def _what_took_longer(row: dict[str, Any], medians: "pl.DataFrame") -> str:
    """The stages and queues that are furthest above their median in this batch."""
    over: list[tuple[float, str]] = []
    for column, median in (medians.row(0, named=True) if medians.width else {}).items():
        value = row.get(column)
        if value is None or median is None or value <= median:
            continue
        name, _, measure = column.rpartition(".")
        label = f"queue {name}" if measure == "queue_ms" else name
        ratio = f" ({value / median:.1f} x)" if median > 0 and measure == "host_ms" else ""
        over.append((value - median, f"{label} +{format_ms((value - median) * 1e6)} ms{ratio}"))
    over.sort(key=lambda each: -each[0])
    threshold = 0.1 * over[0][0] if over else 0.0
    return ", ".join(text for excess, text in over[:_NUM_REASONS] if excess >= threshold)


def load_spans(spans: Path, first: int, last: int) -> list[SpanRecord]:
    """The spans of batches `first` to `last`, both included, by start. Reads no other rows' contents."""
    import polars as pl

    wanted = pl.col("batch").is_between(first, last)
    frame = query_table(spans, lambda each: each.filter(wanted))
    records = [_record(row) for row in frame.iter_rows(named=True)]
    records.sort(key=lambda span: (span.start_ns, -span.end_ns))
    return records


def traced_range(spans: Path) -> tuple[int, int] | None:
    """First and last batch that has spans; None without any."""
    import polars as pl

    frame = query_table(spans, lambda each: each.select(first=pl.col("batch").min(), last=pl.col("batch").max()))
    if not frame.height or frame["first"][0] is None:
        return None
    return int(frame["first"][0]), int(frame["last"][0])


def _record(row: dict[str, Any]) -> SpanRecord:
    events: Sequence[dict[str, Any]] = json.loads(row["events"] or "[]")
    links: Sequence[dict[str, Any]] = json.loads(row["links"] or "[]")
    return SpanRecord(
        trace_id=int(row["trace_id"], 16),
        span_id=int(row["span_id"], 16),
        parent_id=int(row["parent_id"] or "0", 16),
        batch=row["batch"],
        name=row["name"] or "",
        kind=row["kind"] or "INTERNAL",
        scope=row["scope"] or "",
        thread=row["thread"] or "",
        start_ns=row["start_ns"],
        end_ns=row["end_ns"],
        device_ns=row["device_ns"],
        status=row["status"] or "UNSET",
        status_message=row["status_message"] or "",
        attributes=json.loads(row["attributes"] or "{}"),
        events=tuple((each["time_ns"], each["name"], each["attributes"] or {}) for each in events),
        links=tuple((int(each["trace_id"], 16), int(each["span_id"], 16), each["attributes"] or {}) for each in links),
    )
