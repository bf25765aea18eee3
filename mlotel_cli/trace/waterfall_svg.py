"""Draws a waterfall as one SVG file without script, font or link, in the reader's light or dark scheme. Pure."""

from collections.abc import Iterator
from html import escape

from rich.cells import cell_len

from mlotel_cli.figures import format_ms
from mlotel_cli.trace.waterfall import Bar, Lane, Waterfall, bar_texts, fit, labelled_ticks, one_line, waits_for

WIDTH = 960
_ROW = 26
_BAR = 20
_LANE_GAP = 8
_TOP = 64
_CHARACTER = 7.0
"""The approximate width of a character: monospace at 12 px."""
_STYLE = """
:root { --back: #ffffff; --text: #1f2328; --faint: #d1d9e0; --compute: #8ec5f0; --waiting: #fbe3a6;
  --hatch: #9a6700; --batch: #e6eaef; --failed: #cf222e; --edge: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --back: #0d1117; --text: #e6edf3; --faint: #30363d; --compute: #1f5f99; --waiting: #3d2f0a;
    --hatch: #d29922; --batch: #21262d; --failed: #ff7b72; --edge: #8b949e; }
}
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--text); }
.title { font-size: 13px; font-weight: 600; }
.back { fill: var(--back); }
.grid { stroke: var(--faint); }
.batch { fill: var(--batch); stroke: var(--edge); }
.compute { fill: var(--compute); stroke: var(--edge); }
.waiting { fill: url(#hatch); stroke: var(--hatch); }
.hatch-back { fill: var(--waiting); }
.hatch-line { stroke: var(--hatch); }
.failed { stroke: var(--failed); stroke-width: 2.5; }
"""
_HATCH = (
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="hatch-back" width="6" height="6"/><line class="hatch-line" y2="6"/></pattern>'
)


def draw_svg(waterfall: Waterfall, *, title: str) -> str:
    """Return the file's text. A screen reader reads `title` out."""
    left = 24 + _CHARACTER * min(32, max(cell_len(fit(lane.name, 32)) for lane in waterfall.lanes))
    title = one_line(title)
    scale = (WIDTH - left - 16) / waterfall.duration_ns
    height = _TOP + sum(lane.num_rows * _ROW + _LANE_GAP for lane in waterfall.lanes) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style><defs>{_HATCH}</defs>",
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text class="title" x="12" y="22">{escape(fit(title, 88))}</text>',
        *_legend(waterfall),
        *_axis(waterfall, left=left, scale=scale, bottom=height - 12),
    ]
    y = _TOP
    for lane in waterfall.lanes:
        parts += _lane(lane, waterfall, left=left, scale=scale, y=y)
        y += lane.num_rows * _ROW + _LANE_GAP
    return "\n".join([*parts, "</svg>", ""])


def _legend(waterfall: Waterfall) -> Iterator[str]:
    bars = [bar for lane in waterfall.lanes for bar in lane.bars]
    shown = [("compute", "compute"), ("waiting", "waiting in a queue")]
    if any(bar.is_failed for bar in bars):
        shown.append(("compute failed", "failed"))
    x = WIDTH - 16.0 - sum(34 + _CHARACTER * len(text) for _, text in shown)
    for classes, text in shown:
        yield f'<rect class="{classes}" x="{x:.1f}" y="12" width="14" height="12" rx="2"/>'
        yield f'<text x="{x + 20:.1f}" y="22">{text}</text>'
        x += 34 + _CHARACTER * len(text)


def _axis(waterfall: Waterfall, *, left: float, scale: float, bottom: float) -> Iterator[str]:
    for time_ns, label in labelled_ticks(waterfall.duration_ns, at_most=8):
        x = left + time_ns * scale
        anchor = "start" if not time_ns else "middle"
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 10}" y2="{bottom:.1f}"/>'
        yield f'<text x="{x:.1f}" y="{_TOP - 16}" text-anchor="{anchor}">{label}</text>'


def _lane(lane: Lane, waterfall: Waterfall, *, left: float, scale: float, y: float) -> Iterator[str]:
    yield f'<text x="12" y="{y + 15:.1f}">{escape(fit(lane.name, 32))}</text>'
    for bar in lane.bars:
        x = left + (bar.span.start_ns - waterfall.start_ns) * scale
        width = max(1.0, (bar.span.end_ns - bar.span.start_ns) * scale)
        top = y + bar.row * _ROW + (_ROW - _BAR) / 2
        classes = f"{bar.kind} failed" if bar.is_failed else bar.kind
        yield f"<g><title>{escape(_hover(bar))}</title>"
        yield f'<rect class="{classes}" x="{x:.2f}" y="{top:.1f}" width="{width:.2f}" height="{_BAR}" rx="2"/>'
        texts = bar_texts(bar, lane, is_single=waterfall.is_single)
        text = next((text for text in texts if _CHARACTER * cell_len(text) + 10 <= width), "")
        if text and bar.kind == "waiting":  # text on a hatch is hard to read without a ground
            ground = _CHARACTER * cell_len(text) + 6
            yield (
                f'<rect class="hatch-back" x="{x + width / 2 - ground / 2:.2f}" '
                f'y="{top + 2:.1f}" width="{ground:.1f}" height="{_BAR - 4}"/>'
            )
        if text:
            yield f'<text x="{x + width / 2:.2f}" y="{top + 14:.1f}" text-anchor="middle">{escape(text)}</text>'
        yield "</g>"


def _hover(bar: Bar) -> str:
    span = bar.span
    what = f"waits for {waits_for(span)}" if bar.kind == "waiting" else span.name
    failed = f", {span.status} {one_line(span.status_message)}" if bar.is_failed else ""
    given = "".join(f", {name}={value}" for name, value in span.attributes.items() if bar.kind != "waiting")
    return one_line(f"{what}: {format_ms(span.end_ns - span.start_ns)} ms, batch {span.batch}{failed}{given}")
