"""A bounded queue of spans to be sent, which drops a whole batch at a time, the oldest first."""

from collections import OrderedDict
from collections.abc import Iterable

from mlotel_cli.records import SpanRecord

_REMEMBERED = 10_000
"""Number of dropped batches that are remembered, so that their later spans are dropped too."""

Group = tuple[int, int | None]
"""Trace id and batch index: one trace may hold all batches of a program."""


class SpanQueue:
    """First in, first out, by batch; spans outside a batch are grouped by trace. Not safe from several threads.

    A full queue drops all waiting spans of the oldest batch, and later spans of that batch too. A batch or trace that
    fills the queue alone, such as one trace around a whole program, loses only its newest spans.

    Attributes:
        dropped: number of spans that found no room.
    """

    def __init__(self, size: int) -> None:
        """Hold at most `size` spans."""
        self._size = size
        self._groups: OrderedDict[Group, list[SpanRecord]] = OrderedDict()
        self._refused: OrderedDict[Group, None] = OrderedDict()
        self._num_waiting = 0
        self.dropped = 0

    def __len__(self) -> int:
        """Return the number of spans that wait."""
        return self._num_waiting

    def add(self, spans: Iterable[SpanRecord]) -> None:
        """Take ended spans, in any order."""
        groups, refused = self._groups, self._refused
        for span in spans:
            group = (span.trace_id, span.batch)
            if refused and group in refused:
                self.dropped += 1
                continue
            if self._num_waiting >= self._size and not self._make_room(group):
                self.dropped += 1
                continue
            waiting = groups.get(group)
            if waiting is None:
                groups[group] = [span]
            else:
                waiting.append(span)
            self._num_waiting += 1

    def take(self, limit: int) -> list[SpanRecord]:
        """Remove and return up to `limit` spans: the oldest batches first, and only whole batches where they fit."""
        taken: list[SpanRecord] = []
        while self._groups:
            group, waiting = next(iter(self._groups.items()))
            if taken and len(taken) + len(waiting) > limit:
                break
            if len(waiting) > limit:
                taken, self._groups[group] = waiting[:limit], waiting[limit:]
                break
            taken += waiting
            del self._groups[group]
        self._num_waiting -= len(taken)
        return taken

    def clear(self) -> int:
        """Empty the queue. Returns the number of spans removed, which do not count as dropped."""
        count, self._num_waiting = self._num_waiting, 0
        self._groups.clear()
        return count

    def _make_room(self, coming: Group) -> bool:
        """Drop the oldest batch. Returns False when the new span belongs to it, so that the caller drops it too."""
        oldest = next(iter(self._groups))
        if oldest == coming and len(self._groups) == 1:
            return False
        lost = len(self._groups.pop(oldest))
        self.dropped += lost
        self._num_waiting -= lost
        if oldest[1] is not None:
            self._refused[oldest] = None
            if len(self._refused) > _REMEMBERED:
                self._refused.popitem(last=False)
        return oldest != coming
