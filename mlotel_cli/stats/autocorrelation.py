"""Autocorrelation of a series: effective sample size and block length.

Pure functions of a series in order of time; they do not know statistics or intervals.

Sources, by the names used below:
    Geyer 1992         Practical Markov chain Monte Carlo, section 3.3 (initial monotone sequence)
    Vehtari 2021       Rank-normalization, folding, and localization: an improved R-hat (ESS of ranks and of quantiles)
    Politis-White      Automatic block-length selection, 2004, with the correction of Patton, Politis and White 2009
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def effective_sample_size(values: ArrayLike, *, q: float | None = None) -> float:
    """Return how many independent values contain as much information as this autocorrelated series.

    It is n / tau with tau = 1 + 2 * sum of autocorrelations, summed over Geyer's initial monotone sequence:
    neighbouring pairs of autocorrelations, until a pair sum turns negative. Subtracting the sample mean lowers every
    autocorrelation by about tau / n; dividing tau by 1 - 2 * lags / n corrects that (by a factor of two at most).

    Without `q` the autocorrelation is that of the ranks, as in Vehtari's bulk ESS: one huge value cannot hide the
    correlation of the others. With `q` it is that of the indicator "below the q-quantile", which determines the
    interval of that quantile (Vehtari's quantile ESS); it decides whether a percentile is withheld. It rises with q for
    smooth series, and falls with q where slow batches come in bursts.

    For a constant series, or fewer than four values, it is n. For a trend it is near 1.

    Returns:
        A number in [1, n], limited to n for alternating series; 0 for an empty series.

    Raises:
        ValueError: a NaN or infinite value, or `q` outside [0, 1].
    """
    x = finite_series(values)
    if x.size == 0:
        return 0.0
    return geyer_size(ranks(x) if q is None else below(x, float(np.quantile(x, q))))


def block_length(values: ArrayLike) -> float:
    """Return the Politis-White block length of the circular block bootstrap, for the mean; at least 1.

    The flat-top lag window is twice as wide as the last lag that is followed by five or more negligible
    autocorrelations (below 2 * sqrt(log10(n) / n)). The length is at most min(3 * sqrt(n), n / 3).

    Raises:
        ValueError: a NaN or infinite value.
    """
    x = finite_series(values)
    n = x.size
    covariance = _autocovariance(x)
    if n < 4 or covariance[0] <= 0:
        return 1.0
    num_negligible = max(5, math.ceil(math.sqrt(math.log10(n))))
    max_lag = min(math.ceil(math.sqrt(n)) + num_negligible, n - 1)
    large = np.flatnonzero(np.abs(covariance[1 : max_lag + 1]) >= 2 * math.sqrt(math.log10(n) / n) * covariance[0]) + 1
    # The dependence ends at the first gap between large autocorrelations that is long enough.
    edges = np.concatenate(([0], large, [max_lag + num_negligible + 1]))
    last = int(edges[np.flatnonzero(np.diff(edges) > num_negligible)[0]])
    width = min(2 * max(last, 1), max_lag)
    lags = np.arange(1, width + 1)
    window = np.clip(2 * (1 - lags / width), 0, 1) * covariance[1 : width + 1]
    bias = 2 * float(np.sum(lags * window))
    long_run = float(covariance[0] + 2 * np.sum(window))
    if long_run <= 0:  # alternating series: the flat-top window may turn negative
        long_run = float(covariance[0])
    length = (2 * bias**2 / (4 / 3 * long_run**2) * n) ** (1 / 3)
    return min(max(length, 1.0), math.ceil(min(3 * math.sqrt(n), n / 3)))


def finite_series(values: ArrayLike, *, minimum: int = 0) -> Floats:
    """Return the values as float64.

    Raises:
        ValueError: more than one dimension, fewer than `minimum` values, a NaN or infinite value.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"expected a series, got an array of shape {x.shape}")
    if x.size < minimum:
        raise ValueError(f"expected at least {minimum} values, got {x.size}")
    if not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x))[0])
        raise ValueError(f"value {bad} is {x[bad]}; only finite values can be described")
    return x


def below(x: Floats, point: float) -> Floats:
    """Return 1 for each value below the point, 0 for each above, 0.5 for each that equals it."""
    # With ties at 0.5, the indicator varies even for a percentile that equals the maximum.
    return 0.5 * (x < point) + 0.5 * (x <= point)


def ranks(x: Floats) -> Floats:
    """Return the rank of each value; equal values get the mean of their ranks."""
    ordered = np.sort(x)
    twice = np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")
    return twice.astype(np.float64) / 2


def _autocovariance(x: Floats) -> Floats:
    """Return the autocovariances of lags 0 to n - 1, divided by n, up to a common scale; 0 for a constant series."""
    n = x.size
    if n == 0 or x.min() == x.max():
        return np.zeros(max(n, 1))
    centred = x - x.mean()
    centred = centred / np.abs(centred).max()
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    return np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[:n] / n


def geyer_size(x: Floats) -> float:
    """Return the effective sample size for the mean of `x` itself; see `effective_sample_size`."""
    n = x.size
    covariance = _autocovariance(x)
    if n < 4 or covariance[0] <= 0:
        return float(n)
    pairs = (covariance[: n // 2 * 2] / covariance[0]).reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    num_pairs = int(negative[0]) if negative.size else len(pairs)
    tau = 2 * float(np.minimum.accumulate(pairs[:num_pairs]).sum()) - 1
    tau /= max(1 - 4 * num_pairs / n, 0.5)
    return float(min(max(n / tau, 1.0), n)) if tau > 0 else float(n)
