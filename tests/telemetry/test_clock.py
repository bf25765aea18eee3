"""The clock is monotonic and anchored once to the date."""

import time

from mlotel_cli.telemetry import clock
from mlotel_cli.telemetry.clock import Clock


def test_the_anchor_turns_readings_into_dates() -> None:
    before = time.time_ns()
    date = Clock().now() + Clock().epoch_offset_ns
    assert abs(date - before) < 50_000_000


def test_an_anchor_that_is_given_is_taken() -> None:
    assert Clock(lambda: 5, epoch_offset_ns=7).epoch_offset_ns == 7


def test_the_tightest_of_five_readings_counts(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    readings = iter([0, 1000, 2000, 2004, 3000, 4000, 5000, 6000, 7000, 8000])
    dates = iter([99, 10_002, 99, 99, 99])
    monkeypatch.setattr(time, "time_ns", lambda: next(dates))
    assert clock._measure_offset(lambda: next(readings)) == 10_002 - 2002
