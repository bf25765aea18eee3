"""Spans and runs with times that a test knows, written as the recorder writes them. Times are in milliseconds."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlotel_cli.recorder.parquet_sink import ParquetSink
from mlotel_cli.records import BatchRecord, SpanRecord, StageTime

EPOCH_NS = 1_700_000_000_000_000_000


class Trace:
    """Builds the spans of one batch; the root comes first."""

    def __init__(self, batch: int, start_ms: float, end_ms: float, *, thread: str = "source", **more: Any) -> None:
        self.batch = batch
        self.spans: list[SpanRecord] = []
        self.root = self.add("batch", start_ms, end_ms, thread=thread, parent=None, **more)

    def add(
        self,
        name: str,
        start_ms: float,
        end_ms: float,
        *,
        thread: str | None = None,
        parent: SpanRecord | str | None = "root",
        **more: Any,
    ) -> SpanRecord:
        if isinstance(parent, str):
            parent = self.root
        attributes = {"batch.index": self.batch, "batch.size": 1} if parent is None else {}
        span = SpanRecord(
            trace_id=(self.batch + 1) << 64,
            span_id=((self.batch + 1) << 16) + len(self.spans) + 1,
            parent_id=parent.span_id if parent is not None else 0,
            batch=self.batch,
            name=name,
            kind=more.pop("kind", "INTERNAL"),
            scope=more.pop("scope", "mlotel"),
            thread=name if thread is None else thread,
            start_ns=EPOCH_NS + round(start_ms * 1e6),
            end_ns=EPOCH_NS + round(end_ms * 1e6),
            attributes={**attributes, **more.pop("attributes", {})},
            **more,
        )
        self.spans.append(span)
        return span

    def wait(self, stage: str, start_ms: float, end_ms: float, *, thread: str = "source") -> SpanRecord:
        return self.add(f"queue {stage}", start_ms, end_ms, thread=thread, attributes={"mlotel.kind": "queue"})


def pipelined(batch: int = 0, at_ms: float = 0.0) -> Trace:
    """100 ms: detector waits 10, takes 30 (10 of them in `resize`); reader waits 20, takes 39; 1 ms in no span."""
    trace = Trace(batch, at_ms, at_ms + 100)
    trace.wait("detector", at_ms, at_ms + 10)
    detector = trace.add("detector", at_ms + 10, at_ms + 40)
    trace.add("resize", at_ms + 15, at_ms + 25, thread="detector", parent=detector)
    trace.wait("reader", at_ms + 40, at_ms + 60, thread="detector")
    trace.add("reader", at_ms + 60, at_ms + 99)
    return trace


def row(trace: Trace, *, status: Any = "scored", error: str = "", **data: float) -> BatchRecord:
    """The row that the assembler would make of a trace."""
    record = BatchRecord(
        batch=trace.batch,
        source_batch=trace.batch,
        repeat=0,
        start_ns=trace.root.start_ns,
        size=1,
        status=status,
        latency_ms=(trace.root.end_ns - trace.root.start_ns) / 1e6,
        source_wait_ms=0.0,
        error=error,
        data=dict(data),
    )
    for span in trace.spans[1:]:
        time = record.stages.setdefault(span.name.removeprefix("queue "), StageTime())
        took_ms = (span.end_ns - span.start_ns) / 1e6
        if span.name.startswith("queue "):
            time.queue_ms = (time.queue_ms or 0.0) + took_ms
        else:
            time.host_ms += took_ms
            time.calls += 1
    return record


def write_run(folder: Path, traces: Iterable[Trace], rows: Iterable[BatchRecord] | None = None, **info: Any) -> Path:
    """A run directory of these traces; rows default to one scored row a trace."""
    folder.mkdir(parents=True, exist_ok=True)
    traces = list(traces)
    sink = ParquetSink(folder)
    for trace in traces:
        for span in trace.spans:
            sink.write_span(span)
    for record in [row(trace) for trace in traces] if rows is None else rows:
        sink.write(record)
    sink.close()
    about = {"mode": "eval", "name": "test", "run_id": "abc", "status": "complete", "identity": {"service.name": "s"}}
    (folder / "run.json").write_text(json.dumps({**about, **info}))
    return folder
