"""The example runs under `mlotel eval` and as a plain script, and does not import mlotel."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlotel_cli import read_run
from tests.support.cli import mlotel

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "instrument_only"
COMMAND = "mlotel eval -cd examples/instrument_only/conf"


@pytest.fixture(autouse=True)
def _forget_modules():
    yield
    for name in ("track", "clips"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_eval_gives_accuracy_and_the_loops_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = (f"run.dir={tmp_path / 'run'}", "tracker.mode=disabled", "eval.max_batches=6")
    ended = mlotel(*COMMAND.split()[1:], *words)
    assert ended.code == 0, ended.err
    run = read_run(tmp_path / "run")
    batches = run.batches
    assert batches["status"].to_list() == ["scored"] * 6
    assert batches["size"].to_list() == [16] * 6  # frames of a clip
    assert batches["detect.calls"].to_list() == batches["associate.calls"].to_list() == [16] * 6
    assert (batches["detect.host_ms"] + batches["associate.host_ms"] <= batches["latency_ms"]).all()
    assert 0 < run.summary.accuracy["error_px"].value < 0.5
    scopes = run.spans.filter(run.spans["name"] == "detect")["scope"].unique().to_list()
    assert scopes == ["track"]
    assert run.info["name"] == "instrument_only"


@pytest.mark.slow
def test_as_a_plain_script_it_tracks(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    blocked = tmp_path / "mlotel_cli.py"  # found before the installed one
    blocked.write_text("raise ImportError('the script must not need mlotel')")
    environment["PYTHONPATH"] = str(tmp_path)
    command = [sys.executable, str(EXAMPLE / "track.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    errors = [float(line.split()[0]) for line in ended.stdout.splitlines()]
    assert len(errors) == 5
    assert max(errors) < 0.5


def test_the_pipeline_is_short_and_imports_only_torch_and_opentelemetry() -> None:
    source = (EXAMPLE / "track.py").read_text()
    assert len(source.splitlines()) <= 35
    roots: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            roots.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").partition(".")[0])
    assert roots == {"torch", "opentelemetry", "clips"}
