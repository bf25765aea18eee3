"""Summaries: of every row, and a monitor's of its newest rows with the counts of the whole run."""

import pytest

from mlotel_cli.recorder import ending
from mlotel_cli.recorder.ending import summarise_monitor, summarise_run
from mlotel_cli.recorder.parquet_sink import ParquetSink
from mlotel_cli.records import BatchRecord, StageTime
from mlotel_cli.store.run_json import Totals
from mlotel_cli.summary import Throughput
from mlotel_cli.wire import Closing


@pytest.fixture
def run_dir(tmp_path):
    """100 batches in ten parts: latencies 0 to 99 ms, 4 items each, every tenth failed."""
    sink = ParquetSink(tmp_path)
    for number in range(100):
        stages = {"reader": StageTime(number / 2, calls=1)}
        status = "failed" if number % 10 == 9 else "done"
        sink.write(BatchRecord(number, number, 0, number, 4, status, float(number), 0.0, stages=stages))
        if number % 10 == 9:
            sink.flush()
    return tmp_path


def monitor(run_dir, *, num_rows, totals=None, **closing):
    totals = totals or Totals.from_json({"batches": {"failed": 10, "done": 90}, "items": 400, "items_done": 360})
    return summarise_monitor(run_dir, Closing(**closing), executor={}, totals=totals, started_ns=0, num_rows=num_rows)


def test_every_row(run_dir):
    summary = summarise_run(run_dir, Closing(wall_s=10.0), executor={}, mean_scores=False)
    assert summary.batches == {"done": 90, "failed": 10}
    assert summary.latency_ms.batch.max == 98.0
    assert summary.throughput.wall_items_per_s == 36.0
    assert summary.bottleneck is None  # no spans, so no stages


def test_a_monitor_that_is_short_is_summed_up_whole(run_dir):
    summary = monitor(run_dir, num_rows=100, wall_s=10.0)
    assert summary.latency_ms.batch.count == 90
    assert summary.throughput == Throughput(36.0, 36.0)
    assert not any("newest" in note for note in summary.notes)


def test_a_long_ones_statistics_are_of_its_newest_rows_and_its_counts_of_all(run_dir):
    totals = Totals.from_json({"batches": {"failed": 10, "done": 9_990}, "items": 40_000, "items_done": 39_960})
    summary = monitor(run_dir, num_rows=20, totals=totals, wall_s=10.0)
    batch = summary.latency_ms.batch
    assert (batch.count, batch.max, batch.mean) == (
        18,
        98.0,
        pytest.approx(sum([*range(80, 89), *range(90, 99)]) / 18),
    )
    assert summary.batches == {"done": 9_990, "failed": 10}
    assert summary.throughput.items_per_s == 3996.0
    assert summary.notes[0] == (
        "counts and throughput are of all 10,000 batches; latencies and recorded values of the newest 20"
    )


@pytest.mark.parametrize(("num_rows", "expected"), [(100, Closing(wall_s=10.0, cores=2)), (20, Closing(cores=2))])
def test_times_of_the_whole_run_are_not_put_beside_a_part_of_its_rows(run_dir, monkeypatch, num_rows, expected):
    given = []
    monkeypatch.setattr(ending, "find_in_run", lambda rows, spans, *, closing, executor: given.append(closing))
    monitor(run_dir, num_rows=num_rows, wall_s=10.0, scoring_s=None, cores=2)
    assert given == [expected]


def test_a_killed_workload_cannot_say_how_long_it_ran(run_dir):
    totals = Totals.from_json({"batches": {"done": 1}, "items_done": 10})
    assert 0 < monitor(run_dir, num_rows=5, totals=totals).throughput.items_per_s < 1e-6  # since 1970


def test_a_monitor_without_a_batch(tmp_path):
    summary = monitor(tmp_path, num_rows=5, totals=Totals(), wall_s=1.0)
    assert (summary.batches, summary.throughput.items_per_s, summary.notes) == ({}, 0.0, [])
