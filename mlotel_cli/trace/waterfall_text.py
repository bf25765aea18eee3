"""Draws a waterfall in characters, readable without colour: lanes, bars and a time axis. Pure.

Compute is a solid bar, waiting a dotted one, a batch a line with ends; a failed bar has a cross at its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from mlotel_cli.trace.waterfall import Bar, Lane, Waterfall, bar_texts, fit, labelled_ticks, one_line

MIN_COLUMNS = 40
MAX_ROWS = 24
"""The most rows of a lane that are drawn; the others are counted."""
_MAX_LABEL = 26
_TICK_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters that a picture is made of."""

    compute: str = "█"
    waiting: str = "░"
    boundary: str = "▐"
    line: str = "─"
    ends: str = "├┤"
    failed: str = "X"
    tick: str = "┬"
    axis: str = "─"


UNICODE = Glyphs()
ASCII = Glyphs("#", ".", "|", "-", "||", "X", "+", "-")
"""For terminals and files that cannot show the characters of `UNICODE`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a line. `what` is compute | waiting | batch | failed | axis | lane, or empty."""

    text: str
    what: str = ""


Line = list[Piece]


def draw(waterfall: Waterfall, *, columns: int, glyphs: Glyphs = UNICODE) -> list[Line]:
    """Return lines of at most `columns` characters: the axis, then every lane with its rows.

    A span shorter than a character is one character wide. Of several spans in one character, one is shown.
    """
    columns = max(columns, MIN_COLUMNS)
    label_width = min(_MAX_LABEL, columns // 3, max(cell_len(one_line(lane.name)) for lane in waterfall.lanes))
    width = columns - label_width - 2
    indent = Piece(" " * (label_width + 1))
    lines: list[Line] = [[indent, Piece(text, "axis")] for text in _axis(waterfall.duration_ns, width, glyphs)]
    for lane in waterfall.lanes:
        for row in range(min(lane.num_rows, MAX_ROWS)):
            label = fit(lane.name, label_width) if row == 0 else ""
            padding = " " * (label_width - cell_len(label) + 1)
            lines.append([Piece(f"{label}{padding}", "lane"), *_draw_row(lane, row, waterfall, width, glyphs)])
        if lane.num_rows > MAX_ROWS:
            lines.append([indent, Piece(f"and {lane.num_rows - MAX_ROWS} rows more")])
    return lines


def _axis(duration_ns: int, width: int, glyphs: Glyphs) -> list[str]:
    """Return the labels, and the line below them with a mark per tick."""
    labels, marks = [" "] * (width + 1), [glyphs.axis] * width
    for time_ns, text in labelled_ticks(duration_ns, at_most=max(2, width // _TICK_COLUMNS)):
        column = min(width - 1, round(time_ns * width / duration_ns))
        if column + len(text) <= width:
            labels[column : column + len(text)] = text
        marks[column] = glyphs.tick
    return ["".join(labels).rstrip(), "".join(marks)]


def _draw_row(lane: Lane, row: int, waterfall: Waterfall, width: int, glyphs: Glyphs) -> Line:
    placed = _place([bar for bar in lane.bars if bar.row == row], waterfall, width)
    line: Line = []
    at = 0
    for number, (bar, first, end) in enumerate(placed):
        line.append(Piece(" " * (first - at)))
        before = placed[number - 1] if number else None
        touches = before is not None and before[2] == first and before[0].kind == bar.kind
        texts = bar_texts(bar, lane, is_single=waterfall.is_single)
        line.append(
            Piece(_bar(bar, end - first, texts, glyphs, touches=touches), "failed" if bar.is_failed else bar.kind)
        )
        at = end
        free = (placed[number + 1][1] if number + 1 < len(placed) else width) - end - 1
        text = next((text for text in texts if cell_len(text) <= free), None)
        if text is not None and not _inside(texts, end - first):
            line.append(Piece(f" {text}"))
            at += cell_len(text) + 1
    return [piece for piece in line if piece.text]


def _place(bars: Sequence[Bar], waterfall: Waterfall, width: int) -> list[tuple[Bar, int, int]]:
    """Return the first and end column of each bar, without bars that would lie under their neighbour."""
    placed: list[tuple[Bar, int, int]] = []
    used = 0
    scale = width / waterfall.duration_ns
    for bar in bars:
        first = max(used, min(width - 1, round((bar.span.start_ns - waterfall.start_ns) * scale)))
        end = round((bar.span.end_ns - waterfall.start_ns) * scale)
        if end <= first:
            if used > round((bar.span.start_ns - waterfall.start_ns) * scale) or first >= width:
                continue
            end = first + 1
        placed.append((bar, first, end))
        used = end
    return placed


def _inside(texts: Sequence[str], length: int) -> str:
    """Return the longest text that fits on a bar and leaves some of it on both sides; empty when none fits."""
    padded = [f" {text} " for text in texts]
    return next((text for text in (*padded, *texts) if cell_len(text) + 2 <= length), "")


def _bar(bar: Bar, length: int, texts: Sequence[str], glyphs: Glyphs, *, touches: bool) -> str:
    text = _inside(texts, length)
    if bar.kind == "batch":
        if length == 1:
            return glyphs.ends[0]
        return glyphs.ends[0] + _centred(text, length - 2, glyphs.line) + glyphs.ends[1]
    fill = glyphs.waiting if bar.kind == "waiting" else glyphs.compute
    drawn = _centred(text, length, fill)
    if touches and length > 1:
        drawn = glyphs.boundary + drawn[1:]
    if bar.is_failed:
        drawn = drawn[:-1] + glyphs.failed
    return drawn


def _centred(text: str, length: int, fill: str) -> str:
    room = length - cell_len(text)
    return fill * (room // 2) + text + fill * (room - room // 2)
