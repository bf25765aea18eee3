"""Between mlotel and the OpenTelemetry SDK, both ways.

A program with its own SDK provider gets its rows by adding one line: `MlotelSpanProcessor`, or, behind the SDK's own
batching, `WandbSpanMetricsExporter`. The other way round, an SDK span processor added to mlotel's provider is given the
`ReadableSpan` it expects. Both directions are lossless but for what BatchSpanProcessor itself drops.
"""

import itertools
import sys
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from opentelemetry.context.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Status

from mlotel_cli.errors import MlotelError
from mlotel_cli.records import BATCH_INDEX
from mlotel_cli.telemetry.handoff import Opening, RecorderLink
from mlotel_cli.telemetry.tracer import Span

_EXPORT_SETTLE_S = 6.0
"""An exporter cannot know whether a trace is whole; BatchSpanProcessor brings the rest within its 5 s."""
_TRACES_REMEMBERED = 10_000
_CLOSE_TIMEOUT_S = 100.0

_resources: dict[tuple[tuple[str, Any], ...], Resource] = {}


def readable(span: Span) -> ReadableSpan:
    """The SDK's view of an ended span. The resource honours OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES."""
    identity = tuple(sorted(span.resource_attributes.items()))
    if identity not in _resources:
        _resources[identity] = Resource.create({key: value for key, value in identity if value is not None})
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=_resources[identity],
        attributes=span.attributes,
        events=[Event(name, attributes, timestamp) for timestamp, name, attributes in span.events],
        links=[Link(context, attributes) for context, attributes in span.links],
        kind=span.kind,
        status=Status(*span.status),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=InstrumentationScope(span.scope),
    )


def pack(span: ReadableSpan, *, batch: int | None, opened: int | None) -> tuple[Any, ...]:
    """An ended SDK span as `recorder.assemble.unpack` reads it; `opened` as in `recorder.assemble.Stamp`."""
    context, parent, scope = span.context, span.parent, span.instrumentation_scope
    return (
        "span",
        context.trace_id if context else 0,
        context.span_id if context else 0,
        parent.span_id if parent else 0,
        opened,
        batch,
        span.name,
        span.kind.name,
        scope.name if scope else "",
        threading.current_thread().name,
        span.start_time or 0,
        span.end_time or span.start_time or 0,
        None,
        span.status.status_code.name,
        span.status.description or "",
        _plain(span.attributes),
        [(event.timestamp, event.name, _plain(event.attributes)) for event in span.events] or None,
        [(link.context.trace_id, link.context.span_id, _plain(link.attributes)) for link in span.links] or None,
        None,
    )


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in (attributes or {}).items()}


class LoopRun:
    """A run of somebody else's loop: a run directory and a recorder, with nobody but the spans to settle batches."""

    def __init__(self, *, name: str, directory: Path | None, tracker: Mapping[str, Any], settle_s: float) -> None:
        """Start and open a recorder.

        Raises:
            RecorderError: when it cannot be started.
        """
        self.directory = directory or Path("outputs", "loop", f"{datetime.now().astimezone():%Y-%m-%d_%H-%M-%S}")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._link = RecorderLink(self.directory, say=_say)
        self._closed = False
        self.emit = self._link.emit
        run_id = uuid.uuid4().hex[:16]
        service = Resource.create({}).attributes.get("service.name")
        opening = Opening(
            mode="loop",
            name=name,
            run_id=run_id,
            started_ns=time.time_ns(),
            identity={
                "service.name": str(service),
                "service.instance.id": str(uuid.uuid4()),
                "mlotel.run.id": run_id,
            },
            tracker=dict(tracker),
            settle_s=settle_s,
            settle_roots=True,
        )
        self._link.open(opening)

    @property
    def emitted(self) -> int:
        """Spans handed over so far."""
        return self._link.emitted

    def close(self) -> None:
        """Finish files and W&B; says where they are. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._link.close({"status": "complete"}, timeout_s=_CLOSE_TIMEOUT_S)
            _say(f"run: {self.directory}")
        except MlotelError as error:
            _say(str(error))


def tracker_settings(*, project: str, entity: str | None, group: str | None, mode: str) -> dict[str, Any]:
    """The recorder's TrackerSettings that a program can choose."""
    return {"mode": mode, "project": project, "entity": entity, "group": group}


def _say(text: str) -> None:
    sys.stderr.write(f"mlotel: {text}\n")


@dataclass(slots=True)
class _Batch:
    """What the running spans of one batch share. `index` is given when its first span ends."""

    index: int | None
    root_id: int
    opened: int = 0
    holds_batches: bool = False


class MlotelSpanProcessor(SpanProcessor):
    """Feeds a run from a program that has its own OpenTelemetry SDK provider.

        provider.add_span_processor(mlotel_cli.MlotelSpanProcessor())

    Every root span becomes a row, numbered in the order in which they finish their first span; spans that carry
    `batch.index` (`mlotel_cli.batch`) are batches themselves, and then the root above them is not. Costs the program
    what the SDK costs; recording happens in the recorder process.
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
        """Start a run.

        Args:
            name: of the run.
            directory: run directory; default outputs/loop/<date>_<time>.
            project: W&B project.
            entity: W&B team or user.
            group: W&B group.
            mode: auto | online | offline | disabled, for W&B.
            settle_s: how long a batch whose root has ended waits for children that have not.
        """
        tracker = tracker_settings(project=project, entity=entity, group=group, mode=mode)
        self._run = LoopRun(
            name=name, directory=Path(directory) if directory else None, tracker=tracker, settle_s=settle_s
        )
        self._lock = threading.Lock()
        self._of_span: dict[int, _Batch] = {}
        self._next_index = 0

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Note which batch the span belongs to."""
        parent, given = span.parent, (span.attributes or {}).get(BATCH_INDEX)
        with self._lock:
            outer = self._of_span.get(parent.span_id) if parent else None
            if outer is None or given is not None:
                if outer is not None:
                    outer.holds_batches = True
                batch = _Batch(None if given is None else int(given), span.context.span_id)
            else:
                batch = outer
            batch.opened += 1
            self._of_span[span.context.span_id] = batch

    def on_end(self, span: ReadableSpan) -> None:
        """Hand the span over."""
        context = span.context
        if context is None:
            return
        with self._lock:
            batch = self._of_span.pop(context.span_id, None)
            if batch is None:
                return
            if batch.index is None and not batch.holds_batches:
                batch.index = self._next_index
            if batch.index is not None:
                self._next_index = max(self._next_index, batch.index + 1)
            opened = batch.opened if batch.root_id == context.span_id else None
        self._run.emit(pack(span, batch=batch.index, opened=opened))

    def shutdown(self) -> None:
        """Finish the run; called by the provider's shutdown, which the SDK registers at exit."""
        self._run.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back: stamps are handed over every 50 ms."""
        return True


class WandbSpanMetricsExporter(SpanExporter):
    """Turns span durations into W&B metrics: an exporter for the SDK's own span processors.

        provider.add_span_processor(BatchSpanProcessor(mlotel_cli.WandbSpanMetricsExporter()))

    Every trace becomes one W&B row, and one row in the run directory. BatchSpanProcessor drops spans when more than 2,048
    wait; `MlotelSpanProcessor` does not.
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
        """Start a run; the arguments are those of MlotelSpanProcessor."""
        tracker = tracker_settings(project=project, entity=entity, group=group, mode=mode)
        self._run = LoopRun(
            name=name, directory=Path(directory) if directory else None, tracker=tracker, settle_s=_EXPORT_SETTLE_S
        )
        self._index = itertools.count()
        self._of_trace: OrderedDict[int, int] = OrderedDict()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand the spans over; never blocks on a sink."""
        for span in spans:
            context, parent = span.context, span.parent
            if context is None:
                continue
            is_root = parent is None or parent.is_remote
            batch = self._batch_of(context.trace_id)
            self._run.emit(pack(span, batch=batch, opened=-1 if is_root else None))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Finish the run."""
        self._run.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back."""
        return True

    def _batch_of(self, trace_id: int) -> int:
        index = self._of_trace.get(trace_id)
        if index is None:
            index = self._of_trace[trace_id] = next(self._index)
            if len(self._of_trace) > _TRACES_REMEMBERED:
                self._of_trace.popitem(last=False)
        return index
