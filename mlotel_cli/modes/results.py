"""Prints what a run says on the terminal: its progress, and the tables that end it.

Names and messages are the user's own text and are printed as they are: nothing in them is markup.
"""

import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column as ProgressColumn

from mlotel_cli.analysis.verdicts import UNDECIDED
from mlotel_cli.figures import percentile
from mlotel_cli.screen import Column, Row, print_table, sayer, stdout, text_column
from mlotel_cli.stats.description import Description
from mlotel_cli.stats.thresholds import MIN_EFFECTIVE_N
from mlotel_cli.summary import Control, Latency, StageLatency, Summary, Telemetry

_LINE_EVERY_S = 10.0
_BAR_EVERY_S = 0.25
_FIGURES = ("mean", "p50", "p95", "p99", "max")
_LATENCY_COLUMNS = ("count", *_FIGURES, "share")
_LEFT_OUT = (("mean", "max"), ("count", "share"), ("p99",))
"""Columns of the latencies that a narrow terminal has no room for, in this order."""


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere: batches, throughput, running accuracy."""

    def __init__(self, console: Console, total: int | None, *, now: Callable[[], float] = time.perf_counter) -> None:
        """`total` batches are expected; None when the source does not say."""
        self._console = console
        self._total = total
        self._now = now
        self._num_batches = 0
        self._num_items = 0
        self._sums: dict[str, tuple[float, int]] = {}
        self._start = self._said = now()
        self._bar: rich_progress.Progress | None = None
        self._task = rich_progress.TaskID(0)

    def __enter__(self) -> Self:
        """Show the bar; until `start` it says that the pipeline is warming up."""
        if self._console.is_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("eval"),
                rich_progress.BarColumn(bar_width=12 if self._console.width < 100 else 30),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TimeRemainingColumn(compact=True),
                rich_progress.TextColumn(
                    "{task.fields[note]}",
                    markup=False,
                    table_column=ProgressColumn(ratio=1, no_wrap=True, overflow="ellipsis"),
                ),
                console=self._console,
                transient=True,
                refresh_per_second=4,
                expand=True,
            )
            self._task = self._bar.add_task("eval", total=self._total, note="warming up")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self) -> None:
        """Begin to count time and batches; call it when the pipeline is warm."""
        self._start = self._said = self._now()
        if self._bar is not None:
            self._bar.reset(self._task, total=self._total, note="")

    def advance(self, num_items: int, scores: Mapping[str, float]) -> None:
        """Count a batch of `num_items`, and its scores by metric."""
        self._num_batches += 1
        self._num_items += num_items
        for name, score in scores.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + score, count + 1)
        now = self._now()
        if now - self._said < (_BAR_EVERY_S if self._bar else _LINE_EVERY_S):
            return
        self._said = now
        if self._bar is not None:
            self._bar.update(self._task, completed=self._num_batches, note=self._note(now))
        else:
            total = f"/{self._total}" if self._total else ""
            sayer(self._console)(f"batch {self._num_batches}{total}  {self._note(now)}")

    def _note(self, now: float) -> str:
        rate = self._num_items / (now - self._start)
        means = (f"{name} ~{total / count:.3f}" for name, (total, count) in self._sums.items())
        return "  ".join([f"{rate:.1f} items/s", *means])


def print_results(info: Mapping[str, Any], run_dir: Path, *, console: Console | None = None) -> None:
    """Print accuracy, latency by stage, notes, and where the run's files lie; on stdout unless a console is given."""
    console = console or stdout()
    summary = Summary.from_json(info["summary"])
    _print_accuracy(console, summary)
    _print_latency(console, summary.latency_ms)
    say = sayer(console)
    if info.get("mode") != "profile":  # a profile prints verdicts of its own, from more than two events a span
        for line in _verdict_lines(summary.latency_ms.stages):
            say(line)
    for line in summary.bottleneck.sentences if summary.bottleneck else ():
        say(line)
    for line in _closing_lines(info, summary, _short(run_dir)):
        say(line)


def _print_accuracy(console: Console, summary: Summary) -> None:
    if not summary.accuracy:
        return
    rows: list[Row] = []
    for name, score in summary.accuracy.items():
        value, interval = score.value, score.ci95
        shown = "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
        rows.append((name, "not computed" if value is None else f"{value:.4f}", shown))
    columns = (text_column("metric"), Column("value"), Column("95 % interval"))
    print_table(console, columns, rows, title="accuracy", left_out=[("95 % interval",)])


def _print_latency(console: Console, latency: Latency) -> None:
    if not latency.batch.count:
        return
    rows = list(_latency_rows(latency))
    shown = print_table(
        console,
        [text_column("stage"), *(Column(name) for name in _LATENCY_COLUMNS)],
        list(_latency_cells(rows)),
        title="latency, ms a batch",
        left_out=_LEFT_OUT,
    )
    hidden = [
        name for name in _FIGURES if name in shown and any(figures.figure(name) is None for _, figures, _ in rows)
    ]
    if hidden:
        needs = ", ".join(f"{name} takes {MIN_EFFECTIVE_N[name]}" for name in hidden)
        sayer(console)(f"n<: too few independent batches for that percentile ({needs})")


def _latency_rows(latency: Latency) -> Iterator[tuple[str, Description, str]]:
    """Yield label, figures and share of the whole."""
    whole = latency.batch
    for name, stage in latency.stages.items():
        measured = ((name, stage.host), (f"  {name} device", stage.device), (f"  {name} queue", stage.queue))
        for label, figures in measured:
            if figures is not None:
                yield label, figures, f"{_total(figures) / _total(whole):.1%}"
    yield "batch", whole, "100%"
    if latency.source_wait is not None and latency.source_wait.count:
        yield "source wait", latency.source_wait, ""


def _total(figures: Description) -> float:
    return (figures.mean or 0.0) * figures.count


def _latency_cells(rows: Sequence[tuple[str, Description, str]]) -> Iterator[Row | None]:
    for label, figures, share in rows:
        if label == "batch":
            yield None
        yield (label, f"{figures.count:,}", *(percentile(name, figures.figure(name)) for name in _FIGURES), share)


def _verdict_lines(stages: Mapping[str, StageLatency]) -> Iterator[str]:
    """Yield a line for each verdict, where a device was measured; see `analysis.verdicts.verdict_of_events`."""
    given = {name: stage.verdict for name, stage in stages.items() if stage.verdict is not None}
    for verdict in dict.fromkeys(given.values()):
        names = ", ".join(name for name in given if given[name] == verdict)
        which = " (or without work for the device: mlotel profile tells)" if verdict == UNDECIDED else ""
        yield f"{verdict}{which}: {names}"


def _closing_lines(info: Mapping[str, Any], summary: Summary, run_dir: Path) -> Iterator[str]:
    counts = ", ".join(f"{count} {status}" for status, count in summary.batches.items()) or "no batches"
    rate, of_wall = summary.throughput.items_per_s, summary.throughput.wall_items_per_s
    speed = f"; {rate:.1f} items/s{'' if rate == of_wall else ' without scoring'}" if rate else ""
    yield f"{info['status']}: {counts}{speed}"
    warmup = summary.warmup
    if warmup is not None and warmup.first_batch_ms is not None:
        yield f"warm-up: {warmup.batches} batches, the first took {warmup.first_batch_ms:.0f} ms"
    yield from _telemetry_lines(summary.telemetry)
    yield from summary.notes
    yield from info.get("notes") or ()
    for change in info.get("optimize") or ():
        yield f"optimize: {change['stage']}: {change['before']} -> {change['after']}"
    yield from _wandb_lines(info.get("wandb") or {}, run_dir)
    yield f"run: {run_dir}"


def _telemetry_lines(telemetry: Telemetry) -> Iterator[str]:
    if telemetry.spans_lost:
        yield f"telemetry: {telemetry.spans_lost} spans were lost"
    if telemetry.batches_lost:
        restarts = telemetry.recorder_restarts
        yield (
            f"telemetry: {telemetry.batches_lost} batches ran and are in no file: the recorder was too far behind"
            + (f", or gone ({restarts} restarts)" if restarts else "")
        )
    if telemetry.source_paused_s:
        yield f"telemetry: the source was paused for {telemetry.source_paused_s:.2f} s because the recorder was behind"
    untimed = (
        (telemetry.device_abandoned, "the device did not come to their end in time"),
        (telemetry.device_captured, "a CUDA graph was being captured"),
        (telemetry.device_elsewhere, "another device was the current one"),
    )
    for count, why in untimed:
        if count:
            yield f"telemetry: {count} spans have no device time: {why}"
    control = telemetry.control
    if isinstance(control, Control) and control.ratio is not None:
        low, high = control.ratio_ci95 or (math.nan, math.nan)
        yield (
            f"telemetry: a batch took {control.ratio - 1:+.1%} with it ({low - 1:+.1%} to {high - 1:+.1%}, "
            f"{control.pairs} pairs of stretches of {control.batches_a_stretch} batches)"
        )
    for kind, count in (telemetry.faults or {}).items():
        yield f"telemetry: {count} faults of kind {kind}, see the log"


def _wandb_lines(wandb: Mapping[str, Any], run_dir: Path) -> Iterator[str]:
    if wandb.get("rows_merged"):
        yield f"W&B: batches came too fast for it: {wandb['rows_merged']} of them became {wandb['windows']} mean rows"
    if wandb.get("rows_lost"):
        yield f"W&B: {wandb['rows_lost']} rows are missing there; every batch is in batches.parquet"
    if wandb.get("url"):
        yield f"W&B: {wandb['url']}"
    elif wandb.get("dir"):
        folder = shlex.quote(str((run_dir / wandb["dir"]).parent))
        yield "W&B, offline"
        yield f"  look:   wandb leet {folder}"
        yield f"  upload: wandb sync {folder}/offline-run-*"  # the only run there, in a short line


def _short(path: Path) -> Path:
    """Return a path below the current folder relative to it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
