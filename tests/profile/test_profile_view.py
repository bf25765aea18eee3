"""The table that ends a profile."""

from pathlib import Path

import pytest

from mlotel_cli.profile.profile_view import print_stages
from mlotel_cli.profile.stages import DeviceFigures, KernelFigures, ProfiledStage, ProfilerAbout, ProfileSummary
from mlotel_cli.stats.description import Description
from tests.support.screens import LONG_NAME, PIPE, WIDE_NAME, WIDTHS, check_whole, set_width


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


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_is_whole_at_every_width(
    width: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    device = DeviceFigures(device_ms=12.25, kernels=1017.0, kernel_ms=10.5, idle_ms=0.125, copy_ms=0.375, syncs=2.5)
    named = stage(p95=105.5, device=device)
    named.queue_ms = Description(count=40, p50=123.5)
    named.verdict = "launch-bound or synchronising"
    set_width(monkeypatch, width)
    print_stages(profile(**{LONG_NAME: named, WIDE_NAME: stage(p95=None, device=device)}), tmp_path)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.rstrip() == "stages under nsys, a batch (40 batches)"
    assert lines.pop() == f"profile: {tmp_path / 'stages.json'}"
    table = "\n".join(lines)
    texts = (LONG_NAME, WIDE_NAME, "launch-bound or synchronising", "host-bound")
    check_whole(table, width=width, figures=["1.50"], texts=texts)
    columns = {
        "queue": ["124"],
        "kernels": ["1,017"],
        "idle": ["0.125"],
        "copies": ["0.375"],
        "syncs": ["2.50"],
        "device": ["12.25"],
        "p95": ["106", "n<72"],
    }
    for column, figures in columns.items():
        for figure in figures:
            assert (figure in table.split()) == (column in table.split()), "a column is shown or left out"
    assert "device" in table.split()
    assert width not in (PIPE, 120) or set(columns) <= set(table.split())
