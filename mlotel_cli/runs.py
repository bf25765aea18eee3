"""`mlotel runs [DIR]`: every run below a folder, newest first, with its headline figures."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.modes.results import stdout
from mlotel_cli.store.layout import BATCHES, RUN_JSON
from mlotel_cli.store.reading import Run, count_rows, read_run

_FIGURES = ("batches", "p50 ms", "p95 ms", "items/s")
_HEADINGS = {name: Text(name) for name in ("started", "mode", "name", "status", *_FIGURES, "accuracy", "path")}
_EXPENDABLE = ("name", "accuracy", "p95 ms", "started", "items/s", "batches", "p50 ms")
"""In the order in which columns are left out on a narrow terminal."""
_GAP = 2
_PATH_WIDTH = 40
"""A longer path goes on in the next line."""
_STYLES = {"complete": "green", "running": "cyan", "failed": "red"}


@dataclass(slots=True)
class Listed:
    """One run as the list shows it; what is not known is None.

    Attributes:
        path: its directory.
        mode: eval | profile | monitor | loop.
        name: the run's name.
        run_id: `mlotel.run.id`.
        status: as in run.json; `interrupted?` for one that says running and has no recorder any more.
        started_ns: ns since the epoch.
        batches: rows.
        p50_ms: latency of a batch.
        p95_ms: the same; None as well when there were too few batches to say.
        items_per_s: throughput.
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


def main(folder: Path, *, as_json: bool = False) -> int:
    """Print the list; returns the exit code."""
    try:
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "no such folder"
            raise UsageError(
                f"{folder}: {what}. Give one that holds runs; they are written below outputs, or in run.dir"
            )
        runs, skipped = list_runs(folder)
    except MlotelError as error:
        print(f"mlotel: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    for note in skipped:
        print(f"skipped: {note}", file=sys.stderr)  # noqa: T201
    if as_json:
        print(json.dumps([asdict(run) for run in runs], indent=2))  # noqa: T201
    elif runs:
        print_runs(runs)
    else:
        print(f"{folder} holds no run", file=sys.stderr)  # noqa: T201
    return 0


def list_runs(folder: Path) -> tuple[list[Listed], list[str]]:
    """All runs below `folder`, sweeps' jobs included, newest first; and why some folders with a run.json are none."""
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
    """The table on stdout. Where it is too wide, columns are left out: a figure is never cut, nor the path."""
    console = console or stdout()
    rows = [_row(run) for run in runs]
    widths = {name: max(cell_len(row[name].plain) for row in [_HEADINGS, *rows]) for name in _HEADINGS}
    path_width = min(widths.pop("path"), _PATH_WIDTH)
    for name in _EXPENDABLE:
        if sum(widths.values()) + len(widths) * _GAP + path_width <= console.width:
            break
        del widths[name]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for name in widths:
        table.add_column(name, justify="right" if name in _FIGURES else "left", no_wrap=True)
    table.add_column("path", overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in widths), row["path"])
    console.print(table)


def _row(run: Listed) -> dict[str, Text]:
    started = datetime.fromtimestamp(run.started_ns / 1e9, tz=UTC).astimezone()
    return {
        "started": Text(started.strftime("%Y-%m-%d %H:%M:%S")),
        "mode": _plain(run.mode),
        "name": _plain(run.name),
        "status": Text(run.status, style=_STYLES.get(run.status, "yellow")),
        "batches": Text("" if run.batches is None else f"{run.batches:,}"),
        "p50 ms": Text(_figure(run.p50_ms)),
        "p95 ms": Text(_figure(run.p95_ms)),
        "items/s": Text(_figure(run.items_per_s)),
        "accuracy": _headline(run.accuracy),
        "path": _plain(run.path),
    }


def _run_dirs(folder: Path) -> Iterator[Path]:
    """Folders with a run.json; nothing below one is another run."""
    for path, folders, files in os.walk(folder):
        if RUN_JSON in files:
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _listed(run: Run) -> Listed:
    info, summary = run.info, run.summary
    latency, counts = _part(summary, "latency_ms", "batch"), _part(summary, "batches")
    accuracy = _part(summary, "accuracy")
    return Listed(
        path=str(run.path),
        mode=str(info["mode"]),
        name=str(info["name"]),
        run_id=info.get("run_id"),
        status="interrupted?" if run.died else str(run.status),
        started_ns=int(info["started_ns"]),
        batches=sum(counts.values()) if summary else count_rows(run.path / BATCHES),
        p50_ms=latency.get("p50"),
        p95_ms=latency.get("p95"),
        items_per_s=_part(summary, "throughput").get("items_per_s"),
        accuracy={name: score.get("value") for name, score in accuracy.items()},
    )


def _part(summary: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A part of a summary; empty where it is not there."""
    for key in keys:
        summary = summary.get(key) or {}
    return summary


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _headline(accuracy: Mapping[str, float | None]) -> Text:
    """The first metric, and how many more there are."""
    if not accuracy:
        return Text("")
    name, value = next(iter(accuracy.items()))
    more = f" +{len(accuracy) - 1}" if len(accuracy) > 1 else ""
    return _plain(f"{name} {'n/a' if value is None else format(value, '.3f')}{more}")


def _plain(text: str) -> Text:
    """Text as it is: no markup, and nothing that a terminal obeys."""
    return Text("".join(letter for letter in text if letter.isprintable()))
