"""How figures look to a reader: numbers, withheld percentiles, durations."""

import math

from mlotel_cli.stats.thresholds import MIN_EFFECTIVE_N

# -- numbers ---------------------------------------------------------------------------------------------------------


def figure(value: float | None, *, missing: str = "") -> str:
    """Return a number with three digits or more and at most three decimals: 1,234 or 12.35 or 0.012."""
    if value is None:
        return missing
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def significant(value: float | None, *, digits: int = 3, missing: str = "") -> str:
    """Return a number with so many significant digits and a full whole part: 1,234 or 12.3 or 0.0123 or 1.2e-05."""
    if value is None:
        return missing
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 0.001 or not value else f"{value:.1e}"


def withheld(name: str) -> str:
    """Return what stands in place of a percentile of too few values: `n<72` for p95."""
    return f"n<{MIN_EFFECTIVE_N[name]}"


def percentile(name: str, value: float | None, *, count: int = 1, missing: str = "") -> str:
    """Return the figure of `name`, or `n<72` if it is None because `count` values are too few for it."""
    if value is None and count and name in MIN_EFFECTIVE_N:
        return withheld(name)
    return figure(value, missing=missing)


# -- durations -------------------------------------------------------------------------------------------------------


def format_ms(duration_ns: float) -> str:
    """Return milliseconds with three digits or so, without unit: 123 or 12.3 or 0.012."""
    ms = duration_ns / 1e6
    return f"{ms:.1f}" if 10 <= ms < 100 else figure(ms)


def format_tick(time_ns: int, step_ns: int) -> str:
    """Return a tick's label in milliseconds, with the decimals that its step needs."""
    digits = max(0, min(6, 6 - math.floor(math.log10(step_ns)))) if step_ns else 0
    text = f"{time_ns / 1e6:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text and time_ns == 0 else text


def clock(seconds: float) -> str:
    """Return a duration as a clock shows it: 02:03:04, or 1d 02:03:04."""
    days, hours, minutes, rest = _units(seconds)
    return (f"{days}d " if days else "") + f"{hours:02}:{minutes:02}:{rest:02}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 3 h 12 min."""
    days, hours, minutes, rest = _units(seconds)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes and not rest else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _units(seconds: float) -> tuple[int, int, int, int]:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return days, hours, minutes, rest
