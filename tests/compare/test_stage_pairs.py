from typing import Any

import polars as pl
import pytest

from mlotel_cli.compare.stage_pairs import StageComparison, compare_stages, differences


def batches(stage_ms: list[float], *, first: int = 0, **columns: list[Any]) -> pl.DataFrame:
    count = len(stage_ms)
    return pl.DataFrame(
        {
            "batch": range(count),
            "source_batch": range(first, first + count),
            "repeat": [0] * count,
            "status": ["scored"] * count,
            "latency_ms": [value + 1 for value in stage_ms],
            "reader.host_ms": stage_ms,
            **columns,
        }
    )


def row(rows: list[StageComparison], name: str, measure: str) -> StageComparison:
    (found,) = (each for each in rows if (each.name, each.measure) == (name, measure))
    return found


def test_medians_and_ratio_over_the_common_batches_only():
    evaluation = batches([1.0, 2.0, 3.0, 100.0, 100.0])
    profile = batches([2.2, 3.3], first=1)  # source batches 1 and 2

    comparison = compare_stages(evaluation, profile)

    reader = row(comparison.rows, "reader", "host")
    assert (reader.left_ms, reader.right_ms) == (2.5, 2.75)
    assert reader.ratio == pytest.approx(1.1)
    assert reader.num_batches == 2
    assert row(comparison.rows, "batch", "latency").left_ms == 3.5
    assert (comparison.num_left, comparison.num_right, comparison.num_common) == (5, 2, 2)


@pytest.mark.parametrize(("factor", "disturbed"), [(1.09, False), (1.11, True), (0.91, False), (0.89, True)])
def test_ten_percent_is_the_limit_both_ways(factor: float, disturbed: bool):
    comparison = compare_stages(batches([10.0] * 3), batches([10.0 * factor] * 3))
    assert row(comparison.rows, "reader", "host").is_disturbed is disturbed


def test_a_queue_is_not_disturbed_by_a_profiler():
    queues = [{"reader.queue_ms": [value]} for value in (1.0, 2.0)]
    comparison = compare_stages(*(batches([1.0], **queue) for queue in queues))
    queue = row(comparison.rows, "reader", "queue")
    assert (queue.ratio, queue.is_disturbed) == (2.0, False)


def test_what_only_one_run_measured_has_no_ratio():
    comparison = compare_stages(batches([1.0]), batches([1.0], **{"reader.device_ms": [0.5], "data.x.host_ms": [3.0]}))
    device = row(comparison.rows, "reader", "device")
    assert (device.left_ms, device.right_ms, device.ratio, device.num_batches) == (None, 0.5, None, 0)
    assert {each.name for each in comparison.rows} == {"batch", "reader"}


def test_failed_batches_and_missing_times_do_not_count():
    evaluation = batches([1.0, 5.0, 9.0]).with_columns(status=pl.Series(["scored", "failed", "scored"]))
    profile = batches([1.0, 5.0, 9.0]).with_columns(
        pl.when(pl.col("batch") == 2).then(None).otherwise(pl.col("reader.host_ms")).alias("reader.host_ms")
    )
    comparison = compare_stages(evaluation, profile)
    reader = row(comparison.rows, "reader", "host")
    assert (reader.left_ms, reader.num_batches, comparison.num_common) == (1.0, 1, 2)


def test_stages_of_one_run_only():
    left = batches([1.0]).with_columns(pl.lit(2.0).alias("detector.host_ms"))
    comparison = compare_stages(left, batches([1.0]))
    assert comparison.stages_only(left=True) == ["detector"]
    assert comparison.stages_only(left=False) == []
    assert comparison.has_common_stage
    other = batches([1.0]).rename({"reader.host_ms": "writer.host_ms"})
    apart = compare_stages(left, other)
    assert (apart.stages_only(left=True), apart.stages_only(left=False)) == (["reader", "detector"], ["writer"])
    assert not apart.has_common_stage
    bare = batches([1.0]).drop("reader.host_ms")
    assert compare_stages(bare, bare).has_common_stage  # batches can be compared, and there is nothing else


def test_what_two_configurations_say_differently_of_the_work():
    left = {"pipeline": {"_target_": "a.B", "scale": 1, "size": {"width": 2}}, "seed": 0, "run": {"dir": "x"}}
    right = {"pipeline": {"_target_": "a.B", "scale": 2, "size": {"width": 3}, "more": [1]}, "seed": 0}
    assert differences(left, right) == [
        ("pipeline.scale", 1, 2),
        ("pipeline.size.width", 2, 3),
        ("pipeline.more", None, [1]),
    ]
    assert differences({"data": None}, {"data": {"n": 1}}) == [("data.n", None, 1)]
    assert differences(left, left) == differences({}, {}) == []
