"""Rows that can be added up by hand, and the summary of them."""

import itertools
import math
import random

import pytest

from mlotel_cli.analysis import summarise as analysis
from mlotel_cli.recorder.parquet_sink import ParquetSink
from mlotel_cli.records import BatchRecord, StageTime
from mlotel_cli.summary import Budget, Score, Telemetry, Throughput, Warmup
from mlotel_cli.wire import Closing, from_plain

SECOND = 10**9


def summarise(batches, closing, **options):
    """Of what the workload's last message says."""
    return analysis.summarise(batches, from_plain(closing, Closing), **options)


@pytest.fixture
def table(tmp_path):
    """The batches table of some records, through real Parquet; each in a run directory of its own."""
    numbers = itertools.count()

    def write(*records):
        run_dir = tmp_path / str(next(numbers))
        run_dir.mkdir()
        sink = ParquetSink(run_dir)
        for record in records:
            sink.write(record)
        sink.close()
        from mlotel_cli.store.reading import read_table

        return read_table(run_dir / "batches.parquet")

    return write


def row(batch, latency_ms=10.0, *, status="scored", size=1, start_s=0.0, **fields):
    return BatchRecord(
        batch=batch,
        source_batch=batch,
        repeat=0,
        start_ns=round(start_s * SECOND),
        size=size,
        status=status,
        latency_ms=latency_ms,
        **fields,
    )


def stage(host_ms, **fields):
    return StageTime(host_ms=host_ms, calls=1, **fields)


def test_a_run_without_a_batch(table):
    summary = summarise(table(), {"accuracy": {"score": None}, "wall_s": 1.0, "warmup": {"batches": 3}})
    assert summary.accuracy == {"score": Score(None)}
    assert summary.latency_ms.batch.count == 0
    assert summary.latency_ms.batch.mean is None
    assert summary.latency_ms.stages == {}
    assert summary.throughput == Throughput(None, None)
    assert summary.batches == summary.data == {}
    assert summary.telemetry == Telemetry()
    assert summary.warmup == Warmup(batches=3)
    assert summary.budget == Budget(passed=None)


def test_exact_figures(table):
    summary = summarise(
        table(
            row(0, 10.0, size=4, source_wait_ms=1.0, stages={"a": stage(6.0, device_ms=2.0), "b": stage(3.0)}),
            row(1, 20.0, size=4, source_wait_ms=3.0, stages={"a": stage(8.0, queue_ms=0.5), "b": stage(11.0)}),
            row(2, 60.0, size=2, source_wait_ms=2.0, stages={"a": stage(10.0)}, data={"boxes": 7.0}),
        ),
        {"accuracy": {"score": 0.5}, "wall_s": 4.0, "scoring_s": 1.5, "telemetry": {"source_paused_s": 0.0}},
    )
    assert summary.accuracy == {"score": Score(0.5)}
    whole = summary.latency_ms.batch
    assert (whole.count, whole.mean, whole.p50, whole.max) == (3, 30.0, 20.0, 60.0)
    assert whole.p90 is whole.p95 is whole.p99 is None  # three values say nothing of a tail
    stages = summary.latency_ms.stages
    assert list(stages) == ["a", "b"]
    assert (stages["a"].host.count, stages["a"].host.mean) == (3, 8.0)
    assert (stages["a"].device.count, stages["a"].device.mean) == (1, 2.0)
    assert (stages["a"].queue.count, stages["a"].queue.max) == (1, 0.5)
    assert (stages["b"].host.count, stages["b"].host.mean) == (2, 7.0)
    assert stages["b"].device is stages["b"].queue is None
    assert summary.latency_ms.source_wait.mean == 2.0
    assert (summary.data["boxes"].count, summary.data["boxes"].mean) == (1, 7.0)
    assert summary.throughput == Throughput(10 / 2.5, 10 / 4.0)
    assert summary.batches == {"scored": 3}
    assert summary.telemetry == Telemetry(source_paused_s=0.0)


def test_who_a_stage_waits_for_where_a_device_was_measured(table):
    """Host time ends when the result exists: `lag_ms` after the host was done."""
    stages = {
        "launched": stage(21.0, device_ms=20.0, lag_ms=19.0),  # 2 ms on the host
        "behind": stage(21.0, device_ms=2.0, lag_ms=0.0),
        "either": stage(20.0, device_ms=19.5, lag_ms=0.0),
        "queued": stage(5.0, device_ms=5.0, lag_ms=0.0, queue_ms=6.0),
        "unanchored": stage(5.0, device_ms=5.0),
        "plain": stage(5.0),
    }
    summary = summarise(table(row(0, 70.0, stages=stages), row(1, 70.0, stages=stages)), {}).latency_ms.stages
    assert {name: each.verdict or "none" for name, each in summary.items()} == {
        "launched": "device-bound",
        "behind": "device-bound",
        "either": "launch-bound or synchronising",
        "queued": "waiting",
        "unanchored": "none",
        "plain": "none",
    }
    assert summary["launched"].lag.mean == 19.0


def test_a_batch_that_lacks_a_time_has_no_say_in_the_verdict(table):
    rows = [row(n, 30.0, stages={"a": stage(21.0, device_ms=20.0, lag_ms=19.0)}) for n in range(3)]
    rows += [row(n, 30.0, stages={"a": stage(1_000.0)}) for n in range(3, 6)]  # a graph was captured
    twice = StageTime(host_ms=1_000.0, device_ms=1_000.0, lag_ms=1_000.0, calls=2)  # sums do not say what overlapped
    rows += [row(n, 30.0, stages={"a": twice, "b": twice}) for n in range(6, 9)]
    stages = summarise(table(*rows), {}).latency_ms.stages
    assert (stages["a"].verdict, stages["b"].verdict) == ("device-bound", None)


def test_a_recorded_value_is_no_lag(table):
    summary = summarise(table(row(0, 10.0, stages={"a": stage(6.0)}, data={"a.lag_ms": 4.0})), {})
    assert summary.latency_ms.stages["a"].lag is None
    assert summary.data["a.lag_ms"].mean == 4.0


def test_only_batches_that_went_through_have_a_latency(table):
    rows = [
        row(n, 1000.0, status=status, size=100, data={"x": 1.0}, stages={"a": stage(900.0)})
        for n, status in enumerate(("skipped", "failed", "incomplete"))
    ]
    good = [row(8, 10.0, stages={"a": stage(9.0)}), row(9, 20.0, status="done", stages={"a": stage(19.0)})]
    summary = summarise(table(*rows, *good), {"wall_s": 2.0})
    assert summary.batches == {"done": 1, "failed": 1, "incomplete": 1, "scored": 1, "skipped": 1}
    assert (summary.latency_ms.batch.count, summary.latency_ms.batch.max) == (2, 20.0)
    assert summary.latency_ms.stages["a"].host.count == 2
    assert summary.data["x"].count == 0
    assert summary.throughput.wall_items_per_s == 1.0


def test_a_run_of_which_every_batch_failed(table):
    summary = summarise(table(row(0, None, status="failed")), {"wall_s": 2.0})
    assert summary.latency_ms.batch.count == 0
    assert summary.throughput == Throughput(0.0, 0.0)
    assert summarise(table(row(0, None, status="failed")), {}).throughput.items_per_s is None


def test_a_workload_that_was_killed_says_nothing(table):
    """Then the run lasted from the first start to the last end, in whatever order the rows are."""
    summary = summarise(table(row(1, 500.0, size=3, start_s=12.5), row(0, 4000.0, size=3, start_s=10.0)), {})
    assert summary.throughput == Throughput(1.5, 1.5)  # 6 items in 10.0 .. 14.0 s
    assert summary.accuracy == {}
    assert summary.warmup is None


def test_batches_without_telemetry_are_counted_and_have_no_latency(table):
    """A control run: `telemetry=off` still scores."""
    summary = summarise(table(row(0, None, size=2), row(1, None, size=2)), {"wall_s": 2.0, "scoring_s": 1.0})
    assert summary.batches == {"scored": 2}
    assert summary.latency_ms.batch.count == 0
    assert summary.latency_ms.source_wait is None
    assert summary.throughput.items_per_s == 4.0


def test_scoring_that_took_all_the_time_leaves_no_rate(table):
    throughput = summarise(table(row(0)), {"wall_s": 1.0, "scoring_s": 1.0}).throughput
    assert throughput == Throughput(None, 1.0)


def test_values_that_are_not_finite_stay_out_of_the_figures(table):
    values = (1.0, math.nan, math.inf, None, 3.0)
    rows = [row(n, data={} if value is None else {"x": value}) for n, value in enumerate(values)]
    figures = summarise(table(*rows), {}).data["x"]
    assert (figures.count, figures.mean, figures.max) == (2, 2.0, 3.0)


def test_recorded_values_and_metrics_may_be_called_like_times(table):
    summary = summarise(
        table(row(0, stages={"reader": stage(1.0)}, data={"x.host_ms": 5.0}, accuracy={"y.host_ms": 0.5})),
        {},
        mean_scores=True,
    )
    assert list(summary.latency_ms.stages) == ["reader"]
    assert list(summary.data) == ["x.host_ms"]
    assert list(summary.accuracy) == ["y.host_ms"]


def test_a_stage_may_be_called_data_or_accuracy(table):
    stages = {"data": stage(1.0), "accuracy": stage(2.0)}
    summary = summarise(table(row(0, stages=stages, data={"x": 5.0})), {}, mean_scores=True)
    assert {name: times.host.mean for name, times in summary.latency_ms.stages.items()} == {
        "data": 1.0,
        "accuracy": 2.0,
    }
    assert list(summary.data) == ["x"]
    assert summary.accuracy == {}


class TestOwnLoop:
    """No metric object: the batches' own scores are all the accuracy there is."""

    def test_accuracy_is_the_mean_over_the_items(self, table):
        rows = [
            row(0, size=1, accuracy={"recall": 1.0, "precision": 0.5}),
            row(1, size=3, accuracy={"recall": 0.0}),
            row(2, size=100, status="failed", accuracy={"recall": 0.0}),
            row(3, size=7, status="done"),
        ]
        accuracy = summarise(table(*rows), {"accuracy": {}}, mean_scores=True).accuracy
        assert {name: score.value for name, score in accuracy.items()} == {"recall": 0.25, "precision": 0.5}

    def test_without_a_finite_score_there_is_no_value(self, table):
        rows = [row(0, accuracy={"recall": math.nan}), row(1, size=0, accuracy={"recall": 1.0})]
        accuracy = summarise(table(*rows), {}, mean_scores=True).accuracy
        assert accuracy == {"recall": Score(None)}

    def test_an_evaluation_does_not_average_scores(self, table):
        assert summarise(table(row(0, accuracy={"ap50": 0.5})), {}).accuracy == {}


def scored(num_batches):
    """Batches of 1 to 3 items, one in four wrong, and their mean score an item."""
    draw = random.Random(0)
    records = [
        row(n, size=draw.randint(1, 3), accuracy={"score": float(draw.random() < 0.75)}) for n in range(num_batches)
    ]
    right = sum(record.size * record.accuracy["score"] for record in records)
    return records, right / sum(record.size for record in records)


def test_a_mean_metric_gets_its_interval_from_segments(table):
    records, value = scored(400)
    summary = summarise(table(*records), {"accuracy": {"score": value}})

    low, high = summary.accuracy["score"].ci95
    assert low < value < high
    binomial = 1.96 * math.sqrt(value * (1 - value) / 400)  # batches are independent here; sizes vary a little
    assert (high - low) / 2 == pytest.approx(binomial, rel=0.3)


def test_a_metric_that_is_no_mean_has_no_interval_of_segments(table):
    records, _ = scored(120)
    summary = summarise(table(*records), {"accuracy": {"score": 0.5}})
    assert summary.accuracy["score"] == Score(0.5)


def test_a_metric_that_knows_its_interval_keeps_it(table):
    records, value = scored(120)
    closing = {"accuracy": {"score": value}, "accuracy_ci95": {"score": [0.1, 0.9]}}
    assert summarise(table(*records), closing).accuracy["score"].ci95 == (0.1, 0.9)


def test_a_second_pass_narrows_no_interval(table):
    once, value = scored(120)
    closing = {"accuracy": {"score": value}}
    alone = summarise(table(*once), closing).accuracy["score"].ci95
    again = [row(120 + n, size=each.size, accuracy=each.accuracy) for n, each in enumerate(once)]
    for each in again:
        each.repeat = 1

    both = summarise(table(*once, *again), closing)

    assert both.batches == {"scored": 240}
    assert both.accuracy["score"].ci95 == alone


def test_a_cold_start_and_a_drift_are_said(table):
    draw = random.Random(0)
    rising = [row(n, 10.0 + 0.05 * n + draw.random()) for n in range(200)]
    rising[0].latency_ms = 90.0

    notes = summarise(table(*rising), {}).notes

    assert [note.partition(":")[0] for note in notes] == ["cold start", "drift"]
    assert "90.00 ms against a median of" in notes[0]
    assert "by +10." in notes[1] or "by +9." in notes[1]  # 0.05 ms a batch over 200 batches


def test_a_steady_run_has_nothing_to_say(table):
    draw = random.Random(0)
    assert summarise(table(*(row(n, 10.0 + draw.random()) for n in range(200))), {}).notes == []
