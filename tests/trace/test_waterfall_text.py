"""The waterfall in characters."""

import itertools

import pytest
from rich.cells import cell_len

from mlotel_cli.trace.waterfall import lay_out
from mlotel_cli.trace.waterfall_text import ASCII, MAX_ROWS, UNICODE, Glyphs, draw
from tests.support.traces import Trace, pipelined


def drawn(*traces: Trace, columns: int = 80, glyphs: Glyphs = ASCII) -> list[str]:
    lines = draw(lay_out([span for trace in traces for span in trace.spans]), columns=columns, glyphs=glyphs)
    return ["".join(piece.text for piece in line) for line in lines]


def test_the_whole_picture() -> None:
    assert drawn(pipelined(), columns=60) == [
        "         0 ms      20        40        60        80",
        "         +---------+---------+---------+---------+--------+",
        "batch    |--------------- batch 0: 100 ms ----------------|",
        "detector .....### 30.0 ms ###",
        "                 #### resize 10.0 ms",
        "reader                       .20.0 ms..##### 39.0 ms ######",
    ]


def test_compute_and_waiting_differ_without_colour_and_with_blocks() -> None:
    line = drawn(pipelined(), columns=60, glyphs=UNICODE)[-1]
    assert line.split(maxsplit=1)[1] == "░20.0 ms░░█████ 39.0 ms ██████"


def test_each_piece_says_what_it_is() -> None:
    failed = Trace(0, 0, 10)
    failed.wait("work", 0, 5)
    failed.add("work", 5, 10, status="ERROR")
    pieces = [piece for line in draw(lay_out(failed.spans), columns=60) for piece in line]
    assert [piece.what for piece in pieces if piece.what not in ("", "lane")] == [
        "axis",
        "axis",
        "batch",
        "waiting",
        "failed",
    ]
    assert pieces[-1].text.endswith("X")


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140, 200])
def test_no_line_is_wider_than_the_terminal_and_the_bars_use_its_width(columns: int) -> None:
    trace = pipelined()
    trace.add("a_very_long_name_of_a_stage_that_is_much_too_long", 60, 100, thread="thread_" * 8)
    lines = drawn(trace, columns=columns)
    assert max(map(len, lines)) in (columns - 1, columns)
    assert next(line for line in lines if line.startswith("batch ")).rstrip().endswith("|")


def test_a_short_span_is_one_character_and_not_lost_between_long_ones() -> None:
    trace = Trace(0, 0, 1000, thread="t")
    for start, end in ((0, 500), (500, 500.1), (500.1, 999)):
        trace.add("s", start, end, thread="t")
    assert drawn(trace, columns=60)[-1] == "t     ######## s 500 ms #########|####### s 499 ms ########"
    trace.spans[2].end_ns = trace.spans[3].start_ns = trace.spans[2].start_ns + 40_000_000
    assert drawn(trace, columns=60)[-1] == "t     ######## s 500 ms ########|s#|###### s 459 ms #######"


def test_many_spans_in_one_character_do_not_push_the_others_away() -> None:
    trace = Trace(0, 0, 1000, thread="t")
    for n in range(200):
        trace.add("tiny", 100 + n * 0.1, 100 + n * 0.1 + 0.1, thread="t")
    trace.add("last", 900, 1000, thread="t")
    row = drawn(trace, columns=80)[-1]
    assert 70 <= row.rindex("#") < 80
    assert row.index("#") in range(8, 14)


def test_neighbours_of_one_kind_have_a_boundary() -> None:
    trace = Trace(0, 0, 10, thread="t")
    trace.add("one", 0, 5, thread="t")
    trace.add("two", 5, 10, thread="t")
    row = drawn(trace, columns=60)[-1]
    assert row.index("|") == pytest.approx(6 + 53 / 2, abs=2)
    assert row.count("|") == 1


def test_bars_of_several_batches_say_whose_they_are() -> None:
    text = "\n".join(drawn(pipelined(7), pipelined(8, 50), columns=120))
    for label in ("batch 7: 100 ms", "batch 8: 100 ms", "7: 30.0 ms", "8: 39.0 ms", ".. 8: waits ..", "## 8 ##"):
        assert label in text


def test_a_span_without_duration_draws() -> None:
    trace = Trace(0, 0, 0)
    trace.add("x", 0, 0)
    assert len(drawn(trace)) == 4


@pytest.mark.parametrize("duration_ms", [0.0005, 0.7, 33.0, 1e6])
def test_the_axis_is_where_it_says(duration_ms: float) -> None:
    trace = Trace(0, 0, duration_ms)
    labels, marks, *_ = drawn(trace, columns=100)
    left, width = len("batch "), 100 - len("batch ") - 1
    ticks = [n - left for n, mark in enumerate(marks) if mark == "+"]
    times = [float(word) for word in labels.replace("ms", "").split()]
    for tick, time_ms in itertools.zip_longest(ticks[: len(times)], times):
        assert time_ms == pytest.approx(tick / width * duration_ms, abs=duration_ms / width)
    assert len(times) >= 4


def test_lanes_line_up_whatever_the_width_of_their_characters() -> None:
    names = ("detector", "\u6bb5\u968e\u4e00", "\u8eca\u4e21" * 20, "cafe\u0301")
    trace = Trace(0, 0, 40)
    for n, name in enumerate(names):
        trace.add("work", 10 * n, 10 * n + 10, thread=name)
    axis, *lanes = drawn(trace, columns=80)[1:]
    starts = [cell_len(line[: line.index("work")]) for line in lanes[1:]]
    assert max(cell_len(line) for line in lanes) == cell_len(axis)
    assert [b - a for a, b in itertools.pairwise(starts)] == pytest.approx([len(axis.strip()) / 4] * 3, abs=1)


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    trace = Trace(0, 0, 10)
    trace.add("\x1b[31mred\x1b[0m\nname\x07", 0, 10, thread="a\tlane\x9b")
    text = "".join(drawn(trace, columns=100))
    assert text.isprintable()
    assert "red name 10.0 ms" in text
    assert "a lane " in text


def test_deeply_nested_spans_do_not_fill_the_terminal() -> None:
    trace = Trace(0, 0, 100)
    for depth in range(40):
        trace.add("again", depth, 100 - depth, thread="t")
    lines = drawn(trace, columns=80)
    assert len(lines) == 2 + 1 + MAX_ROWS + 1
    assert lines[-1].split() == ["and", "16", "rows", "more"]
