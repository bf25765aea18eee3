"""The lossless sink: it writes batches, spans and samples as Parquet tables."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlotel_cli.columns import (
    BATCH_TYPES,
    SAMPLE_TYPES,
    SOURCE_WAIT,
    SPAN_TYPES,
    accuracy_column,
    data_column,
    score_column,
    stage_column,
)
from mlotel_cli.config.policies import Retention
from mlotel_cli.errors import RecorderError
from mlotel_cli.records import BatchRecord, SpanRecord
from mlotel_cli.snapshot import SinkHealth
from mlotel_cli.store.layout import BATCHES, SAMPLES, SPANS
from mlotel_cli.store.rolling import Rolling
from mlotel_cli.store.tables import TableWriter, join_rows, span_columns

logger = logging.getLogger("mlotel.recorder")


class ParquetSink:
    """The run's three tables: batches, spans, samples."""

    def __init__(self, run_dir: Path) -> None:
        """Write below `run_dir`."""
        self._batches = TableWriter[Mapping[str, Any]](run_dir / BATCHES, BATCH_TYPES, join_rows)
        self._spans = TableWriter[SpanRecord](run_dir / SPANS, SPAN_TYPES, span_columns)
        self._samples = TableWriter[Mapping[str, Any]](run_dir / SAMPLES, SAMPLE_TYPES, join_rows)
        self.write_span = self._spans.add
        """Keep a span, whether it belongs to a row or not."""

    @property
    def tables(self) -> Sequence[TableWriter[Any]]:
        """All tables."""
        return (self._batches, self._spans, self._samples)

    @property
    def notes(self) -> list[str]:
        """Notes for a reader of the files."""
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

    def close(self) -> None:
        """Flush and merge every table.

        Raises:
            RecorderError: when a part cannot be written.
        """
        self.flush()
        for table in self.tables:
            table.merge()

    def health(self) -> SinkHealth:
        """Return how many rows were written and lost."""
        return SinkHealth(sent=sum(table.num_written for table in self.tables))


class RollingParquetSink(ParquetSink):
    """The sink of a monitor: it deletes the oldest rows, and on a full disk it counts the rows that it loses."""

    def __init__(self, run_dir: Path, retention: Retention, *, say: Callable[[str], None]) -> None:
        """Write below `run_dir`, behind what an earlier recorder left there; `say` takes one line for the user."""
        super().__init__(run_dir)
        self._say = say
        self._rolling = Rolling([table.folder for table in self.tables], retention)
        self._lost = 0
        self._problem = ""
        self._ok = True

    @property
    def notes(self) -> list[str]:
        """Notes for a reader of the files."""
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
        except OSError as error:  # the folder is locked or gone, and the rows above said so
            logger.warning("parts were neither merged nor deleted: %s", error)

    def close(self) -> None:
        """Flush, and merge the parts of the last period unless that takes long."""
        self.flush()
        self._rolling.close()

    def health(self) -> SinkHealth:
        """Return how many rows were written and lost, and the last reason, even if writing works again."""
        return replace(super().health(), ok=self._ok, lost=self._lost, detail=self._problem)


def batch_row(record: BatchRecord) -> dict[str, Any]:
    """Return a BatchRecord as one flat row."""
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
