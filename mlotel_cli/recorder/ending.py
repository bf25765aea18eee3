"""Summarises a run that is over: all its rows, or, for a monitor, its newest rows and its counts."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli.analysis.bottleneck import ExecutorSettings, find_in_run
from mlotel_cli.analysis.summarise import summarise
from mlotel_cli.store.layout import BATCHES, SPANS
from mlotel_cli.store.reading import newest_rows, read_table
from mlotel_cli.store.run_json import Totals
from mlotel_cli.summary import Summary, Throughput
from mlotel_cli.wire import Closing

if TYPE_CHECKING:
    import polars as pl

NEWEST_ROWS = 20_000
"""The number of rows in a monitor's statistics, which bounds the time and memory that its end takes."""


def summarise_run(run_dir: Path, closing: Closing, *, executor: Mapping[str, Any], mean_scores: bool) -> Summary:
    """Summarise every row; see `analysis.summarise`.

    Args:
        run_dir: with the rows, all written.
        closing: the workload's last message.
        executor: the run's configuration of it; empty for a user's own loop.
        mean_scores: whether the accuracy is the mean of the batches' own scores.
    """
    rows = read_table(run_dir / BATCHES)
    return _summarise(rows, run_dir, closing, executor=executor, mean_scores=mean_scores)


def summarise_monitor(
    run_dir: Path,
    closing: Closing,
    *,
    executor: Mapping[str, Any],
    totals: Totals,
    started_ns: int,
    num_rows: int = NEWEST_ROWS,
) -> Summary:
    """Return counts and throughput of the whole run, and statistics of its newest `num_rows` rows, with a note."""
    rows = newest_rows(run_dir / BATCHES, num_rows)
    of_rows = replace(closing, wall_s=None, scoring_s=None, caller_s=None) if rows.height < totals.rows else closing
    summary = _summarise(rows, run_dir, of_rows, executor=executor, mean_scores=False)
    wall_s = closing.wall_s or (time.time_ns() - started_ns) / 1e9
    items_per_s = totals.items_done / wall_s if wall_s > 0 else None
    summary.batches = dict(sorted(totals.batches.items()))
    summary.throughput = Throughput(items_per_s, items_per_s)
    if rows.height < totals.rows:
        summary.notes.insert(
            0,
            f"counts and throughput are of all {totals.rows:,} batches; "
            f"latencies and recorded values of the newest {rows.height:,}",
        )
    return summary


def _summarise(
    rows: "pl.DataFrame", run_dir: Path, closing: Closing, *, executor: Mapping[str, Any], mean_scores: bool
) -> Summary:
    summary = summarise(rows, closing, mean_scores=mean_scores)
    settings = ExecutorSettings.from_config(executor)
    summary.bottleneck = find_in_run(rows, run_dir / SPANS, closing=closing, executor=settings)
    return summary
