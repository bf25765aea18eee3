"""Draws small line charts as inline SVG. Classes give the colours, and the page has the text."""

from collections.abc import Mapping, Sequence

Points = Sequence[float | None]

WIDTH, HEIGHT = 300, 100
"""Size of the coordinate system; the page stretches it."""
_MARGIN = 3
_GRID = "".join(f'<line class="rule" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in (_MARGIN, HEIGHT // 2))


def line_chart(lines: Mapping[str, Points], *, num_points: int, label: str, zero: bool = True) -> str:
    """Draw lines on one scale, the newest point at the right edge.

    Args:
        lines: points by the class that colours them; None is a gap. The first one is filled below.
        num_points: how many fill the width.
        label: what it shows, for a screen reader; plain text that needs no escaping.
        zero: whether the scale begins at zero, or at the smallest value.
    """
    values = [value for points in lines.values() for value in points[-num_points:] if value is not None]
    low, high = span_of(values, zero=zero)
    drawn = "".join(
        _line(points[-num_points:], css=css, num_points=num_points, low=low, high=high, filled=not number)
        for number, (css, points) in enumerate(lines.items())
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{_GRID}{drawn}</svg>'
    )


def span_of(values: Sequence[float], *, zero: bool) -> tuple[float, float]:
    """Return the lowest and the highest value of the scale, which differ."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = (low - 1.0, high + 1.0) if low and not zero else (low, low + 1.0)
    return low, high


def bar(share: float, *, label: str) -> str:
    """Draw a horizontal bar, filled by `share` of 1."""
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<rect class="track" width="100" height="6"/><rect class="fill" width="{width:.1f}" height="6"/></svg>'
    )


def _line(points: Points, *, css: str, num_points: int, low: float, high: float, filled: bool) -> str:
    step = WIDTH / max(num_points - 1, 1)
    first = num_points - len(points)
    drawn: list[str] = []
    for run in _runs(points):
        corners = [
            (
                (first + place) * step,
                HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * (value - low) / (high - low),
            )
            for place, value in run
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        if len(corners) == 1:
            (x, y) = corners[0]
            path = f"{max(x - 1, 0):.1f},{y:.1f} {min(x + 1, WIDTH):.1f},{y:.1f}"
        elif filled:
            area = f"{corners[0][0]:.1f},{HEIGHT} {path} {corners[-1][0]:.1f},{HEIGHT}"
            drawn.append(f'<polygon class="area {css}" points="{area}"/>')
        drawn.append(f'<polyline class="{css}" points="{path}"/>')
    return "".join(drawn)


def _runs(points: Points) -> list[list[tuple[int, float]]]:
    """Return the stretches without a gap, each point with its place."""
    runs: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(points):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((place, value))
    return [run for run in runs if run]
