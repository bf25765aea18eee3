"""A run's records in, three tables out: columns, types, and what a full disk costs."""

import os
import resource
from pathlib import Path

import polars as pl
import pytest

from mlotel_cli.columns import BATCH_TYPES, SAMPLE_TYPES, SPAN_TYPES
from mlotel_cli.config.policies import Retention
from mlotel_cli.recorder.parquet_sink import ParquetSink, RollingParquetSink, batch_row
from mlotel_cli.records import BatchRecord, Sample, SpanRecord, StageTime
from mlotel_cli.snapshot import SinkHealth
from mlotel_cli.store import writing
from mlotel_cli.store.reading import read_table


def record(batch=0, **fields):
    return BatchRecord(batch=batch, source_batch=batch, repeat=0, start_ns=1, size=1, status="scored", **fields)


def span(**fields):
    given = {"trace_id": 0xAB, "span_id": 0xCD, "parent_id": 0, "batch": 3, "name": "reader", "kind": "INTERNAL"}
    return SpanRecord(**given, scope="test", thread="MainThread", start_ns=10, end_ns=30, **fields)


def test_a_row_has_the_columns_that_run_directories_promise():
    row = batch_row(
        record(
            batch=7,
            latency_ms=5.0,
            source_wait_ms=0.5,
            stages={
                "detector": StageTime(host_ms=3.0, device_ms=2.0, calls=2, lag_ms=0.5),
                "reader": StageTime(queue_ms=1.0, calls=0),
            },
            accuracy={"score": 0.5},
            data={"boxes": 4.0},
        )
    )
    assert row == {
        "batch": 7,
        "source_batch": 7,
        "repeat": 0,
        "start_ns": 1,
        "size": 1,
        "status": "scored",
        "error": "",
        "spans_missing": 0,
        "latency_ms": 5.0,
        "source.wait_ms": 0.5,
        "detector.host_ms": 3.0,
        "detector.calls": 2,
        "detector.device_ms": 2.0,
        "detector.lag_ms": 0.5,
        "reader.queue_ms": 1.0,
        "accuracy.score": 0.5,
        "data.boxes": 4.0,
    }


def test_every_table_has_the_declared_types_even_without_a_single_value(tmp_path):
    sink = ParquetSink(tmp_path)
    sink.write(record(samples=[Sample("a", {"score": None})]))
    sink.write_span(span())
    sink.flush()
    batches, spans, samples = (read_table(tmp_path / f"{name}.parquet") for name in ("batches", "spans", "samples"))
    assert {name: str(batches.schema[name]) for name in BATCH_TYPES} == BATCH_TYPES
    assert batches.schema["latency_ms"] == batches.schema["source.wait_ms"] == pl.Float64
    assert {name: str(kind) for name, kind in spans.schema.items()} == SPAN_TYPES
    assert {name: str(samples.schema[name]) for name in SAMPLE_TYPES} == SAMPLE_TYPES
    assert samples.schema["score.score"] == pl.Float64


def test_a_metric_or_value_called_calls_is_no_count(tmp_path):
    sink = ParquetSink(tmp_path)
    sink.write(record(0, accuracy={"calls": 0.5}, data={"x.calls": 2.5}, stages={"s": StageTime(1.0, calls=3)}))
    sink.flush()
    frame = read_table(tmp_path / "batches.parquet")
    assert frame.select("accuracy.calls", "data.x.calls", "s.calls").rows() == [(0.5, 2.5, 3)]
    assert frame.schema["s.calls"] == pl.Int64


def test_samples_are_one_row_each(tmp_path):
    sink = ParquetSink(tmp_path)
    sink.write(record(4, samples=[Sample("a", {"f1": 1.0}, "1", "0"), Sample("b", {"f1": None, "iou": 0.5})]))
    sink.close()
    assert read_table(tmp_path / "samples.parquet").rows(named=True) == [
        {"batch": 4, "id": "a", "prediction": "1", "target": "0", "score.f1": 1.0, "score.iou": None},
        {"batch": 4, "id": "b", "prediction": None, "target": None, "score.f1": None, "score.iou": 0.5},
    ]


def test_parts_that_cannot_be_merged_stay(tmp_path):
    sink = ParquetSink(tmp_path)
    for batch in range(2):
        sink.write(record(batch))
        sink.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # fails a write as a full disk does
    try:
        sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    parts = sorted(part.name for part in (tmp_path / "batches.parquet").iterdir())
    assert parts == ["part-000001.parquet", "part-000002.parquet"]
    assert len(sink.notes) == 1
    assert sink.notes[0].startswith("batches.parquet: its 2 parts were not merged: ")
    assert read_table(tmp_path / "batches.parquet")["batch"].to_list() == [0, 1]


# -- a monitor's, which rolls -----------------------------------------------------------------------------------------

RETENTION = Retention(max_gb=1.0, max_age_h=1.0)


def fill(sink: RollingParquetSink, *indexes: int) -> None:
    for index in indexes:
        sink.write(BatchRecord(index, index, 0, 1, 1, "done", latency_ms=1.0))
        sink.write_span(SpanRecord(1, index + 1, 0, index, "s", "INTERNAL", "", "", 0, 1))
        sink.flush()


def rolling_sink(folder: Path, said: list[str] | None = None) -> RollingParquetSink:
    return RollingParquetSink(folder, RETENTION, say=(said if said is not None else []).append)


def test_the_end_merges_what_there_is_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mlotel_cli.store.rolling.LAST_COMPACTION_S", 60.0)  # a busy machine starts it late
    sink = rolling_sink(tmp_path)
    fill(sink, 0, 1, 2)
    sink.close()
    for table in ("batches", "spans"):
        folder = tmp_path / f"{table}.parquet"
        assert [part.name for part in folder.iterdir()] == ["part-000001-000003.parquet"]
        assert read_table(folder)["batch"].to_list() == [0, 1, 2]
    assert sink.notes == []
    assert sink.health() == SinkHealth(sent=6)


def test_a_second_sink_goes_on_behind_the_first(tmp_path: Path):
    fill(rolling_sink(tmp_path), 0, 1)
    fill(rolling_sink(tmp_path), 2)
    assert read_table(tmp_path / "batches.parquet")["batch"].to_list() == [0, 1, 2]


def test_a_disk_that_takes_nothing_costs_rows_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    sink = rolling_sink(tmp_path, said)
    fill(sink, 0)
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    fill(sink, 1, 2)
    assert sink.health().ok is False
    monkeypatch.setattr(writing.os, "replace", replace)
    fill(sink, 3)
    assert read_table(tmp_path / "batches.parquet")["batch"].to_list() == [0, 3]
    health = sink.health()
    assert (health.ok, health.lost, health.sent) == (True, 4, 4)
    lost, again = said
    assert "batches.parquet cannot be written: [Errno 28] No space left on device" in lost
    assert again == "Parquet is written again"
    (note,) = sink.notes
    assert note.startswith("4 rows could not be written")


def test_a_part_that_cannot_be_deleted_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sink = rolling_sink(tmp_path)
    fill(sink, 0, 1)

    def fail() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sink._rolling, "tick", fail)
    fill(sink, 2)
    assert read_table(tmp_path / "batches.parquet")["batch"].to_list() == [0, 1, 2]
