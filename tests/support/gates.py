"""Stages and sources that a test opens and closes. Every wait has an end, and running into it fails the test."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from mlotel_cli.execute import Numbered
from mlotel_cli.records import Batch

PATIENCE_S = 60.0


def numbered(*data: Any, size: int = 1) -> Iterator[Numbered]:
    """Batches of these data, numbered from 0."""
    return iter([Numbered(i, 0, Batch(i, ["x"] * size, value, None, size)) for i, value in enumerate(data)])


class Gate:
    """A stage that lets everything through but what `stops` says; that waits until `open` is called."""

    def __init__(self, stops: Callable[[Any], bool] = lambda _value: True) -> None:
        self._stops = stops
        self._opened = threading.Event()
        self.reached = threading.Semaphore(0)
        self.calls: list[Any] = []

    def __call__(self, value: Any) -> Any:
        self.calls.append(value)
        if self._stops(value):
            self.reached.release()
            assert self._opened.wait(PATIENCE_S), "the gate was not opened"
        return value

    def open(self) -> None:
        self._opened.set()

    def wait_until_reached(self) -> None:
        assert self.reached.acquire(timeout=PATIENCE_S), "nothing came to the gate"


class Pace:
    """A source that gives one batch whenever `give` is called, and ends with `end`."""

    def __init__(self) -> None:
        self._allowed = threading.Semaphore(0)
        self._asked = threading.Semaphore(0)
        self._batches: list[Numbered] = []
        self._is_over = False

    def __iter__(self) -> Iterator[Numbered]:
        return self

    def __next__(self) -> Numbered:
        self._asked.release()
        assert self._allowed.acquire(timeout=PATIENCE_S), "no batch was given"
        if not self._batches:
            raise StopIteration
        return self._batches.pop(0)

    def give(self, batch: Numbered) -> None:
        self._batches.append(batch)
        self._allowed.release()

    def end(self) -> None:
        self._allowed.release()

    def wait_until_asked(self) -> None:
        assert self._asked.acquire(timeout=PATIENCE_S), "the source was not asked"


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do, in tiny steps."""
    deadline = threading.Event()
    for _ in range(int(PATIENCE_S / 0.001)):
        if condition():
            return
        deadline.wait(0.001)
    raise AssertionError("it never came true")
