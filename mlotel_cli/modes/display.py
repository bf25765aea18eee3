"""What a run says on the terminal: progress while it runs, one table when it is over."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

_LINE_EVERY_S = 10.0


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere: batches, throughput, running accuracy."""

    def __init__(self, console: Console, total: int | None) -> None:
        """`total` batches are expected; None when the source does not say."""
        self._console = console
        self._total = total
        self._num_batches = 0
        self._num_items = 0
        self._sums: dict[str, tuple[float, int]] = {}
        self._start = self._said = time.perf_counter()
        self._bar: rich_progress.Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._console.is_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("eval"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TimeRemainingColumn(),
                rich_progress.TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task("eval", total=self._total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, num_items: int, scores: Mapping[str, float]) -> None:
        """One batch more."""
        self._num_batches += 1
        self._num_items += num_items
        for name, score in scores.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + score, count + 1)
        now = time.perf_counter()
        if now - self._said < (0.25 if self._bar else _LINE_EVERY_S):
            return
        self._said = now
        if self._bar is not None:
            self._bar.update(self._task, completed=self._num_batches, note=self._note(now))
        else:
            total = f"/{self._total}" if self._total else ""
            self._console.print(f"batch {self._num_batches}{total}  {self._note(now)}", highlight=False)

    def _note(self, now: float) -> str:
        rate = self._num_items / (now - self._start)
        means = (f"{name} ~{total / count:.3f}" for name, (total, count) in self._sums.items())
        return "  ".join([f"{rate:.1f} items/s", *means])


def print_results(info: Mapping[str, Any], run_dir: Path) -> None:
    """The closing table on stdout: accuracy, then latency by stage, then where everything lies."""
    console = Console()
    summary = info["summary"]
    _print_accuracy(console, summary)
    _print_latency(console, summary)
    for line in _closing_lines(info, run_dir):
        console.print(line, highlight=False, soft_wrap=True)


def _print_accuracy(console: Console, summary: Mapping[str, Any]) -> None:
    if not summary["accuracy"]:
        return
    table = Table(title="accuracy", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, score in summary["accuracy"].items():
        value = score["value"]
        table.add_row(name, "not computed" if value is None else f"{value:.4f}")
    console.print(table)


def _print_latency(console: Console, summary: Mapping[str, Any]) -> None:
    latency = summary["latency_ms"]
    whole = latency["batch"]
    if not whole["count"]:
        return
    table = Table(title="latency, ms a batch", title_justify="left")
    table.add_column("stage")
    for name in ("count", "mean", "p50", "p95", "p99", "max", "share"):
        table.add_column(name, justify="right")
    for name, stage in latency["stages"].items():
        for kind, label in (("host", name), ("device", f"  {name} device"), ("queue", f"  {name} queue")):
            if stage[kind] is not None:
                share = stage[kind]["mean"] * stage[kind]["count"] / (whole["mean"] * whole["count"])
                _add_latency(table, label, stage[kind], f"{share:.1%}")
    table.add_section()
    _add_latency(table, "batch", whole, "100%")
    if latency.get("source_wait"):
        _add_latency(table, "source wait", latency["source_wait"], "")
    console.print(table)


_NEEDED = {"p95": 72, "p99": 368}


def _add_latency(table: Table, label: str, figures: Mapping[str, Any], share: str) -> None:
    cells = [
        _ms(figures[name]) if figures[name] is not None else f"n<{_NEEDED[name]}"
        for name in ("mean", "p50", "p95", "p99", "max")
    ]
    table.add_row(label, str(figures["count"]), *cells, share)


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _closing_lines(info: Mapping[str, Any], run_dir: Path) -> list[str]:
    summary = info["summary"]
    counts = ", ".join(f"{count} {status}" for status, count in summary["batches"].items()) or "no batches"
    rate = summary["throughput"]["items_per_s"]
    speed = f"; {rate:.1f} items/s without scoring" if rate else ""
    lines = [f"{info['status']}: {counts}{speed}"]
    warmup = summary["warmup"]
    if warmup and warmup["first_batch_ms"] is not None:
        lines.append(f"warm-up: {warmup['batches']} batches, the first took {warmup['first_batch_ms']:.0f} ms")
    if info.get("synchronized"):
        lines.append("CUDA: every span waited for the device at its end, so spans do not overlap device work")
    lost, paused = summary["telemetry"].get("spans_lost"), summary["telemetry"].get("source_paused_s")
    if lost:
        lines.append(f"telemetry: {lost} spans were lost")
    if paused:
        lines.append(f"telemetry: the source was paused for {paused:.2f} s because the recorder was behind")
    faults = summary["telemetry"].get("faults") or {}
    lines.extend(f"telemetry: {count} faults of kind {kind}, see mlotel.log" for kind, count in faults.items())
    lines.extend(info.get("notes") or [])
    wandb = info.get("wandb") or {}
    if wandb.get("url"):
        lines.append(f"W&B: {wandb['url']}")
    elif wandb.get("dir"):
        lines.append(f"W&B, offline: {run_dir / wandb['dir']}  (look at it: wandb leet; upload: wandb sync)")
    lines.append(f"run: {run_dir}")
    return lines
