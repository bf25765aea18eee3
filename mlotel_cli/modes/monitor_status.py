"""What a monitor says of itself, once a second: to its recorder, and to whoever looks at the terminal."""

import json
import os
import resource
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console

from mlotel_cli.modes.display import sayer

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LINE_EVERY_S = 10.0


class Status:
    """What is known of the run, shown on a terminal."""

    def __init__(self, console: Console) -> None:
        """Nothing is known yet."""
        self._console = console
        self.say = sayer(console)
        self.snapshot: Mapping[str, Any] = {}
        self._said_s = time.monotonic()

    def hear(self, snapshot: Mapping[str, Any]) -> None:
        """Take the recorder's newest figures; on the listening thread."""
        self.snapshot = snapshot

    def refresh(self) -> None:
        """Show what is new."""
        now = time.monotonic()
        if now - self._said_s >= _LINE_EVERY_S:
            self._said_s = now
            if self.snapshot:
                self.say(json.dumps(self.snapshot))

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""


class Watched(Protocol):
    """What a ticker reports of."""

    feed: Any

    @property
    def gaps(self) -> dict[str, int]:
        """What is missing from the record."""
        ...

    def depths(self) -> dict[str, tuple[int, int]]:
        """Depth and capacity of every queue."""
        ...

    def send(self, message: str) -> None:
        """Tell the recorder."""
        ...


class Ticker(threading.Thread):
    """Tells the recorder once a second how the workload is doing, whatever the main thread is busy with."""

    def __init__(self, watched: Watched, status: Status, *, every_s: float = 1.0) -> None:
        """Prepare; `start` begins."""
        super().__init__(name="mlotel-live", daemon=True)
        self._watched = watched
        self._status = status
        self._every_s = every_s
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until `stop`, and a last time then."""
        while True:
            self._watched.send(json.dumps(self._message()))
            if self._stopped.wait(self._every_s):
                self._watched.send(json.dumps(self._message()))
                return

    def stop(self) -> None:
        """End, and wait for the last message."""
        self._stopped.set()
        self.join(2)

    def _message(self) -> dict[str, Any]:
        watched = self._watched
        return {
            "source": watched.feed.intake.report(),
            "queues": {name: list(depth) for name, depth in watched.depths().items()},
            "workload": {"rss_bytes": _rss_bytes(), "cpu_s": _cpu_s(), "pid": os.getpid()},
            "gaps": watched.gaps,
        }


def _rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
