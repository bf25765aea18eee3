"""`mlotel compare EVAL_RUN PROFILE_RUN` prints what each stage took in both, and what the profiler disturbed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from mlotel_cli.compare.stage_pairs import (
    CONFIGURED,
    DISTURBED,
    Comparison,
    compare_stages,
    differences,
)
from mlotel_cli.errors import UsageError
from mlotel_cli.screen import Column, Row, print_table, run_command, sayer, stdout, text_column
from mlotel_cli.store.layout import HYDRA
from mlotel_cli.store.reading import Run, read_run

_SHOWN = 5
"""So many of the keys that differ are named."""


def main(left: Path, right: Path, *, debug: bool = False) -> int:
    """Print the comparison. Return the exit code."""

    def show() -> None:
        runs = read_run(left), read_run(right)
        print_comparison(compare(*runs), *runs)

    return run_command(show, about=f"{left}, {right}", debug=debug)


def compare(left: Run, right: Run) -> Comparison:
    """Compare two runs batch by batch.

    Raises:
        UsageError: when one of them has no rows, or they have no batch or no stage in common.
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
    if not comparison.has_common_stage:
        stages = (", ".join(comparison.stages_only(left=left)) or "no stage" for left in (True, False))
        first, second = stages
        raise UsageError(
            f"{left.path} and {right.path} have no stage in common: {first} in the one, {second} in the other. "
            "Compare runs of one pipeline"
        )
    return comparison


def print_comparison(comparison: Comparison, left: Run, right: Run) -> None:
    """Print a row per figure, then the warnings."""
    console = stdout()
    modes = [str(run.info.get("mode", "run")) for run in (left, right)]
    names = modes if modes[0] != modes[1] else [f"{modes[0]} 1", f"{modes[1]} 2"]
    rows: list[Row] = []
    for row in comparison.rows:
        if row.left_ms is None and row.right_ms is None:
            continue
        label = row.name if row.measure in ("host", "latency") else f"  {row.name} {row.measure}"
        style = "yellow" if row.is_disturbed else ""
        rows.append((label, _decimals(row.left_ms), _decimals(row.right_ms), Text(_decimals(row.ratio), style=style)))
    ratio = f"{names[1]} / {names[0]}"
    print_table(
        console,
        [text_column("stage", fold_at=8), *map(Column, (*names, ratio))],
        rows,
        title=f"p50 over {comparison.num_common} common batches, ms",
        left_out=[(ratio,)],
    )
    for line in _warnings(comparison, left, right):
        sayer(console)(line)


def _warnings(comparison: Comparison, left: Run, right: Run) -> Iterator[str]:
    differing = [("device", left.info.get("device"), right.info.get("device"))]
    differing = [each for each in differing if each[1] != each[2]]
    differing += differences(_configuration(left), _configuration(right))
    if differing:
        shown = "; ".join(f"{key} {_said(one)} / {_said(other)}" for key, one, other in differing[:_SHOWN])
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        yield f"warning: the runs did not do the same work: {shown}{more}"
    for run, is_left in ((left, True), (right, False)):
        if only := comparison.stages_only(left=is_left):
            yield f"warning: only in {run.path}: {', '.join(only)}"
    is_profile = "profile" in (left.info.get("mode"), right.info.get("mode"))
    why = ": the profiler, or the machine, disturbed it" if is_profile and not differing else ""
    for row in comparison.rows:
        if row.is_disturbed:
            yield (
                f"warning: {row.name}: {right.path} differs by {abs((row.ratio or 1) - 1):.0%} from {left.path}, "
                f"more than {DISTURBED:.0%}{why}"
            )
    for run, count in ((left, comparison.num_left), (right, comparison.num_right)):
        if count > comparison.num_common:
            yield f"{run.path}: {count - comparison.num_common} of its {count} batches are not in the other run"


def _configuration(run: Run) -> Mapping[str, Any]:
    """Return what the run was composed of; nothing for a program's own loop."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        composed: Any = OmegaConf.load(run.path / HYDRA / "config.yaml")
        parts = {name: OmegaConf.select(composed, name) for name in CONFIGURED}
    except (OSError, ValueError, OmegaConfBaseException, YAMLError):
        return {}
    return {name: _resolved(part) if OmegaConf.is_config(part) else part for name, part in parts.items()}


def _resolved(part: Any) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(part, resolve=True)
    except OmegaConfBaseException:  # this process does not know the resolver
        return OmegaConf.to_container(part)


def _said(value: Any) -> str:
    return "(none)" if value is None else str(value)


def _decimals(value: float | None) -> str:
    """Return a number with three decimals, so that columns to compare have the same precision."""
    return "" if value is None else f"{value:,.3f}"
