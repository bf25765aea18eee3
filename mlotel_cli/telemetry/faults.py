"""Telemetry's own mistakes: said once, counted always, raised only when asked to. Never breaks the workload."""

import logging
import threading

from mlotel_cli.errors import MlotelError

logger = logging.getLogger("mlotel.telemetry")


class TelemetryError(MlotelError):
    """A telemetry call was wrong and `telemetry.strict=true` asked to hear about it."""


class Faults:
    """Counts faults by kind; thread-safe, off the hot path."""

    def __init__(self, *, strict: bool = False) -> None:
        """With `strict`, every fault raises TelemetryError instead of being logged."""
        self.strict = strict
        self._lock = threading.RLock()  # a generator that is collected meanwhile may report too
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
            logger.warning("%s (said once; further ones are counted)", message)

    def counts(self) -> dict[str, int]:
        """How often each kind happened."""
        with self._lock:
            return dict(self._counts)
