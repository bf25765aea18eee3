"""Utilisation, the stage that bounds, predictions and the sentences, on rows worked out by hand."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlotel_cli.analysis.bottleneck import MAX_BATCHES, ExecutorSettings, find_bottleneck, find_in_run, top_stages
from mlotel_cli.summary import Bottleneck
from mlotel_cli.wire import Closing
from tests.support.traces import Trace, pipelined, write_run

PIPELINED = ExecutorSettings.from_config({"kind": "pipelined", "queue_size": 2, "replicas": {}, "autocast": None})
SEQUENTIAL = ExecutorSettings("sequential")
OWN_LOOP = ExecutorSettings.from_config({})
STAGES = ["detector", "reader"]


def table(count: int = 100, *, period_ms: float = 40.0, **columns: Any) -> pl.DataFrame:
    """Batches picked up every `period_ms`; a column is a value for all, or one a batch."""
    given = {
        "batch": list(range(count)),
        "start_ns": [round(n * period_ms * 1e6) for n in range(count)],
        "status": "scored",
        "size": 1,
        "latency_ms": 50.0,
        "source.wait_ms": 0.0,
        "detector.host_ms": 10.0,
        "reader.host_ms": 40.0,
        "detector.queue_ms": 75.0,
        "reader.queue_ms": 60.0,
        **columns,
    }
    return pl.DataFrame({name: value if isinstance(value, list) else [value] * count for name, value in given.items()})


def find(frame: pl.DataFrame, executor: ExecutorSettings = PIPELINED, **closing: Any) -> Bottleneck:
    found = find_bottleneck(frame, STAGES, closing=Closing(**closing), executor=executor)
    assert found is not None
    return found


def test_a_pipelined_run() -> None:
    found = find(table(), wall_s=4.01)
    assert found.stage == "reader"
    assert found.utilisation == pytest.approx({"source": 0, "detector": 1 / 4.01, "reader": 4 / 4.01, "scoring": 0})
    assert found.queue_ms == {"detector": 75.0, "reader": 60.0}
    assert found.model_error == pytest.approx(0.0)
    assert found.twice_as_fast["reader"] == pytest.approx(4.01 / 2.01)
    assert found.twice_as_fast["detector"] == pytest.approx(4.01 / 4.005)
    assert found.one_replica_more["reader"] == pytest.approx(2.0, rel=0.02)
    assert found.sentences == [
        "reader bounds the pipeline: busy 100%, batches wait 60 ms before it; twice as fast would give 2 x"
    ]


def test_replicas_share_the_utilisation() -> None:
    frame = table(**{"reader.host_ms": 60.0})
    found = find(frame, ExecutorSettings("pipelined", replicas={"reader": 3}), wall_s=2.1)
    assert found.utilisation["reader"] == pytest.approx(100 * 0.06 / (2.1 * 3))
    assert found.model_error == pytest.approx((100 / 3 * 0.06) / 2.1 - 1, abs=0.03)


def test_a_sequential_run_says_what_overlapping_would_give_at_best() -> None:
    found = find(table(), SEQUENTIAL, wall_s=5.0)
    assert found.overlap == pytest.approx(5.0 / 4.01)
    assert found.sentences == [
        "reader takes 80% of the time; overlapping the stages (executor=pipelined) would give 1.2 x at best"
    ]
    assert found.twice_as_fast is None


def test_for_an_own_loop_no_overlap_is_predicted() -> None:
    found = find(table(), OWN_LOOP, wall_s=5.0)
    assert found.sentences == ["reader takes 80% of the time"]
    assert found.overlap is None


def test_what_is_in_no_stage_stays_with_the_calling_thread() -> None:
    found = find(table(), SEQUENTIAL, wall_s=10.0, scoring_s=2.0)  # 5 s are in no stage
    assert found.overlap == pytest.approx(10.0 / 5.05, rel=0.01)
    assert found.stage == "scoring"
    assert found.sentences[0].startswith("what is in no stage, such as scoring, takes 50% of the time")


def test_overlapping_gives_no_more_than_the_cores_have_left() -> None:
    found = find(table(), SEQUENTIAL, wall_s=5.0, cpu_s=9.0, cores=2)
    assert found.overlap == pytest.approx(1 / 0.9)
    assert found.sentences[1] == "this process keeps 90% of 2 cores busy: less computing helps, more threads do not"
    assert find(table(), SEQUENTIAL, wall_s=5.0, cpu_s=11.0, cores=2).overlap == 1.0
    idle = find(table(), SEQUENTIAL, wall_s=5.0, cpu_s=1.0, cores=2)
    assert idle.overlap == pytest.approx(5.0 / 4.01)
    assert len(idle.sentences) == 1


def test_where_the_cores_are_full_no_stage_bounds() -> None:
    found = find(table(), wall_s=4.01, cpu_s=7.6, cores=2)
    assert found.sentences == [
        "reader is the busiest stage: busy 100%, batches wait 60 ms before it; "
        "but it is the processor that bounds the pipeline",
        "this process keeps 95% of 2 cores busy: less computing helps, more threads do not",
    ]


def test_a_change_gives_no_more_than_the_cores_have_left() -> None:
    found = find(table(), wall_s=4.01, cpu_s=6.416, cores=2)  # 80 % of them
    assert found.one_replica_more["reader"] == pytest.approx(1 / 0.8)
    assert found.twice_as_fast["reader"] == pytest.approx(4.01 / 2.01)  # most of the work is saved
    assert found.limited_by_cores == []
    frame = table(**{"detector.host_ms": 22.0, "source.wait_ms": 22.0})
    found = find(frame, wall_s=4.05, cpu_s=6.6, cores=2)
    assert found.limited_by_cores == ["reader"]
    limit = 1 / (6.6 / 8.1 * (1 - 20 / 84))
    assert found.twice_as_fast["reader"] == pytest.approx(limit)
    assert found.sentences == [
        "reader bounds the pipeline: busy 99%, batches wait 60 ms before it; "
        f"twice as fast would give {limit:.2g} x at best, for want of cores"
    ]
    unlimited = find(frame, wall_s=4.05)
    assert unlimited.twice_as_fast["reader"] > limit
    assert unlimited.limited_by_cores == []


def test_what_failed_batches_took_is_time_of_the_stages_too() -> None:
    status = ["skipped" if n % 10 == 3 else "scored" for n in range(100)]
    reader = [30.0 if each == "skipped" else 40.0 for each in status]
    found = find(table(status=status, **{"reader.host_ms": reader}), wall_s=3.91)
    assert found.num_batches == 90
    assert found.utilisation["reader"] == pytest.approx(3.9 / 3.91)
    assert found.model_error == pytest.approx(0.0, abs=1e-9)


def test_stages_that_share_a_device_are_told_of_it() -> None:
    frame = table(**{"detector.device_ms": 9.0, "reader.device_ms": 20.0})
    assert find(table(), wall_s=4.05).device_busy is None
    found = find(frame, wall_s=4.05)
    assert found.device_busy == pytest.approx(2.9 / 4.05)
    assert found.sentences[-1] == (
        "the stages share one device and have it for 72% of the time: it bounds what can be gained"
    )
    little = table(**{"detector.device_ms": 1.0})
    assert len(find(little, wall_s=4.05).sentences) == 1


def test_overlapping_that_gains_nothing_is_said_so() -> None:
    frame = table(**{"detector.host_ms": 0.1, "reader.host_ms": 49.9})
    (said,) = find(frame, SEQUENTIAL, wall_s=5.0).sentences
    assert (
        said == "reader takes 100% of the time; overlapping the stages (executor=pipelined) would gain next to nothing"
    )


def test_a_source_that_is_slower_than_every_stage() -> None:
    found = find(table(**{"source.wait_ms": 90.0}), wall_s=9.05)
    assert found.sentences == [
        "the source bounds the pipeline: it is waited for 99% of the time; the busiest stage, reader, is busy 44%"
    ]


def test_scoring_that_is_slower_than_every_stage() -> None:
    found = find(table(), wall_s=8.05, caller_s=8.0)
    assert found.stage == "scoring"
    assert found.sentences == ["scoring bounds the pipeline: busy 99%; twice as fast would give 2 x"]


def test_stages_that_are_equally_busy_are_not_blamed() -> None:
    frame = table(**{"detector.host_ms": 40.0})
    (said,) = find(frame, wall_s=4.04).sentences
    assert said.startswith("detector is the busiest stage: busy 99%, batches wait 75 ms before it; no stage alone")


def test_no_prediction_where_the_times_do_not_explain_the_throughput() -> None:
    found = find(table(), wall_s=8.0)
    assert found.twice_as_fast is None
    assert found.model_error == pytest.approx(4.01 / 8 - 1)
    assert found.sentences[1].endswith("much of the time goes by between them, in no span")
    assert find(table(), wall_s=3.0).sentences[1].endswith("it is higher than they allow")


def test_the_longer_of_host_and_device_counts() -> None:
    found = find(table(**{"detector.device_ms": 39.0, "reader.device_ms": 3.0}), wall_s=4.05)
    assert found.utilisation["detector"] == pytest.approx(3.9 / 4.05)
    assert found.utilisation["reader"] == pytest.approx(4.0 / 4.05)


def test_a_killed_workload_did_not_say_how_long_it_ran() -> None:
    found = find(table())
    assert found.utilisation["reader"] == pytest.approx(1.0)


def test_of_a_long_run_the_last_batches_are_looked_at() -> None:
    count = MAX_BATCHES + 1000
    reader = [400.0] * 1000 + [40.0] * MAX_BATCHES
    found = find(table(count, **{"reader.host_ms": reader}), wall_s=1e6)
    assert found.num_batches == MAX_BATCHES
    assert found.utilisation["reader"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("frame", "stages"),
    [
        (table(29), STAGES),
        (table(), ["reader"]),
        (table(), []),
        (pl.DataFrame(), STAGES),
        (table(status=["scored"] * 80 + ["failed"] * 20), STAGES),
        (table(**{"detector.host_ms": None, "reader.host_ms": None}), STAGES),
    ],
)
def test_too_little_to_say_anything(frame: pl.DataFrame, stages: list[str]) -> None:
    assert find_bottleneck(frame, stages, closing=Closing(wall_s=4.0), executor=PIPELINED) is None


def test_holes_and_values_that_are_no_numbers_do_no_harm() -> None:
    frame = table(**{"reader.host_ms": [40.0, None] * 49 + [float("nan"), float("inf")], "reader.queue_ms": None})
    frame = frame.drop("source.wait_ms", "detector.queue_ms")
    found = find(frame, wall_s=2.0)
    assert found.utilisation["reader"] == pytest.approx(49 * 0.04 / 2.0)
    assert found.queue_ms == {"detector": None, "reader": None}


def test_stages_are_what_lies_directly_below_the_root() -> None:
    trace = pipelined()
    trace.add("http", 0, 1, kind="CLIENT")
    assert top_stages(trace.spans) == STAGES
    trace.root.parent_id = 12345  # an epoch of the user's own loop
    assert top_stages(trace.spans) == STAGES
    assert top_stages([]) == []


def test_a_run_directory(tmp_path: Path) -> None:
    traces = [pipelined(n, 40.0 * n) for n in range(40)]
    folder = write_run(tmp_path, traces)
    frame = pl.read_parquet(folder / "batches.parquet" / "*.parquet")
    found = find_in_run(frame, folder / "spans.parquet", closing=Closing(wall_s=1.66), executor=PIPELINED)
    assert found is not None
    assert found.stage == "reader"
    assert found.queue_ms == {"detector": 10.0, "reader": 20.0}
    assert find_in_run(frame, folder / "nothing.parquet", closing=Closing(), executor=PIPELINED) is None


def test_spans_of_one_stage_say_nothing(tmp_path: Path) -> None:
    traces = [Trace(n, 10.0 * n, 10.0 * n + 5) for n in range(40)]
    for trace in traces:
        trace.add("work", 10.0 * trace.batch, 10.0 * trace.batch + 5)
    folder = write_run(tmp_path, traces)
    frame = pl.read_parquet(folder / "batches.parquet" / "*.parquet")
    assert find_in_run(frame, folder / "spans.parquet", closing=Closing(wall_s=1.0), executor=PIPELINED) is None
