"""Wrong use of the telemetry and its own errors: each kind is logged once and counted; strict mode raises.

Without strict mode a fault never breaks the workload.
"""

import logging
import threading

from mlotel_cli.errors import MlotelError

logger = logging.getLogger("mlotel.telemetry")


class TelemetryError(MlotelError):
    """A telemetry call was wrong and `telemetry.strict=true`."""


class Faults:
    """Counts faults by kind. Thread-safe; too slow for the hot path."""

    def __init__(self, *, strict: bool = False) -> None:
        """With `strict`, every fault raises TelemetryError instead of being logged."""
        self.strict = strict
        self._lock = threading.RLock()  # the garbage collector may end a generator, which reports too
        self._counts: dict[str, int] = {}

    def add(self, kind: str, message: str) -> None:
        """Count a fault of `kind`; log `message` the first time.

        Raises:
            TelemetryError: when strict.
        """
        with self._lock:
            seen = self._counts.get(kind, 0)
            self._counts[kind] = seen + 1
        if self.strict:
            raise TelemetryError(message)
        if not seen:
            logger.warning("%s (logged once; further ones are counted)", message)

    def counts(self) -> dict[str, int]:
        """Return how often each kind happened."""
        with self._lock:
            return dict(self._counts)
