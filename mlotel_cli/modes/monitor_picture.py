"""Draws a monitor's board as a picture of limited height, or writes it as one line.

Names are the user's own text and are shown as they are. Nothing is measured here.
"""

from collections.abc import Iterator

from rich.cells import set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlotel_cli.figures import clock, figure, percentile
from mlotel_cli.modes.monitor_status import Board
from mlotel_cli.screen import Column, Row, build_table, shortened, text_column
from mlotel_cli.snapshot import LatencyFigures, SourceReport, StageNow
from mlotel_cli.sources.intake import CONNECTED

_STALE_S = 5.0
_BAR = 10
_WIDE = 80
_LONGEST_NAME = 16
"""A longer name is cut, so that what stands behind it stays on the line."""
_COLUMNS = (
    text_column("stage", fold_at=None),
    *(Column(title) for title in ("p50 ms", "p95 ms", "queue p95", "waiting")),
    text_column("busy", fold_at=None),
)
_LEFT_OUT = (("waiting",), ("queue p95",), ("busy",))
"""Columns of the stages that a narrow terminal has no room for, in this order."""


def line(board: Board) -> str:
    """Return the board in one line."""
    snapshot, source = board.snapshot, board.source
    state = source.state
    parts = [
        board.phase if not board.ending else f"ending ({board.ending})",
        f"{snapshot.batches} batches",
        f"{snapshot.items_per_s:.1f} items/s",
        " ".join(f"{name} {shown}" for name, shown in _latency(snapshot.latency_ms)[:3]) + " ms",
        f"source {state}" + (f" ({board.source_detail})" if board.source_detail else ""),
    ]
    if dropped := source.dropped:
        parts.append("dropped " + ", ".join(f"{count} {reason}" for reason, count in dropped.items()))
    if board.num_failed:
        parts.append(f"{board.num_failed} failed")
    parts += [f"{name}: {sink.detail}" for name, sink in snapshot.sinks.items() if not sink.ok]
    return "; ".join(parts)


def picture(board: Board, *, now: float, width: int, height: int) -> RenderableType:
    """Return the board as a picture of at most `height` lines. Below 80 columns there is less beside the figures."""
    is_narrow = width < _WIDE
    top = list(_header(board, now=now, is_narrow=is_narrow))
    bottom = [*_sinks(board), Text("Ctrl-C ends the run in order; a second Ctrl-C ends it at once", style="dim")]
    room = max(1, height - len(top) - len(bottom) - 5)
    values = list(_values(board))
    stages = _stages(board, limit=max(1, room - len(values)), width=width)
    below = [*values[: max(0, room - 1)], Text(), *bottom]
    return Group(*(_fitted(row, width) for row in top), Text(), stages, *(_fitted(row, width) for row in below))


def _header(board: Board, *, now: float, is_narrow: bool) -> Iterator[Text]:
    snapshot, source = board.snapshot, board.source
    phase = f"ending: {board.ending}" if board.ending else board.phase
    style = "yellow" if board.ending or board.phase != "running" else "green"
    yield _row(
        ("" if is_narrow else "mlotel monitor ", "bold"),
        (f"{shortened(board.name, _LONGEST_NAME)}  ", "bold" if is_narrow else ""),
        (f"{phase}  ", style),
        (f"{clock(snapshot.uptime_s)}  ", ""),
        (snapshot.http or "", "cyan"),
    )
    if board.heard_s is not None and now - board.heard_s > _STALE_S:
        yield _row(("figures are ", ""), (f"{now - board.heard_s:.0f} s old: the recorder does not answer", "red"))
    yield _row(
        ("rate     ", "dim"),
        (f"{snapshot.items_per_s:,.1f} items/s   {snapshot.batches:,} batches", ""),
        (f"   {board.num_failed:,} failed" if board.num_failed else "", "red"),
    )
    figures = "   ".join(f"{name} {shown}" for name, shown in _latency(snapshot.latency_ms))
    yield _row(("latency  ", "dim"), (f"{figures} ms", ""), ("   last 60 s", "dim"))
    yield from _source(board, source)
    if board.gaps.recorder_restarts or board.gaps.batches_lost:
        restarts, lost = board.gaps.recorder_restarts, board.gaps.batches_lost
        yield _row(("record   ", "dim"), (f"{restarts} restarts of the recorder, {lost:,} batches lost", "yellow"))
    if board.last_failure:
        yield _row(("failed   ", "dim"), (board.last_failure, "red"))


def _source(board: Board, source: SourceReport) -> Iterator[Text]:
    state = source.state or "connecting"
    depth, capacity = board.queues.get("source", (0, 0))
    again = source.reconnects
    yield _row(
        ("source   ", "dim"),
        (f"{source.kind} ", ""),
        (state, "green" if state == CONNECTED else "yellow"),
        (f"   {source.received:,} received   {depth}/{capacity} waiting", ""),
        (f"   {again} reconnects" if again else "", "yellow"),
    )
    if board.source_detail:
        yield _row(("         ", ""), (board.source_detail, "yellow"))
    dropped = source.dropped
    if dropped:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        yield _row(("dropped  ", "dim"), (counts, "yellow" if set(dropped) - {"warmup", "stopped"} else ""))


def _stages(board: Board, *, limit: int, width: int) -> Table:
    is_narrow = width < _WIDE
    stages = sorted(board.snapshot.stages.items(), key=lambda item: _is_stage(item[1]))
    rows: list[Row] = []
    for name, stage in stages[:limit]:
        depth = board.queues.get(name)
        rows.append(
            (
                shortened(name, 16 if is_narrow else 24),
                figure(stage.p50_ms, missing="-"),
                percentile("p95", stage.p95_ms, count=stage.count, missing="-"),
                percentile("p95", stage.queue_p95_ms, count=stage.queue_count, missing="-"),
                "" if depth is None else f"{depth[0]}/{depth[1]}",
                _bar(stage.busy, length=0 if is_narrow else _BAR) if _is_stage(stage) else "",
            )
        )
    if len(stages) > limit:
        rows.append((Text(f"and {len(stages) - limit} more", style="dim"), "", "", "", "", ""))
    return build_table(_COLUMNS, rows, width=width, left_out=_LEFT_OUT, is_ruled=False, title_style="dim")


def _is_stage(stage: StageNow) -> bool:
    """False for the source: batches wait for it, but it takes no time of its own."""
    return stage.p50_ms is not None


def _values(board: Board) -> Iterator[Text]:
    for name, value in board.snapshot.data.items():
        mean, median = figure(value.mean, missing="-"), figure(value.p50, missing="-")
        yield _row(("value    ", "dim"), (f"{name}  mean {mean}  p50 {median} {value.unit.strip('{}')}", ""))


def _sinks(board: Board) -> Iterator[Text]:
    sinks = board.snapshot.sinks
    healthy = [name for name, sink in sinks.items() if sink.ok]
    if healthy:
        yield _row(("sinks    ", "dim"), ("  ".join(healthy), "green"))
    for name, sink in sinks.items():
        if not sink.ok or sink.lost:
            lost = f"{sink.lost:,} lost" if sink.lost else "failing"
            yield _row(("         ", ""), (f"{name}: {lost}; {sink.detail}", "red" if not sink.ok else "yellow"))


def _row(*parts: tuple[str, str]) -> Text:
    """Return one line of parts, each with its style."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _fitted(row: Text, width: int) -> Text:
    """Return a line of at most `width` columns. It is cut between words: half a figure is a wrong one."""
    if row.cell_len <= width:
        return row
    head = set_cell_size(row.plain, max(1, width - 2))
    end = len(head) if row.plain[len(head)].isspace() else head.rfind(" ")
    return row[:end].append(" \u2026") if end > 0 else row


def _bar(share: float, *, length: int) -> Text:
    full = max(0, min(length, round(share * length)))
    style = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    return Text.assemble(
        ("#" * full, style), ("." * (length - full), "dim"), f" {share:4.0%}" if length else f"{share:.0%}"
    )


def _latency(latency: LatencyFigures) -> list[tuple[str, str]]:
    """Percentiles by name, and the largest."""
    figures = (("p50", latency.p50), ("p95", latency.p95), ("p99", latency.p99), ("max", latency.max))
    return [(name, percentile(name, value, count=latency.count, missing="-")) for name, value in figures]
