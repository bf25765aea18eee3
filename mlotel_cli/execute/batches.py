"""The input and output of an executor, and the spans that both kinds of executor open around a batch."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.context.context import Context

from mlotel_cli.records import BATCH_INDEX, BATCH_SIZE, KIND, Batch, Sample, Status
from mlotel_cli.telemetry.clock import CLOCK
from mlotel_cli.telemetry.span import Span
from mlotel_cli.wire import Settled

NO_PARENT = Context()
WAITING: Mapping[str, str] = {KIND: "queue"}
"""Attributes that mark the span of a wait, so that it does not count as a stage."""


@dataclass(slots=True)
class Numbered:
    """A batch, its index in the run, and the number of its pass over the source."""

    index: int
    repeat: int
    batch: Batch


@dataclass(slots=True)
class Finished:
    """A batch that passed all stages, or failed in one.

    Attributes:
        numbered: the batch.
        output: the last stage's output; None after a failure.
        error: the Exception of a stage; None without a failure.
        stage: the stage that failed; empty where unknown.
        root: the batch's root span.
        start_ns: time of its pick-up from the source, `perf_counter_ns`.
        wait_ns: time that the executor waited for the source.
        busy_ns: time from pick-up to the end, also measured without telemetry.
    """

    numbered: Numbered
    output: Any
    error: Exception | None
    stage: str
    root: trace.Span
    start_ns: int
    wait_ns: int
    busy_ns: int = 0

    def settled(
        self,
        status: Status,
        *,
        accuracy: Mapping[str, float] | None = None,
        samples: list[Sample] | None = None,
        error: str = "",
    ) -> Settled:
        """What the recorder must know of the batch, once it is scored: how it ended, and its scores."""
        batch, offset = self.numbered.batch, CLOCK.epoch_offset_ns
        return Settled(
            batch=self.numbered.index,
            source_batch=batch.index,
            repeat=self.numbered.repeat,
            size=batch.size,
            status=status,
            opened=self.root.count_opened() if isinstance(self.root, Span) else 0,
            start_ns=self.start_ns + offset,
            source_wait_ms=self.wait_ns / 1e6,
            source_time_ns=None if batch.source_time_ns is None else batch.source_time_ns + offset,
            accuracy=accuracy or {},
            samples=samples or [],
            error=error,
        )


WaitForRoom = Callable[[], None]
"""Called between batches, outside every root span; returns when the executor may pick up the next one."""


def never() -> None:
    """Return at once: there is always room."""


class Executor(Protocol):
    """Runs batches through the stages.

    Attributes:
        is_concurrent: whether several batches run at once, and beside the caller's own work.
    """

    is_concurrent: bool

    def run(self, batches: Iterator[Numbered], *, wait_for_room: WaitForRoom = never) -> Generator[Finished]:
        """Yield every batch once, in order, as it finishes. A stage's Exception is in `Finished.error`.

        An exception of the source or of `wait_for_room` is raised here, after the batches before it. Close the
        generator to end the run early: `with contextlib.closing(executor.run(...)) as running`.
        """
        ...

    def outputs(self, data: Any) -> Iterator[tuple[str, Any]]:
        """Run the stages on `data`, on the calling thread and without spans; yield each stage's name and output."""
        ...

    def depths(self) -> dict[str, tuple[int, int]]:
        """Return by stage how many batches wait before it, and how many may; empty for an executor without queues."""
        ...


def root_attributes(numbered: Numbered) -> dict[str, Any]:
    """Return the attributes of a batch's root span."""
    return {BATCH_INDEX: numbered.index, BATCH_SIZE: numbered.batch.size}


def record_arrival(tracer: trace.Tracer, batch: Batch, context: Context | None, *, start_ns: int) -> None:
    """Record a live batch's span `queue source`, from its arrival until its pick-up at `start_ns`.

    The parent is in `context`, or current. A batch without an arrival time gets no such span.
    """
    arrived_ns = batch.source_time_ns
    if arrived_ns is not None:
        offset = CLOCK.epoch_offset_ns
        began_ns = min(int(arrived_ns), start_ns) + offset
        span = tracer.start_span("queue source", context, attributes=WAITING, start_time=began_ns)
        span.end(start_ns + offset)
