"""`mlotel compare EVAL_RUN PROFILE_RUN`: both figures of every stage, their ratio, and where the profiler disturbed."""

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlotel_cli.analysis.compare import DISTURBED, Comparison, StageComparison, compare_stages
from mlotel_cli.analysis.runs import Run, read_run
from mlotel_cli.errors import MlotelError, UsageError


def main(left: Path, right: Path, *, debug: bool = False) -> int:
    """Print the comparison; returns the exit code."""
    try:
        runs = read_run(left), read_run(right)
        print_comparison(compare(*runs), *runs)
    except MlotelError as error:
        if debug:
            traceback.print_exception(error)
        print(f"mlotel: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def compare(left: Run, right: Run) -> Comparison:
    """Compare two runs.

    Raises:
        UsageError: when one of them has no rows, or they have no batch in common.
    """
    for run in (left, right):
        if not run.batches.height:
            raise UsageError(f"{run.path} has no batch to compare (status: {run.status})")
    comparison = compare_stages(left.batches, right.batches)
    if not comparison.num_common:
        raise UsageError(
            f"{left.path} and {right.path} have no finished batch in common: "
            f"{comparison.num_left} and {comparison.num_right} batches, of other positions in the source. "
            "Profile the data that was evaluated"
        )
    return comparison


def print_comparison(comparison: Comparison, left: Run, right: Run) -> None:
    """Print one row per figure, then the warnings."""
    console = Console()
    modes = [str(run.info.get("mode", "run")) for run in (left, right)]
    names = modes if modes[0] != modes[1] else [f"{modes[0]} 1", f"{modes[1]} 2"]
    title = f"p50 over {comparison.num_common} common batches, ms"
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    for column in (*names, f"{names[1]} / {names[0]}"):
        table.add_column(column, justify="right")
    for row in comparison.rows:
        if row.left_ms is None and row.right_ms is None:
            continue
        label = row.name if row.measure in ("host", "latency") else f"  {row.name} {row.measure}"
        style = "yellow" if row.is_disturbed else ""
        table.add_row(Text(label), _ms(row.left_ms), _ms(row.right_ms), Text(_ratio(row), style=style))
    console.print(table)
    for line in _warnings(comparison, left, right):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _warnings(comparison: Comparison, left: Run, right: Run) -> Iterator[str]:
    for row in comparison.rows:
        if row.is_disturbed:
            yield (
                f"warning: {row.name}: {right.info.get('mode')} differs by {abs((row.ratio or 1) - 1):.0%} from "
                f"{left.info.get('mode')}, more than {DISTURBED:.0%}: the profiler, or the machine, disturbed it"
            )
    for run, count in ((left, comparison.num_left), (right, comparison.num_right)):
        if count > comparison.num_common:
            yield f"{run.path}: {count - comparison.num_common} of its {count} batches are not in the other run"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _ratio(row: StageComparison) -> str:
    return "" if row.ratio is None else f"{row.ratio:.3f}"
