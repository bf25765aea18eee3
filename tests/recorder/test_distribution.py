"""Histograms with fixed bounds: which bucket a value falls into, and what a reader gets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.recorder.distribution import DURATION_BOUNDS_S, VALUE_BOUNDS, Distribution, one_two_five


def test_duration_bounds_are_one_two_five_from_100_us_to_60_s():
    assert (
        *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
        *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 60.0),
    ) == DURATION_BOUNDS_S


def test_value_bounds_start_at_zero_because_prometheus_drops_the_sum_below_it():
    assert VALUE_BOUNDS[:5] == (0.0, 0.001, 0.002, 0.005, 0.01)
    assert VALUE_BOUNDS[-2:] == (50_000.0, 100_000.0)
    assert one_two_five(low=0, high=1) == (1.0, 2.0, 5.0, 10.0)


def test_a_bound_is_inclusive():
    series = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        series.add(value)
    assert (series.counts, series.total) == ([2, 2, 1], 7.5)


@given(st.lists(st.floats(-1e6, 1e6)))
def test_counts_are_those_of_numpy(values):
    series = Distribution(VALUE_BOUNDS)
    for value in values:
        series.add(value)
    edges = np.array(VALUE_BOUNDS)
    expected = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    assert series.counts == expected.tolist()
    assert series.point({}).count == len(values)


def test_a_point_is_a_copy_that_no_later_value_changes():
    series = Distribution((10.0,))
    series.add(4)
    point = series.point({"name": "x"}, scale=0.5)
    series.add(20)
    assert (point.counts, point.total, point.attributes) == ([1, 0], 2.0, {"name": "x"})
