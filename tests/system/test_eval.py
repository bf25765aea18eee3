"""Whole evaluations: what ends up in Parquet, W&B, run.json and the table, and that they agree."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli import read_run
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from tests.support.evaluation import command, conf, evaluate, target
from tests.support.wandb_file import find_wandb_file, read_wandb_file

PERIODS = {"model_1": 250, "model_2": 500, "model_3": 1000}


@pytest.fixture(autouse=True)
def _spans_off_afterwards():
    yield
    assert api.PROVIDER.backend is OFF


# -- the talk's pipeline, as a real process, offline -----------------------------------------------------------------

SCALE = 0.05
BATCHES = 60


@pytest.fixture(scope="module")
def dummy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dummy")
    ended = command(
        "eval",
        f"pipeline.time_scale={SCALE}",
        f"data.num_batches={BATCHES}",
        "tracker.mode=offline",
        "run.dir=run",
        "run.name=talk",
        "eval.warmup_batches=2",
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr
    (folder / "stdout").write_text(ended.stdout)
    return folder


def test_wandb_has_one_row_a_batch_equal_to_parquet(dummy_run: Path) -> None:
    rows = read_run(dummy_run / "run").batches
    file = read_wandb_file(find_wandb_file(dummy_run / "run"))
    history = [row for row in file.history if "batch" in row]
    assert [row["batch"] for row in history] == rows["batch"].to_list() == list(range(BATCHES))
    columns = {
        "latency/batch_ms": "latency_ms",
        "latency/model_1_ms": "model_1.host_ms",
        "latency/model_2_ms": "model_2.host_ms",
        "latency/model_3_ms": "model_3.host_ms",
        "accuracy/score": "accuracy.score",
        "data/num_detections": "data.num_detections",
    }
    for key, column in columns.items():
        assert [row[key] for row in history] == pytest.approx(rows[column].to_list(), abs=1e-9), key
    assert file.exit_code == 0
    assert (file.run.job_type, file.run.display_name, file.torn) == ("eval", "talk", False)
    assert file.metrics["batch"]
    assert file.config["pipeline"]["time_scale"] == SCALE


def test_durations_follow_their_sines(dummy_run: Path) -> None:
    rows = read_run(dummy_run / "run").batches
    for stage, period in PERIODS.items():
        over_ms = [
            took - SCALE * (50 + 25 * math.sin(2 * math.pi * index / period))
            for index, took in zip(rows["batch"], rows[f"{stage}.host_ms"], strict=True)
        ]
        assert min(over_ms) >= -0.01, stage  # a sleep is never short
        assert sorted(over_ms)[len(over_ms) // 4] < 1.0, stage  # and often not long, whatever else this machine does


def test_recorded_values_and_scores_are_in_the_rows(dummy_run: Path) -> None:
    rows = read_run(dummy_run / "run").batches
    expected = [10 + 5 * math.sin(2 * math.pi * index / 500) for index in range(BATCHES)]
    assert rows["data.num_detections"].to_list() == pytest.approx(expected)
    assert set(rows["accuracy.score"].to_list()) <= {0.0, 1.0}
    total = rows["model_1.host_ms"] + rows["model_2.host_ms"] + rows["model_3.host_ms"]
    assert (total <= rows["latency_ms"]).all()
    assert (rows["source.wait_ms"] > 0).all()


def test_run_json_and_table_say_what_the_rows_say(dummy_run: Path) -> None:
    run = read_run(dummy_run / "run")
    rows, summary = run.batches, run.summary
    assert run.status == "complete"
    batch = summary.latency_ms.batch
    assert batch.count == BATCHES
    assert batch.mean == pytest.approx(rows["latency_ms"].mean())
    assert batch.p50 == pytest.approx(rows["latency_ms"].median())
    assert batch.max == rows["latency_ms"].max()
    assert list(summary.latency_ms.stages) == list(PERIODS)
    assert summary.accuracy["score"].value == pytest.approx(rows["accuracy.score"].mean())
    assert summary.warmup.batches == 2
    assert summary.telemetry.spans_lost == 0
    assert summary.telemetry.spans_recorded == run.spans.height == BATCHES * 4  # the warm-up is in no file
    table = (dummy_run / "stdout").read_text()
    row = next(line.split() for line in table.splitlines() if line.split()[:1] == ["model_2"])
    assert row[1:3] == [str(BATCHES), f"{rows['model_2.host_ms'].mean():.2f}"]
    assert "\x1b[" not in table  # a pipe gets no colours
    assert re.search(r"^run: run$", table, re.MULTILINE)


def test_samples_have_scores(dummy_run: Path) -> None:
    samples = read_run(dummy_run / "run").samples.sort("batch")
    assert samples["id"].to_list() == [f"{index}.0" for index in range(BATCHES)]
    assert samples["score.score"].to_list() == read_run(dummy_run / "run").batches["accuracy.score"].to_list()
    assert set(samples["prediction"].to_list()) <= {"0", "1"}


# -- a sweep ---------------------------------------------------------------------------------------------------------


def test_every_job_of_a_sweep_is_a_run_and_one_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    folder = conf(tmp_path, pipeline=target("Slow", fails_on="null"))
    words = ("tracker.mode=offline", "pipeline.fails_on=7,1,null", "hydra.sweep.dir=sweep")
    ended = command("eval", "-m", "-cd", str(folder), *words, cwd=tmp_path)
    assert ended.returncode == 1
    failure = "batch 1: stage wait raised RuntimeError: told to"
    assert f"mlotel: job 1: {failure}" in ended.stderr.splitlines()
    jobs = [tmp_path / "sweep" / str(job) for job in range(3)]
    runs = [read_run(job) for job in jobs]
    files = [read_wandb_file(find_wandb_file(job)) for job in jobs]
    assert [run.status for run in runs] == ["complete", "failed", "complete"]
    assert [run.batches["status"].to_list() for run in runs] == [
        ["scored"] * 5,
        ["scored", "failed"],
        ["scored"] * 5,
    ]
    assert [run.info["overrides"] for run in runs] == [[*words[:1], f"pipeline.fails_on={n}"] for n in (7, 1, "null")]
    assert [run.info["error"] for run in runs] == [None, failure, None]
    assert [json.loads((job / "job.json").read_text())["status"] for job in jobs] == ["complete", "failed", "complete"]
    assert len({file.run.run_id for file in files}) == len({run.info["run_id"] for run in runs}) == 3
    assert {file.run.run_group for file in files} == {"sweep"}
    assert [file.config["pipeline"]["fails_on"] for file in files] == [7, 1, None]
    assert [file.exit_code for file in files] == [0, 1, 0]
    logged = [[row["batch"] for row in file.history if "latency/wait_ms" in row] for file in files]
    assert (logged[0], logged[2]) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


# -- in this process -------------------------------------------------------------------------------------------------


def accuracy(folder: Path) -> list[Any]:
    rows = read_run(folder / "run").batches
    return rows.select(column for column in rows.columns if column.startswith("accuracy.")).rows()


def test_the_same_seed_gives_the_same_accuracy_whatever_the_warm_up(tmp_path: Path) -> None:
    parts = {"pipeline": target("Draws"), "metrics": f"d: {{{target('Distance')}}}"}
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, words in zip(folders, (["seed=3"], ["seed=3", "eval.warmup_batches=2"], ["seed=4"]), strict=True):
        folder.mkdir()
        assert evaluate(folder, *words, **parts).code == 0
    a, b, c = map(accuracy, folders)
    assert a == b != c


def test_a_plain_module_is_instrumented_by_config(tmp_path: Path) -> None:
    layer = "{_target_: torch.nn.Linear, in_features: 2, out_features: 2, bias: true}"
    module = f"{{_target_: torch.nn.Sequential, _args_: [{layer}, {{_target_: torch.nn.ReLU}}]}}"
    pipeline = target("mlotel_cli.pipeline.ModulePipeline", module=module, modules="['0', '1']")
    ended = evaluate(tmp_path, pipeline=pipeline, metrics=f"d: {{{target('Distance')}}}")
    assert ended.code == 0, ended.err
    rows = read_run(tmp_path / "run").batches
    assert {"0.host_ms", "1.host_ms"} <= set(rows.columns)
    assert rows["0.calls"].to_list() == rows["1.calls"].to_list() == [1] * 5


def test_a_data_loader_of_config_and_repeats(tmp_path: Path) -> None:
    data = "_target_: tests.support.parts.loader, num_items: 7, batch_size: 3"
    ended = evaluate(tmp_path, "eval.repeats=2", "eval.warmup_batches=1", data=data)
    assert ended.code == 0, ended.err
    rows = read_run(tmp_path / "run").batches
    assert rows.select("batch", "source_batch", "repeat", "size").rows() == [
        (0, 0, 0, 3),
        (1, 1, 0, 3),
        (2, 2, 0, 1),
        (3, 0, 1, 3),
        (4, 1, 1, 3),
        (5, 2, 1, 1),
    ]
    run = read_run(tmp_path / "run")
    seconds = 14 / run.summary.throughput.wall_items_per_s
    assert seconds >= rows["latency_ms"].sum() / 1e3


def test_a_control_run_measures_nothing_and_scores_all_the_same(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "telemetry=off")
    assert ended.code == 0, ended.err
    run = read_run(tmp_path / "run")
    assert run.batches["status"].to_list() == ["scored"] * 5
    assert run.batches["latency_ms"].null_count() == 5
    assert run.spans.height == 0
    assert run.summary.accuracy["right"].value == 1.0
    assert "latency" not in ended.out


def test_two_runs_in_one_process_do_not_mix(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert evaluate(tmp_path / name, pipeline=target("Stages")).code == 0
    runs = [read_run(tmp_path / name / "run") for name in ("one", "two")]
    assert [run.spans.height for run in runs] == [15, 15]
    traces = [set(run.spans["trace_id"].to_list()) for run in runs]
    assert not traces[0] & traces[1]


def test_the_data_are_closed_however_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr("tests.support.parts.Numbers.close", lambda self: closed.append("data"))
    evaluate(tmp_path, data=target("Numbers", fails_at=0))
    assert closed == ["data"]
