"""95 % intervals contain the true value in 95 % of simulated series that resemble a pipeline's latencies.

Every case repeats the whole of `describe` (or `grouped_bootstrap`, `trend`, `cold_start`) on new series whose true mean
and percentiles are known. The standard error of a coverage from 500 repetitions is 1 %.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy

from mlotel_cli.stats.bootstrap import grouped_bootstrap
from mlotel_cli.stats.describe import cold_start, describe, trend

pytestmark = pytest.mark.slow

SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95}
STALL_SHARE, STALL_LENGTH, STALL_MS = 0.2, 5, 6.0


@dataclass
class Process:
    """A stationary series: how to draw one, its mean and its quantiles."""

    draw: Callable[[np.random.Generator, int], np.ndarray]
    mean: float
    quantile: Callable[[float], float]


def ar1(rng, phi, n):
    noise = rng.standard_normal(n) * math.sqrt(1 - phi**2)
    noise[0] = rng.standard_normal()
    return scipy.signal.lfilter([1], [1, -phi], noise)


def normal(phi):
    return Process(lambda rng, n: ar1(rng, phi, n), 0.0, scipy.stats.norm.ppf)


def lognormal(phi, sigma):
    """Return lognormal AR(1) latencies: a long right tail, each value correlated with the previous one."""
    law = scipy.stats.lognorm(sigma)
    return Process(lambda rng, n: np.exp(sigma * ar1(rng, phi, n)), law.mean(), law.ppf)


def pareto(tail):
    law = scipy.stats.pareto(tail)
    return Process(lambda rng, n: rng.pareto(tail, n) + 1, law.mean(), law.ppf)


def stalls():
    """Return lognormal latencies with bursts of slow batches, five on average, that add an exponential delay."""
    base = scipy.stats.lognorm(0.3)
    grid = np.linspace(0, 1, 20_001)[1:-1]
    delays = scipy.stats.expon(scale=STALL_MS).ppf(grid)

    def draw(rng, n):
        stop = 1 / STALL_LENGTH
        begin = stop * STALL_SHARE / (1 - STALL_SHARE)
        stalled, now = np.zeros(n, bool), rng.random() < STALL_SHARE
        for i, u in enumerate(rng.random(n)):
            now = u > stop if now else u < begin
            stalled[i] = now
        return np.exp(0.3 * ar1(rng, 0.5, n)) + stalled * rng.exponential(STALL_MS, n)

    def cdf(x):
        return (1 - STALL_SHARE) * base.cdf(x) + STALL_SHARE * np.mean(base.cdf(x - delays))

    return Process(
        draw,
        base.mean() + STALL_SHARE * STALL_MS,
        lambda q: scipy.optimize.brentq(lambda x: float(cdf(x)) - q, 0.01, 200.0),
    )


def coverages(process, n, *, names, repetitions=500):
    truth = {name: process.mean if name == "mean" else float(process.quantile(SHARES[name])) for name in names}
    held = dict.fromkeys(names, 0)
    rng = np.random.default_rng(20)
    for seed in range(repetitions):
        intervals = describe(process.draw(rng, n), seed=seed).ci95
        for name in names:
            interval = getattr(intervals, name)
            assert interval is not None, f"{name} withheld: n={n} is too short for this case"
            held[name] += interval[0] <= truth[name] <= interval[1]
    return {name: count / repetitions for name, count in held.items()}


@pytest.mark.parametrize(
    ("make", "n"),
    [
        pytest.param(lambda: normal(0.0), 1_000, id="independent"),
        pytest.param(lambda: normal(0.5), 500, id="phi-0.5"),
        pytest.param(lambda: normal(0.9), 3_000, id="phi-0.9"),
        pytest.param(lambda: lognormal(0.0, 1.0), 1_000, id="lognormal-independent"),
        pytest.param(lambda: lognormal(0.5, 1.0), 1_500, id="lognormal-phi-0.5"),
        pytest.param(lambda: lognormal(0.9, 0.5), 4_000, id="lognormal-phi-0.9"),
        pytest.param(stalls, 4_000, id="stalls-in-bursts"),
    ],
)
def test_intervals_hold_what_they_promise(make, n):
    for name, coverage in coverages(make(), n, names=("mean", *SHARES)).items():
        assert 0.92 <= coverage <= 0.98, f"{name} covered {coverage:.1%}"


def test_mean_and_median_hold_from_fifty_effective_values():
    for name, coverage in coverages(normal(0.9), 1_000, names=("mean", "p50")).items():
        assert 0.92 <= coverage <= 0.98, f"{name} covered {coverage:.1%}"


def test_percentiles_hold_without_a_finite_variance():
    found = coverages(pareto(1.5), 1_000, names=tuple(SHARES))
    for name, coverage in found.items():
        assert 0.92 <= coverage <= 0.985, f"{name} covered {coverage:.1%}"


def test_the_simulation_notices_an_interval_that_ignores_the_correlation():
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        x = ar1(rng, 0.9, 1_000)
        low, high = scipy.stats.t.interval(0.95, 999, loc=x.mean(), scale=scipy.stats.sem(x))
        held += low <= 0 <= high
    assert held / 300 < 0.6


@pytest.mark.parametrize(("share", "num_groups"), [(0.7, 20), (0.9, 60)])
@pytest.mark.parametrize("alike", [0.0, 0.2])
def test_grouped_intervals_hold_what_they_promise(share, num_groups, alike):
    """Return the coverage for tracks of 1 to 24 samples; `alike` is the intraclass correlation."""
    rng, held, repetitions = np.random.default_rng(2), 0, 500
    scale = (1 - alike) / alike if alike else math.inf
    for seed in range(repetitions):
        sizes = rng.integers(1, 25, num_groups)
        ease = rng.beta(share * scale, (1 - share) * scale, num_groups) if alike else np.full(num_groups, share)
        right = rng.binomial(sizes, ease)
        low, high = grouped_bootstrap(right, np.arange(num_groups), denominators=sizes, num_resamples=1_000, seed=seed)
        held += low <= share <= high
    assert 0.92 <= held / repetitions <= 0.98


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_false_alarms_of_trend_are_as_rare_as_promised(phi):
    rng = np.random.default_rng(4)
    alarms = sum(trend(ar1(rng, phi, 600), alpha=0.05).significant for _ in range(600))
    assert 0.01 <= alarms / 600 <= 0.065


def test_false_alarms_of_cold_start_are_as_rare_as_promised():
    rng = np.random.default_rng(4)
    alarms = sum(cold_start(ar1(rng, 0.9, 500), alpha=0.05).significant for _ in range(2_000))
    assert 0.035 <= alarms / 2_000 <= 0.065
