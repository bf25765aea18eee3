"""Reads the spans of some batches back as SpanRecords, whatever the size of the run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlotel_cli.records import SpanRecord
from mlotel_cli.store.reading import query_table


def load_spans(spans: Path, first: int, last: int) -> list[SpanRecord]:
    """Return the spans of batches `first` to `last`, both included, by start; other rows are not read."""
    import polars as pl

    wanted = pl.col("batch").is_between(first, last)
    frame = query_table(spans, lambda each: each.filter(wanted))
    records = [_record(row) for row in frame.iter_rows(named=True)]
    records.sort(key=lambda span: (span.start_ns, -span.end_ns))
    return records


def traced_range(spans: Path) -> tuple[int, int] | None:
    """Return the first and last batch that have spans; None without spans."""
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
        lag_ns=row.get("lag_ns"),  # runs of earlier versions have none
        status=row["status"] or "UNSET",
        status_message=row["status_message"] or "",
        attributes=json.loads(row["attributes"] or "{}"),
        events=tuple((each["time_ns"], each["name"], each["attributes"] or {}) for each in events),
        links=tuple((int(each["trace_id"], 16), int(each["span_id"], 16), each["attributes"] or {}) for each in links),
    )
