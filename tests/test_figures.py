"""Numbers, withheld percentiles, durations."""

import subprocess
import sys

import pytest

from mlotel_cli.figures import clock, duration, figure, format_ms, format_tick, percentile, significant

# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,234"),
        (100.0, "100"),
        (12.345, "12.35"),
        (1.0, "1.00"),
        (0.0123, "0.012"),
        (0, "0.000"),
        (-5, "-5.00"),
    ],
)
def test_a_figure_has_three_digits_or_more(value: float, text: str) -> None:
    assert figure(value) == text
    assert figure(None) == ""
    assert figure(None, missing="-") == "-"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234.5, 3, "1,234"),
        (123.4, 3, "123"),
        (12.345, 3, "12.3"),
        (0.01234, 3, "0.0123"),
        (0.0000123, 3, "1.2e-05"),
        (0.0, 3, "0"),
        (12.3, 2, "12"),
        (1.23, 2, "1.2"),
        (1234567.0, 4, "1,234,567"),
        (-12.345, 3, "-12.3"),
    ],
)
def test_significant_digits(value: float, digits: int, text: str) -> None:
    assert significant(value, digits=digits) == text
    assert significant(None, missing="-") == "-"


def test_a_percentile_of_too_few_values_says_how_many_it_takes() -> None:
    assert percentile("p95", None) == "n<72"
    assert percentile("p99", None, count=3) == "n<368"
    assert percentile("p99", 12.345) == "12.35"
    assert percentile("p99", None, count=0, missing="-") == "-"
    assert percentile("max", None, missing="-") == "-"


# -- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ns", "text"), [(123_456_789, "123"), (12_345_678, "12.3"), (1_234_567, "1.23"), (4_321, "0.004"), (0, "0.000")]
)
def test_milliseconds_have_three_digits(ns: int, text: str) -> None:
    assert format_ms(ns) == text


@pytest.mark.parametrize(
    ("time_ns", "step_ns", "text"),
    [(0, 10**7, "0"), (20 * 10**6, 10**7, "20"), (10**6, 500_000, "1.0"), (0, 500_000, "0"), (40_000, 20_000, "0.04")],
)
def test_tick_labels_have_the_decimals_of_their_step(time_ns: int, step_ns: int, text: str) -> None:
    assert format_tick(time_ns, step_ns) == text


@pytest.mark.parametrize(
    ("seconds", "shown", "said"),
    [
        (0.4, "00:00:00", "0 s"),
        (59.9, "00:00:59", "59 s"),
        (60, "00:01:00", "1 min"),
        (72, "00:01:12", "1 min 12 s"),
        (3600, "01:00:00", "1 h 0 min"),
        (7384, "02:03:04", "2 h 3 min"),
        (93_784, "1d 02:03:04", "1 d 2 h"),
    ],
)
def test_uptimes(seconds: float, shown: str, said: str) -> None:
    assert (clock(seconds), duration(seconds)) == (shown, said)


def test_figures_cost_neither_rich_nor_numpy() -> None:
    """The recorder writes figures too."""
    script = "import sys, mlotel_cli.figures; print({'rich', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
