"""Prefetches: a thread takes the next items from an iterator while the caller works on the current one."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetched(Generic[Item]):
    """An iterator over `make()`, which runs on a thread of its own, at most `ahead` items ahead.

    An error is raised in the place of its item. `close()`, or the end of the `with` block, ends the thread.
    """

    def __init__(self, make: Callable[[], Iterator[Item]], *, ahead: int) -> None:
        """Start the thread."""
        self._made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make,), name="decode", daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[], Iterator[Item]]) -> None:
        try:
            for item in make():
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:
            self._put((None, error))

    def _put(self, made: tuple[Item | None, BaseException | None]) -> bool:
        """Pass an item on, waiting while the caller is behind; return False once closed."""
        while not self._stop.is_set():
            try:
                self._made.put(made, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __enter__(self) -> "Prefetched[Item]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        while True:
            item, error = self._made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType]

    def close(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        self._thread.join()
