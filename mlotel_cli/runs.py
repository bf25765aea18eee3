"""`mlotel runs [DIR]` lists every run below a folder, newest first, with its headline figures."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mlotel_cli.errors import UsageError
from mlotel_cli.figures import figure
from mlotel_cli.screen import Column, Row, print_table, run_command, sayer, stderr, stdout, text_column
from mlotel_cli.store.layout import BATCHES, RUN_JSON
from mlotel_cli.store.reading import Run, count_rows, read_run
from mlotel_cli.summary import Summary

_COLUMNS = (
    *(text_column(title, fold_at=None) for title in ("started", "mode", "name", "status")),
    *(Column(title) for title in ("batches", "p50 ms", "p95 ms", "items/s")),
    text_column("accuracy", fold_at=None),
    text_column("path", fold_at=40),
)
_LEFT_OUT = (("name",), ("accuracy",), ("p95 ms",), ("started",), ("items/s",), ("batches",), ("p50 ms",))
"""Columns that a narrow terminal has no room for, in this order."""
_STYLES = {"complete": "green", "running": "cyan", "failed": "red"}


@dataclass(slots=True)
class Listed:
    """One run as the list shows it; unknown figures are None.

    Attributes:
        mode: eval | profile | monitor | loop.
        run_id: `mlotel.run.id`.
        status: as in run.json; `interrupted?` for one that says running and has no recorder any more.
        started_ns: ns since the epoch.
        p50_ms: latency of a batch.
        p95_ms: the same; None as well when there were too few batches to say.
        accuracy: value by metric.
    """

    path: str
    mode: str
    name: str
    run_id: str | None
    status: str
    started_ns: int
    batches: int | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    items_per_s: float | None = None
    accuracy: dict[str, float | None] = field(default_factory=dict[str, float | None])


def main(folder: Path, *, as_json: bool = False, debug: bool = False) -> int:
    """Print the list. Return the exit code."""
    return run_command(lambda: _show(folder, as_json=as_json), about=folder, debug=debug)


def _show(folder: Path, *, as_json: bool) -> None:
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {what}. Give one that holds runs; they are written below outputs, or in run.dir")
    runs, skipped = list_runs(folder)
    say = sayer(stderr())
    for note in skipped:
        say(f"skipped: {note}")
    if as_json:
        sys.stdout.write(json.dumps([asdict(run) for run in runs], indent=2) + "\n")
    elif runs:
        print_runs(runs)
    else:
        say(f"{folder} holds no run")


def list_runs(folder: Path) -> tuple[list[Listed], list[str]]:
    """Return all runs below `folder`, newest first, with the jobs of sweeps; and why others were skipped."""
    runs: list[Listed] = []
    skipped: list[str] = []
    for path in _run_dirs(folder):
        try:
            runs.append(_listed(read_run(path)))
        except UsageError as error:
            skipped.append(str(error).partition(". Give")[0])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            skipped.append(f"{path} is no run directory: its run.json makes no sense ({error!r})")
    return sorted(runs, key=lambda run: (-run.started_ns, run.path)), skipped


def print_runs(runs: list[Listed], *, console: Console | None = None) -> None:
    """Print the table, on stdout unless a console is given. A narrow one has fewer columns; paths are folded."""
    print_table(console or stdout(), _COLUMNS, list(map(_row, runs)), left_out=_LEFT_OUT, is_ruled=False)


def _row(run: Listed) -> Row:
    started = datetime.fromtimestamp(run.started_ns / 1e9, tz=UTC).astimezone()
    return (
        started.strftime("%Y-%m-%d %H:%M:%S"),
        _plain(run.mode),
        _plain(run.name),
        Text(run.status, style=_STYLES.get(run.status, "yellow")),
        "" if run.batches is None else f"{run.batches:,}",
        figure(run.p50_ms),
        figure(run.p95_ms),
        figure(run.items_per_s),
        _headline(run.accuracy),
        _plain(run.path),
    )


def _run_dirs(folder: Path) -> Iterator[Path]:
    """Yield folders with a run.json; a run has no other run below it."""
    for path, folders, files in os.walk(folder):
        if RUN_JSON in files:
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _listed(run: Run) -> Listed:
    info = run.info
    known = run.summary
    summary = known or Summary()
    return Listed(
        path=str(run.path),
        mode=str(info["mode"]),
        name=str(info["name"]),
        run_id=info.get("run_id"),
        status="interrupted?" if run.died else str(run.status),
        started_ns=int(info["started_ns"]),
        batches=count_rows(run.path / BATCHES) if known is None else sum(known.batches.values()),
        p50_ms=summary.latency_ms.batch.p50,
        p95_ms=summary.latency_ms.batch.p95,
        items_per_s=summary.throughput.items_per_s,
        accuracy={name: score.value for name, score in summary.accuracy.items()},
    )


def _headline(accuracy: Mapping[str, float | None]) -> str:
    """Return the first metric, and how many more there are."""
    if not accuracy:
        return ""
    name, value = next(iter(accuracy.items()))
    more = f" +{len(accuracy) - 1}" if len(accuracy) > 1 else ""
    return _plain(f"{name} {'n/a' if value is None else format(value, '.3f')}{more}")


def _plain(text: str) -> str:
    """Return text without the characters that a terminal obeys."""
    return "".join(letter for letter in text if letter.isprintable())
