"""Holds the values of `record()` while spans are a profiler's ranges, which cannot hold values."""

import threading

_BATCHES = 1_000
"""Most batches held: values that are never taken must not fill the memory."""


class KeptValues:
    """Holds values by batch until they are taken, for the newest batches. Thread-safe."""

    def __init__(self) -> None:
        """Start empty."""
        self._values: dict[int, list[tuple[str, float, str]]] = {}
        self._lock = threading.Lock()

    def keep(self, batch: int, name: str, value: float, unit: str) -> None:
        """Add one value of one batch."""
        with self._lock:
            if batch not in self._values and len(self._values) >= _BATCHES:
                del self._values[next(iter(self._values))]
            self._values.setdefault(batch, []).append((name, value, unit))

    def take(self, batch: int) -> list[tuple[str, float, str]]:
        """Remove and return a batch's values in order: (name, value, unit) each."""
        with self._lock:
            return self._values.pop(batch, [])
