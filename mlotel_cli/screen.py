"""Consoles, tables that fit them, and errors as one line. The package creates no other console.

Names and messages are the user's own text and are printed as they are: nothing in them is markup. A figure is never
cut: a narrow table folds its texts, then leaves columns out. `figures` says how a figure looks.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlotel_cli.errors import MlotelError

_PIPE_COLUMNS = 10_000
_MAX_WHOLE = 16
"""A number in a text is folded like a name if it is longer."""
_PIECE = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?[^\w\s]?|[^\W\d_]+[\W_]?|.")
"""The parts between which a text is folded: numbers, words, single characters."""


# -- consoles -------------------------------------------------------------------------------------------------------


class Screen(Console):
    """A console that prints nothing more once its reader has gone, as in `| head`; the run goes on."""

    def on_broken_pipe(self) -> None:
        """Print nothing from now on; rich itself would end the program."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # drop what is still buffered
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)


def stdout() -> Console:
    """Return a console on stdout: as wide as the terminal, or in a file or a pipe as wide as the text needs.

    A character that stdout's encoding does not have becomes a question mark: stages may be called anything.
    """
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    is_width_known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Screen() if is_width_known else Screen(width=_PIPE_COLUMNS)


def stderr() -> Console:
    """Return a console for messages, among them those of a run that goes on."""
    return Screen(stderr=True)


def silent() -> Console:
    """Return a console that shows nothing."""
    return Screen(quiet=True)


def sayer(console: Console) -> Callable[[str], None]:
    """Return a function that prints a line on `console`. The terminal breaks a long line, so it can be copied whole."""
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def run_command(command: Callable[[], object], *, about: object, debug: bool = False) -> int:
    """Run a command's work and return its exit code. Errors are printed as one line.

    Args:
        command: does the work; raises when it fails.
        about: what the command reads; an error of the operating system is printed with it.
        debug: print the traceback as well.
    """
    try:
        command()
    except MlotelError as error:
        print_error(error, debug=debug)
        return error.exit_code
    except BrokenPipeError:
        raise  # the reader has closed the pipe
    except OSError as error:
        print_error(error, text=f"{about}: {error}", debug=debug)
        return MlotelError.exit_code
    return 0


def print_error(error: BaseException, *, text: str = "", debug: bool = False) -> None:
    """Print an error, or `text` in its place, as one line on stderr; with `debug`, print the traceback first."""
    if debug:
        traceback.print_exception(error)
    sys.stderr.write(f"mlotel: {text or error}\n")


# -- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: above it.
        fold_at: texts may be folded to this width on a narrow terminal; None if they stay whole.
        is_text: align left, as texts are; figures are aligned right.
    """

    title: str
    fold_at: int | None = None
    is_text: bool = False


def text_column(title: str, *, fold_at: int | None = 10) -> Column:
    """Return a column of texts, which may be folded to the width `fold_at`; None keeps them whole."""
    return Column(title, fold_at, is_text=True)


Cell = Text | str
Row = Sequence[Cell]


def print_table(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Row | None],
    *,
    title: str = "",
    left_out: Sequence[Sequence[str]] = (),
    is_ruled: bool = True,
) -> list[str]:
    """Print a table that fits the console, see `build_table`. Return the titles of the columns that it shows."""
    if title:
        console.print(Text(title, style="bold"), soft_wrap=True)
    layout = _lay_out(columns, rows, width=console.width, left_out=left_out, is_ruled=is_ruled)
    console.print(_draw(columns, rows, layout, title_style="bold"), crop=False)
    if is_ruled and not layout.is_loose:
        console.print()  # a loose table ends with an empty line
    return [columns[n].title for n in layout.shown]


def build_table(
    columns: Sequence[Column],
    rows: Sequence[Row | None],
    *,
    width: int,
    left_out: Sequence[Sequence[str]] = (),
    is_ruled: bool = True,
    title_style: str = "bold",
) -> Table:
    """Return a table as wide as its cells need, or if that is too wide, one that fits the terminal.

    It is wider than the terminal only if the columns that always stay need more.

    Args:
        columns: from left to right.
        rows: a cell for each column; None draws a line.
        width: of the terminal.
        left_out: titles of columns to leave out, group by group, until the table fits.
        is_ruled: draw a line below the titles, and fold long titles; otherwise they stay on one line.
        title_style: rich style of the titles.
    """
    layout = _lay_out(columns, rows, width=width, left_out=left_out, is_ruled=is_ruled)
    return _draw(columns, rows, layout, title_style=title_style)


@dataclass(slots=True)
class _Layout:
    """The columns that are shown, by place; their widths; and what lies between them."""

    shown: list[int]
    widths: list[int]
    is_ruled: bool
    is_loose: bool

    @property
    def between(self) -> int:
        return _room_between(len(self.shown), is_loose=self.is_loose)


def _room_between(num_columns: int, *, is_loose: bool = False) -> int:
    return 3 * num_columns + 1 if is_loose else 2 * (num_columns - 1)


def _lay_out(
    columns: Sequence[Column],
    rows: Sequence[Row | None],
    *,
    width: int,
    left_out: Sequence[Sequence[str]],
    is_ruled: bool,
) -> _Layout:
    """Fold titles and texts first, then move the columns closer, then leave some out."""
    filled = [row for row in rows if row is not None]
    sizes = [_sizes(column, [_plain(row[n]) for row in filled], is_ruled) for n, column in enumerate(columns)]
    layout = _Layout(list(range(len(columns))), [], is_ruled, is_loose=is_ruled)
    groups = iter(left_out)
    while sum(sizes[n][0] for n in layout.shown) + layout.between > width:
        if layout.is_loose:
            layout.is_loose = False
        elif (group := next(groups, None)) is not None:
            layout.shown = [n for n in layout.shown if columns[n].title not in group]
        else:
            break
    layout.widths = _widths([sizes[n] for n in layout.shown], width - layout.between)
    return layout


def _draw(columns: Sequence[Column], rows: Sequence[Row | None], layout: _Layout, *, title_style: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD if layout.is_ruled else None,
        padding=(0, 1) if layout.is_loose else (0, 1 if layout.is_ruled else 2, 0, 0),
        pad_edge=layout.is_loose,
        show_edge=layout.is_loose,
        header_style=title_style,
        width=sum(layout.widths) + layout.between,
    )
    for n, width in zip(layout.shown, layout.widths, strict=True):
        column = columns[n]
        table.add_column(_folded(column.title, width), justify="left" if column.is_text else "right", width=width)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*(_folded(row[n], width) for n, width in zip(layout.shown, layout.widths, strict=True)))
    return table


def _sizes(column: Column, texts: Sequence[str], is_ruled: bool) -> tuple[int, int]:
    """Return the least width of a column, and the width at which nothing in it is folded."""
    full = max(_width(column.title), *map(_width, texts), 1)
    title = max(map(cell_len, column.title.split()), default=0) if is_ruled else cell_len(column.title)
    if column.fold_at is None:
        return max(title, *map(_width, texts), 1), full
    numbers = [cell_len(piece) for text in texts for piece in _PIECE.findall(text) if piece[-1:].isdigit()]
    return max(title, min(full, column.fold_at), *(size for size in numbers if size <= _MAX_WHOLE)), full


def _widths(sizes: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Return the least widths, plus the rest of the room, which goes to the narrowest columns that still fold."""
    widths = [least for least, _ in sizes]
    folding: list[int] = [n for n, (least, full) in enumerate(sizes) if least < full]
    for _ in range(room - sum(widths)):
        if not folding:
            break
        narrowest = min(folding, key=lambda n: widths[n])
        widths[narrowest] += 1
        folding = [n for n in folding if widths[n] < sizes[n][1]]
    return widths


def _plain(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.plain


def _width(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _folded(cell: Cell, width: int) -> Text:
    text = Text(cell) if isinstance(cell, str) else cell
    return text if _width(text.plain) <= width else Text("\n".join(fold(text.plain, width)), style=text.style)


def fold(text: str, width: int) -> list[str]:
    """Return `text` as lines of at most `width` columns, broken between words, and long words between their parts.

    A number is broken only if it is longer than a line. Spaces at the end of a line are lost.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in re.findall(r"\s*\S+", paragraph):
            is_long = cell_len(word.strip()) > width
            if is_long and 2 * cell_len(line) >= width:
                lines.append(line)
                line, word = "", word.lstrip()
            for part in _PIECE.findall(word) if is_long else [word]:
                if line and cell_len(line + part) > width:
                    lines.append(line.rstrip())
                    line, part = "", part.lstrip()
                line += part
                if cell_len(line) > width:
                    *whole, line = chop_cells(line, width)
                    lines += whole
        lines.append(line)
    return lines


def shortened(text: str, width: int) -> str:
    """Return a text of at most `width` columns; a longer one ends in dots."""
    return text if cell_len(text) <= width else set_cell_size(text, width - 3).rstrip() + "..."
