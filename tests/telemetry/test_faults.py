"""Faults are logged once per kind and counted; strict mode raises them."""

import threading

import pytest

from mlotel_cli.telemetry.faults import Faults, TelemetryError


def test_said_once_and_counted_always(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults()
    for message in ("first", "second", "third"):
        faults.add("kind", message)
    faults.add("other", "fourth")
    assert faults.counts() == {"kind": 3, "other": 1}
    assert [record.message.split(" (")[0] for record in caplog.records] == ["first", "fourth"]


def test_strict_raises_and_counts() -> None:
    faults = Faults(strict=True)
    with pytest.raises(TelemetryError, match="wrong"):
        faults.add("kind", "wrong")
    assert faults.counts() == {"kind": 1}


def test_counts_are_exact_with_many_threads() -> None:
    faults = Faults()
    threads = [threading.Thread(target=lambda: [faults.add("kind", "x") for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults.counts() == {"kind": 4000}


def test_a_fault_while_one_is_being_counted_does_not_deadlock() -> None:
    faults = Faults()

    class Collected(dict[str, int]):
        def get(self, key: str, default: int = 0) -> int:  # a generator may end a span during garbage collection here
            if not self:
                self["guard"] = 1
                faults.add("inner", "x")
            return super().get(key, default)

    faults._counts = Collected()
    faults.add("outer", "x")
    assert faults.counts() == {"guard": 1, "inner": 1, "outer": 1}
