"""Spans read back from the table: as they were written, of the batches that are asked for."""

from pathlib import Path

from mlotel_cli.records import SpanRecord
from mlotel_cli.store.traces import load_spans, traced_range
from tests.support.traces import Trace, write_run


def test_spans_come_back_as_they_were_written(tmp_path: Path) -> None:
    trace = Trace(4, 0, 10, status="ERROR", status_message="no such file")
    trace.add(
        "detector",
        1,
        9,
        device_ns=5_000_000,
        kind="CLIENT",
        attributes={"boxes": 3, "sizes": [1.5, 2.0], "name": "a [b]"},
        events=((1_700_000_000_001_000_000, "exception", {"exception.type": "OSError"}),),
        links=((1 << 100, 77, {"why": "retry"}),),
    )
    folder = write_run(tmp_path, [Trace(3, 0, 1), trace, Trace(5, 20, 30)])
    assert load_spans(folder / "spans.parquet", 4, 4) == trace.spans
    assert {span.batch for span in load_spans(folder / "spans.parquet", 3, 4)} == {3, 4}
    assert load_spans(folder / "spans.parquet", 6, 9) == []
    assert traced_range(folder / "spans.parquet") == (3, 5)


def test_spans_are_sorted_by_start_and_those_outside_batches_left_out(tmp_path: Path) -> None:
    trace = Trace(0, 0, 10)
    late, early = trace.add("b", 5, 6), trace.add("a", 1, 2)
    stray = SpanRecord(1, 2, 0, None, "import", "INTERNAL", "mlotel", "MainThread", 0, 1)
    trace.spans.append(stray)
    folder = write_run(tmp_path, [trace], [])
    assert load_spans(folder / "spans.parquet", 0, 0) == [trace.root, early, late]
    assert traced_range(folder / "spans.parquet") == (0, 0)


def test_without_a_span_there_is_no_range(tmp_path: Path) -> None:
    stray = Trace(0, 0, 10)
    stray.spans[:] = [SpanRecord(1, 2, 0, None, "import", "INTERNAL", "mlotel", "MainThread", 0, 1)]
    assert traced_range(write_run(tmp_path / "none", [], []) / "spans.parquet") is None
    assert traced_range(write_run(tmp_path / "stray", [stray], []) / "spans.parquet") is None
