"""The table that ends a profile."""

from pathlib import Path

import pytest

from mlotel_cli.profile.profile_view import print_stages
from mlotel_cli.profile.stages import DeviceFigures, KernelFigures, ProfiledStage, ProfilerAbout, ProfileSummary
from mlotel_cli.stats.description import Description


def stage(*, p95: float | None, device: DeviceFigures | None = None) -> ProfiledStage:
    host = Description(count=40, p50=1.5, p95=p95)
    return ProfiledStage(40, 40, host_ms=host, queue_ms=None, device=device, verdict="host-bound")


def profile(**stages: ProfiledStage) -> ProfileSummary:
    return ProfileSummary(ProfilerAbout("nsys"), batches=40, stages=stages)


def test_a_percentile_that_is_withheld_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    print_stages(profile(reader=stage(p95=None), writer=stage(p95=0.25)), tmp_path)
    reader, writer = (line for line in capsys.readouterr().out.splitlines() if "host-bound" in line)
    assert reader.split() == ["reader", "1.50", "n<72", "host-bound"]
    assert writer.split() == ["writer", "1.50", "0.250", "host-bound"]


def test_figures_of_the_device_stand_beside_those_of_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    device = DeviceFigures(device_ms=1.25, kernels=7.0, kernel_ms=1.0, idle_ms=0.25, copy_ms=0.5, syncs=2.0)
    device.top_kernels = [KernelFigures("gemm", number=3.0, ms=0.75)]
    print_stages(profile(reader=stage(p95=None, device=device)), tmp_path)
    printed = capsys.readouterr().out
    for figure in ("1.25", "7.00", "1.00", "0.250", "0.500", "2.00", "reader: 0.750 ms in 3.0 x gemm"):
        assert figure in printed
