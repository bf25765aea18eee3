"""What telemetry costs on a real device: an evaluation of about 1,000 batches a second, with spans and without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PIPELINE = """
import torch

class Three:
    def __init__(self):
        self.weights = torch.randn(2048, 2048, device="cuda")
        self.stages = {name: self.multiply for name in ("first", "second", "third")}

    def multiply(self, items):
        self.weights @ self.weights
        return items

class Labels:
    def update(self, output, targets):
        return None

    def compute(self):
        return 1.0
"""
EVAL = """
defaults: [eval_base, {override pipeline: null}, {override metrics: null}, _self_]
pipeline: {_target_: three_stages.Three}
metrics: {labels: {_target_: three_stages.Labels}}
tracker: {mode: disabled}
"""


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_throughput_with_telemetry_is_99_percent_of_that_without(tmp_path: Path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "eval.yaml").write_text(EVAL)
    (tmp_path / "three_stages.py").write_text(PIPELINE)
    words = ["-cd", str(tmp_path / "conf"), "data.num_batches=20000", "eval.control=true", "run.name=three"]
    command = [sys.executable, "-m", "mlotel_cli", "eval", *words, f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    control = json.loads((tmp_path / "run" / "run.json").read_text())["summary"]["telemetry"]["control"]
    assert control["ratio"] <= 1 / 0.99, control
