"""The lossless sink: Parquet parts, written whole and renamed, merged to one file at the end.

A table is a folder of `part-<first>[-<last>].parquet`; a merged part covers every number between its two, so a reader
that finds both, in the moment between rename and removal, knows which ones to leave out (`analysis.runs`). Every column
has an explicit type, because a column of nulls in one part must join a column of floats in another.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from mlotel_cli.columns import (
    BATCH_TYPES,
    SAMPLE_TYPES,
    SOURCE_WAIT,
    SPAN_TYPES,
    accuracy_column,
    data_column,
    score_column,
    stage_column,
    type_of,
)
from mlotel_cli.errors import RecorderError
from mlotel_cli.records import BatchRecord, SpanRecord, valid_text
from mlotel_cli.store.reading import current_parts, last_part, scan_parts
from mlotel_cli.store.rolling import Retention, Rolling

logger = logging.getLogger("mlotel.recorder")

Row = TypeVar("Row")

_PLAIN_SPAN_FIELDS = (
    "batch",
    "name",
    "kind",
    "scope",
    "thread",
    "start_ns",
    "end_ns",
    "device_ns",
    "lag_ns",
    "status",
    "status_message",
)


class TableWriter(Generic[Row]):
    """Collects rows and writes them as parts of one table. Runs on the recorder's main thread.

    Attributes:
        folder: the table.
        num_written: rows written by this writer.
        note: why the parts could not be merged; empty when they were.
    """

    def __init__(
        self, folder: Path, types: Mapping[str, str], columns: Callable[[Sequence[Row]], dict[str, list[Any]]]
    ) -> None:
        """Write to `folder` what `columns` makes of rows.

        A column that `types` does not name has the type that `columns.type_of` gives it.
        """
        self.folder = folder
        self._types = types
        self._columns = columns
        self._rows: list[Row] = []
        self._parts = last_part(folder)  # a recorder that takes the place of another goes on behind its parts
        self.num_written = 0
        self.note = ""

    def add(self, row: Row) -> None:
        """Keep a row for the next part."""
        self._rows.append(row)

    def flush(self) -> None:
        """Write the rows kept so far as one part; nothing when there are none.

        Raises:
            RecorderError: when the part cannot be written; what was written before stays readable.
        """
        if not self._rows:
            return
        columns = self._columns(self._rows)
        names = dict.fromkeys((*self._types, *columns))
        nothing: list[Any] = [None] * len(self._rows)
        frame = _frame(
            {name: columns.get(name, nothing) for name in names},
            {name: self._types.get(name) or type_of(name, columns.get(name, nothing)) for name in names},
        )
        try:
            self._write(frame.write_parquet, f"part-{self._parts + 1:06d}.parquet")
        except _write_errors() as error:
            raise RecorderError(f"{self.folder} cannot be written: {error}") from error
        self._parts += 1
        self.num_written += len(self._rows)
        self._rows = []

    def discard(self) -> int:
        """Forget the rows kept so far; returns how many they were."""
        count, self._rows = len(self._rows), []
        return count

    def merge(self) -> None:
        """Flush, and make one file of all parts, with the union of their columns.

        Streams, so that a table may be larger than the memory. Parts that cannot be merged (a disk too full to hold
        both) stay as they are, just as readable; `note` says why.
        """
        self.flush()
        parts = current_parts(self.folder)
        if len(parts) < 2:
            return
        merged = f"part-{1:06d}-{self._parts:06d}.parquet"
        try:
            self._write(scan_parts(parts).sink_parquet, merged)
        except _write_errors() as error:
            self.note = f"{self.folder.name}: its {len(parts)} parts were not merged: {error}"
            return
        for part in self.folder.glob("part-*.parquet"):
            if part.name != merged:
                part.unlink(missing_ok=True)

    def _write(self, write: Callable[[Path], object], name: str) -> None:
        """Write beside it, and rename: a reader sees the whole part or none."""
        self.folder.mkdir(exist_ok=True)
        unfinished = self.folder / f".{name}.tmp"
        try:
            write(unfinished)
            os.replace(unfinished, self.folder / name)
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)


class ParquetSink:
    """The run's three tables: batches, spans, samples."""

    def __init__(self, run_dir: Path) -> None:
        """Write below `run_dir`."""
        self._batches = TableWriter[Mapping[str, Any]](run_dir / "batches.parquet", BATCH_TYPES, join_rows)
        self._spans = TableWriter[SpanRecord](run_dir / "spans.parquet", SPAN_TYPES, span_columns)
        self._samples = TableWriter[Mapping[str, Any]](run_dir / "samples.parquet", SAMPLE_TYPES, join_rows)
        self.write_span = self._spans.add
        """Keep a span, whether it belongs to a row or not."""

    @property
    def tables(self) -> Sequence[TableWriter[Any]]:
        """All tables."""
        return (self._batches, self._spans, self._samples)

    @property
    def notes(self) -> list[str]:
        """What a reader should know about the files."""
        return [table.note for table in self.tables if table.note]

    def write(self, record: BatchRecord) -> None:
        """Keep a row and its samples."""
        self._batches.add(batch_row(record))
        for sample in record.samples:
            scores = {score_column(name): value for name, value in sample.scores.items()}
            identity = {"batch": record.batch, "id": sample.id, "prediction": sample.prediction}
            self._samples.add({**identity, "target": sample.target, **scores})

    def flush(self) -> None:
        """Make everything kept so far readable.

        Raises:
            RecorderError: when a part cannot be written.
        """
        for table in self.tables:
            table.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        """Flush and merge every table.

        Raises:
            RecorderError: when a part cannot be written.
        """
        self.flush()
        for table in self.tables:
            table.merge()

    def describe(self) -> dict[str, Any]:
        """Rows written, and lost."""
        return {"ok": True, "sent": sum(table.num_written for table in self.tables), "lost": 0, "detail": ""}


class RollingParquetSink(ParquetSink):
    """A monitor's: the oldest rows go, and a disk that takes no more ends nothing; what it costs is counted."""

    def __init__(self, run_dir: Path, retention: Retention, *, say: Callable[[str], None]) -> None:
        """Write below `run_dir`, behind what another recorder left there; `say` takes one line for the user."""
        super().__init__(run_dir)
        self._say = say
        self._rolling = Rolling([table.folder for table in self.tables], retention)
        self._lost = 0
        self._problem = ""
        self._ok = True

    @property
    def notes(self) -> list[str]:
        """What a reader should know about the files."""
        deleted = self._rolling.deleted_bytes
        lines = [f"the oldest {deleted / 1e6:.1f} MB were deleted, as monitor.retention says"] if deleted else []
        if self._lost:
            lines.append(f"{self._lost} rows could not be written ({self._problem})")
        return [*super().notes, *lines]

    def flush(self) -> None:
        """Make everything kept so far readable, or count it as lost; merge and delete what is due."""
        failed = False
        for table in self.tables:
            try:
                table.flush()
            except RecorderError as error:
                self._lost += table.discard()
                if self._ok and not failed:
                    self._say(f"{error}. The run goes on; rows that cannot be written are counted.")
                self._problem = str(error)
                failed = True
        if not failed and not self._ok:
            self._say("Parquet is written again")
        self._ok = not failed
        try:
            self._rolling.tick()
        except OSError as error:  # a folder that somebody locked or took away: the rows above said so already
            logger.warning("parts were neither merged nor deleted: %s", error)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Flush; merge the last period's parts, unless that takes long. Earlier ones are not read again."""
        self.flush()
        self._rolling.close()

    def describe(self) -> dict[str, Any]:
        """Rows written, and lost; why, also once it works again."""
        return {**super().describe(), "ok": self._ok, "lost": self._lost, "detail": self._problem}


def create_parquet(
    run_dir: Path, retention: Mapping[str, Any] | None, *, say: Callable[[str], None]
) -> ParquetSink | RollingParquetSink:
    """The sink of a run; with `retention`, the fields of `RetentionConfig`, one that rolls."""
    return ParquetSink(run_dir) if retention is None else RollingParquetSink(run_dir, Retention(**retention), say=say)


def join_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of rows that need not have the same keys, in order of first appearance."""
    names = dict.fromkeys(name for keys in dict.fromkeys(tuple(row) for row in rows) for name in keys)
    return {name: [row.get(name) for row in rows] for name in names}


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
        SOURCE_WAIT: record.source_wait_ms,
    }
    for name, time in record.stages.items():
        if time.calls:
            row[stage_column(name, "host_ms")] = time.host_ms
            row[stage_column(name, "calls")] = time.calls
        if time.device_ms is not None:
            row[stage_column(name, "device_ms")] = time.device_ms
        if time.lag_ms is not None:
            row[stage_column(name, "lag_ms")] = time.lag_ms
        if time.queue_ms is not None:
            row[stage_column(name, "queue_ms")] = time.queue_ms
    row.update((accuracy_column(name), value) for name, value in record.accuracy.items())
    row.update((data_column(name), value) for name, value in record.data.items())
    return row


def span_columns(spans: Sequence[SpanRecord]) -> dict[str, list[Any]]:
    """Spans as columns; ids in OpenTelemetry's hexadecimal form, what is nested as JSON text."""
    return {
        "trace_id": [f"{span.trace_id:032x}" for span in spans],
        "span_id": [f"{span.span_id:016x}" for span in spans],
        "parent_id": [f"{span.parent_id:016x}" if span.parent_id else None for span in spans],
        **{name: [getattr(span, name) for span in spans] for name in _PLAIN_SPAN_FIELDS},
        "attributes": [_json(span.attributes) if span.attributes else None for span in spans],
        "events": [_json(_named(span.events)) if span.events else None for span in spans],
        "links": [_json([_link(*link) for link in span.links]) if span.links else None for span in spans],
    }


def _named(events: Sequence[tuple[int, str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [{"time_ns": time_ns, "name": name, "attributes": attributes} for time_ns, name, attributes in events]


def _link(trace_id: int, span_id: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"trace_id": f"{trace_id:032x}", "span_id": f"{span_id:016x}", "attributes": attributes}


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda other: other.hex() if isinstance(other, bytes) else str(other))


def _frame(columns: Mapping[str, list[Any]], types: Mapping[str, str]) -> Any:
    """A frame with exactly these types. What does not fit them becomes null, and is said: it must not end the run."""
    import polars as pl

    schema = {name: getattr(pl, kind) for name, kind in types.items()}
    try:
        return pl.DataFrame(columns, schema=schema, strict=True)
    except (TypeError, ValueError, OverflowError) as error:
        logger.warning("A value does not fit its column and is left out: %s", error)
        fitting = {name: [_fit(value, types[name]) for value in values] for name, values in columns.items()}
        return pl.DataFrame(fitting, schema=schema, strict=True)


def _fit(value: Any, kind: str) -> Any:
    if kind == "String" and isinstance(value, str):
        return valid_text(value)
    if kind == "Int64" and isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value
    return float(value) if kind == "Float64" and isinstance(value, int | float) else None


def _write_errors() -> tuple[type[Exception], ...]:
    """What a full or vanished disk raises: polars wraps some of it."""
    import polars as pl

    return (OSError, pl.exceptions.PolarsError)
