"""Consoles, errors, and tables that cut no figure."""

import errno
import io
import os
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from mlotel_cli import screen
from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.screen import Column, fold, print_table, run_command, sayer, shortened, text_column

# -- consoles --------------------------------------------------------------------------------------------------------


def pipe(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_reader_that_goes_away_ends_nothing() -> None:
    """As `mlotel monitor 2>&1 | tee log` whose tee is killed."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as file:
        console = screen.Screen(file=file)
        for _ in range(3):
            console.print("x")
        assert console.quiet
    for each in (screen.stderr(), screen.stdout(), screen.silent()):
        assert isinstance(each, screen.Screen)


def test_what_is_said_is_printed_as_it_is() -> None:
    console = pipe(20)
    sayer(console)("[red]a path[/red] that is longer than the console is wide [0]")
    assert text_of(console) == "[red]a path[/red] that is longer than the console is wide [0]\n"


def test_a_pipe_is_wide_and_a_terminal_as_wide_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert screen.stdout().width >= 1_000
    monkeypatch.setenv("COLUMNS", "70")
    assert screen.stdout().width == 70


def raising(error: Exception) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MlotelError("it failed"), 1, "mlotel: it failed\n"),
        (UsageError("no such folder"), 2, "mlotel: no such folder\n"),
        (OSError(errno.ENOSPC, "No space left"), 1, f"mlotel: the run: [Errno {errno.ENOSPC}] No space left\n"),
    ],
)
def test_an_error_ends_a_command_with_one_line(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error), about="the run") == code
    assert capsys.readouterr() == ("", said)
    assert run_command(raising(error), about="the run", debug=True) == code
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith(said)


def test_what_is_no_error_of_mlotel_is_raised() -> None:
    assert run_command(lambda: None, about="x") == 0
    for error in (KeyError("x"), BrokenPipeError()):
        with pytest.raises(type(error)):
            run_command(raising(error), about="x")


# -- tables ----------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab1.,_-/= \u8eca\u0301\n", max_size=60), st.integers(2, 20))
def test_folding_loses_nothing_but_spaces(text: str, width: int) -> None:
    lines = fold(text, width)
    assert max(map(cell_len, lines)) <= width
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 8, ["one two", "three"]),
        ("  detector queue", 10, ["  detector", "queue"]),
        ("pipeline.time_scale=0.0125", 10, ["pipeline.", "time_", "scale=", "0.0125"]),
        ("3.11.7 (/usr/bin/python3)", 12, ["3.11.7", "(/usr/bin/", "python3)"]),
        ("loss.weight=-1.5e-3", 13, ["loss.weight=", "-1.5e-3"]),
        ("x" * 12, 5, ["xxxxx", "xxxxx", "xx"]),
        ("\u8eca\u4e21\u691c\u51fa", 5, ["\u8eca\u4e21", "\u691c\u51fa"]),
        ("a\n\nb", 5, ["a", "", "b"]),
        ("", 5, [""]),
    ],
)
def test_texts_are_folded_between_their_parts_and_numbers_stay_whole(text: str, width: int, lines: list[str]) -> None:
    assert fold(text, width) == lines


NAME = "a_stage_whose_name_has_forty_characters_"
WIDE = "\u8eca\u4e21\u691c\u51fa\u5668"
COLUMNS = (text_column("stage"), Column("p50 ms"), Column("p95 ms"), text_column("verdict"))
ROWS = [(NAME, "12,345", "n<72", "host-bound"), None, (WIDE, "1.25", "0.012", Text("[device]-bound", style="red"))]


def printed(width: int, *, is_ruled: bool = True) -> str:
    console = pipe(width)
    print_table(console, COLUMNS, ROWS, title="t" * 150, left_out=[("p95 ms",)], is_ruled=is_ruled)
    return text_of(console)


def test_a_table_takes_the_width_it_needs_and_no_more() -> None:
    lines = printed(10_000).splitlines()
    assert lines[0] == "t" * 150
    assert max(map(len, lines[1:])) < 100
    assert lines[2].split() == ["stage", "p50", "ms", "p95", "ms", "verdict"]
    assert lines[4].split() == [NAME, "12,345", "n<72", "host-bound"]
    assert lines[6].split() == [WIDE, "1.25", "0.012", "[device]-bound"]


@pytest.mark.parametrize("width", [30, 34, 40, 60, 80, 120])
@pytest.mark.parametrize("is_ruled", [True, False])
def test_a_narrow_table_folds_its_texts_then_leaves_columns_out_and_cuts_no_figure(width: int, is_ruled: bool) -> None:
    text = printed(width, is_ruled=is_ruled)
    table = text.splitlines()[1:]
    assert max(map(cell_len, table)) <= width
    words = text.split()
    assert {"12,345", "1.25"} <= set(words)
    assert ({"n<72", "0.012"} <= set(words)) == ("p95" in words) == (width > 34)
    assert "\u2026" not in text
    assert NAME in "".join(line.split()[0] for line in table if line[:3].strip())


def test_where_not_even_the_least_fits_lines_are_longer_and_figures_whole() -> None:
    assert {"12,345", "1.25"} <= set(printed(8).split())


def test_cells_are_no_markup_and_keep_their_style() -> None:
    console = Console(file=io.StringIO(), width=30, force_terminal=True, color_system="standard")
    print_table(console, [text_column("[b]"), Column("")], [("[red]x[/red]", Text("1", style="red"))])
    assert "[red]x[/red]" in text_of(console)
    assert "\x1b[31m1" in text_of(console)


def test_a_shortened_name_ends_in_dots() -> None:
    assert shortened("gate", 4) == "gate"
    assert shortened("gate" * 5, 10) == "gategat..."
    assert shortened(WIDE, 8) == "\u8eca\u4e21..."
