"""The bounded queue between two stages, which also puts batches back in order behind a stage with several threads.

Entries carry tickets, 0, 1, 2, ...; they leave in the order of their tickets, whatever the order they come in. The side
that takes uses nothing but calls that are whole or not made at all when a signal interrupts them: it may be the main
thread.
"""

import threading
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any


@dataclass(slots=True)
class End:
    """Nothing comes after this: the ticket after the last entry, and the error that ended it, where one did."""

    ticket: int
    error: BaseException | None = None


class OrderedQueue:
    """Holds `capacity` entries; one more where the one that is due must not wait for those behind it."""

    def __init__(self, capacity: int) -> None:
        """An open, empty queue."""
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
        """Entries that wait now."""
        return min(self._num_ready + len(self._early), self.capacity)

    def put(self, ticket: int, entry: Any) -> bool:
        """Wait for room, and add; an `End` needs none. A ticket that was given before is ignored.

        Returns:
            False, and nothing is added, when the queue is closed.
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
        """Take the next entry; waits for it. An `End` stays, for whoever takes next.

        Raises:
            Empty: when none came within `timeout_s`.
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
        """Let nothing in any more, and wake everybody: what is ready can still be taken, then comes an `End`."""
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()
        self._ready.put(End(self._due, error))

    def drain(self) -> list[Any]:
        """Everything that is left in a closed queue; the end stays, for a thread that still comes to take."""
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
