"""The lossless sink: Parquet parts, written whole and renamed, merged to one file at the end.

A table is a folder of `part-<first>[-<last>].parquet`; a merged part covers every number between its two, so a reader
that finds both, in the moment between rename and removal, knows which ones to leave out (`analysis.runs`). Every column
has an explicit type, because a column of nulls in one part must join a column of floats in another.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlotel_cli.analysis.runs import read_table
from mlotel_cli.records import BatchRecord, SpanRecord

BATCH_TYPES = {
    "batch": "Int64",
    "source_batch": "Int64",
    "repeat": "Int64",
    "start_ns": "Int64",
    "size": "Int64",
    "status": "String",
    "error": "String",
    "spans_missing": "Int64",
}
SPAN_TYPES = {
    "trace_id": "String",
    "span_id": "String",
    "parent_id": "String",
    "batch": "Int64",
    "name": "String",
    "kind": "String",
    "scope": "String",
    "thread": "String",
    "start_ns": "Int64",
    "end_ns": "Int64",
    "device_ns": "Int64",
    "status": "String",
    "status_message": "String",
    "attributes": "String",
    "events": "String",
    "links": "String",
}
SAMPLE_TYPES = {"batch": "Int64", "id": "String", "prediction": "String", "target": "String"}


class TableWriter:
    """Collects rows and writes them as parts of one table. Runs on the recorder's main thread."""

    def __init__(self, folder: Path, types: Mapping[str, str]) -> None:
        """Write to `folder`; columns that `types` does not name are Float64, those ending in .calls Int64."""
        self._folder = folder
        self._types = types
        self._rows: list[Mapping[str, Any]] = []
        self._parts = 0
        self.rows_written = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row for the next part."""
        self._rows.append(row)

    def flush(self) -> None:
        """Write the rows kept so far as one part; nothing when there are none."""
        if not self._rows:
            return
        import polars as pl

        columns: dict[str, list[Any]] = {}
        names = dict.fromkeys([*self._types, *(name for row in self._rows for name in row)])
        for name in names:
            columns[name] = [row.get(name) for row in self._rows]
        frame = pl.DataFrame(columns, schema={name: self._type(name) for name in names}, strict=True)
        self._parts += 1
        self._write(frame, f"part-{self._parts:06d}.parquet")
        self.rows_written += len(self._rows)
        self._rows = []

    def merge(self) -> None:
        """Flush, and make one file of all parts, with the union of their columns."""
        self.flush()
        if self._parts < 2:
            return
        parts = sorted(self._folder.glob("part-*.parquet"))
        self._write(read_table(self._folder), f"part-{1:06d}-{self._parts:06d}.parquet")
        for part in parts:
            part.unlink()

    def _type(self, name: str) -> Any:
        import polars as pl

        return getattr(pl, self._types.get(name, "Int64" if name.endswith(".calls") else "Float64"))

    def _write(self, frame: Any, name: str) -> None:
        self._folder.mkdir(exist_ok=True)
        unfinished = self._folder / f".{name}.tmp"
        frame.write_parquet(unfinished)
        os.replace(unfinished, self._folder / name)


class ParquetSink:
    """The run's three tables: batches, spans, samples."""

    def __init__(self, run_dir: Path) -> None:
        """Write below `run_dir`."""
        self._batches = TableWriter(run_dir / "batches.parquet", BATCH_TYPES)
        self._spans = TableWriter(run_dir / "spans.parquet", SPAN_TYPES)
        self._samples = TableWriter(run_dir / "samples.parquet", SAMPLE_TYPES)

    @property
    def tables(self) -> Sequence[TableWriter]:
        """All tables."""
        return (self._batches, self._spans, self._samples)

    def write_span(self, span: SpanRecord) -> None:
        """Keep a span, whether it belongs to a row or not."""
        self._spans.add(span_row(span))

    def write(self, record: BatchRecord) -> None:
        """Keep a row and its samples."""
        self._batches.add(batch_row(record))
        for sample in record.samples:
            scores = {f"score.{name}": value for name, value in sample.scores.items()}
            identity = {"batch": record.batch, "id": sample.id, "prediction": sample.prediction}
            self._samples.add({**identity, "target": sample.target, **scores})

    def flush(self) -> None:
        """Make everything kept so far readable."""
        for table in self.tables:
            table.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        """Flush and merge every table."""
        for table in self.tables:
            table.merge()


def batch_row(record: BatchRecord) -> dict[str, Any]:
    """A BatchRecord as one flat row, named as run directories promise."""
    row: dict[str, Any] = {
        "batch": record.batch,
        "source_batch": record.source_batch,
        "repeat": record.repeat,
        "start_ns": record.start_ns,
        "size": record.size,
        "status": record.status,
        "error": record.error,
        "spans_missing": record.spans_missing,
        "latency_ms": record.latency_ms,
        "source.wait_ms": record.source_wait_ms,
    }
    for name, time in record.stages.items():
        if time.calls:
            row[f"{name}.host_ms"] = time.host_ms
            row[f"{name}.calls"] = time.calls
        if time.device_ms is not None:
            row[f"{name}.device_ms"] = time.device_ms
        if time.queue_ms is not None:
            row[f"{name}.queue_ms"] = time.queue_ms
    row.update((f"accuracy.{name}", value) for name, value in record.accuracy.items())
    row.update((f"data.{name}", value) for name, value in record.data.items())
    return row


def span_row(span: SpanRecord) -> dict[str, Any]:
    """A SpanRecord as one flat row; ids in OpenTelemetry's hexadecimal form, the rest of it as JSON text."""
    return {
        "trace_id": f"{span.trace_id:032x}",
        "span_id": f"{span.span_id:016x}",
        "parent_id": f"{span.parent_id:016x}" if span.parent_id else None,
        "batch": span.batch,
        "name": span.name,
        "kind": span.kind,
        "scope": span.scope,
        "thread": span.thread,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "device_ns": span.device_ns,
        "status": span.status,
        "status_message": span.status_message,
        "attributes": _json(span.attributes) if span.attributes else None,
        "events": _json(_named(span.events, ("time_ns", "name", "attributes"))) if span.events else None,
        "links": _json([_link(*link) for link in span.links]) if span.links else None,
    }


def _named(items: Iterable[Sequence[Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [dict(zip(names, item, strict=True)) for item in items]


def _link(trace_id: int, span_id: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"trace_id": f"{trace_id:032x}", "span_id": f"{span_id:016x}", "attributes": attributes}


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda other: other.hex() if isinstance(other, bytes) else str(other))
