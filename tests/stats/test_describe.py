"""The description of a series agrees with numpy, scipy and arithmetic."""

import ast
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.stats import autocorrelation, bootstrap
from mlotel_cli.stats import describe as stats
from mlotel_cli.stats.autocorrelation import block_length, effective_sample_size
from mlotel_cli.stats.bootstrap import block_bootstrap
from mlotel_cli.stats.describe import MIN_EFFECTIVE_N, cold_start, describe, paired_difference, quantile, trend
from mlotel_cli.stats.description import Description, Intervals
from mlotel_cli.typed_json import from_json, to_json

PERCENTILES = ("p50", "p90", "p95", "p99")


def evenly_spread(n):
    """Return a series as informative as an independent one: the golden ratio's multiples never cluster."""
    return np.arange(1, n + 1) * (math.sqrt(5) - 1) / 2 % 1


def wander(phi, n, *, seed=0):
    return scipy.signal.lfilter([1], [1, -phi], np.random.default_rng(seed).standard_normal(n))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_equals_a_sort_and_an_interpolation(values, q):
    ordered = sorted(values)
    position = q * (len(values) - 1)
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    assert quantile(values, q) == pytest.approx(low + (high - low) * (position % 1), abs=1e-6)


def test_quantile_refuses_what_has_none():
    with pytest.raises(ValueError, match="at least 1 values, got 0"):
        quantile([], 0.5)
    with pytest.raises(ValueError, match="value 1 is inf"):
        quantile([1.0, math.inf], 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        quantile([1.0], 1.5)


def test_describe_has_the_form_of_run_json():
    x = np.random.default_rng(0).lognormal(size=2_000)
    description = describe(x)
    told = to_json(description)
    assert list(told) == ["count", "effective_n", "mean", "p50", "p90", "p95", "p99", "max", "ci95"]
    assert list(told["ci95"]) == ["mean", *PERCENTILES]
    assert json.loads(json.dumps(told)) == told
    assert from_json(Description, told) == description
    assert description.count == 2_000
    assert description.mean == pytest.approx(x.mean())
    assert description.max == x.max()
    assert description.effective_n == int(effective_sample_size(x))
    for name in PERCENTILES:
        assert description.figure(name) == pytest.approx(np.percentile(x, float(name[1:])))
    intervals = block_bootstrap(x, ["mean", *PERCENTILES])
    assert description.ci95 == Intervals(**intervals)
    assert describe(x, seed=1).ci95 != description.ci95


def test_describe_of_nothing():
    description = describe([])
    assert description.count == 0
    assert {getattr(description, name) for name in ("effective_n", "mean", "max", *PERCENTILES)} == {None}
    assert description.ci95 == Intervals()


@pytest.mark.parametrize(("name", "needed"), [("p90", 36), ("p95", 72), ("p99", 368)])
def test_a_percentile_is_given_from_its_effective_sample_size_on(name, needed):
    assert MIN_EFFECTIVE_N[name] == needed
    enough, short = describe(evenly_spread(needed)), describe(evenly_spread(needed - 1))
    assert enough.effective_n == needed
    assert enough.figure(name) == pytest.approx(np.percentile(evenly_spread(needed), float(name[1:])))
    assert len(getattr(enough.ci95, name)) == 2
    assert short.figure(name) is None
    assert getattr(short.ci95, name) is None


@pytest.mark.parametrize(("share", "needed"), [("p90", 36), ("p95", 72), ("p99", 368), ("p99.9", 3687)])
def test_the_least_sizes_are_where_the_order_statistic_interval_begins(share, needed):
    q = float(share[1:]) / 100
    assert MIN_EFFECTIVE_N[share] == needed
    assert needed == pytest.approx(math.log(0.025) / math.log(q), abs=1)


def test_a_correlated_series_is_short_however_many_values_it_has():
    x = wander(0.98, 1_000)
    description = describe(x)
    assert description.effective_n < 36
    assert effective_sample_size(x, q=0.9) < 36
    assert description.p90 is description.p99 is None
    assert description.p50 is not None


def test_a_burst_withholds_only_the_percentile_it_carries():
    x = np.random.default_rng(0).normal(size=2_000)
    x[700:720] += 50
    description = describe(x)
    assert description.p99 is None
    assert description.p95 is not None
    assert description.effective_n > 1_000


def test_few_values_have_a_median_but_no_interval():
    assert describe([3]).p50 == 3
    five, six = describe([1, 5, 2, 4, 3]), describe([1, 6, 2, 5, 3, 4])
    assert (five.p50, five.ci95.p50, five.ci95.mean) == (3, None, None)
    assert six.effective_n == 6
    assert six.ci95.p50[0] < 3.5 < six.ci95.p50[1]
    assert six.ci95.mean[0] < 3.5 < six.ci95.mean[1]


def test_describe_without_intervals_is_the_same_otherwise():
    x = np.random.default_rng(0).lognormal(size=500)
    plain, full = describe(x, intervals=False), describe(x)
    assert plain.ci95 == Intervals()
    assert replace(plain, ci95=full.ci95) == full


@given(st.lists(st.one_of(st.floats(-1e9, 1e9), st.sampled_from([0.0, 1.0])), min_size=1, max_size=80))
def test_describe_is_ordered_whatever_comes(values):
    description = describe(values)
    shown = [figure for name in PERCENTILES if (figure := description.figure(name)) is not None]
    assert shown == sorted(shown)
    assert 1 <= description.effective_n <= description.count == len(values)
    for name in ("mean", *PERCENTILES):
        interval, figure = getattr(description.ci95, name), description.figure(name)
        if interval is not None:
            assert interval[0] <= figure + 1e-6 and figure <= interval[1] + 1e-6  # noqa: PT018


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_describe_refuses_what_is_no_number(bad):
    with pytest.raises(ValueError, match="only finite values"):
        describe([1.0, bad])


def test_trend_of_a_line_is_its_slope():
    line = trend(5 + 0.25 * np.arange(300))
    assert line.slope == pytest.approx(0.25)
    assert line.change == pytest.approx(75)
    assert line.significant
    assert trend(-0.5 * np.arange(100)).slope == pytest.approx(-0.5)


@pytest.mark.parametrize(("n", "decimals"), [(60, 9), (180, 9), (1_000, 9), (180, 0)])
def test_trend_is_theil_sen_and_mann_kendall_on_block_medians(n, decimals):
    x = 0.6 * np.arange(n) / n + np.random.default_rng(n).standard_normal(n)
    x = x.round(decimals)  # whole numbers bring ties
    found = trend(x, alpha=0.05)
    residual = x - np.polyval(np.polyfit(np.arange(n), x, 1), np.arange(n))
    longest = max(block_length(residual), block_length(scipy.stats.rankdata(residual)))
    size = math.ceil(max(1.5 * longest, n / 200))
    medians = np.median(x[n % size :].reshape(-1, size), axis=1)
    k = len(medians)
    slope = scipy.stats.theilslopes(medians)[0]
    assert found.slope == pytest.approx(slope / size)
    assert found.change == pytest.approx(slope / size * n)
    concordant = abs(sum(np.sign(medians[j] - medians[i]) for i in range(k) for j in range(i)))
    plain = scipy.stats.kendalltau(np.arange(k), medians, method="asymptotic").pvalue
    sigma = concordant / scipy.stats.norm.isf(plain / 2)  # scipy's, corrected for ties
    effective = effective_sample_size(medians - slope * np.arange(k)) / k
    score = (concordant - 1) / sigma * math.sqrt(effective)
    assert found.p_value == pytest.approx(2 * scipy.stats.norm.sf(score))
    assert found.significant == (found.p_value < 0.05)


def test_a_slow_wander_is_no_trend_and_a_drift_on_top_of_noise_is_one():
    n = 2_000
    wandering = [trend(wander(0.97, n, seed=seed)) for seed in range(40)]
    assert sum(found.significant for found in wandering) <= 2
    drifting = trend(wander(0.5, n) + np.arange(n) / n * 2)
    assert drifting.significant
    assert drifting.change == pytest.approx(2, abs=0.5)


def test_one_stall_is_no_trend():
    x = np.random.default_rng(0).normal(10, 1, 400)
    x[390:] = 500
    assert abs(trend(x).change) < 1


def test_trend_of_few_or_equal_values():
    assert trend([1.0]) == stats.Trend(0.0, 0.0, None, False)
    assert trend([1.0, 2.0, 3.0]).p_value is None
    flat = trend([4.0] * 100)
    assert (flat.slope, flat.p_value, flat.significant) == (0.0, 1.0, False)


def test_cold_start_counts_the_values_above_the_steady_state():
    x = np.concatenate([[900.0, 40.0, 12.0], 10 + evenly_spread(197)])
    found = cold_start(x)
    assert (found.first, found.num_cold, found.p_value) == (900.0, 3, 1 / 200)
    assert found.rest_p50 == pytest.approx(10.5, abs=0.02)
    assert found.significant
    assert not cold_start(x, alpha=0.001).significant


def test_an_ordinary_first_value_is_no_cold_start():
    x = 10 + evenly_spread(200)
    found = cold_start(x)
    assert found.p_value == np.mean(x >= x[0])
    assert found.num_cold == 0
    assert not found.significant
    assert cold_start([5.0, 5.0, 5.0, 5.0]).p_value == 1
    assert cold_start([9.0, 1.0, 1.0]) is None


def test_paired_difference_is_that_of_scipy():
    rng = np.random.default_rng(0)
    b = rng.normal(100, 10, 12)
    a = b * 1.03 + rng.normal(0, 1, 12)
    found = paired_difference(a, b, level=0.9)
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.9)
    assert found.num_pairs == 12
    assert found.difference == pytest.approx(np.mean(a - b))
    assert found.difference_ci == pytest.approx((expected.low, expected.high))
    assert found.ratio == pytest.approx(a.mean() / b.mean())
    residual = scipy.stats.ttest_1samp(a - found.ratio * b, 0).confidence_interval(0.9)
    assert found.ratio_ci == pytest.approx(
        (found.ratio + residual.low / b.mean(), found.ratio + residual.high / b.mean())
    )


def test_pairs_cancel_what_both_share():
    drift = np.linspace(0, 1_000, 8)
    noise = np.random.default_rng(0).normal(0, 0.1, 8)
    low, high = paired_difference(drift + 3 + noise, drift).difference_ci
    assert 2.7 < low < 3 < high < 3.3


def test_paired_difference_at_the_edges():
    assert paired_difference([3.0], [2.0]) == stats.Difference(1, 1.0, None, 1.5, None)
    assert paired_difference([1.0, 2.0], [0.0, 0.0]).ratio is None
    with pytest.raises(ValueError, match="a and b must have the same length, got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least 1"):
        paired_difference([], [])


@pytest.mark.parametrize("module", [autocorrelation, bootstrap, stats])
def test_the_module_needs_numpy_only(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.split(".")[0] for name in imported} - {"collections", "dataclasses", "functools", "math"}
    assert foreign <= {"numpy", "statistics", "typing", "mlotel_cli"}
    assert all(name.startswith("mlotel_cli.stats.") for name in imported if name.startswith("mlotel_cli"))


def test_a_withheld_percentile_withholds_those_further_out() -> None:
    # A slow wave: the share above p90 comes in long bursts, the share above p99 is single spikes.
    values = np.sin(np.arange(2_000) * 2 * np.pi / 1_000)
    values[::97] += 10.0

    description = describe(values)

    assert effective_sample_size(values, q=0.99) >= stats.MIN_EFFECTIVE_N["p99"]
    assert description.p90 is None
    assert description.p95 is description.p99 is None
