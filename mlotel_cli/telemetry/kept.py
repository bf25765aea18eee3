"""Values of `record()` in a program whose spans are ranges of a profiler: kept here, because ranges carry none."""

import threading

_BATCHES = 1_000
"""Batches kept at most: a program that nobody takes values from must not fill its memory."""


class KeptValues:
    """Values by batch, until they are taken; those of the newest batches. Safe from any thread."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._values: dict[int, list[tuple[str, float, str]]] = {}
        self._lock = threading.Lock()

    def keep(self, batch: int, name: str, value: float, unit: str) -> None:
        """One value of one batch."""
        with self._lock:
            if batch not in self._values and len(self._values) >= _BATCHES:
                del self._values[next(iter(self._values))]
            self._values.setdefault(batch, []).append((name, value, unit))

    def take(self, batch: int) -> list[tuple[str, float, str]]:
        """What was kept of a batch: (name, value, unit), in order; once."""
        with self._lock:
            return self._values.pop(batch, [])
