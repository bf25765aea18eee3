"""How a profiler is started, and how its recording is read back; nsys itself runs in tests/system/test_nsys.py."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mlotel_cli.config.schema import ProfileConfig
from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.hardware import version_of
from mlotel_cli.profile.profilers import CAPTURE, NsysProfiler, TorchProfiler, make_profiler
from tests.support.nsys_file import NsysFile

WORKLOAD = [sys.executable, "-P", "-m", "mlotel_cli.profile.profiled", "spec.json"]


@pytest.fixture
def nsys(tmp_path: Path) -> Path:
    """A program that knows its version, in the place of nsys."""
    program = tmp_path / "nsys"
    program.write_text("#!/bin/sh\necho NVIDIA Nsight Systems version 2024.5.1\n")
    program.chmod(0o755)
    return program


def config(nsys: Path | None = None, **profiler: Any) -> Any:
    given = {"device": "cpu", "run": {"name": "n", "dir": "d"}, "profiler": {"command": str(nsys)} | profiler}
    return OmegaConf.merge(OmegaConf.structured(ProfileConfig), given)


# -- nsys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "trace", "expected"),
    [("cpu", None, "nvtx"), ("cuda:0", None, "cuda,nvtx"), ("cuda:0", "nvtx,osrt", "nvtx,osrt")],
)
def test_nsys_traces_what_the_device_has(
    nsys: Path, tmp_path: Path, device: str, trace: str | None, expected: str
) -> None:
    cfg = config(nsys, trace=trace)
    cfg.device = device
    command = make_profiler(cfg, tmp_path).command(Path("spec.json"))
    assert command[:3] == [str(nsys), "profile", f"--trace={expected}"]
    assert command[-len(WORKLOAD) :] == WORKLOAD
    assert f"--output={tmp_path / 'profile'}" in command


def test_nsys_records_what_is_inside_the_capture_range_and_takes_more_arguments(nsys: Path, tmp_path: Path) -> None:
    command = NsysProfiler(config(nsys, args=["--gpu-metrics-device=all"]), tmp_path).command(Path("spec.json"))
    assert f"--nvtx-capture={CAPTURE}" in command
    assert "--gpu-metrics-device=all" in command


def test_a_missing_nsys_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^profiler\.command=/nowhere/nsys: "):
        make_profiler(config(Path("/nowhere/nsys")), tmp_path)


def test_nsys_describes_itself_and_keeps_its_report(nsys: Path, tmp_path: Path) -> None:
    profiler = NsysProfiler(config(nsys), tmp_path)
    assert profiler.describe() == {"kind": "nsys", "path": str(nsys), "version": "2024.5.1", "trace": "nvtx"}
    assert profiler.files() == []
    (tmp_path / "profile.nsys-rep").write_text("")
    assert profiler.files() == [tmp_path / "profile.nsys-rep"]


def test_what_nsys_exported_is_read(nsys: Path, tmp_path: Path) -> None:
    with NsysFile(tmp_path / "profile.sqlite") as file:
        file.root(3, 0, 9)
    timeline = NsysProfiler(config(nsys), tmp_path).read("")
    assert [(each.name, each.batch) for each in timeline.ranges] == [("batch", 3)]


def test_nsys_without_a_file_or_without_ranges_says_why(nsys: Path, tmp_path: Path) -> None:
    profiler = NsysProfiler(config(nsys), tmp_path)
    with pytest.raises(MlotelError, match=r"^nsys could not write its report: the disk is full: No space left"):
        profiler.read("No space left on device")
    with NsysFile(tmp_path / "profile.sqlite"):
        pass
    with pytest.raises(MlotelError, match=r"^nsys 2024\.5\.1 recorded no range"):
        profiler.read("")


# -- torch ------------------------------------------------------------------------------------------------------------


def test_torch_cannot_show_batches_that_cross_threads(tmp_path: Path) -> None:
    cfg = config(kind="torch")
    cfg.executor.kind = "pipelined"
    with pytest.raises(UsageError, match=r"profiler=torch with executor=pipelined.*use profiler=nsys or executor=seq"):
        make_profiler(cfg, tmp_path)
    cfg.executor.kind = "sequential"
    assert make_profiler(cfg, tmp_path).backend == "torch"


def test_torch_profiles_the_workload_itself(tmp_path: Path) -> None:
    profiler = TorchProfiler(tmp_path)
    assert profiler.command(Path("spec.json")) == WORKLOAD
    assert profiler.describe() == {"kind": "torch", "version": version_of("torch")}
    assert profiler.files() == []


def test_a_missing_or_empty_trace_of_torch_says_so(tmp_path: Path) -> None:
    profiler = TorchProfiler(tmp_path)
    with pytest.raises(MlotelError, match=r"wrote no .*profile\.trace\.json\. The process said last: out of memory$"):
        profiler.read("starting\nout of memory\n")
    profiler.trace.write_text(json.dumps({"traceEvents": []}))
    with pytest.raises(MlotelError, match=r"^torch\.profiler recorded no span in .*profile\.trace\.json$"):
        profiler.read("")
    assert profiler.files() == [tmp_path / "profile.trace.json"]
