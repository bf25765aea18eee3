"""What is printed of a choice and of a waterfall; the command itself is in test_trace_command.py."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from mlotel_cli.records import SpanRecord
from mlotel_cli.store.reading import Run, read_run
from mlotel_cli.trace.picks import Choice, Pick
from mlotel_cli.trace.trace_view import print_choice, print_waterfall
from tests.support.traces import EPOCH_NS, Trace, pipelined, row, write_run


def console(width: int = 100, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=file, width=width)


def lines(of: Console) -> list[str]:
    of.file.flush()
    text = of.file.buffer.getvalue().decode(of.encoding)  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def shown(spans: list[SpanRecord], run: Run, *, width: int = 100, is_single: bool = True) -> list[str]:
    screen = console(width)
    print_waterfall(spans, run, title="batch 0: [100] ms", is_single=is_single, console=screen)
    return lines(screen)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    trace = pipelined()
    return read_run(write_run(tmp_path / "run", [trace], [row(trace, plates=2.0)]))


def words(found: list[str]) -> list[list[str]]:
    return [line.split() for line in found if line]


# -- the choice -----------------------------------------------------------------------------------------------------


def chosen(run: Run, choice: Choice) -> list[str]:
    screen = console()
    print_choice(choice, run, console=screen)
    return lines(screen)


def test_a_run_without_picks_is_one_line(run: Run) -> None:
    assert chosen(run, Choice([], num_batches=3, num_traced=1, num_failed=0)) == [
        "eval test: complete, 3 batches, 1 of them with spans"
    ]


def test_failed_batches_come_with_status_and_error_and_the_first_is_the_example(run: Run) -> None:
    picks = [
        Pick(4, 12.5, "scored", "median", ""),
        Pick(9, 80.0, "scored", "worst", "reader +60.0 ms"),
        Pick(2, None, "skipped", "failed", "no [plate]\nat all"),
        Pick(3, 5.0, "failed", "failed", "none"),
    ]
    found = chosen(run, Choice(picks, num_batches=10, num_traced=10, num_failed=6))
    assert found[0] == "eval test: complete, 10 batches"
    table = words(found)
    assert ["4", "12.5", "median"] in table
    assert ["9", "80.0", "worst", "reader", "+60.0", "ms"] in table
    assert ["2", "skipped", "no", "[plate]", "at", "all"] in table
    assert "and 4 more that failed" in found
    assert f"Draw one: mlotel trace {run.path} --batch 2" in "".join(found)


def test_without_a_failure_the_worst_is_the_example(run: Run) -> None:
    picks = [
        Pick(4, 12.5, "scored", "median", ""),
        Pick(9, 80.0, "scored", "worst", ""),
        Pick(8, 70.0, "scored", "worst", ""),
    ]
    found = "".join(chosen(run, Choice(picks, num_batches=10, num_traced=10, num_failed=0)))
    assert found.endswith("--batch 9")


# -- the waterfall ----------------------------------------------------------------------------------------------------


def test_of_a_single_batch_spans_values_and_critical_path_are_listed(run: Run) -> None:
    found = shown(pipelined().spans, run)
    assert found[0] == "batch 0: [100] ms"
    table = words(found)
    assert ["span", "thread", "from,", "ms", "took,", "ms"] in table
    assert ["batch", "source", "0.000", "100", "batch.size=1"] not in table  # the batch's own attributes are left out
    assert ["batch", "source", "0.000", "100"] in table
    assert ["resize", "detector", "15.0", "10.0"] in table
    assert ["queue", "reader", "detector", "40.0", "20.0", "waiting"] in table
    assert "scored  plates 2" in found
    path = "critical path, ms: queue detector 10.0 > detector 30.0 (resize 10.0) > queue reader 20.0 > reader 39.0"
    assert " ".join(found[-2:]).startswith(path)
    assert " ".join(found[-2:]).endswith("; 30% of it waiting; 1% of it in no span")


def test_of_several_batches_only_the_picture_is_drawn(run: Run) -> None:
    found = shown([*pipelined().spans, *pipelined(1, 50).spans], run, is_single=False)
    assert found[-1].endswith("compute  ░░ waiting in a queue")
    assert not any("critical path" in line or "took, ms" in line for line in found)


def test_an_indent_shows_what_is_inside_what_and_a_deep_tree_gets_a_small_one(run: Run) -> None:
    trace = Trace(0, 0, 100)
    parent = trace.root
    for depth in range(1, 7):
        parent = trace.add(f"level {depth}", depth, 100, thread="t", parent=parent)
    indents = {
        line.strip().split("  ")[0]: len(line) - len(line.lstrip())
        for line in shown(trace.spans, run)
        if "level" in line
    }
    base = indents["level 1"]
    assert [indents[f"level {depth}"] - base for depth in (1, 2, 6)] == [0, 1, 5]
    flat = [line for line in shown(trace.spans[:4], run) if "level" in line and line.startswith(" ")]
    assert [len(line) - len(line.lstrip()) for line in flat][-3:] == [base + 1, base + 3, base + 5]


def test_notes_say_the_error_first_then_device_time_events_and_attributes(run: Run) -> None:
    trace = Trace(0, 0, 10)
    trace.add(
        "work", 0, 10, thread="t", device_ns=7_500_000, status="ERROR", status_message="no [plate]",
        attributes={"boxes": 3, "share": 0.123456, "mlotel.kind": "internal", "batch.index": 0},
        events=((EPOCH_NS, "retry", {}), (EPOCH_NS, "exception", {})),
    )  # fmt: skip
    found = next(line for line in shown(trace.spans, run, width=140) if "work" in line and "ERROR" in line)
    assert found.split("10.0  ")[1] == "ERROR no [plate]  device 7.50 ms  event retry  boxes=3  share=0.1235"


def test_where_it_is_narrow_names_and_notes_are_cut_and_times_stay(run: Run) -> None:
    trace = Trace(0, 0, 100)
    trace.add(
        "a_stage_with_a_very_long_name", 12, 87, thread="a_thread_with_a_long_name", attributes={"path": "x" * 50}
    )
    found = [line for line in shown(trace.spans, run, width=50) if "12.0" in line]
    assert found
    assert all(len(line) <= 50 for line in found)
    assert "…" in found[-1]
    assert [word for word in found[-1].split() if word[0].isdigit()] == ["12.0", "75.0"]


def test_more_spans_than_are_listed_are_counted(run: Run) -> None:
    trace = Trace(0, 0, 100)
    for number in range(40):
        trace.add(f"s{number}", number, number + 1, thread="t")
    found = shown(trace.spans, run)
    assert "and 11 more spans" in found
    assert not any(line.split()[:1] == ["s29"] for line in found)
    assert any(line.split()[:1] == ["s28"] for line in found)


def test_a_batch_that_failed_says_why_below_its_spans(tmp_path: Path) -> None:
    trace = pipelined()
    rows = [row(trace, status="skipped", error="stage reader\nraised")]
    found = shown(trace.spans, read_run(write_run(tmp_path / "r", [trace], rows)))
    assert "skipped: stage reader raised" in found


def test_a_terminal_without_blocks_gets_ascii(run: Run) -> None:
    screen = console(encoding="ascii")
    print_waterfall(pipelined().spans, run, title="t", is_single=False, console=screen)
    assert lines(screen)[-1] == "## compute  .. waiting in a queue"
