"""Predictions from real runs of the dummy's models, checked on real runs of configurations that they never saw."""

import json
from pathlib import Path

import pytest

from mlotel_cli import read_run
from mlotel_cli.analysis.bottleneck import ExecutorSettings, model_of, top_stages
from mlotel_cli.analysis.pipeline_model import PipelineModel
from mlotel_cli.dummy import SineModel
from mlotel_cli.store.traces import load_spans
from mlotel_cli.typed_json import to_json
from mlotel_cli.wire import Closing
from tests.support.evaluation import command, conf, target

pytestmark = [pytest.mark.system, pytest.mark.alone]

NUM_BATCHES = 80
TOLERANCE = 0.05
MAX_OVERSLEPT = 0.03
"""A run whose sleeps took this much longer than they were told to was disturbed by other programs: it is repeated."""
ATTEMPTS = 3
PERIODS = [7, 11, 5]
"""Short ones: with small queues the waves get into each other's way."""
SCALES = (0.6, 1.0, 0.7)


def evaluate(folder: Path, *overrides: str, scales: tuple[float, ...] = SCALES, executor: str = "pipelined") -> Path:
    """An undisturbed run of some seconds; stages take 30 to 50 ms on average, and sleep."""
    overslept = 0.0
    for attempt in range(ATTEMPTS):
        path = evaluate_once(folder.with_name(f"{folder.name}-{attempt}"), *overrides, scales=scales, executor=executor)
        rows = read_run(path).batches
        took_ms = sum(rows[f"model_{n}.host_ms"].sum() for n in (1, 2, 3))
        told_ms = 1e3 * sum(
            SineModel(period, time_scale=scale).duration_s(index)
            for period, scale in zip(PERIODS, scales, strict=True)
            for index in range(NUM_BATCHES)
        )
        overslept = took_ms / told_ms - 1
        if overslept <= MAX_OVERSLEPT:
            return path
    pytest.skip(f"this machine is too busy to measure anything: sleeps took {overslept:.0%} longer than told")


def evaluate_once(folder: Path, *overrides: str, scales: tuple[float, ...], executor: str) -> Path:
    folder.mkdir()
    words = conf(
        folder,
        pipeline=target("tests.support.sines.Sines", periods=PERIODS, scales=list(scales)),
        data=target("mlotel_cli.dummy.DummyData", num_batches=NUM_BATCHES),
        metrics=f"none: {{{target('tests.support.sines.Silent')}}}",
    )
    ended = command("eval", "-cd", str(words), f"executor={executor}", "run.dir=run", *overrides, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    (folder / "stdout").write_text(ended.stdout)
    return folder / "run"


def throughput(path: Path) -> float:
    return read_run(path).summary.throughput.wall_items_per_s


def fitted(path: Path, executor: str) -> PipelineModel:
    """The model that the recorder made of a run, from its files."""
    rows = read_run(path).batches
    stages = top_stages(load_spans(path / "spans.parquet", 0, 10))
    assert stages == ["model_1", "model_2", "model_3"]
    closing = Closing(wall_s=rows.height / throughput(path))
    settings = ExecutorSettings(executor)
    model = model_of(rows, stages, closing=closing, executor=settings)
    assert model is not None
    return model


@pytest.fixture(scope="module")
def pipelined_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(tmp_path_factory.mktemp("fit") / "pipelined")


def test_what_the_run_says_of_itself(pipelined_run: Path) -> None:
    bottleneck = read_run(pipelined_run).summary.bottleneck
    assert bottleneck.stage == "model_2"
    assert abs(bottleneck.model_error) < TOLERANCE
    assert 0 < bottleneck.cores_busy < 0.7  # stages sleep
    (said,) = bottleneck.sentences
    assert said.startswith("model_2 bounds the pipeline: busy 9")
    assert f"{said}\n" in (pipelined_run.parent / "stdout").read_text()
    assert json.loads((pipelined_run / "run.json").read_text())["summary"]["bottleneck"] == to_json(bottleneck)


def test_a_stage_twice_as_fast(pipelined_run: Path, tmp_path: Path) -> None:
    gain = read_run(pipelined_run).summary.bottleneck.twice_as_fast["model_2"]
    real = evaluate(tmp_path / "faster", scales=(0.6, 0.5, 0.7))
    assert gain > 1.2
    assert throughput(pipelined_run) * gain == pytest.approx(throughput(real), rel=TOLERANCE)


def test_one_replica_more_and_longer_queues(pipelined_run: Path, tmp_path: Path) -> None:
    more = {"model_2": 2}
    gain = fitted(pipelined_run, "pipelined").gain(replicas=more, queue_size=8)
    real = evaluate(tmp_path / "more", "++executor.replicas.model_2=2", "executor.queue_size=8")
    assert gain > 1.2
    assert throughput(pipelined_run) * gain == pytest.approx(throughput(real), rel=TOLERANCE)


def test_a_sequential_run_foretells_the_pipelined_one(pipelined_run: Path, tmp_path: Path) -> None:
    real = evaluate(tmp_path / "sequential", executor="sequential")
    bottleneck = read_run(real).summary.bottleneck
    assert bottleneck.sentences[0].startswith("model_2 takes 4")
    assert throughput(real) * bottleneck.overlap == pytest.approx(throughput(pipelined_run), rel=TOLERANCE)
    assert bottleneck.overlap == pytest.approx(fitted(real, "sequential").gain_of_overlap(), rel=0.01)
