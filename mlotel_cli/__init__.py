"""mlotel: one OpenTelemetry span for accuracy, profiling and production.

The public names, imported when they are first used, so that `mlotel --help` and user code pay for what they take.
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
