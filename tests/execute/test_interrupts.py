"""Ctrl-C at any moment on the caller's thread ends every thread and every span.

Another thread sends the signal after a random time. The tests must pass wherever the signal lands, so they do not
depend on luck. Python loses an exception that a signal raises within a weak reference's callback, such as that of a
collected Thread; the garbage collector is therefore off meanwhile.
"""

import contextlib
import gc
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mlotel_cli.execute import Inference, Numbered, PipelinedExecutor
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.tracer import Recording
from tests.support.gates import PATIENCE_S, numbered, until

ROUNDS = 60


class Landed(BaseException):
    """The error that the signal raises."""


@pytest.fixture(autouse=True)
def _signal_raises() -> Iterator[None]:
    def land(_signum: int, _frame: Any) -> None:
        raise Landed

    before = signal.signal(signal.SIGUSR1, land)
    gc.disable()
    yield
    gc.enable()
    signal.signal(signal.SIGUSR1, before)


def endless() -> Iterator[Numbered]:
    while True:
        yield from numbered(*range(50))


def consume(executor: PipelinedExecutor, after_s: float) -> None:
    caller = threading.get_ident()

    def interrupt() -> None:
        threading.Event().wait(after_s)
        signal.pthread_kill(caller, signal.SIGUSR1)

    with contextlib.closing(executor.run(endless())) as running:
        threading.Thread(target=interrupt).start()
        for _ in running:
            pass


@pytest.mark.parametrize("replicas", [{}, {"a": 2, "c": 2}])
def test_wherever_it_lands(replicas: dict[str, int]) -> None:
    draw = random.Random(1)
    before, backend = set(threading.enumerate()), api.PROVIDER.backend
    for _ in range(ROUNDS):
        gc.collect(0)
        spans: list[Any] = []
        api.use(Recording(spans.append, faults=Faults(strict=True)))
        executor = PipelinedExecutor(
            {name: lambda x: x for name in "abc"},
            inference=Inference("cpu"),
            queue_size=1,
            replicas=replicas,
            grace_s=PATIENCE_S,
        )
        try:
            with pytest.raises(Landed):
                consume(executor, draw.random() * 0.003)
        finally:
            api.use(backend)
        # A thread that was interrupted in Thread.start() may begin only now and end, or never begin (without an ident).
        until(lambda: not [thread for thread in set(threading.enumerate()) - before if thread.ident is not None])
        roots = [span for span in spans if span.name == "batch"]
        assert sum(root.count_opened() for root in roots) == len(spans)
