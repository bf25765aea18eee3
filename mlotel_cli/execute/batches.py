"""What goes into an executor and what comes out, and the spans that both kinds of executor open around a batch."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.context.context import Context

from mlotel_cli.records import BATCH_INDEX, BATCH_SIZE, KIND, Batch
from mlotel_cli.telemetry.clock import CLOCK

NO_PARENT = Context()
WAITING: Mapping[str, str] = {KIND: "queue"}
"""Attributes of a span in which a batch waits: it is no stage."""


@dataclass(slots=True)
class Numbered:
    """A batch with its number in the run and the pass it belongs to."""

    index: int
    repeat: int
    batch: Batch


@dataclass(slots=True)
class Finished:
    """A batch that went through, or failed on the way.

    Attributes:
        output: what the last stage returned; None after a failure.
        error: what a stage raised.
        stage: the stage that raised; empty where unknown.
        root: the batch's root span.
        start_ns: when it was picked up, `perf_counter_ns`.
        wait_ns: how long the source took to deliver it.
        busy_ns: from pick-up until it was through, whether spans were recorded or not.
    """

    numbered: Numbered
    output: Any
    error: Exception | None
    stage: str
    root: trace.Span
    start_ns: int
    wait_ns: int
    busy_ns: int = 0


WaitForRoom = Callable[[], None]
"""Called between batches, outside every root span; returns when the executor may pick up the next one."""


def never() -> None:
    """There is always room."""


class Executor(Protocol):
    """Runs batches through the stages.

    Attributes:
        is_concurrent: whether several batches are under way at once, the caller's own work beside them.
    """

    is_concurrent: bool

    def run(self, batches: Iterator[Numbered], *, wait_for_room: WaitForRoom = never) -> Generator[Finished]:
        """Yield every batch once, in order, when it is through; an Exception of a stage is the batch's.

        What the source or `wait_for_room` raises is raised here, after the batches before it. Close the generator
        when you leave it early: `with contextlib.closing(executor.run(...)) as running`.
        """
        ...

    def outputs(self, data: Any) -> Iterator[tuple[str, Any]]:
        """Run `data` through on the calling thread, outside any span of its own: each stage's name and output."""
        ...

    def depths(self) -> dict[str, tuple[int, int]]:
        """Batches that wait before each stage now, and how many may; empty where none ever do."""
        ...


def root_attributes(numbered: Numbered) -> dict[str, Any]:
    """Attributes of a batch's root span."""
    return {BATCH_INDEX: numbered.index, BATCH_SIZE: numbered.batch.size}


def record_arrival(tracer: trace.Tracer, batch: Batch, context: Context | None, *, start_ns: int) -> None:
    """For live input, the span `queue source`: from its arrival until it was picked up at `start_ns`.

    The parent is in `context`, or current.
    """
    arrived_ns = batch.source_time_ns
    if arrived_ns is not None:
        offset = CLOCK.epoch_offset_ns
        began_ns = min(int(arrived_ns), start_ns) + offset
        span = tracer.start_span("queue source", context, attributes=WAITING, start_time=began_ns)
        span.end(start_ns + offset)
