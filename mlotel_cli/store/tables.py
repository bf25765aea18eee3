"""Tables of a run directory: Parquet parts, written whole and renamed, merged to one file at the end.

A table is a folder of `part-<first>[-<last>].parquet`. A merged part covers every number between its two, so a reader
that finds both, in the moment between rename and removal, knows which ones to leave out (`store.reading`). Every column
has an explicit type, because a column of nulls in one part must join a column of floats in another.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from mlotel_cli.columns import type_of
from mlotel_cli.errors import RecorderError
from mlotel_cli.records import SpanRecord, valid_text
from mlotel_cli.store.layout import PARTS, part_name
from mlotel_cli.store.reading import current_parts, last_part, scan_parts
from mlotel_cli.store.writing import replacing

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
        """Write to `folder` the columns that `columns` returns for rows.

        A column that `types` does not name has the type that `columns.type_of` gives it.
        """
        self.folder = folder
        self._types = types
        self._columns = columns
        self._rows: list[Row] = []
        self._parts = last_part(folder)  # a new recorder continues behind the parts of the one before
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
            self._write(frame.write_parquet, part_name(self._parts + 1))
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
        merged = part_name(1, self._parts)
        try:
            self._write(scan_parts(parts).sink_parquet, merged)
        except _write_errors() as error:
            self.note = f"{self.folder.name}: its {len(parts)} parts were not merged: {error}"
            return
        for part in self.folder.glob(PARTS):
            if part.name != merged:
                part.unlink(missing_ok=True)

    def _write(self, write: Callable[[Path], object], name: str) -> None:
        self.folder.mkdir(exist_ok=True)
        with replacing(self.folder / name) as unfinished:
            write(unfinished)


def join_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the columns of rows whose keys may differ, in order of first appearance."""
    names = dict.fromkeys(name for keys in dict.fromkeys(tuple(row) for row in rows) for name in keys)
    return {name: [row.get(name) for row in rows] for name in names}


def span_columns(spans: Sequence[SpanRecord]) -> dict[str, list[Any]]:
    """Return spans as columns: ids in OpenTelemetry's hexadecimal form, nested values as JSON text."""
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
    """Return a frame of exactly these types. A value that does not fit becomes null and is logged; the run goes on."""
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
    """Return the exceptions of a full or vanished disk; polars wraps some of them."""
    import polars as pl

    return (OSError, pl.exceptions.PolarsError)
