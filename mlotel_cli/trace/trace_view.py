"""Prints what `mlotel trace` shows: the batches worth a look, a waterfall, its spans, and its critical path.

Names and messages are the user's own text and never treated as markup.
"""

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlotel_cli.columns import parse_columns
from mlotel_cli.figures import format_ms, significant
from mlotel_cli.records import KIND, SpanRecord, span_role
from mlotel_cli.screen import Column, Row, build_table, print_table, sayer, stdout, text_column
from mlotel_cli.store.layout import BATCHES
from mlotel_cli.store.reading import Run, query_table
from mlotel_cli.trace.critical_path import Step, critical_path, shares
from mlotel_cli.trace.picks import Choice, Pick
from mlotel_cli.trace.waterfall import lay_out, one_line
from mlotel_cli.trace.waterfall_text import ASCII, UNICODE, Glyphs, draw

_STYLES = {"compute": "cyan", "waiting": "yellow", "batch": "bright_black", "failed": "red", "axis": "bright_black"}
_MAX_LISTED = 30
_MAX_COLUMNS = 200
_FILE_COLUMNS = 120
"""The width of a picture that is written to a file or a pipe."""
_MIN_SHARE = 0.005
"""The sentence leaves out steps with less than this share of the critical path."""
_MAX_INSIDE = 3
_GAP = 2
_TIMES = ("from, ms", "took, ms")
_SHARES = (0.4, 0.2, 0.4)
"""The shares of names, threads and notes of the room that the times leave."""
_LEAST = (len("span"), len("thread"), 1)
_DEEP = 5
"""From this depth on, spans are indented by one character a level."""


def print_choice(choice: Choice, run: Run, *, console: Console | None = None) -> None:
    """Print the batches worth a look, and the command that draws one."""
    console = console or stdout()
    say = sayer(console)
    info = run.info
    traced = "" if choice.num_traced >= choice.num_batches else f", {choice.num_traced} of them with spans"
    say(f"{info.get('mode', 'run')} {info.get('name', '')}: {run.status}, {choice.num_batches} batches{traced}")
    if not choice.picks:
        return
    console.print()
    columns = (Column("batch"), Column("ms"), text_column("", fold_at=None), text_column("why"))
    print_table(console, columns, list(map(_pick_row, choice.picks)), is_ruled=False)
    listed = sum(pick.role == "failed" for pick in choice.picks)
    if choice.num_failed > listed:
        say(f"and {choice.num_failed - listed} more that failed")
    roles = {pick.role: pick.batch for pick in reversed(choice.picks)}
    example = roles.get("failed", roles.get("worst", choice.picks[0].batch))
    say(f"Draw one: mlotel trace {shlex.quote(str(run.path))} --batch {example}")
    console.print()


def _pick_row(pick: Pick) -> Row:
    is_failed = pick.role == "failed"
    latency = "" if pick.latency_ms is None else format_ms(pick.latency_ms * 1e6)
    why = Text(one_line(pick.why), style="red" if is_failed else "")
    return str(pick.batch), latency, pick.status if is_failed else pick.role, why


def print_waterfall(
    spans: Sequence[SpanRecord], run: Run, *, title: str, is_single: bool, console: Console | None = None
) -> None:
    """Print the picture; for a single batch, also its spans, its values and its critical path."""
    console = console or stdout()
    glyphs = _glyphs(console)
    console.print(Text(title, style="bold"))
    widest = _MAX_COLUMNS if console.is_terminal or "COLUMNS" in os.environ else _FILE_COLUMNS
    for line in draw(lay_out(spans), columns=min(console.width, widest), glyphs=glyphs):
        pieces = [(piece.text, _STYLES.get(piece.what, "")) for piece in line]
        console.print(Text.assemble(*pieces), no_wrap=True, overflow="crop")
    say = sayer(console)
    say(f"{glyphs.compute * 2} compute  {glyphs.waiting * 2} waiting in a queue")
    if not is_single:
        return
    console.print()
    console.print(_span_table(spans, columns=console.width))
    if len(spans) > _MAX_LISTED:
        say(f"and {len(spans) - _MAX_LISTED} more spans")
    for text in (_values(run, spans[0].batch), _path(spans)):
        if text:
            console.print(Text(text))


def _glyphs(console: Console) -> Glyphs:
    try:
        "".join((UNICODE.compute, UNICODE.waiting, UNICODE.tick)).encode(console.encoding)
    except (LookupError, UnicodeEncodeError):
        return ASCII
    return UNICODE


def _span_table(spans: Sequence[SpanRecord], *, columns: int) -> Table:
    """Return a table of the first spans. In a narrow one, names and notes are cut, and the times stay."""
    start_ns = min(span.start_ns for span in spans)
    depths = _depths(spans)
    indent = "  " if max(depths.values()) <= _DEEP else " "
    shown = spans[:_MAX_LISTED]
    texts = [
        (Text(indent * depths[span.span_id] + one_line(span.name)), Text(one_line(span.thread)), _notes(span))
        for span in shown
    ]
    times = [(format_ms(span.start_ns - start_ns), format_ms(span.end_ns - span.start_ns)) for span in shown]
    needed = [max(least, *(row[place].cell_len for row in texts)) for place, least in enumerate(_LEAST)]
    times_width = sum(max(map(len, column)) for column in zip(_TIMES, *times, strict=True))
    for row in texts:
        for text, width in zip(row, _widths(needed, columns - times_width - 4 * _GAP), strict=True):
            text.truncate(width, overflow="ellipsis")
    name, thread, note = (text_column(title, fold_at=None) for title in ("span", "thread", ""))
    rows = [(text[0], text[1], *time, text[2]) for text, time in zip(texts, times, strict=True)]
    kinds = (name, thread, *map(Column, _TIMES), note)
    return build_table(kinds, rows, width=columns, left_out=[("thread",)], is_ruled=False)


def _widths(needed: Sequence[int], room: int) -> list[int]:
    """Return the width of each column: what it needs, or where room is short, its share and what others leave."""
    widths = [
        max(least, min(need, round(share * room))) for need, share, least in zip(needed, _SHARES, _LEAST, strict=True)
    ]
    for place, need in enumerate(needed):
        widths[place] += max(0, min(need - widths[place], room - sum(widths)))
    return widths


def _depths(spans: Sequence[SpanRecord]) -> Mapping[int, int]:
    parents = {span.span_id: span.parent_id for span in spans}
    depths: dict[int, int] = {}
    for span in spans:
        depth, above = 0, span.parent_id
        while above in parents and depth < len(parents):
            depth, above = depth + 1, parents[above]
        depths[span.span_id] = depth
    return depths


def _notes(span: SpanRecord) -> Text:
    """Return the error first, then device time, events and attributes."""
    notes = Text()
    if span.status == "ERROR":
        notes.append(f"ERROR {one_line(span.status_message)}  ", style="red")
    if span_role(span) == "waiting":
        notes.append("waiting  ", style="yellow")
    if span.device_ns is not None:
        notes.append(f"device {format_ms(span.device_ns)} ms  ")
    for _, name, _ in span.events:
        if name != "exception":  # the status has it already
            notes.append(f"event {one_line(name)}  ")
    for name, value in span.attributes.items():
        if name != KIND and not name.startswith("batch."):
            notes.append(f"{one_line(f'{name}={_brief(value)}')}  ")
    notes.rstrip()
    return notes


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return significant(value, digits=4)
    return value if isinstance(value, str) else json.dumps(value)


def _values(run: Run, batch: int | None) -> str:
    """Return the status of a batch, its error, and its scores and recorded values."""
    import polars as pl

    rows = query_table(run.path / BATCHES, lambda frame: frame.filter(pl.col("batch") == batch))
    columns = parse_columns(rows.schema)
    given = {name: value for row in rows.head(1).to_dicts() for name, value in row.items() if value is not None}
    parts = [
        one_line(f"{name} {_brief(given[column])}")
        for name, column in (*columns.accuracy.items(), *columns.data.items())
        if column in given
    ]
    ended = (
        [f"{given['status']}: {one_line(given['error'])}"] if given.get("error") else [str(given.get("status") or "")]
    )
    return "  ".join(part for part in (*ended, *parts) if part)


def _path(spans: Sequence[SpanRecord]) -> str:
    """Return the critical path in one sentence; empty where there is none."""
    steps = critical_path(spans)
    whole_ns = sum(step.duration_ns for step in steps)
    traced = [step for step in steps if step.kind != "untraced"]
    parts = [_part(stage, group, whole_ns) for stage, group in groupby(traced, key=lambda step: step.stage)]
    path = " > ".join(part for part in parts if part)
    if not path:
        return ""
    kinds = shares(steps)
    shown = [
        f"; {kinds[kind]:.0%} of it {text}"
        for kind, text in (("waiting", "waiting"), ("untraced", "in no span"))
        if kinds.get(kind, 0.0) >= _MIN_SHARE
    ]
    return f"critical path, ms: {path}{''.join(shown)}"


def _part(stage: str, steps: Iterable[Step], whole_ns: int) -> str:
    """Return a stage of the path, with its longest inner spans in brackets; empty for a negligible stage."""
    times: Counter[str] = Counter()
    for step in steps:
        times[step.name] += step.duration_ns
    if times.total() < _MIN_SHARE * whole_ns:
        return ""
    inside = [(name, took_ns) for name, took_ns in times.most_common() if name != stage][:_MAX_INSIDE]
    named = ", ".join(f"{name} {format_ms(took_ns)}" for name, took_ns in inside if took_ns >= _MIN_SHARE * whole_ns)
    return one_line(f"{stage} {format_ms(times.total())}" + (f" ({named})" if named else ""))
