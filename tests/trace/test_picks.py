"""Which batches are worth a look, and their spans as they were written."""

from pathlib import Path

import pytest

from mlotel_cli.records import BatchRecord
from mlotel_cli.store.traces import traced_range
from mlotel_cli.trace.picks import NUM_FAILED, Choice, choose
from tests.support.traces import Trace, pipelined, row, write_run


def looked_at(folder: Path) -> Choice:
    return choose(folder / "batches.parquet", folder / "spans.parquet")


def of_ms(batch: int, latency_ms: float) -> Trace:
    trace = Trace(batch, 1000.0 * batch, 1000.0 * batch + latency_ms)
    trace.add("detector", 1000.0 * batch, 1000.0 * batch + 5)
    trace.add("reader", 1000.0 * batch + 5, 1000.0 * batch + latency_ms)
    return trace


def test_median_p95_and_the_three_worst(tmp_path: Path) -> None:
    order = [(7 * n) % 41 for n in range(41)]  # latency 10 + n, in no order
    folder = write_run(tmp_path, [of_ms(batch, 10.0 + rank) for batch, rank in enumerate(order)])
    choice = looked_at(folder)
    found = [(pick.role, pick.latency_ms) for pick in choice.picks]
    assert found == [("median", 30.0), ("p95", 48.0), ("worst", 50.0), ("worst", 49.0)]  # the third is the p95
    assert [order[pick.batch] for pick in choice.picks] == [20, 38, 40, 39]
    assert (choice.num_batches, choice.num_traced, choice.num_failed) == (41, 41, 0)


def test_why_names_what_took_longer_than_its_median(tmp_path: Path) -> None:
    traces = [pipelined(batch, 1000.0 * batch) for batch in range(9)]
    slow = Trace(9, 9000, 9200)
    slow.wait("detector", 9000, 9025)
    slow.add("detector", 9025, 9055)
    slow.add("reader", 9055, 9200)
    worst = looked_at(write_run(tmp_path, [*traces, slow])).picks[1]
    assert (worst.batch, worst.role) == (9, "worst")
    assert worst.why == "reader +106 ms (3.7 x), queue detector +15.0 ms"


def test_few_batches_have_no_p95(tmp_path: Path) -> None:
    choice = looked_at(write_run(tmp_path, [of_ms(batch, 10.0 + batch) for batch in range(19)]))
    assert [pick.role for pick in choice.picks] == ["median", "worst", "worst", "worst"]


def test_what_is_usual_is_told_by_those_that_went_through(tmp_path: Path) -> None:
    traces = [of_ms(batch, 10.0 if batch < 3 else 500.0) for batch in range(10)]
    traces[2] = of_ms(2, 30.0)
    rows = [row(trace, status="scored" if trace.batch < 3 else "skipped") for trace in traces]
    picks = looked_at(write_run(tmp_path, traces, rows)).picks
    assert {pick.batch: pick.why for pick in picks if pick.role == "worst"}[2] == "reader +20.0 ms (5.0 x)"


def test_failed_ones_come_with_their_error_and_only_the_first_few(tmp_path: Path) -> None:
    traces = [of_ms(batch, 10.0) for batch in range(20)]
    rows = [
        row(
            trace,
            status="skipped" if trace.batch % 2 else "scored",
            error=f"no {trace.batch}" if trace.batch % 2 else "",
        )
        for trace in traces
    ]
    choice = looked_at(write_run(tmp_path, traces, rows))
    failed = [(pick.batch, pick.status, pick.why) for pick in choice.picks if pick.role == "failed"]
    assert failed == [(n, "skipped", f"no {n}") for n in (1, 3, 5, 7, 9)]
    assert len(failed) == NUM_FAILED
    assert choice.num_failed == 10


def test_only_batches_that_have_spans_are_picked(tmp_path: Path) -> None:
    traces = [of_ms(batch, 10.0 + batch) for batch in range(9)]
    rows = [row(trace) for trace in traces]
    choice = looked_at(write_run(tmp_path, traces[:5], rows))
    assert {pick.batch for pick in choice.picks} <= {0, 1, 2, 3, 4}
    assert (choice.num_batches, choice.num_traced) == (9, 5)
    assert next(pick for pick in choice.picks if pick.role == "median").batch == 2


def test_a_dropped_batch_is_no_failure_and_one_that_never_ended_has_no_latency(tmp_path: Path) -> None:
    traces = [of_ms(batch, 10.0) for batch in range(3)]
    dropped = BatchRecord(3, 3, 0, 0, 1, "dropped")
    open_ended = row(traces[2], status="incomplete")
    open_ended.latency_ms = None
    choice = looked_at(write_run(tmp_path, traces, [row(traces[0]), row(traces[1]), open_ended, dropped]))
    assert [(p.batch, p.latency_ms) for p in choice.picks if p.role == "failed"] == [(2, None)]
    assert choice.num_failed == 1


@pytest.mark.parametrize("rows", [None, []])
def test_a_run_that_has_just_begun(tmp_path: Path, rows: list[BatchRecord] | None) -> None:
    folder = write_run(tmp_path, [of_ms(0, 10.0)] if rows is not None else [], rows)
    choice = looked_at(folder)
    assert (choice.picks, choice.num_batches) == ([], 0)
    assert traced_range(folder / "spans.parquet") == ((0, 0) if rows is not None else None)


def test_a_recorded_value_is_no_stage_time(tmp_path: Path) -> None:
    traces = [of_ms(batch, 10.0 + batch) for batch in range(5)]
    rows = [row(trace, **{"decode.host_ms": 1000.0 * trace.batch}) for trace in traces]
    assert "decode" not in " ".join(pick.why for pick in looked_at(write_run(tmp_path, traces, rows)).picks)
