"""Rolling quantiles: how far they are from the exact ones, what leaves the window, and how much memory it takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.recorder.sketch import LARGEST, SMALLEST, Counts, Window, mean

VALUES = st.floats(1e-5, 1e11) | st.floats(-1e11, -1e-5) | st.just(0.0)


def counts_of(values) -> Counts:
    counts = Counts()
    for value in values:
        counts.add(value)
    return counts


@given(st.lists(VALUES, min_size=1), st.sampled_from([0.0, 0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_one_percent_of_a_measured_one(values, share):
    (found,) = counts_of(values).quantiles(share)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert found == pytest.approx(exact, rel=0.0102, abs=1e-9)


def test_several_quantiles_at_once_are_those_asked_one_by_one():
    counts = counts_of(np.random.default_rng(0).lognormal(size=500).tolist())
    assert counts.quantiles(0.5, 0.5, 0.95, 0.99) == [counts.quantiles(share)[0] for share in (0.5, 0.5, 0.95, 0.99)]


def test_nothing_counted_has_no_quantile_and_no_mean():
    assert Counts().quantiles(0.5, 0.99) == [None, None]
    assert mean(Counts()) is None


def test_no_quantile_is_above_the_largest_value():
    counts = counts_of([10.0])
    assert counts.quantiles(1.0) == [10.0]
    assert (counts.largest, mean(counts)) == (10.0, 10.0)


def test_values_beyond_the_buckets_are_counted_in_the_last_ones():
    counts = counts_of([SMALLEST / 1000, LARGEST * 1e9, -LARGEST * 1e9])
    low, middle, high = counts.quantiles(0.1, 0.5, 1.0)
    assert (low, middle, high) == (pytest.approx(-LARGEST, rel=0.02), 0.0, pytest.approx(LARGEST, rel=0.02))


@given(st.lists(st.lists(VALUES, max_size=5), min_size=1, max_size=12))
def test_the_window_holds_its_slots_and_the_current_one(slots):
    window = Window(num_slots=4)
    for values in slots[:-1]:
        for value in values:
            window.add(value)
        ended = window.rotate()
        assert ended.count == len(values)
    for value in slots[-1]:
        window.add(value)
    inside = [value for values in slots[-5:] for value in values]
    found, expected = window.counts(), counts_of(inside)
    assert (found.buckets, found.count) == (expected.buckets, expected.count)
    assert found.largest == expected.largest
    assert found.total == pytest.approx(expected.total, rel=1e-6, abs=1e-3 * max(map(abs, inside), default=1))


def test_the_maximum_leaves_with_its_slot():
    window = Window(num_slots=2)
    window.add(100.0)
    window.rotate()
    window.add(1.0)
    window.rotate()
    assert window.counts().largest == 100.0
    window.rotate()
    assert window.counts().largest == 1.0
    window.rotate()
    assert (window.counts().count, window.counts().largest, window.counts().total) == (0, -math.inf, 0.0)


def test_memory_is_by_buckets_not_by_values():
    window = Window(num_slots=3)
    draw = np.random.default_rng(1).lognormal(sigma=0.3, size=1000)
    sizes = []
    for slot in range(30):
        for value in draw * (1 + slot / 300):
            window.add(float(value))
        window.rotate()
        sizes.append(len(window.counts().buckets))
    assert max(sizes) < 200
    assert len(window._slots) == 3
