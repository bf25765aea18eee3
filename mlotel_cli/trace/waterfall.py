"""Lays out the spans of a trace for a picture: one lane per thread, nested spans in rows below. Pure.

The terminal and the SVG draw the same layout. Waiting in a queue lies in the lane of the stage that the batch waits
for.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, chop_cells

from mlotel_cli.figures import format_ms, format_tick
from mlotel_cli.records import QUEUE, SpanRecord, SpanRole, span_role

ROOTS = "batch"
"""The lane of the roots. They have no thread's lane, because most end on another thread than they began on."""

_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_MAX_LINE = 1_000


@dataclass(slots=True)
class Bar:
    """One span in its lane. `row` counts from 0; a nested or overlapping span has a higher one."""

    span: SpanRecord
    kind: SpanRole
    row: int

    @property
    def is_failed(self) -> bool:
        """True for a span that ended with an error."""
        return self.span.status == "ERROR"


@dataclass(slots=True)
class Lane:
    """The spans of one thread, by start."""

    name: str
    bars: list[Bar] = field(default_factory=list[Bar])
    num_rows: int = 0


@dataclass(slots=True)
class Waterfall:
    """A picture of one or several batches: the lane of the roots, then those of stages in order. Times in ns."""

    lanes: list[Lane]
    start_ns: int
    end_ns: int
    is_single: bool
    """True for one batch; with several, each bar names its batch."""

    @property
    def duration_ns(self) -> int:
        """At least 1."""
        return max(1, self.end_ns - self.start_ns)


def waits_for(span: SpanRecord) -> str:
    """Return the name of the stage that a queue span waits for."""
    return span.name.removeprefix(f"{QUEUE} ")


def lay_out(spans: Sequence[SpanRecord]) -> Waterfall:
    """Return lanes and rows of the spans of one or several batches.

    Raises:
        ValueError: without any span.
    """
    if not spans:
        raise ValueError("a picture needs a span")
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))
    threads = _threads_of_stages(ordered)
    lanes: dict[tuple[bool, str], Lane] = {}
    for span in ordered:
        kind = span_role(span)
        name = ROOTS if kind == "batch" else _lane_of(span, kind, threads)
        key = (kind == "batch", name)  # a thread may be called `batch` too
        lanes.setdefault(key, Lane(name)).bars.append(Bar(span, kind, 0))
    for lane in lanes.values():
        _stack(lane)
    rank = ranks(ordered)
    in_order = sorted(lanes.values(), key=lambda lane: (min(rank[bar.span.span_id] for bar in lane.bars), lane.name))
    is_single = len({span.batch for span in ordered}) == 1
    return Waterfall(in_order, ordered[0].start_ns, max(span.end_ns for span in ordered), is_single)


def ranks(spans: Iterable[SpanRecord]) -> dict[int, int]:
    """Return each span's place in its batch, by span id: 0 for the root, then by start; batches share places."""
    places: dict[int, int] = {}
    counts: dict[int | None, int] = {}
    for span in sorted(spans, key=lambda each: (each.start_ns, -each.end_ns)):
        if span_role(span) == "batch":
            places[span.span_id] = 0
        else:
            counts[span.batch] = places[span.span_id] = counts.get(span.batch, 0) + 1
    return places


def _threads_of_stages(spans: Iterable[SpanRecord]) -> dict[tuple[int | None, str], str]:
    """Return the thread of each stage by batch and name, and by None and name for batches that never reached it."""
    threads: dict[tuple[int | None, str], str] = {}
    for span in spans:
        if span_role(span) == "compute":
            threads.setdefault((span.batch, span.name), span.thread)
            threads.setdefault((None, span.name), span.thread)
    return threads


def _lane_of(span: SpanRecord, kind: SpanRole, threads: dict[tuple[int | None, str], str]) -> str:
    if kind != "waiting":
        return span.thread
    stage = waits_for(span)
    return threads.get((span.batch, stage)) or threads.get((None, stage)) or stage


def _stack(lane: Lane) -> None:
    """Give every bar the first free row. Bars come by start, so a nested one lies below its parent."""
    free_from: list[int] = []
    for bar in lane.bars:
        span = bar.span
        bar.row = next((row for row, end_ns in enumerate(free_from) if end_ns <= span.start_ns), len(free_from))
        free_from[bar.row : bar.row + 1] = [span.end_ns]
    lane.num_rows = len(free_from)


def bar_texts(bar: Bar, lane: Lane, *, is_single: bool) -> list[str]:
    """Return the texts that a bar may have, the longest first."""
    took = f"{format_ms(bar.span.end_ns - bar.span.start_ns)} ms"
    number = str(bar.span.batch)
    if bar.kind == "batch":
        return [f"batch {number}: {took}", number]
    what = "waits" if bar.kind == "waiting" else "" if bar.span.name == lane.name else one_line(bar.span.name)
    named = [f"{what} {took}".strip(), took if bar.kind == "waiting" or not what else what]
    if is_single:
        return list(dict.fromkeys(named))
    return [f"{number}: {named[0]}", *([f"{number}: {what}"] if what else []), number]


def one_line(text: str) -> str:
    """Return a user's text as one printable line: terminals obey control characters, and XML allows none."""
    head = _ESCAPE.sub("", text[:_MAX_LINE])
    return " ".join("".join(each if each.isprintable() else " " for each in head).split())


def fit(text: str, columns: int) -> str:
    """Return `text` as one line of at most `columns` columns; one that is too long keeps its two ends."""
    text = one_line(text)
    if cell_len(text) <= columns:
        return text
    head = _head(text, (columns - 2) // 2)
    return f"{head}..{_head(text[::-1], columns - 2 - cell_len(head))[::-1]}"


def _head(text: str, columns: int) -> str:
    return next(iter(chop_cells(text, columns)), "") if columns > 0 else ""


def ticks(duration_ns: int, *, at_most: int) -> list[int]:
    """Return round times that divide a duration, from 0 and in nanoseconds: `at_most` of them after 0."""
    step = duration_ns / max(1, at_most)
    magnitude = 10 ** math.floor(math.log10(step)) if step > 1 else 1
    size = next(round(magnitude * each) for each in (1, 2, 5, 10, 20) if magnitude * each >= step)
    return list(range(0, duration_ns + 1, max(1, size)))[: at_most + 1]


def labelled_ticks(duration_ns: int, *, at_most: int) -> list[tuple[int, str]]:
    """Return `ticks` with their labels; the first names the unit, ms."""
    at_ns = ticks(duration_ns, at_most=at_most)
    step_ns = at_ns[1] if len(at_ns) > 1 else duration_ns
    return [(time_ns, format_tick(time_ns, step_ns) + ("" if time_ns else " ms")) for time_ns in at_ns]
