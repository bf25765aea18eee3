"""`mlotel eval executor=pipelined` as a real process: how it ends when it is interrupted, hangs, or fails."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli.execute.pipelined import UNFINISHED
from mlotel_cli.store.reading import read_run

pytestmark = [pytest.mark.system, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PARTS = """
import os
import time

from mlotel_cli.dummy import DummyData, DummyPipeline


class Tells(DummyData):
    '''Writes the index of every batch that it is asked for.'''

    def __init__(self, *, path, **rest):
        super().__init__(**rest)
        self.file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def __iter__(self):
        for batch in super().__iter__():
            os.write(self.file, b".")
            yield batch


class Fragile(DummyPipeline):
    '''Its second stage hangs, or raises, on one batch.'''

    def __init__(self, *, hangs_at=None, fails_at=None, **rest):
        super().__init__(**rest)
        self.hangs_at, self.fails_at, self.whole = hangs_at, fails_at, self.stages["model_2"]
        self.stages["model_2"] = self.second

    def second(self, items):
        index = int(items[0, 0])
        if index == self.hangs_at:
            time.sleep(3600)
        if index == self.fails_at:
            raise RuntimeError("told to")
        return self.whole(items)
"""


def start(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    (folder / "parts.py").write_text(PARTS)
    words = [
        "executor=pipelined", "pipeline._target_=parts.Fragile", "pipeline.time_scale=0.05",
        "data._target_=parts.Tells", f"+data.path={folder / 'told'}", "eval.warmup_batches=0",
        "tracker.mode=disabled", f"run.dir={folder / 'run'}", *overrides,
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "mlotel_cli", "eval", *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "run.json").read_text())


def wait_for_batches(folder: Path, number: int) -> None:
    deadline = time.monotonic() + 90
    told = folder / "told"
    while not told.exists() or told.stat().st_size < number:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_keeps_what_was_measured(tmp_path: Path, seed: int, signum: signal.Signals) -> None:
    draw = random.Random(seed)
    replicas = draw.choice(["{}", "{model_1: 2, model_3: 3}"])
    process = start(tmp_path, "data.num_batches=100000", f"executor.replicas={replicas}")
    wait_for_batches(tmp_path, draw.randrange(1, 60))
    time.sleep(draw.random() * 0.01)  # anywhere within a batch
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, said
    assert "Traceback" not in said
    assert info(tmp_path)["status"] == "interrupted"
    rows = read_run(tmp_path / "run").batches.sort("batch")
    scored = rows.filter(rows["status"] == "scored")["batch"].to_list()
    assert scored == list(range(len(scored)))
    others = rows.filter(rows["status"] != "scored")
    assert set(others["status"]) <= {"incomplete"}
    assert len(others) <= 4 * (2 + 1) + 6 + 1 + 1  # what can be under way: lines, a batch a thread, source, caller


def test_a_stage_that_hangs_ends_the_run(tmp_path: Path) -> None:
    process = start(tmp_path, "data.num_batches=60", "+pipeline.hangs_at=20", "executor.stage_timeout_s=1")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    message = r"batch 20: stage model_2 ran for \d+\.\d\d s, longer than executor.stage_timeout_s=1 allows"
    assert re.search(message, said)
    assert info(tmp_path)["status"] == "failed"
    assert re.match(message, info(tmp_path)["error"])
    rows = read_run(tmp_path / "run").batches.sort("batch")
    assert rows["status"].to_list()[:20] == ["scored"] * 20
    assert rows["status"].to_list()[20] == "incomplete"
    assert re.search(message, rows["error"][20])


def test_ctrl_c_ends_a_run_whose_stage_hangs(tmp_path: Path) -> None:
    process = start(tmp_path, "data.num_batches=60", "+pipeline.hangs_at=5")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "batches.parquet").exists() or read_run(tmp_path / "run").batches.height < 5:
        assert time.monotonic() < deadline  # parts are written every two seconds
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130, said
    assert "threads still running after 5 s: model_2" in said + (tmp_path / "run" / "mlotel.log").read_text()
    assert read_run(tmp_path / "run").batches["status"].to_list().count("scored") == 5


def test_a_batch_that_fails_ends_the_run_and_those_behind_it(tmp_path: Path) -> None:
    process = start(tmp_path, "data.num_batches=60", "+pipeline.fails_at=20")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "batch 20: stage model_2 raised RuntimeError: told to" in said
    rows = read_run(tmp_path / "run").batches.sort("batch")
    assert rows["status"].to_list()[:21] == ["scored"] * 20 + ["failed"]
    behind = rows.filter(rows["batch"] > 20)
    assert set(behind["status"]) <= {"incomplete"}
    assert set(behind["error"]) <= {UNFINISHED, "it went through, but was never settled"}  # it waited to be scored
    assert (rows["spans_missing"] == 0).all()


def test_a_batch_that_is_skipped_costs_no_other_its_row(tmp_path: Path) -> None:
    process = start(
        tmp_path, "data.num_batches=60", "+pipeline.fails_at=20", "eval.on_error=skip", "executor.replicas.model_2=2"
    )
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    rows = read_run(tmp_path / "run").batches.sort("batch")
    assert rows["status"].to_list() == ["scored"] * 20 + ["skipped"] + ["scored"] * 39
    assert rows["model_3.queue_ms"].null_count() == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["executor.replicas.model_9=2"],
            "executor.replicas.model_9: no such stage; the pipeline has model_1",
        ),
        (["executor.replicas.model_2=0"], "executor.replicas.model_2=0: allowed: at least 1"),
        (["executor.replicas.model_2=two"], "executor.replicas.model_2=two: must be a whole number"),
        (["eval.control=true"], "eval.control=true"),
        (["executor.queue_size=0"], "executor.queue_size=0: allowed: 1 to 10000"),
    ],
)
def test_wrong_settings_are_one_message(tmp_path: Path, overrides: list[str], expected: str) -> None:
    process = start(tmp_path, *overrides)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert expected in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_profile_has_the_waiting_too(tmp_path: Path, nsys: Path) -> None:
    words = [
        "executor=pipelined", "executor.replicas.model_2=2", "pipeline.time_scale=0.05", "profile.batches=30",
        "tracker.mode=disabled", f"profiler.command={nsys}", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "mlotel_cli", "profile", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    rows = read_run(tmp_path / "run").batches.sort("batch")
    assert rows["batch"].to_list() == list(range(30))
    for stage in ("model_1", "model_2", "model_3"):
        assert (rows[f"{stage}.host_ms"] > 0).all()
        assert (rows[f"{stage}.queue_ms"] > 0).all()
        assert (rows[f"{stage}.calls"] == 1).all()
        assert (rows[f"{stage}.host_ms"] + rows[f"{stage}.queue_ms"] <= rows["latency_ms"] + 1e-3).all()
