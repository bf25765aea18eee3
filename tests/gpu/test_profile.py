"""`mlotel profile` on a real device: the kernels of each stage against torch.profiler."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PIPELINE = """
import torch

class Two:
    def __init__(self):
        self.small, self.large = (torch.randn(size, size, device="cuda") for size in (1024, 4096))
        self.stages = {"small": self.run_small, "large": self.run_large}

    def run_small(self, items):
        self.small @ self.small
        return items

    def run_large(self, items):
        for _ in range(3):
            self.large @ self.large
        return items[:, 1].long()
"""


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kernels_of_both_profilers_agree(tmp_path: Path, nsys: Path):
    (tmp_path / "conf" / "pipeline").mkdir(parents=True)
    (tmp_path / "conf" / "pipeline" / "two.yaml").write_text("_target_: two_stages.Two\n")
    (tmp_path / "two_stages.py").write_text(PIPELINE)
    stages = {}
    for profiler in ("nsys", "torch"):
        words = ["-cd", str(tmp_path / "conf"), "pipeline=two", f"profiler={profiler}", "tracker.mode=disabled"]
        words += [f"profiler.command={nsys}"] if profiler == "nsys" else []
        run_dir = tmp_path / profiler
        command = [sys.executable, "-m", "mlotel_cli", "profile", *words, "profile.batches=30", f"run.dir={run_dir}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        stages[profiler] = json.loads((run_dir / "stages.json").read_text())["stages"]
    for name in ("small", "large"):
        of_nsys, of_torch = (stages[profiler][name]["device"] for profiler in ("nsys", "torch"))
        assert of_nsys["kernels"] == of_torch["kernels"]
        assert of_nsys["kernel_ms"] == pytest.approx(of_torch["kernel_ms"], rel=0.05)
        assert of_nsys["kernels"] >= (3 if name == "large" else 1)
    assert stages["nsys"]["large"]["device"]["kernel_ms"] > 10 * stages["nsys"]["small"]["device"]["kernel_ms"]
