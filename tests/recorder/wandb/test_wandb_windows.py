"""A monitor's W&B rows: exact where they can be, within 1 % where they are quantiles, one a window."""

import math
import random

import numpy as np
import pytest

from mlotel_cli.recorder.sketch import Sketch
from mlotel_cli.recorder.wandb.wandb_windows import WINDOW_SECTIONS, Bins, WindowBuilder, WindowRowBuilder, bins
from mlotel_cli.records import BatchRecord, StageTime
from mlotel_cli.snapshot import SourceReport
from mlotel_cli.wire import Report

START = 1_000_000.0


def windows(*, now_s: float = START, started_s: float = START) -> WindowBuilder:
    return WindowBuilder(window_s=15.0, started_s=started_s, now_s=now_s)


def record(batch: int = 0, *, status="done", size: int = 1, **changes) -> BatchRecord:
    return BatchRecord(batch, batch, 0, 0, size, status, **({"latency_ms": 1.0} | changes))


def report(*, received: int = 0, reconnects: int = 0, queues=None, **dropped: int) -> Report:
    return Report(SourceReport(received=received, dropped=dropped, reconnects=reconnects), queues or {})


def row(adding: WindowBuilder, now_s: float) -> dict:
    return WindowRowBuilder().row(adding.close(now_s))


def test_a_window_is_one_row_when_it_is_over():
    adding = windows()
    adding.add(record())
    assert adding.due(START + 14.9) is None
    closed = adding.due(START + 15.1)
    assert (closed.number, closed.num_batches, closed.ended_s) == (0, 1, START + 15)
    assert adding.due(START + 15.2) is None
    assert adding.due(START + 30.0).number == 1


def test_rates_are_those_of_the_window():
    adding = windows()
    for batch in range(30):
        adding.add(record(batch, size=4, status="done" if batch % 3 else "failed"))
    found = row(adding, START + 15)
    assert (found["window"], found["wall_time"]) == (0, START + 15)
    assert (found["rate/batches_per_s"], found["rate/items_per_s"]) == (2.0, 8.0)
    assert (found["count/done"], found["count/failed"]) == (20, 10)


def test_a_window_without_batches_is_a_row_too():
    found = row(windows(), START + 15)
    assert (found["rate/batches_per_s"], found["count/done"], found["count/failed"]) == (0, 0, 0)
    assert not any(key.startswith("latency/") for key in found)


def test_the_last_window_is_as_long_as_it_was():
    adding = windows()
    adding.due(START + 15)
    for batch in range(10):
        adding.add(record(batch))
    assert row(adding, START + 20)["rate/batches_per_s"] == 2.0


def test_quantiles_are_those_of_numpy_within_a_bucket():
    drawn = random.Random(5)
    values = [drawn.lognormvariate(2, 1) for _ in range(5000)]
    adding = windows()
    for batch, value in enumerate(values):
        adding.add(record(batch, latency_ms=value, stages={"net.head": StageTime(host_ms=value * 2, calls=1)}))
    found = row(adding, START + 15)
    for share in (50, 95, 99):
        expected = float(np.percentile(values, share))
        assert found[f"latency/batch_p{share}_ms"] == pytest.approx(expected, rel=0.02)
        assert found[f"latency/net_head_p{share}_ms"] == pytest.approx(2 * expected, rel=0.02)
    assert found["latency/batch_max_ms"] == max(values)


def test_device_and_queue_times_and_a_stage_that_only_waited():
    adding = windows()
    adding.add(record(stages={"a": StageTime(host_ms=3, device_ms=2, queue_ms=1, calls=1), "b": StageTime(queue_ms=5)}))
    found = row(adding, START + 15)
    assert found["device/a_p50_ms"] == pytest.approx(2, rel=0.01)
    assert found["queue/a_max_ms"] == 1
    assert found["queue/b_max_ms"] == 5
    assert "latency/b_p50_ms" not in found


def test_a_stage_called_batch_is_not_the_batch():
    adding = windows()
    adding.add(record(latency_ms=1.0, stages={"batch": StageTime(host_ms=9, calls=1)}))
    found = row(adding, START + 15)
    assert (found["latency/batch_max_ms"], found["latency/batch_2_max_ms"]) == (1, 9)


def test_what_is_not_finite_or_not_known_is_left_out():
    adding = windows()
    adding.add(record(latency_ms=None, data={"x": math.nan, "y": math.inf, "z": 1.0}))
    found = row(adding, START + 15)
    assert "latency/batch_p50_ms" not in found
    assert [key for key in found if key.startswith("data/")] == ["data/z", "data/z_mean", "data/z_p50"]


def test_counters_of_the_workload_are_changes_and_queues_are_as_they_are():
    adding = windows()
    adding.take_report(report(received=100, full=5, queues={"source": (3, 8), "a b": (1, 2)}))
    first = row(adding, START + 15)
    assert (first["source/received"], first["drop/full"], first["queue/source_depth"]) == (100, 5, 3)
    adding.take_report(report(received=130, full=5, corrupt=2, reconnects=1))
    second = row(adding, START + 30)
    assert (second["source/received"], second["drop/full"], second["drop/corrupt"]) == (30, 0, 2)
    assert second["source/reconnects"] == 1
    assert row(adding, START + 45)["source/received"] == 0
    assert first["queue/a_b_depth"] == 1


def test_a_recorder_that_takes_over_goes_on_counting_windows_and_knows_no_earlier_drops():
    adding = windows(now_s=START + 100)
    adding.take_report(report(received=5000, full=70))
    adding.take_report(report(received=5010, full=71))
    found = row(adding, START + 105)
    assert (found["window"], found["source/received"], found["drop/full"]) == (6, 10, 1)


def test_every_key_is_in_a_section_that_has_an_axis():
    adding = windows()
    stages = {"a": StageTime(host_ms=3, device_ms=2, queue_ms=1, calls=1)}
    adding.add(record(stages=stages, data={"é é": 1.0}))
    adding.take_report(report(received=1, full=1, queues={"a": (0, 1)}))
    builder = WindowRowBuilder()
    found = builder.row(adding.close(START + 15))
    assert {key.partition("/")[0] for key in found} - {"window", "wall_time"} == set(WINDOW_SECTIONS)
    assert builder.renamed == {"data/é_é": "é é"}


# -- histograms -------------------------------------------------------------------------------------------------------


def counted(*values: float) -> Sketch:
    counts = Sketch()
    for value in values:
        counts.add(value)
    return counts


def test_a_histogram_has_every_value_in_about_its_place():
    drawn = random.Random(2)
    values = [drawn.gauss(10, 3) for _ in range(4000)]
    found = bins(counted(*values))
    assert sum(found.counts) == 4000
    assert len(found.edges) == len(found.counts) + 1
    middles = [(low + high) / 2 for low, high in zip(found.edges, found.edges[1:], strict=False)]
    mean = sum(middle * count for middle, count in zip(middles, found.counts, strict=True)) / 4000
    assert mean == pytest.approx(sum(values) / 4000, rel=0.02)
    assert found.edges[0] == pytest.approx(min(values), rel=0.011)
    assert found.edges[-1] == pytest.approx(max(values), rel=0.011)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_one_value_is_one_bin(value):
    found = bins(counted(value, value))
    assert found.counts == [2]
    assert found.edges[0] < value < found.edges[1] or found.edges[0] <= value * 1.01


def test_negative_and_positive_values():
    found = bins(counted(-1.0, 0.0, 1.0))
    assert sum(found.counts) == 3
    assert found.edges == sorted(found.edges)
    assert isinstance(found, Bins)
