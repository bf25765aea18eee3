"""Records a program that has its own OpenTelemetry SDK provider; the program adds one line.

The line adds a `MlotelSpanProcessor`, or a `WandbSpanMetricsExporter` behind the SDK's BatchSpanProcessor. Every span
that the BatchSpanProcessor does not drop is recorded.
"""

import itertools
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from opentelemetry.context.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext

from mlotel_cli.config.policies import TrackerOptions
from mlotel_cli.errors import MlotelError
from mlotel_cli.hardware import environment
from mlotel_cli.link.handoff import RecorderLink
from mlotel_cli.modes.opening import (
    changed_environment,
    create_opening,
    make_directory,
    recorder_imports,
    tracker_options,
)
from mlotel_cli.records import BATCH_INDEX
from mlotel_cli.telemetry.convert import pack
from mlotel_cli.wire import Closing, Info, OtlpOptions, SpanMessage

_EXPORT_SETTLE_S = 6.0
"""An exporter cannot tell whether a trace is complete; BatchSpanProcessor exports the rest within its 5 s."""
_TRACES_REMEMBERED = 10_000
_HELD_SPANS = 10_000
"""Spans of one running trace that may wait for its number: a root that never ends must not fill the memory."""
_CLOSE_TIMEOUT_S = 100.0


class LoopRun:
    """A run of a program with its own SDK: a run directory and a recorder that settles a batch when its root ends.

    Attributes:
        directory: the run directory.
    """

    def __init__(self, *, name: str, directory: str | Path | None, tracker: TrackerOptions, settle_s: float) -> None:
        """Start and open a recorder.

        Raises:
            UsageError: when `directory` holds a run already, or cannot be made.
            RecorderError: when the recorder cannot be started.
        """
        self.directory = make_directory(directory)
        imports = recorder_imports(tracker.mode)
        self._link = RecorderLink(self.directory, imports=imports, say=_say, on_death=lambda error: _say(str(error)))
        self._closed = False
        self._owner = os.getpid()
        self._machine = environment()
        opening = create_opening(mode="loop", name=name, config={}, tracker=tracker, machine=self._machine)
        service = Resource.create({}).attributes.get("service.name")
        self._link.open(
            replace(
                opening,
                identity={**opening.identity, "service.name": str(service)},
                settle_s=settle_s,
                settle_roots=True,
                otlp=OtlpOptions(from_environment=False),  # the program's own exporters read it already
            )
        )
        self._link.send(Info.of({"environment": self._machine}))

    @property
    def is_open(self) -> bool:
        """Whether the run takes spans: False after its end, when the recorder died, and in a forked child."""
        return self._link.is_open

    def emit(self, span: SpanMessage) -> None:
        """Hand a packed span over, if the run is open."""
        if self._link.is_open:
            self._link.emit(span)

    def pause(self) -> None:
        """Wait while the recorder is far behind; call it between traces."""
        self._link.pause()

    def close(self) -> None:
        """Finish files and W&B, and say where they are. Further calls do nothing."""
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        try:
            if (more := changed_environment(self._machine)) is not None:
                self._link.send(Info.of(more))
            self._link.close(Closing(), timeout_s=_CLOSE_TIMEOUT_S)
            _say(f"run: {self.directory}")
        except MlotelError as error:
            _say(str(error))


def _say(text: str) -> None:
    sys.stderr.write(f"mlotel: {text}\n")


@dataclass(slots=True)
class _Batch:
    """What the running spans of one batch share.

    Attributes:
        index: of the row; known when the root carries it, or when the root ends.
        is_row: False where the row cannot be known.
        held: ended spans, with their threads, that wait for the index.
    """

    root_id: int
    index: int | None = None
    opened: int = 0
    is_running: bool = True
    is_row: bool = True
    held: list[tuple[ReadableSpan, str]] = field(default_factory=list[tuple[ReadableSpan, str]])


class MlotelSpanProcessor(SpanProcessor):
    """Feeds a run from a program that has its own OpenTelemetry SDK provider.

        provider.add_span_processor(mlotel_cli.MlotelSpanProcessor())

    Every root span becomes a row, numbered in the order in which they end. From the first span that carries
    `batch.index` (`mlotel_cli.batch`) on, only such spans become rows. The program pays what the SDK costs; the
    recorder process does the rest. When that falls far behind, the program waits at the end of a root span.
    """

    def __init__(
        self,
        *,
        name: str = "loop",
        directory: str | Path | None = None,
        project: str = "mlotel",
        entity: str | None = None,
        group: str | None = None,
        mode: str = "auto",
        settle_s: float = 5.0,
    ) -> None:
        """Start a run. The arguments are those of `mlotel_cli.start_run`.

        Beside them, `settle_s` is how long a batch whose root has ended waits for children that have not.

        Raises:
            UsageError: when `directory` holds a run already, or `mode` is unknown.
            RecorderError: when the recorder cannot be started.
        """
        tracker = tracker_options(project=project, entity=entity, group=group, mode=mode)
        self._run = LoopRun(name=name, directory=directory, tracker=tracker, settle_s=settle_s)
        self._lock = threading.RLock()  # a generator that is garbage-collected inside may end its span
        self._of_span: dict[int, _Batch] = {}
        self._of_trace: OrderedDict[int, _Batch | None] = OrderedDict()
        self._next_index = 0
        self._shift: int | None = None

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Note which batch the span belongs to."""
        context, parent = span.context, span.parent
        given: Any = span.attributes.get(BATCH_INDEX)
        with self._lock:
            batch = None if parent is None or parent.is_remote else self._find(parent)
            if type(given) is int:
                batch = self._begin(context, self._number(given))
            elif batch is None:
                batch = self._begin(context, None)
            batch.opened += 1
            self._of_span[context.span_id] = batch

    def on_end(self, span: ReadableSpan) -> None:
        """Hand the span over as soon as its batch has a number."""
        context = span.context
        with self._lock:
            batch = None if context is None else self._of_span.pop(context.span_id, None)
            if context is None or batch is None:
                return
            batch.held.append((span, threading.current_thread().name))
            ends_batch = batch.root_id == context.span_id
            if ends_batch:
                batch.is_running = False
            elif batch.is_running and batch.index is None and len(batch.held) < _HELD_SPANS and self._shift is None:
                return
            self._hand_over(batch)
        if ends_batch:
            self._run.pause()

    def shutdown(self) -> None:
        """Finish the run; called by the provider's shutdown, which the SDK registers at exit."""
        with self._lock:
            for batch in self._of_span.values():
                if batch.held:
                    self._hand_over(batch)
        self._run.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: spans that have a number are handed over every 50 ms."""
        return True

    def _find(self, parent: SpanContext) -> _Batch | None:
        """Find the batch of a parent in this process; None for an unknown parent."""
        running = self._of_span.get(parent.span_id)
        if running is not None or parent.trace_id not in self._of_trace:
            return running
        # The parent has ended. If its trace has one batch, it is that one; among several the right one is unknown.
        return self._of_trace[parent.trace_id] or _Batch(0, is_running=False, is_row=False)

    def _begin(self, context: SpanContext, index: int | None) -> _Batch:
        batch = _Batch(context.span_id, index)
        self._of_trace[context.trace_id] = None if context.trace_id in self._of_trace else batch
        if len(self._of_trace) > _TRACES_REMEMBERED:
            self._of_trace.popitem(last=False)
        return batch

    def _number(self, given: int) -> int:
        """Return the row of a batch that the program numbers; rows of earlier root spans come before it."""
        if self._shift is None:
            self._shift = self._next_index
            if self._shift:
                _say(
                    f"{self._shift} root spans ended before the first batch: batch {given} is row {given + self._shift}"
                )
        return given + self._shift

    def _hand_over(self, batch: _Batch) -> None:
        if batch.index is None and batch.is_row and self._shift is None:
            batch.index = self._next_index
            self._next_index += 1
        for span, thread in batch.held:
            is_root = span.context is not None and span.context.span_id == batch.root_id
            opened = batch.opened if is_root and batch.index is not None else None
            self._run.emit(pack(span, batch=batch.index, opened=opened, thread=thread))
        batch.held.clear()


class WandbSpanMetricsExporter(SpanExporter):
    """Turns span durations into W&B metrics: an exporter for the SDK's own span processors.

        provider.add_span_processor(BatchSpanProcessor(mlotel_cli.WandbSpanMetricsExporter()))

    Every trace becomes one W&B row, and one row in the run directory. BatchSpanProcessor drops spans when more than
    2,048 wait; `MlotelSpanProcessor` does not.
    """

    def __init__(
        self,
        *,
        name: str = "loop",
        directory: str | Path | None = None,
        project: str = "mlotel",
        entity: str | None = None,
        group: str | None = None,
        mode: str = "auto",
    ) -> None:
        """Start a run; the arguments are those of `mlotel_cli.start_run`."""
        tracker = tracker_options(project=project, entity=entity, group=group, mode=mode)
        self._run = LoopRun(name=name, directory=directory, tracker=tracker, settle_s=_EXPORT_SETTLE_S)
        self._lock = threading.RLock()
        self._index = itertools.count()
        self._of_trace: OrderedDict[int, int] = OrderedDict()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand the spans over; wait only when the recorder is far behind."""
        if not self._run.is_open:
            return SpanExportResult.FAILURE
        for span in spans:
            context, parent = span.context, span.parent
            if context is None:
                continue
            is_root = parent is None or parent.is_remote
            batch = self._batch_of(context.trace_id)
            self._run.emit(pack(span, batch=batch, opened=-1 if is_root else None, thread=""))
        self._run.pause()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Finish the run."""
        self._run.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: no span is held back."""
        return True

    def _batch_of(self, trace_id: int) -> int:
        with self._lock:
            index = self._of_trace.get(trace_id)
            if index is None:
                index = self._of_trace[trace_id] = next(self._index)
                if len(self._of_trace) > _TRACES_REMEMBERED:
                    self._of_trace.popitem(last=False)
            return index
