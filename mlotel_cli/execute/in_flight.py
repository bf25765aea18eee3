"""A batch that moves through the stages of several threads, with its spans."""

import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from mlotel_cli.execute.batches import NO_PARENT, WAITING, Finished, Numbered, record_arrival, root_attributes
from mlotel_cli.records import BATCH_SPAN


class InFlight:
    """One batch in the pipeline. One thread at a time owns it; only `abandon` may be called from another thread.

    Attributes:
        ticket: its place in the order, from 0.
        numbered: the batch.
        value: output of the last stage that ran.
        is_over: True when no further stage may run: the batch failed, ended or has no items.
        mark: a stream waits for it before it reads the value; see `streams`.
    """

    __slots__ = (
        "_busy_ns",
        "_context",
        "_ends",
        "_error",
        "_root",
        "_stage",
        "_start_ns",
        "_tracer",
        "_wait_ns",
        "_waiting",
        "is_over",
        "mark",
        "numbered",
        "ticket",
        "value",
    )

    def __init__(self, numbered: Numbered, *, ticket: int, tracer: trace.Tracer, start_ns: int, wait_ns: int) -> None:
        """Open the root span of a batch that was picked up at `start_ns`, after a wait of `wait_ns` for the source."""
        self.ticket = ticket
        self.numbered = numbered
        self.value: Any = numbered.batch.data
        self.is_over = numbered.batch.size < 1
        self.mark: Any = None
        self._tracer = tracer
        self._start_ns = start_ns
        self._wait_ns = wait_ns
        self._busy_ns = 0
        self._error: Exception | None = None
        self._stage = ""
        self._root: trace.Span = trace.INVALID_SPAN
        self._waiting: trace.Span = trace.INVALID_SPAN
        self._context = NO_PARENT
        self._ends = itertools.count()  # next() is atomic, so that only one of two threads ends the batch
        if self.is_over:
            self.value = None
            return
        self._root = tracer.start_span(BATCH_SPAN, NO_PARENT, attributes=root_attributes(numbered))
        self._context = trace.set_span_in_context(self._root, NO_PARENT)
        record_arrival(tracer, numbered.batch, self._context, start_ns=start_ns)

    def offer(self, stage: str) -> None:
        """Begin the wait for a thread of `stage`."""
        if not self.is_over:
            self._waiting = self._tracer.start_span(f"queue {stage}", self._context, attributes=WAITING)

    def take(self) -> None:
        """End the wait."""
        waiting, self._waiting = self._waiting, trace.INVALID_SPAN
        waiting.end()

    def run(self, name: str, stage: Callable[[Any], Any]) -> None:
        """Run a stage in its span, which is current meanwhile; an Exception of the stage ends the batch.

        Raises:
            BaseException: other than an Exception; it also ends the batch.
        """
        try:
            with self._tracer.start_as_current_span(name, self._context):
                self.value = stage(self.value)
        except BaseException as raised:
            self._stage, self.value = name, None
            self.end(raised)
            if not isinstance(raised, Exception):
                raise

    def end(self, raised: BaseException | None = None) -> None:
        """End the root span, after the last stage or with the exception `raised`. Only the first call has an effect."""
        if next(self._ends):
            return
        self.is_over = True
        self._error = raised if isinstance(raised, Exception) else None
        try:
            if raised is None:
                self._root.end()
            else:
                self._root.__exit__(type(raised), raised, raised.__traceback__)
        except Exception as reported:  # CUDA raises the error of an earlier kernel here
            self._error, self.value = reported, None
        self._busy_ns = time.perf_counter_ns() - self._start_ns

    def abandon(self, why: str) -> None:
        """End the spans of a batch that the run does not finish, with the status description `why`."""
        self.take()
        if next(self._ends):
            return
        self.is_over = True
        self._root.set_status(Status(StatusCode.ERROR, why))
        with suppress(Exception):  # a broken device raises at every call; the span is recorded anyway
            self._root.end()

    def finished(self) -> Finished:
        """Return the executor's result for this batch."""
        error = self._error
        return Finished(
            self.numbered,
            self.value if error is None else None,
            error,
            self._stage if error is not None else "",
            self._root,
            self._start_ns,
            self._wait_ns,
            self._busy_ns,
        )
