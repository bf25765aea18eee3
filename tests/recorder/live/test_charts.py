"""Line charts as SVG: where the points are, where the gaps are, and that the text is well formed."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.recorder.live.charts import HEIGHT, WIDTH, bar, line_chart, span_of

POINTS = st.lists(st.none() | st.floats(-1e12, 1e12), max_size=20)


def lines(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, corner.split(","))) for corner in points.split()]
        for points in re.findall(r'<polyline class="\w+" points="([^"]*)"', svg)
    ]


def test_the_newest_point_is_at_the_right_edge_and_the_highest_at_the_top():
    (line,) = lines(line_chart({"one": [0.0, 5.0, 10.0]}, num_points=5, label="x"))
    assert line == [(150.0, 97.0), (225.0, 50.0), (300.0, 3.0)]


def test_a_gap_is_a_gap():
    found = lines(line_chart({"one": [1.0, 2.0, None, None, 3.0, 1.0]}, num_points=6, label="x"))
    assert [len(line) for line in found] == [2, 2]


def test_one_point_alone_can_be_seen():
    ((left, right),) = lines(line_chart({"one": [None, 2.0, None]}, num_points=3, label="x"))
    assert (left[0], right[0]) == (149.0, 151.0)


def test_only_the_newest_points_are_drawn():
    (line,) = lines(line_chart({"one": [float(n) for n in range(100)]}, num_points=10, label="x"))
    assert (len(line), line[0][0]) == (10, 0.0)


def test_lines_share_one_scale():
    low, high = lines(line_chart({"one": [1.0, 1.0], "two": [2.0, 2.0]}, num_points=2, label="x"))
    assert (low[0][1], high[0][1]) == (50.0, 3.0)


@pytest.mark.parametrize(
    ("values", "zero", "expected"),
    [
        ([], True, (0.0, 1.0)),
        ([5.0], True, (0.0, 5.0)),
        ([-5.0], True, (-5.0, 0.0)),
        ([5.0, 6.0], False, (5.0, 6.0)),
        ([5.0, 5.0], False, (4.0, 6.0)),
        ([0.0], False, (0.0, 1.0)),
    ],
)
def test_scales(values, zero, expected):
    assert span_of(values, zero=zero) == expected


@given(POINTS, POINTS, st.integers(1, 30), st.booleans())
def test_whatever_the_points_the_picture_is_well_formed_and_inside(one, two, num_points, zero):
    svg = line_chart({"one": one, "two": two}, num_points=num_points, label="x", zero=zero)
    ET.fromstring(svg)
    assert "style=" not in svg
    for x, y in (corner for line in lines(svg) for corner in line):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
        assert math.isfinite(x + y)


@pytest.mark.parametrize(("share", "width"), [(0.0, "0.0"), (0.256, "25.6"), (3.0, "100.0"), (-1.0, "0.0")])
def test_a_bar(share, width):
    assert f'<rect class="fill" width="{width}"' in bar(share, label="busy")
    ET.fromstring(bar(share, label="busy"))
