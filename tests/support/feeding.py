"""A source that a test feeds by hand, item by item."""

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

_END = object()


class HandFed:
    """Yields what `feed` was given; ends after `end`, fails after `fail`."""

    def __init__(self, *items: Any) -> None:
        self.waiting: queue.Queue[Any] = queue.Queue()
        self.closed = 0
        self.feed(*items)

    def feed(self, *items: Any) -> None:
        for item in items:
            self.waiting.put(item)

    def end(self) -> None:
        self.waiting.put(_END)

    def fail(self, error: BaseException) -> None:
        self.waiting.put(error)

    def __iter__(self) -> Iterator[Any]:
        while (item := self.waiting.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        self.closed += 1
        self.end()


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` says as soon as it holds."""
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.002)
    raise AssertionError("it never held")
