"""Effective sample size and block length agree with theory and with plain loops written from the papers."""

import math

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.stats.autocorrelation import block_length, effective_sample_size, finite_series, geyer_size, ranks


def ar1(phi, n, *, seed=0):
    noise = np.random.default_rng(seed).standard_normal(n + 500) * math.sqrt(1 - phi**2)
    return scipy.signal.lfilter([1], [1, -phi], noise)[500:]


def autocorrelations(x):
    centred = np.asarray(x, dtype=float) - np.mean(x)
    return [float(centred[: len(x) - k] @ centred[k:]) / float(centred @ centred) for k in range(len(x))]


def geyer_by_loop(x):
    rho, n = autocorrelations(x), len(x)
    total, smallest, pairs = 0.0, math.inf, 0
    for k in range(0, n - 1, 2):
        if rho[k] + rho[k + 1] <= 0:
            break
        smallest = min(smallest, rho[k] + rho[k + 1])
        total += smallest
        pairs += 1
    tau = (2 * total - 1) / max(1 - 4 * pairs / n, 0.5)
    return min(max(n / tau, 1), n) if tau > 0 else n


def politis_white_by_loop(x):
    n = len(x)
    rho = autocorrelations(x)
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    most = min(math.ceil(math.sqrt(n)) + run, n - 1)
    small = [abs(r) < 2 * math.sqrt(math.log10(n) / n) for r in rho[: most + 1]] + [True] * run
    m = next(m for m in range(1, most + 1) if all(small[m + 1 : m + run + 1]))
    width = min(2 * m, most)
    g_hat = spectrum = 0.0
    for k in range(-width, width + 1):
        t = abs(k) / width
        weight = 1.0 if t <= 0.5 else max(0.0, 2 * (1 - t))
        g_hat += weight * abs(k) * rho[abs(k)]
        spectrum += weight * rho[abs(k)]
    length = (2 * g_hat**2 / (4 / 3 * spectrum**2)) ** (1 / 3) * n ** (1 / 3)
    return min(max(length, 1), math.ceil(min(3 * math.sqrt(n), n / 3)))


@pytest.mark.parametrize("n", [4, 5, 30, 101, 400])
@pytest.mark.parametrize("phi", [0.0, 0.7, 0.95])
def test_geyer_size_equals_a_plain_loop(n, phi):
    x = ar1(phi, n, seed=n)
    assert geyer_size(x) == pytest.approx(geyer_by_loop(x), rel=1e-9)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_geyer_size_of_ar1_is_what_theory_says(phi):
    n = 20_000
    sizes = [geyer_size(ar1(phi, n, seed=seed)) for seed in range(10)]
    assert np.mean(sizes) == pytest.approx(n * (1 - phi) / (1 + phi), rel=0.08)


@pytest.mark.parametrize("phi", [0.5, 0.9])
def test_effective_sample_size_uses_the_rank_autocorrelation(phi):
    n = 20_000
    tau = 1 + 2 * sum(6 / math.pi * math.asin(phi**k / 2) for k in range(1, 200))
    sizes = [effective_sample_size(np.exp(3 * ar1(phi, n, seed=seed))) for seed in range(10)]
    assert np.mean(sizes) == pytest.approx(n / tau, rel=0.08)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_effective_sample_size_of_a_quantile_uses_its_indicator(q):
    n, phi = 20_000, 0.8
    z = scipy.stats.norm.ppf(q)
    both = [
        scipy.stats.multivariate_normal.cdf([z, z], cov=[[1, phi**k], [phi**k, 1]], rng=np.random.default_rng(0))
        for k in range(1, 30)
    ]
    tau = 1 + 2 * sum((p - q * q) / (q * (1 - q)) for p in both)
    sizes = [effective_sample_size(ar1(phi, n, seed=seed), q=q) for seed in range(10)]
    assert np.mean(sizes) == pytest.approx(n / tau, rel=0.08)


def test_one_huge_value_does_not_hide_that_the_others_follow_each_other():
    x = ar1(0.9, 5_000)
    honest = effective_sample_size(x)
    x[100] = 1e9
    assert effective_sample_size(x) == pytest.approx(honest, rel=0.05)
    assert geyer_size(x) > 10 * honest


def test_bursts_of_slow_values_lower_the_size_of_high_percentiles():
    x = np.random.default_rng(0).normal(size=5_000)
    x[1_000:1_050] += 100
    assert effective_sample_size(x) > 2_500
    assert effective_sample_size(x, q=0.99) < 500


def test_effective_sample_size_at_the_edges():
    assert effective_sample_size([]) == 0
    assert effective_sample_size([3.0]) == 1
    assert effective_sample_size([1.0, 5.0, 2.0]) == 3
    assert effective_sample_size([7.0] * 50) == 50
    assert effective_sample_size([7.0] * 50, q=0.99) == 50
    assert effective_sample_size([1.0, -1.0] * 50) == 100
    assert effective_sample_size(np.arange(500.0)) < 5


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_neither_depends_on_the_scale(scale):
    x = ar1(0.7, 300)
    assert geyer_size(scale * x) == pytest.approx(geyer_size(x))
    assert block_length(scale * x) == pytest.approx(block_length(x))


def test_a_percentile_that_equals_the_maximum_still_sees_its_burst():
    x = np.random.default_rng(0).uniform(size=400)
    x[200:240] = 1.0
    assert np.quantile(x, 0.95) == x.max()
    assert effective_sample_size(x, q=0.95) < 40


def test_ties_are_no_trend():
    x = np.random.default_rng(0).integers(0, 3, 2_000)
    assert ranks(np.array([5.0, 1.0, 5.0])).tolist() == [2.0, 0.5, 2.0]
    assert effective_sample_size(x) > 1_500


@given(st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=60), st.sampled_from([None, 0.5, 0.9]))
def test_effective_sample_size_lies_between_one_and_n(values, q):
    assert 1 <= effective_sample_size(values, q=q) <= len(values)


@pytest.mark.parametrize("n", [20, 150, 1_000])
@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.99])
def test_block_length_equals_a_plain_loop(n, phi):
    for seed in range(4):
        x = ar1(phi, n, seed=seed)
        assert block_length(x) == pytest.approx(politis_white_by_loop(x), rel=1e-6)


@pytest.mark.parametrize("phi", [0.3, 0.5, 0.8])
def test_block_length_of_ar1_is_near_the_optimum(phi):
    n = 50_000
    optimum = (2 * (2 * phi / (1 - phi**2)) ** 2 * 3 / 4 * n) ** (1 / 3)
    assert block_length(ar1(phi, n)) == pytest.approx(optimum, rel=0.25)


def test_block_length_at_the_edges():
    assert block_length([]) == block_length([1.0]) == block_length([1.0, 2.0, 3.0]) == 1
    assert block_length([4.0] * 100) == 1
    assert block_length(np.arange(100_000.0)) == math.ceil(3 * math.sqrt(100_000))
    assert block_length([1.0, -1.0] * 200) >= 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [effective_sample_size, block_length])
def test_only_finite_values(function, bad):
    with pytest.raises(ValueError, match="value 1 is"):
        function([1.0, bad, 2.0])


def test_only_a_series():
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        effective_sample_size([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        finite_series([1.0], minimum=2)
