"""The bounded queue between two stages. It also restores the order of batches after a stage with several threads.

Entries have tickets 0, 1, 2, ... and leave in the order of their tickets. The taking side may be the main thread, so it
uses only calls that a signal cannot interrupt halfway.
"""

import threading
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any


@dataclass(slots=True)
class End:
    """The last entry of a queue.

    Attributes:
        ticket: the ticket after the last other entry.
        error: the error that ended the run; None for a normal end.
    """

    ticket: int
    error: BaseException | None = None


class OrderedQueue:
    """Holds `capacity` entries, and one more when the next entry in order would wait for later ones."""

    def __init__(self, capacity: int) -> None:
        """Create an open, empty queue."""
        self.capacity = capacity
        self._ready: SimpleQueue[Any] = SimpleQueue()
        self._early: dict[int, Any] = {}
        self._due = 0
        self._num_ready = 0
        self._is_closed = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    @property
    def depth(self) -> int:
        """Number of waiting entries."""
        return min(self._num_ready + len(self._early), self.capacity)

    def put(self, ticket: int, entry: Any) -> bool:
        """Wait for room and add the entry. An `End` needs no room; a repeated ticket is ignored.

        Returns:
            False when the queue is closed; the entry is then not added.
        """
        with self._changed:
            while not self._is_closed and not isinstance(entry, End) and not self._has_room(ticket):
                self._changed.wait()
            if self._is_closed:
                return False
            if ticket >= self._due:
                self._early.setdefault(ticket, entry)
            while self._due in self._early:
                due = self._early.pop(self._due)
                self._num_ready += not isinstance(due, End)
                self._ready.put(due)
                self._due += 1
                self._changed.notify_all()
            return True

    def get(self, timeout_s: float | None = None) -> Any:
        """Wait for the next entry and take it. An `End` stays in the queue for the next caller.

        Raises:
            Empty: when no entry came within `timeout_s`.
        """
        entry = self._ready.get(timeout=timeout_s)
        if isinstance(entry, End):
            self._ready.put(entry)
            return entry
        with self._lock:
            self._num_ready -= 1
            self._changed.notify_all()
        return entry

    def close(self, error: BaseException | None = None) -> None:
        """Refuse further entries and wake all waiting threads. Ready entries can still be taken; an `End` follows."""
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()
        self._ready.put(End(self._due, error))

    def drain(self) -> list[Any]:
        """Remove and return the remaining entries of a closed queue; an `End` stays for threads that call `get`."""
        with self._lock:
            left = list(self._early.values())
            self._early.clear()
        with suppress(Empty):
            while True:
                left.append(self._ready.get_nowait())
        self._ready.put(End(self._due))
        return [entry for entry in left if not isinstance(entry, End)]

    def _has_room(self, ticket: int) -> bool:
        waiting = self._num_ready if ticket <= self._due else self._num_ready + len(self._early)
        return waiting < self.capacity
