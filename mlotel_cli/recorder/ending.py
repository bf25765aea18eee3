"""The summary of a run that is over: of all its rows, or, for a monitor, of its newest ones and what was counted."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli.analysis.bottleneck import find_in_run
from mlotel_cli.analysis.summarise import summarise
from mlotel_cli.store.layout import BATCHES, SPANS
from mlotel_cli.store.reading import newest_rows, read_table
from mlotel_cli.store.run_json import Totals

if TYPE_CHECKING:
    import polars as pl

NEWEST_ROWS = 20_000
"""Rows that a monitor's statistics are of: however long it ran, its end takes no more time and memory."""
_OF_THE_WHOLE = ("wall_s", "scoring_s", "caller_s")


def summarise_run(
    run_dir: Path, closing: Mapping[str, Any], *, executor: Mapping[str, Any], mean_scores: bool
) -> dict[str, Any]:
    """Summary of every row; see `analysis.summarise`."""
    rows = read_table(run_dir / BATCHES)
    return _summarise(rows, run_dir, closing, executor=executor, mean_scores=mean_scores)


def summarise_monitor(
    run_dir: Path,
    closing: Mapping[str, Any],
    *,
    executor: Mapping[str, Any],
    totals: Totals,
    started_ns: int,
    num_rows: int = NEWEST_ROWS,
) -> dict[str, Any]:
    """Counts and throughput of the whole run, statistics of its newest `num_rows` rows; the notes say so."""
    rows = newest_rows(run_dir / BATCHES, num_rows)
    if rows.height < totals.rows:
        of_rows = {key: value for key, value in closing.items() if key not in _OF_THE_WHOLE}
    else:
        of_rows = dict(closing)
    summary = _summarise(rows, run_dir, of_rows, executor=executor, mean_scores=False)
    wall_s = closing.get("wall_s") or (time.time_ns() - started_ns) / 1e9
    items_per_s = totals.items_done / wall_s if wall_s > 0 else None
    summary["batches"] = dict(sorted(totals.batches.items()))
    summary["throughput"] = {"items_per_s": items_per_s, "wall_items_per_s": items_per_s}
    if rows.height < totals.rows:
        summary["notes"].insert(
            0,
            f"counts and throughput are of all {totals.rows:,} batches; "
            f"latencies and recorded values of the newest {rows.height:,}",
        )
    return summary


def _summarise(
    rows: "pl.DataFrame", run_dir: Path, closing: Mapping[str, Any], *, executor: Mapping[str, Any], mean_scores: bool
) -> dict[str, Any]:
    summary = summarise(rows, closing, mean_scores=mean_scores)
    summary["bottleneck"] = find_in_run(rows, run_dir / SPANS, closing=closing, executor=executor)
    return summary
