"""What holds for every test: no deadlines, one torch thread a worker, the order, and `alone` tests run alone."""

import fcntl
import gc
import os
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest
from hypothesis import settings

settings.register_profile("busy", deadline=None)  # other workers share the cores: a slow example is no failure
settings.load_profile("busy")

if "PYTEST_XDIST_WORKER" in os.environ:  # torch reads it once; the processes that tests start inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class Room:
    """Many tests share it, one `alone` test has it to itself: a lock between the workers of one `pytest -n`.

    A test passes the gate before it enters. A test that is alone keeps the gate until the others have left.
    """

    def __init__(self, folder: Path) -> None:
        self._gate: IO[bytes] = (folder / "gate").open("wb")
        self._room: IO[bytes] = (folder / "room").open("wb")

    @contextmanager
    def entered(self, *, alone: bool) -> Generator[None]:
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)


@contextmanager
def nsys_alone() -> Generator[None]:
    """Wait until no other test of this user runs Nsight Systems: two that start at once get into each other's way."""
    with (Path(tempfile.gettempdir()) / f"mlotel-nsys-{os.getuid()}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_room = pytest.StashKey[Room]()


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own beside those of the others
        config.stash[_room] = Room(Path(config.getoption("basetemp")).parent)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes long first and what runs alone last: the workers end together, and few wait for the room."""

    def turn(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return 2 if "alone" in marks else int(not marks & {"slow", "system"})

    items.sort(key=turn)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported by now stays: no collection looks through it again


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: a test's time limit begins when it has its locks
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    room = item.config.stash.get(_room, None)
    with ExitStack() as held:
        if item.get_closest_marker("nsys") is not None:
            held.enter_context(nsys_alone())
        if room is not None:
            held.enter_context(room.entered(alone=item.get_closest_marker("alone") is not None))
        return (yield)
