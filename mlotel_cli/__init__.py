"""mlotel: one OpenTelemetry span for accuracy, profiling and production.

A public name is imported when it is first used, so that `mlotel --help` and your code pay only for what they use.

The words of this package:

    span           a piece of work with a name: when it began, when it ended
    batch          one step of work: what a source yields and a pipeline turns into an output
    root span      the span of a whole batch; all other spans of the batch lie below it
    trace          all spans of one batch
    stage          a named part of a pipeline; each call of it is a span
    source         yields batches: a data set, or live input such as a camera
    executor       runs the stages on the batches, in one thread or in a thread per stage
    backend        what a span becomes in this run: a measurement (otel), an NVTX range (nvtx), nothing (off)
    sample         one item of a batch, with its scores
    row            one batch in a table: status, latencies, accuracy
    settle         to say how a batch ended and what it scored; then its row is written
    workload       the process that runs the pipeline and measures its spans
    recorder       the process that makes rows of spans and owns all sinks
    link           the workload's end of the pipe to the recorder
    wire           the messages that go through that pipe
    sink           where the recorder writes: Parquet, W&B, OTLP, Prometheus
    run            one execution of a command, or of your own loop between start and end
    run directory  the folder of a run: run.json, tables, configuration, logs
    session        what a run holds open in the workload: its backend and its link
    report         what a monitor's workload tells the recorder once a second: its source and queues
    snapshot       what the recorder answers: the state of a monitor and its last minute
    summary        the figures of a whole run, in run.json
    sketch         the distribution of many values, in bounded memory
    window         the seconds that one W&B row sums up
    profile        a run that nsys or torch's profiler records, with the GPU's work by stage
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlotel_cli.metrics import Metric
    from mlotel_cli.modes.loop import start_run
    from mlotel_cli.modes.sdk import MlotelSpanProcessor, WandbSpanMetricsExporter
    from mlotel_cli.records import Batch
    from mlotel_cli.store.reading import read_run
    from mlotel_cli.telemetry.api import batch, record, score, span

__all__ = [
    "Batch",
    "Metric",
    "MlotelSpanProcessor",
    "WandbSpanMetricsExporter",
    "batch",
    "read_run",
    "record",
    "score",
    "span",
    "start_run",
]

_HOMES = {
    "Batch": "mlotel_cli.records",
    "Metric": "mlotel_cli.metrics",
    "MlotelSpanProcessor": "mlotel_cli.modes.sdk",
    "WandbSpanMetricsExporter": "mlotel_cli.modes.sdk",
    "batch": "mlotel_cli.telemetry.api",
    "read_run": "mlotel_cli.store.reading",
    "record": "mlotel_cli.telemetry.api",
    "score": "mlotel_cli.telemetry.api",
    "span": "mlotel_cli.telemetry.api",
    "start_run": "mlotel_cli.modes.loop",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mlotel_cli' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
