"""Rows and spans in, Parquet parts out: types, merging, and readers that come at the wrong moment."""

import json
import resource
import threading
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from mlotel_cli.columns import SPAN_TYPES
from mlotel_cli.errors import RecorderError
from mlotel_cli.records import SpanRecord
from mlotel_cli.store.reading import read_table
from mlotel_cli.store.tables import TableWriter, join_rows, span_columns


def span(**fields):
    given = {"trace_id": 0xAB, "span_id": 0xCD, "parent_id": 0, "batch": 3, "name": "reader", "kind": "INTERNAL"}
    return SpanRecord(**given, scope="test", thread="MainThread", start_ns=10, end_ns=30, **fields)


def table(folder: Path) -> TableWriter:
    return TableWriter(folder, {"batch": "Int64"}, join_rows)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_span_has_hexadecimal_ids_and_json_where_it_is_nested():
    full = span(
        attributes={"n": 1, "raw": b"\x01"},
        events=[(20, "exception", {"exception.type": "KeyError"})],
        links=[(0x1, 0x2, {"why": "batch"})],
        device_ns=5,
        lag_ns=2,
    )
    columns = span_columns([full, span(status="ERROR", status_message="no")])
    assert set(columns) == set(SPAN_TYPES)
    assert columns["trace_id"] == ["0" * 30 + "ab"] * 2
    assert columns["span_id"] == ["0" * 14 + "cd"] * 2
    assert columns["parent_id"] == [None, None]
    assert columns["device_ns"] == [5, None]
    assert columns["lag_ns"] == [2, None]
    assert columns["status"] == ["UNSET", "ERROR"]
    assert json.loads(columns["attributes"][0]) == {"n": 1, "raw": "01"}
    event = {"time_ns": 20, "name": "exception", "attributes": {"exception.type": "KeyError"}}
    assert json.loads(columns["events"][0]) == [event]
    link = {"trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "2", "attributes": {"why": "batch"}}
    assert json.loads(columns["links"][0]) == [link]
    assert columns["attributes"][1] is columns["events"][1] is columns["links"][1] is None


def test_parts_with_missing_and_new_columns_read_as_one(tmp_path):
    writer = table(tmp_path / "t")
    for row in ({"batch": 0, "a.host_ms": None}, {"batch": 1, "a.host_ms": 2, "a.calls": 1}, {"b.host_ms": 0.5}):
        writer.add(row)
        writer.flush()
    expected = pl.DataFrame(
        {
            "batch": [0, 1, None],
            "a.host_ms": [None, 2.0, None],
            "a.calls": [None, 1, None],
            "b.host_ms": [None, None, 0.5],
        },
        schema={"batch": pl.Int64, "a.host_ms": pl.Float64, "a.calls": pl.Int64, "b.host_ms": pl.Float64},
    )
    assert names(tmp_path / "t") == [f"part-00000{n}.parquet" for n in (1, 2, 3)]
    assert_frame_equal(read_table(tmp_path / "t"), expected)
    writer.merge()
    assert names(tmp_path / "t") == ["part-000001-000003.parquet"]
    assert_frame_equal(read_table(tmp_path / "t"), expected)


def test_nothing_is_written_for_nothing(tmp_path):
    writer = table(tmp_path / "t")
    writer.flush()
    writer.merge()
    assert not (tmp_path / "t").exists()
    assert read_table(tmp_path / "t").shape == (0, 0)


def test_a_merged_table_can_be_written_and_merged_again(tmp_path):
    writer = table(tmp_path / "t")
    for batch in range(5):
        writer.add({"batch": batch})
        writer.flush() if batch < 4 else None
        if batch in (1, 3):
            writer.merge()
            writer.merge()  # nothing new: the merged file must survive it
    writer.merge()
    assert names(tmp_path / "t") == ["part-000001-000005.parquet"]
    assert read_table(tmp_path / "t")["batch"].to_list() == [0, 1, 2, 3, 4]


def test_a_single_part_is_left_as_it_is(tmp_path):
    writer = table(tmp_path / "t")
    writer.add({"batch": 0})
    writer.merge()
    assert names(tmp_path / "t") == ["part-000001.parquet"]


def test_order_of_rows_is_kept_over_ten_parts_and_more(tmp_path):
    writer = table(tmp_path / "t")
    for batch in range(12):
        writer.add({"batch": batch})
        writer.flush()
    writer.merge()
    assert read_table(tmp_path / "t")["batch"].to_list() == list(range(12))


def test_a_crash_between_rename_and_removal_shows_no_row_twice(tmp_path, monkeypatch):
    writer = table(tmp_path / "t")
    for batch in range(3):
        writer.add({"batch": batch})
        writer.flush()

    def crash(path: Path, missing_ok: bool = False) -> None:
        if not path.name.endswith(".tmp"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", crash)
    with pytest.raises(KeyboardInterrupt):
        writer.merge()
    monkeypatch.undo()
    assert len(names(tmp_path / "t")) == 4
    assert read_table(tmp_path / "t")["batch"].to_list() == [0, 1, 2]
    (tmp_path / "t" / "part-000002.parquet").unlink()
    assert read_table(tmp_path / "t")["batch"].to_list() == [0, 1, 2]


def test_a_reader_during_merges_always_sees_every_row(tmp_path):
    writer = table(tmp_path / "t")
    writer.add({"batch": 0})
    writer.flush()
    written, done, seen = [1], threading.Event(), []

    def write() -> None:
        try:
            for batch in range(1, 40):
                writer.add({"batch": batch})
                writer.flush()
                written[0] = batch + 1
                if batch % 3 == 0:
                    writer.merge()
        finally:
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        at_least = written[0]
        batches = read_table(tmp_path / "t")["batch"].to_list()
        assert batches == list(range(len(batches)))
        assert len(batches) >= at_least
        seen.append(len(batches))
    thread.join()
    assert written[0] == 40
    assert len(seen) > 1


def test_a_listing_that_missed_a_part_is_taken_again(tmp_path, monkeypatch):
    writer = table(tmp_path / "t")
    for batch in range(3):
        writer.add({"batch": batch})
        writer.flush()
    listings, listed = [], Path.glob

    def glob(folder: Path, pattern: str):
        found = list(listed(folder, pattern))
        listings.append(found)
        return [path for path in found if len(listings) > 1 or path.name != "part-000002.parquet"]

    monkeypatch.setattr(Path, "glob", glob)
    assert read_table(tmp_path / "t")["batch"].to_list() == [0, 1, 2]
    assert len(listings) == 2


def test_unfinished_and_foreign_files_are_no_parts(tmp_path):
    writer = table(tmp_path / "t")
    writer.add({"batch": 0})
    writer.flush()
    (tmp_path / "t" / ".part-000002.parquet.tmp").write_bytes(b"PAR1 half")
    (tmp_path / "t" / "part-copy.parquet").write_bytes(b"whatever")
    assert read_table(tmp_path / "t").height == 1


def test_values_that_fit_no_column_become_null_and_are_said(tmp_path, caplog):
    writer = TableWriter(tmp_path / "t", {"batch": "Int64", "error": "String"}, join_rows)
    writer.add({"batch": 1, "error": "no file \udc80", "data.x": 1.5})
    writer.add({"batch": 1 << 70, "error": "", "data.x": b"\0\0"})
    writer.flush()
    assert read_table(tmp_path / "t").rows() == [(1, "no file \\udc80", 1.5), (None, "", None)]
    assert "does not fit" in caplog.text


class TestFullDisk:
    """A limit on the size of a file fails a write as a full disk does."""

    @pytest.fixture
    def limit(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def test_a_part_that_cannot_be_written_ends_clearly_and_costs_nothing_before(self, tmp_path, limit):
        writer = table(tmp_path / "t")
        writer.add({"batch": 0})
        writer.flush()
        writer.add({"batch": 1, "text.ms": 1.0})
        limit(100)
        with pytest.raises(RecorderError, match=r"t cannot be written: .*File too large"):
            writer.flush()
        assert names(tmp_path / "t") == ["part-000001.parquet"]
        limit(resource.RLIM_INFINITY)
        writer.flush()  # room again: nothing was lost
        assert read_table(tmp_path / "t")["batch"].to_list() == [0, 1]

    def test_parts_that_cannot_be_merged_stay(self, tmp_path, limit):
        writer = table(tmp_path / "t")
        for batch in range(2):
            writer.add({"batch": batch})
            writer.flush()
        limit(100)
        writer.merge()
        limit(resource.RLIM_INFINITY)
        assert names(tmp_path / "t") == ["part-000001.parquet", "part-000002.parquet"]
        assert writer.note.startswith("t: its 2 parts were not merged: ")
        assert read_table(tmp_path / "t")["batch"].to_list() == [0, 1]

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "t").write_text("another program's file")
        writer = table(tmp_path / "t")
        writer.add({"batch": 0})
        with pytest.raises(RecorderError, match=r"t cannot be written: .*File exists"):
            writer.flush()
