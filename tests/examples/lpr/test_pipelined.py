"""The example gives exactly the same results with a thread per stage as with the sequential executor."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from lpr.data import VideoFrames
from lpr.pipeline import LicencePlatePipeline
from polars.testing import assert_frame_equal

from mlotel_cli import read_run
from mlotel_cli.execute import Executor, Inference, Numbered, PipelinedExecutor, SequentialExecutor
from mlotel_cli.store.reading import Run
from tests.support.cli import mlotel

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[3] / "examples" / "lpr"
STAGES = ["vehicle_detector", "plate_detector", "plate_reader"]
REPLICAS = ("executor=pipelined", "executor.queue_size=1", "executor.replicas={vehicle_detector: 2, plate_reader: 3}")


def evaluate(run_dir: Path, clip: Path, *overrides: str) -> Run:
    ended = mlotel(
        "eval", "-cd", str(EXAMPLE / "conf"), f"run.dir={run_dir}", "tracker.mode=disabled", "device=cpu",
        "eval.warmup_batches=1", "eval.repeats=2", "data=video", f"data.path={clip}",
        f"data.annotations={clip.with_suffix('.json')}", "data.batch_size=1", *overrides,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return read_run(run_dir)


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Run:
    return evaluate(tmp_path_factory.mktemp("lpr") / "sequential", clip)


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Run:
    return evaluate(tmp_path_factory.mktemp("lpr") / "replicated", clip, *REPLICAS)


def test_same_predictions_same_order_same_accuracy(tmp_path: Path, clip: Path, sequential: Run) -> None:
    check_same(evaluate(tmp_path / "run", clip, "executor=pipelined"), sequential)


def test_replicas_change_no_prediction_and_no_order(sequential: Run, replicated: Run) -> None:
    check_same(replicated, sequential)


def check_same(pipelined: Run, sequential: Run) -> None:
    assert_frame_equal(pipelined.samples, sequential.samples)
    assert pipelined.batches["batch"].to_list() == sequential.batches["batch"].to_list() == list(range(10))
    columns = [name for name in sequential.batches.columns if name.startswith(("accuracy.", "data."))]
    assert columns
    fixed = ["batch", "source_batch", "repeat", "size", "status", *columns]
    assert_frame_equal(pipelined.batches.select(fixed), sequential.batches.select(fixed))
    assert pipelined.summary.accuracy == sequential.summary.accuracy
    assert all(pipelined.batches[f"{stage}.queue_ms"].null_count() == 0 for stage in STAGES)


@pytest.mark.parametrize("replicas", [{}, {"vehicle_detector": 2, "plate_reader": 3}])
def test_every_reading_is_the_same(clip: Path, replicas: dict[str, int]) -> None:
    stages = LicencePlatePipeline().stages
    frames = VideoFrames(str(clip), str(clip.with_suffix(".json")), batch_size=1)

    def readings(executor: Executor) -> list[Any]:
        numbered = (Numbered(batch.index, 0, batch) for batch in frames)
        with Inference("cpu")():
            return [(one.numbered.index, one.error, one.output) for one in executor.run(numbered)]

    expected = readings(SequentialExecutor(stages))
    assert sum(bool(reading["text"]) for _, _, (frame,) in expected for reading in frame) >= 2
    assert readings(PipelinedExecutor(stages, inference=Inference("cpu"), replicas=replicas)) == expected


def test_lanes_and_waiting_are_in_the_spans(replicated: Run) -> None:
    stages = replicated.spans.filter(pl.col("name").is_in(STAGES))
    lanes = {(name, thread) for name, thread in stages.select("name", "thread").iter_rows()}
    replicas = [("vehicle_detector", 1), ("plate_reader", 1), ("plate_reader", 2)]
    assert lanes <= {*((stage, stage) for stage in STAGES), *((stage, f"{stage}-{n}") for stage, n in replicas)}
    assert len(lanes) >= 3
    waiting = replicated.spans.filter(pl.col("name").str.starts_with("queue "))
    assert set(waiting["name"]) == {f"queue {stage}" for stage in STAGES}
    assert (waiting["end_ns"] >= waiting["start_ns"]).all()
