"""Intervals agree with scipy, exact order statistics and closed forms; test_coverage.py tests the coverage."""

import math
import time

import numpy as np
import pytest
import scipy

from mlotel_cli.stats.autocorrelation import block_length, geyer_size
from mlotel_cli.stats.bootstrap import (
    block_bootstrap,
    grouped_bootstrap,
    grouped_statistic_bootstrap,
    percentile_share,
    segment_groups,
    student_quantile,
)

EVERYTHING = ("mean", "p50", "p90", "p95", "p99")


def width(interval):
    return interval[1] - interval[0]


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 10, 31, 200, 201, 399])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.975, 0.995])
def test_student_quantile_equals_scipy(degrees, probability):
    expected = scipy.stats.t.ppf(probability, degrees)
    assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95])
def test_single_value_blocks_give_the_exact_order_statistic_interval(q):
    n = 400
    x = np.random.default_rng(3).permutation(np.arange(1.0, n + 1))  # each value is its own rank
    name = f"p{100 * q:g}"
    low, high = block_bootstrap(x, [name], length=1, num_resamples=20_000)[name]
    assert low == pytest.approx(scipy.stats.binom.ppf(0.025, n, q), abs=1.5)
    assert high == pytest.approx(scipy.stats.binom.ppf(0.975, n, q) + 1, abs=1.5)


def test_interval_of_the_mean_of_independent_values_is_that_of_student():
    x = np.random.default_rng(1).normal(10, 2, 400)
    low, high = block_bootstrap(x, ["mean"], num_resamples=10_000)["mean"]
    expected = scipy.stats.t.interval(0.95, 399, loc=x.mean(), scale=scipy.stats.sem(x))
    assert width((low, high)) == pytest.approx(width(expected), rel=0.1)
    assert (low + high) / 2 == pytest.approx(x.mean(), abs=0.1 * width(expected))


@pytest.mark.parametrize("phi", [0.5, 0.9])
def test_interval_of_an_autocorrelated_mean_has_the_width_of_its_long_run_variance(phi):
    n = 20_000
    noise = np.random.default_rng(0).standard_normal(n)
    x = scipy.signal.lfilter([1], [1, -phi], noise)
    expected = 2 * 1.96 / (1 - phi) / math.sqrt(n)
    assert width(block_bootstrap(x, ["mean"])["mean"]) == pytest.approx(expected, rel=0.2)


def test_a_block_shorter_than_the_memory_is_made_up_for():
    x = scipy.signal.lfilter([1], [1, -0.9], np.random.default_rng(0).standard_normal(5_000))
    short, automatic = (block_bootstrap(x, ["mean", "p50"], length=length) for length in (1, None))
    for name in short:
        assert width(short[name]) == pytest.approx(width(automatic[name]), rel=0.25)


@pytest.mark.parametrize(("phi", "n"), [(0.0, 10_000), (0.6, 1_000), (0.999, 300)])
def test_the_automatic_block_is_longer_than_the_memory_and_leaves_10_to_400_blocks(phi, n):
    x = scipy.signal.lfilter([1], [1, -phi], np.random.default_rng(0).standard_normal(n))
    wanted = round(1.5 * max(block_length(x), block_length(scipy.stats.rankdata(x))))
    length = {0.0: 25, 0.6: wanted, 0.999: 30}[phi]
    assert (wanted < 25, 2.5 < wanted < 100, wanted > 30)[[0.0, 0.6, 0.999].index(phi)]
    assert block_bootstrap(x, EVERYTHING) == block_bootstrap(x, EVERYTHING, length=length)
    assert block_bootstrap(x, EVERYTHING) != block_bootstrap(x, EVERYTHING, length=length + 1)


def test_the_end_of_the_series_joins_its_beginning():
    x = np.random.default_rng(0).normal(0, 0.01, 400)
    x[:10] += 1
    edge, middle = (
        block_bootstrap(np.roll(x, by), ["mean"], length=10, num_resamples=10_000)["mean"] for by in (0, 200)
    )
    assert width(edge) == pytest.approx(width(middle), rel=0.1)


def test_interval_of_a_skewed_mean_is_scipys_bca_interval():
    rng = np.random.default_rng(0)
    x = rng.lognormal(sigma=1.5, size=150)
    while geyer_size(x) < x.size:  # an order without any correlation, so that nothing widens the interval
        x = rng.permutation(x)
    expected = scipy.stats.bootstrap(
        (x,), np.mean, method="BCa", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    got = block_bootstrap(x, ["mean"], length=1, num_resamples=10_000)["mean"]
    assert got == pytest.approx((expected.low, expected.high), abs=0.05 * (expected.high - expected.low))
    assert got[1] - x.mean() > 1.25 * (x.mean() - got[0])


def test_intervals_move_and_scale_with_the_values():
    x = np.random.default_rng(0).gamma(2.0, size=500)
    plain, moved = block_bootstrap(x, EVERYTHING), block_bootstrap(1e6 + 3 * x, EVERYTHING)
    for name in EVERYTHING:
        assert moved[name] == pytest.approx([1e6 + 3 * end for end in plain[name]], abs=1e-6)


def test_a_statistic_has_the_same_interval_whatever_is_asked_beside_it():
    x = np.random.default_rng(0).gamma(2.0, size=500)
    assert block_bootstrap(x, ["p95"])["p95"] == block_bootstrap(x, EVERYTHING)["p95"]


def test_values_whose_squares_are_too_small_for_a_float():
    tiny = block_bootstrap(np.array([0.0, 0.0, -5e-324, 0.0, -2.7e-159, 0.0]), ["mean"])
    assert all(math.isfinite(bound) for bound in tiny["mean"])


def test_the_seed_decides_and_the_level_widens():
    x = np.random.default_rng(0).gamma(2.0, size=500)
    assert block_bootstrap(x, ["mean"], seed=1) == block_bootstrap(x, ["mean"], seed=1)
    assert block_bootstrap(x, ["mean"], seed=1) != block_bootstrap(x, ["mean"], seed=2)
    narrow, wide = (block_bootstrap(x, EVERYTHING, level=level) for level in (0.5, 0.99))
    for name in EVERYTHING:
        assert wide[name][0] < narrow[name][0] <= narrow[name][1] < wide[name][1]


def test_constant_values_have_an_interval_of_no_width():
    assert block_bootstrap([5.0] * 40, ["mean", "p95"]) == {"mean": (5.0, 5.0), "p95": (5.0, 5.0)}


@pytest.mark.parametrize(("n", "limit_s"), [(1_000, 0.2), (100_000, 2.0)])
def test_block_bootstrap_is_fast(n, limit_s):
    x = np.random.default_rng(0).lognormal(size=n)
    elapsed_s = math.inf  # CPU time does not depend on the load of the machine
    for _ in range(3):
        start = time.process_time()
        block_bootstrap(x, EVERYTHING)
        elapsed_s = min(elapsed_s, time.process_time() - start)
    assert elapsed_s < limit_s


def test_names_of_percentiles():
    assert percentile_share("p99.9") == pytest.approx(0.999)
    for name in ("median", "p", "p0", "p100", "95", "pp5", "pnan"):
        with pytest.raises(ValueError, match="unknown statistic"):
            block_bootstrap([1.0, 2.0], [name])


def test_block_bootstrap_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="at least 2 values"):
        block_bootstrap([1.0], ["mean"])
    with pytest.raises(ValueError, match="value 0 is nan"):
        block_bootstrap([math.nan, 1.0], ["mean"])


def test_segments_are_consecutive_and_longer_than_the_memory():
    x = scipy.signal.lfilter([1], [1, -0.9], np.random.default_rng(0).standard_normal(3_000))
    groups = segment_groups(x)
    sizes = np.bincount(groups)
    assert np.all(np.diff(groups) >= 0)
    assert 40 <= sizes[0] <= 150
    assert set(sizes[:-1]) == {sizes[0]}
    assert sizes[0] <= sizes[-1] < 2 * sizes[0]


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 1), (7, 7), (20, 20), (65, 21)])
def test_short_series_keep_twenty_segments(n, expected):
    assert len(np.unique(segment_groups(np.arange(float(n))))) == expected


@pytest.mark.parametrize(("statistic", "tied"), [(np.mean, False), (np.var, False), (np.mean, True)])
def test_groups_of_one_are_scipys_bca_interval(statistic, tied):
    n = 30
    x = np.random.default_rng(0).lognormal(sigma=1.0, size=n)
    if tied:
        x = np.arange(n) % 10 > 0
    expanded = 1 - 2 * scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)))
    low, high = scipy.stats.bootstrap(
        (x,), statistic, confidence_level=expanded, n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    near = pytest.approx((low, high), abs=0.03 * (high - low))
    assert grouped_statistic_bootstrap(n, lambda indices: float(statistic(x[indices])), num_resamples=10_000) == near
    if statistic is np.mean:
        assert grouped_bootstrap(x, np.arange(n), num_resamples=10_000) == near


def test_copies_within_a_group_add_no_certainty():
    right = np.random.default_rng(0).random(60) < 0.7
    once = grouped_bootstrap(right, np.arange(60))
    copied = np.repeat(right, 16)
    assert grouped_bootstrap(copied, np.repeat(np.arange(60), 16)) == pytest.approx(once)
    assert width(grouped_bootstrap(copied, np.arange(960))) == pytest.approx(width(once) / 4, rel=0.15)


def test_a_ratio_weighs_groups_by_their_denominators():
    rng = np.random.default_rng(0)
    characters = rng.integers(1, 40, 2_000)
    edits = rng.binomial(characters, 0.1)
    low, high = grouped_bootstrap(edits, np.arange(2_000), denominators=characters, num_resamples=1_500)
    ratio = edits.sum() / characters.sum()
    error = math.sqrt(np.sum((edits - ratio * characters) ** 2)) / characters.sum()
    assert (low, high) == pytest.approx((ratio - 1.96 * error, ratio + 1.96 * error), abs=0.25 * error)


def test_units_may_come_in_any_order_and_ids_be_names():
    rng = np.random.default_rng(0)
    values, groups = rng.random(90), np.repeat(np.arange(15), 6)
    order = rng.permutation(90)
    names = np.array([f"track {g:02d}" for g in groups])
    assert grouped_bootstrap(values[order], names[order]) == pytest.approx(grouped_bootstrap(values, groups))


def test_nothing_or_everything_right_still_has_a_far_end():
    groups = np.repeat(np.arange(30), 5)
    exact = scipy.stats.binomtest(30, 30).proportion_ci(0.95, method="exact")
    assert grouped_bootstrap(np.ones(150), groups) == pytest.approx((exact.low, 1.0))
    assert grouped_bootstrap(np.zeros(150), groups) == pytest.approx((0.0, 1 - exact.low))
    assert grouped_bootstrap(np.full(150, 3), groups, denominators=np.full(150, 3)) == pytest.approx((exact.low, 1.0))


def test_the_interval_of_a_share_stays_a_share():
    right = np.ones(40)
    right[3] = 0
    low, high = grouped_bootstrap(right, np.arange(40))
    assert 0.7 < low < 0.975 <= high <= 1


def test_what_has_no_interval():
    assert grouped_bootstrap([], []) is None
    assert grouped_bootstrap([1, 0, 1], ["a", "a", "a"]) is None
    assert grouped_bootstrap([0, 0], [1, 2], denominators=[0, 0]) is None
    assert grouped_statistic_bootstrap(1, lambda indices: 1.0) is None


def test_grouped_bootstrap_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="lengths differ: 2 values, 3 groups, 2 denominators"):
        grouped_bootstrap([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="a denominator is negative"):
        grouped_bootstrap([1, 2], [1, 2], denominators=[1, -1])
    with pytest.raises(ValueError, match="value 1 is nan"):
        grouped_bootstrap([1, math.nan], [1, 2])


def test_any_statistic_gets_the_same_interval_as_the_ratio():
    x = np.random.default_rng(0).gamma(2.0, size=(40, 5))
    general = grouped_statistic_bootstrap(40, lambda indices: float(x[indices].mean()), num_resamples=4_000, seed=5)
    ratio = grouped_bootstrap(x.reshape(-1), np.repeat(np.arange(40), 5), num_resamples=4_000)
    assert general == pytest.approx(ratio, abs=0.06 * width(ratio))


def test_a_statistic_is_given_whole_draws():
    seen = []
    grouped_statistic_bootstrap(10, lambda indices: float(seen.append(indices) or indices.mean()), num_resamples=50)
    assert seen[0].tolist() == list(range(10))
    assert [len(indices) for indices in seen] == [10] * 51 + [9] * 10
    assert any(len(set(indices.tolist())) < 10 for indices in seen[1:51])
    assert seen[51].tolist() == list(range(1, 10))


def test_an_undefined_statistic_has_no_interval():
    def only_with_group(first):
        return lambda indices: float(indices.mean()) if first in indices else math.nan

    assert grouped_statistic_bootstrap(10, only_with_group(0)) is None
    assert grouped_statistic_bootstrap(10, lambda indices: math.nan) is None


def test_what_is_rarely_undefined_is_left_out():
    def interval(undefined_resample, undefined_without_group):
        values = [1.0, *np.linspace(0, 2, 99), undefined_resample, undefined_without_group, *([1.1] * 8), -1.0]
        replayed = iter(values)
        return grouped_statistic_bootstrap(10, lambda indices: float(next(replayed)), num_resamples=100)

    assert interval(math.nan, math.nan) == pytest.approx(interval(1.0, 1.0), abs=0.02)
