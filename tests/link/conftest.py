"""The telemetry of every test here: nothing that one test leaves on reaches the next."""

from tests.support.telemetry import nothing_leaks, telemetry, use

__all__ = ["nothing_leaks", "telemetry", "use"]
