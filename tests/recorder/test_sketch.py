"""Rolling quantiles: how far they are from the exact ones, what leaves the window, and how much memory it takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.recorder.sketch import LARGEST, SMALLEST, RollingSketch, Sketch, mean

VALUES = st.floats(1e-5, 1e11) | st.floats(-1e11, -1e-5) | st.just(0.0)


def sketch_of(values) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@given(st.lists(VALUES, min_size=1), st.sampled_from([0.0, 0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_one_percent_of_a_measured_one(values, share):
    (found,) = sketch_of(values).quantiles(share)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert found == pytest.approx(exact, rel=0.0102, abs=1e-9)


def test_several_quantiles_at_once_are_those_asked_one_by_one():
    sketch = sketch_of(np.random.default_rng(0).lognormal(size=500).tolist())
    assert sketch.quantiles(0.5, 0.5, 0.95, 0.99) == [sketch.quantiles(share)[0] for share in (0.5, 0.5, 0.95, 0.99)]


def test_nothing_counted_has_no_quantile_and_no_mean():
    assert Sketch().quantiles(0.5, 0.99) == [None, None]
    assert mean(Sketch()) is None


def test_no_quantile_is_above_the_largest_value():
    sketch = sketch_of([10.0])
    assert sketch.quantiles(1.0) == [10.0]
    assert (sketch.largest, mean(sketch)) == (10.0, 10.0)


def test_values_beyond_the_buckets_are_counted_in_the_last_ones():
    sketch = sketch_of([SMALLEST / 1000, LARGEST * 1e9, -LARGEST * 1e9])
    low, middle, high = sketch.quantiles(0.1, 0.5, 1.0)
    assert (low, middle, high) == (pytest.approx(-LARGEST, rel=0.02), 0.0, pytest.approx(LARGEST, rel=0.02))


@given(st.lists(st.lists(VALUES, max_size=5), min_size=1, max_size=12))
def test_the_rolling_sketch_holds_its_slots_and_the_current_one(slots):
    rolling = RollingSketch(num_slots=4)
    for values in slots[:-1]:
        for value in values:
            rolling.add(value)
        ended = rolling.rotate()
        assert ended.count == len(values)
    for value in slots[-1]:
        rolling.add(value)
    inside = [value for values in slots[-5:] for value in values]
    found, expected = rolling.sketch(), sketch_of(inside)
    assert (found.buckets, found.count) == (expected.buckets, expected.count)
    assert found.largest == expected.largest
    ever = [abs(value) for values in slots for value in values]
    assert found.total == pytest.approx(expected.total, rel=1e-6, abs=1e-12 * sum(ever))  # what rounding leaves behind


def test_the_maximum_leaves_with_its_slot():
    rolling = RollingSketch(num_slots=2)
    rolling.add(100.0)
    rolling.rotate()
    rolling.add(1.0)
    rolling.rotate()
    assert rolling.sketch().largest == 100.0
    rolling.rotate()
    assert rolling.sketch().largest == 1.0
    rolling.rotate()
    assert (rolling.sketch().count, rolling.sketch().largest, rolling.sketch().total) == (0, -math.inf, 0.0)


def test_memory_is_by_buckets_not_by_values():
    rolling = RollingSketch(num_slots=3)
    draw = np.random.default_rng(1).lognormal(sigma=0.3, size=1000)
    sizes = []
    for slot in range(30):
        for value in draw * (1 + slot / 300):
            rolling.add(float(value))
        rolling.rotate()
        sizes.append(len(rolling.sketch().buckets))
    assert max(sizes) < 200
    assert len(rolling._slots) == 3
