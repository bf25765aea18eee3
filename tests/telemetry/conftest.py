"""Resets the telemetry after every test, so that no test affects the next."""

from tests.support.telemetry import nothing_leaks, telemetry, use

__all__ = ["nothing_leaks", "telemetry", "use"]
