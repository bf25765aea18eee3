"""The status page: what an operator leaves open all day. One HTML file, no request to anywhere else.

Everything that comes from a run (names, errors, units) goes through `escape`. The page's policy lets exactly its own
script and style run, by their hashes, so that even a name that got through unescaped could do nothing.
"""

import base64
import hashlib
import importlib.resources
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from html import escape
from typing import Any

from mlotel_cli.figures import duration, significant, withheld
from mlotel_cli.recorder.live.charts import Points, bar, line_chart, span_of
from mlotel_cli.recorder.live.http_server import Reply
from mlotel_cli.recorder.live.live_state import NUM_POINTS, POINT_SLOTS, SLOT_S, Event, Published
from mlotel_cli.recorder.workload import INTENDED
from mlotel_cli.stats.thresholds import MIN_EFFECTIVE_N

_POINT_S = POINT_SLOTS * SLOT_S
SOURCE = "source"
"""The queue before the first stage; it is no stage."""
_ERROR_LENGTH = 200
"""Of a failed batch; all of it is in batches.parquet."""
_FEWEST_POINTS = 30
"""A young run's chart is five minutes wide."""
_SHOWN = {
    "run id": "mlotel.run.id",
    "service": "service.name",
    "commit": "git.commit",
    "configuration": "config.hash",
    "judged by": "mlotel.reference.run",
}


@dataclass(slots=True, frozen=True)
class Status:
    """What the page shows.

    Attributes:
        name: of the run.
        run_dir: as a command would name it.
        identity: of the run.
        published: the figures.
        problem: why no batch can be expected; empty when there is no reason.
        now_ns: since the epoch.
    """

    name: str
    run_dir: str
    identity: Mapping[str, Any]
    published: Published
    problem: str
    now_ns: int


def render_page(status: Status) -> Reply:
    """The whole page."""
    css, script, policy = _assets()
    state = "not ready" if status.problem else "ready"
    html = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><link rel="icon" href="data:,">
<title>{escape(status.name)}: {state}</title>
<style>{css}</style>
<noscript><meta http-equiv="refresh" content="5"></noscript></head>
<body><main><p id="contact" role="alert" hidden></p>{_content(status)}{_footer()}</main>
<script>{script}</script></body></html>
"""
    return Reply(html.encode("utf-8", "xmlcharrefreplace"), "text/html; charset=utf-8", policy=policy)


@cache
def _assets() -> tuple[str, str, str]:
    """Style, script, and the policy that allows these two and nothing else."""
    folder = importlib.resources.files("mlotel_cli.recorder.live")
    css, script = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return css, script, policy


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _content(status: Status) -> str:
    snapshot = status.published.snapshot
    return (
        f'<div id="content">{_header(status)}<div class="grid">'
        f"{_tiles(snapshot)}{_latency(status.published)}{_throughput(status.published)}{_stages(status.published)}"
        f"{_values(status.published)}{_slow(status)}{_failed(status)}{_sinks(snapshot)}{_run(status)}</div></div>"
    )


def _footer() -> str:
    """Outside of what is swapped: a link that has the keyboard's focus keeps it."""
    return (
        '<footer><a href="metrics">metrics</a><a href="healthz">healthz</a><a href="readyz">readyz</a>'
        "Rates, latencies and values are of the last 60 seconds, counts since the start of the run. "
        f"{escape(withheld('p95'))}: too few batches for a p95 (a p99 takes {MIN_EFFECTIVE_N['p99']}).</footer>"
    )


def _header(status: Status) -> str:
    snapshot, problem = status.published.snapshot, status.problem
    pill = (
        f'<span class="pill bad">not ready: {escape(problem)}</span>'
        if problem
        else '<span class="pill good">ready</span>'
    )
    restarts = snapshot["gaps"].get("recorder_restarts", 0)
    lost = snapshot["gaps"].get("batches_lost", 0)
    about = f"up {duration(snapshot['uptime_s'])} &middot; {_clock(status.now_ns)}"
    header = f'<header><h1>{escape(status.name)}</h1>{pill}<span class="about">{about}</span></header>'
    if not restarts:
        return header
    unrecorded = f"{_count(lost, 'batch', 'batches')} went unrecorded"
    return f'{header}<p class="note">The recorder was replaced {_times(restarts)}; {unrecorded}.</p>'


def _tiles(snapshot: Mapping[str, Any]) -> str:
    latency, source = snapshot["latency_ms"], snapshot["source"]
    dropped = {name: count for name, count in source.get("dropped", {}).items() if count and name not in INTENDED}
    reasons = ", ".join(f"{escape(name)} {count:,}" for name, count in dropped.items())
    seen = f"{source.get('received', 0):,} received" if source else "source not heard of yet"
    state = escape(source.get("state") or "unknown")
    kind = escape(source.get("kind") or "source")
    num = latency["count"]
    tiles = [
        _tile(
            "Throughput",
            f"{number(snapshot['items_per_s'])} <small>items/s</small>",
            f"{number(snapshot['batches_per_s'])} batches/s",
        ),
        _tile("Latency p50", milliseconds(latency["p50"]), f"p95 {_percentile('p95', latency['p95'], num=num)}"),
        _tile("Latency p99", _percentile("p99", latency["p99"], num=num), f"max {milliseconds(latency['max'])}"),
        _tile("Batches", f"{snapshot['batches']:,}", f"{snapshot['items']:,} items"),
        _tile(
            "Failed",
            f"{snapshot['failed']:,}",
            _share(snapshot["failed"], snapshot["batches"]),
            bad=snapshot["failed_per_s"] > 0,
        ),
        _tile(
            "Dropped",
            f"{sum(dropped.values()):,}",
            f"{reasons or 'nothing'} &middot; {kind} {state}, {seen}",
            bad=snapshot["dropped_per_s"] > 0,
        ),
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(title: str, value: str, below: str, *, bad: bool = False) -> str:
    css = ' class="bad"' if bad else ""
    return f'<section class="tile"><h2>{title}</h2><strong{css}>{value}</strong><p>{below}</p></section>'


def _latency(published: Published) -> str:
    lines = {"one": published.charts["latency", "p50"], "two": published.charts["latency", "p95"]}
    legend = '<span class="legend"><i class="one"></i>p50<i class="two"></i>p95</span>'
    return _panel("half", f"Batch latency{legend}", _chart(lines, label="latency", unit="ms"))


def _throughput(published: Published) -> str:
    lines = {"one": published.charts["rate", "items"], "two": published.charts["rate", "dropped"]}
    legend = '<span class="legend"><i class="one"></i>done<i class="two"></i>dropped</span>'
    return _panel("half", f"Items a second{legend}", _chart(lines, label="items a second", unit="/s"))


def _chart(lines: Mapping[str, Points], *, label: str, unit: str, zero: bool = True) -> str:
    longest = max(len(points) for points in lines.values())
    values = [value for points in lines.values() for value in points if value is not None]
    if longest < 2 or not values:
        return '<p class="none">The first points come after 20 seconds.</p>'
    num_points = min(max(longest, _FEWEST_POINTS), NUM_POINTS)
    low, high = span_of(values, zero=zero)
    ago = f"{num_points * _POINT_S / 60:.0f} min"
    scale = f"{number(low)} to {number(high)} {unit}".strip()
    drawn = line_chart(lines, num_points=num_points, label=escape(f"{label}, {scale}"), zero=zero)
    edges = f"<p><span>{number(high)} {unit}</span><span>{number(low)}</span></p>"
    return f'<div class="plot">{edges}{drawn}<p class="axis"><span>{ago} ago</span><span>now</span></p></div>'


def _stages(published: Published) -> str:
    snapshot = published.snapshot
    rows = [
        _row(
            ("", escape(name), "name"),
            ("p50", milliseconds(stage["p50_ms"])),
            ("p95", _percentile("p95", stage["p95_ms"], num=stage["count"])),
            ("busy", f'{bar(stage["busy"], label="busy")}<span class="share">{stage["busy"]:.0%}</span>'),
            ("wait p50", milliseconds(stage["queue_p50_ms"])),
            ("wait p95", _percentile("p95", stage["queue_p95_ms"], num=stage["queue_count"])),
            ("waiting now", _depth(snapshot["queues"].get(name))),
            ("p95, last half hour", _spark(published.charts.get(("stage", name), ()))),
        )
        for name, stage in snapshot["stages"].items()
        if name != SOURCE
    ]
    heads = ("", "p50", "p95", "busy", "wait p50", "wait p95", "waiting now", "p95, last half hour")
    return _panel("wide", f"Stages{_before_the_first(snapshot)}", _table(heads, rows, none="No batch yet."))


def _before_the_first(snapshot: Mapping[str, Any]) -> str:
    queue, waited = snapshot["queues"].get(SOURCE), snapshot["stages"].get(SOURCE)
    if queue is None and waited is None:
        return ""
    depth = f"{_depth(queue)} waiting before the first" if queue else "waiting before the first"
    times = ""
    if waited:
        p95 = _percentile("p95", waited["queue_p95_ms"], num=waited["queue_count"])
        times = f", p50 {milliseconds(waited['queue_p50_ms'])}, p95 {p95}"
    return f" <small>&middot; {depth}{times}</small>"


def _depth(queue: Sequence[int] | None) -> str:
    return f"{queue[0]} of {queue[1]}" if queue else "&ndash;"


def _spark(points: Points) -> str:
    known = [point for point in points if point is not None]
    if len(points) < 2 or not known:
        return "&ndash;"
    num_points = min(max(len(points), _FEWEST_POINTS), NUM_POINTS)
    return line_chart({"one": points}, num_points=num_points, label="course of the last half hour")


def _values(published: Published) -> str:
    cards: list[str] = []
    for name, value in published.snapshot["data"].items():
        unit = escape(value["unit"].strip("{}")) if value["unit"] != "1" else ""
        chart = _chart({"one": published.charts["data", name]}, label=name, unit="", zero=False)
        median = number(value["p50"], digits=2)
        figures = f"<strong>{number(value['mean'])} <small>{unit}</small></strong><p>mean; median {median}</p>"
        cards.append(f'<section class="value"><h2>{escape(name)}</h2>{figures}{chart}</section>')
    return f'<div class="values">{"".join(cards)}</div>' if cards else ""


def _slow(status: Status) -> str:
    events = status.published.slow
    slow_ms = status.published.snapshot["slow_ms"]
    above = f" <small>&middot; above {milliseconds(slow_ms)}</small>" if slow_ms is not None else ""
    rows = [
        _row(
            ("batch", f"{event.batch}"),
            ("latency", milliseconds(event.latency_ms)),
            ("longest", f"{escape(event.stage)} {milliseconds(event.stage_ms)}" if event.stage else "&ndash;"),
            ("when", _ago(event, status.now_ns)),
        )
        for event in events
    ]
    body = _table(("batch", "latency", "longest", "when"), rows, none="None yet.")
    return _panel("half", f"Newest slow batches{above}", body + _next_step(status, events))


def _failed(status: Status) -> str:
    events = status.published.failed
    rows = [
        _row(
            ("batch", f"{event.batch}"),
            ("when", _ago(event, status.now_ns)),
            ("why", escape(_shortened(event.error)) or "unknown", "text left"),
        )
        for event in events
    ]
    body = _table(("batch", "when", "why"), rows, none="None.")
    return _panel("half", "Newest failed batches", body + _next_step(status, events))


def _shortened(error: str) -> str:
    return error if len(error) <= _ERROR_LENGTH else f"{error[: _ERROR_LENGTH - 2]} ..."


def _next_step(status: Status, events: Sequence[Event]) -> str:
    if not events:
        return ""
    run_dir = escape(shlex.quote(status.run_dir))
    command = f"<code>mlotel trace {run_dir} <span>--batch {events[0].batch}</span></code>"
    return f'<p class="next">Where the time went: {command}</p>'


def _sinks(snapshot: Mapping[str, Any]) -> str:
    rows = [
        _row(
            ("", escape(name), "name"),
            ("state", '<span class="good">ok</span>' if sink["ok"] else '<span class="bad">failing</span>'),
            ("taken", f"{sink['sent']:,}"),
            ("lost", f'<span class="bad">{sink["lost"]:,}</span>' if sink["lost"] else "0"),
            ("", escape("; ".join(filter(None, [str(sink["detail"] or ""), _waiting(sink)]))), "text left"),
        )
        for name, sink in snapshot["sinks"].items()
    ]
    return _panel("half", "Where it goes", _table(("", "state", "taken", "lost", ""), rows, none="Nowhere."))


def _waiting(sink: Mapping[str, Any]) -> str:
    queued = sink.get("queued", 0)
    return f"{queued:,} waiting" if queued else ""


def _run(status: Status) -> str:
    known = [(title, status.identity.get(key)) for title, key in _SHOWN.items()]
    entries = [*((title, str(value)) for title, value in known if value), ("directory", status.run_dir)]
    listed = "".join(f"<dt>{title}</dt><dd><code>{escape(value)}</code></dd>" for title, value in entries)
    return _panel("half", "Run", f"<dl>{listed}</dl>")


# -- pieces -------------------------------------------------------------------------------------------------------


def _panel(css: str, title: str, body: str) -> str:
    return f'<section class="{css}"><h2>{title}</h2>{body}</section>'


def _table(heads: Sequence[str], rows: Sequence[str], *, none: str) -> str:
    if not rows:
        return f'<p class="none">{none}</p>'
    titles = "".join(f'<th scope="col"{" class=left" if head in ("why", "") else ""}>{head}</th>' for head in heads)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(*cells: tuple[str, ...]) -> str:
    """Cells of (title, HTML) or (title, HTML, class)."""
    drawn = [
        f'<td data-label="{cell[0]}"{f" class={chr(34)}{cell[2]}{chr(34)}" if cell[2:] else ""}>{cell[1]}</td>'
        for cell in cells
    ]
    return f"<tr>{''.join(drawn)}</tr>"


def number(value: float | None, *, digits: int = 3) -> str:
    """Significant digits, thousands separated; a dash for None."""
    return significant(value, digits=digits, missing="&ndash;")


def milliseconds(value: float | None) -> str:
    """A latency, in seconds from ten on."""
    if value is None:
        return "&ndash;"
    unit, shown = ("s", value / 1e3) if value >= 10_000 else ("ms", value)
    return f"{number(shown)} <small>{unit}</small>"


def _percentile(name: str, value: float | None, *, num: int) -> str:
    """Milliseconds, or that there are too few values for it."""
    few = f'<span class="few">{escape(withheld(name))}</span>'
    return few if value is None and num else milliseconds(value)


def _ago(event: Event, now_ns: int) -> str:
    return f"{duration(max(0, now_ns - event.start_ns) / 1e9)} ago"


def _clock(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%} of batches" if whole else "&ndash;"


def _count(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
