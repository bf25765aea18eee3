"""Shows the stages of a profile in one table, on the terminal and in W&B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlotel_cli.figures import figure, percentile
from mlotel_cli.profile.stages import ProfiledStage, ProfileSummary
from mlotel_cli.screen import Column, Row, print_table, sayer, stdout, text_column
from mlotel_cli.store.layout import STAGES_JSON
from mlotel_cli.wire import Attachment

_HOST = ("host p50", "host p95", "queue p50")
_DEVICE = ("device", "kernels", "kernel ms", "idle ms", "copies ms", "syncs")
_LEFT_OUT = (("copies ms",), ("idle ms",), ("syncs",), ("kernel ms",), ("kernels",), ("queue p50",), ("host p95",))
"""Columns that a narrow terminal has no room for, in this order."""


def stage_rows(stages: Mapping[str, ProfiledStage]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the table: means a batch; None where nothing was measured."""
    columns = ["stage", "host_p50_ms", "host_p95_ms", "queue_p50_ms"]
    columns += ["device_ms", "kernels", "kernel_ms", "idle_ms", "copy_ms", "syncs", "verdict"]
    rows: list[list[Any]] = []
    for name, stage in stages.items():
        host, queue, of = stage.host_ms, stage.queue_ms, stage.device
        figures = [of.device_ms, of.kernels, of.kernel_ms, of.idle_ms, of.copy_ms, of.syncs] if of else [None] * 6
        rows.append([name, host.p50, host.p95, queue.p50 if queue else None, *figures, stage.verdict])
    return columns, rows


def attachment(profile: ProfileSummary, files: Sequence[Path]) -> Attachment:
    """Return what W&B keeps: the table, a bar chart of it, and the files."""
    columns, rows = stage_rows(profile.stages)
    chart = ("stage", "host_p50_ms", "host p50 by stage, ms")
    return Attachment("stages", columns, rows, chart, [str(path.absolute()) for path in files])


def print_stages(profile: ProfileSummary, run_dir: Path) -> None:
    """Print the table, the longest kernels, and what could not be attributed or counted."""
    console = stdout()
    say = sayer(console)
    _, rows = stage_rows(profile.stages)
    has_device = any(stage.device for stage in profile.stages.values())
    has_queue = any(row[3] is not None for row in rows)
    figures = [*(_HOST if has_queue else _HOST[:2]), *(_DEVICE if has_device else ())]
    shown: list[Row] = []
    for name, p50, p95, queue, *device, verdict in rows:
        host = (figure(p50), percentile("p95", p95), *([figure(queue)] if has_queue else []))
        shown.append((str(name), *host, *(map(figure, device) if has_device else ()), str(verdict)))
    print_table(
        console,
        [text_column("stage"), *map(Column, figures), text_column("verdict", fold_at=13)],
        shown,
        title=f"stages under {profile.profiler.kind}, a batch ({profile.batches} batches)",
        left_out=_LEFT_OUT,
    )
    for line in (*_top_kernels(profile.stages), *_left_out(profile)):
        say(line)
    say(f"profile: {run_dir / STAGES_JSON}")


def _top_kernels(stages: Mapping[str, ProfiledStage]) -> list[str]:
    return [
        f"{name}: {kernel.ms:.3f} ms in {kernel.number:.1f} x {kernel.name}"
        for name, stage in stages.items()
        if stage.device
        for kernel in stage.device.top_kernels
    ]


def _left_out(profile: ProfileSummary) -> list[str]:
    lines: list[str] = []
    lost = profile.unattributed
    if lost.activities:
        why = f", {lost.ambiguous} of them launched where several stages were running" if lost.ambiguous else ""
        lines.append(f"not attributed: {lost.activities} activities of the device, {lost.device_ms:.3f} ms{why}")
    if profile.ranges_cut:
        lines.append(f"not counted: {profile.ranges_cut} spans that had not ended when the recording did")
    return lines
