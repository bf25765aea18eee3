"""The number of effective values that a figure takes. Without numpy, because tables and pages load this module."""

MIN_EFFECTIVE_N = {"p90": 36, "p95": 72, "p99": 368, "p99.9": 3687}
"""Fewest effective values for a percentile. Below, its two-sided 95 % order-statistic interval has no upper end."""
MIN_EFFECTIVE_N_INTERVAL = 6
"""Fewest effective values for the interval of mean and median: 2 * 0.5 ** 6 < 5 %, five do not bound a median."""
