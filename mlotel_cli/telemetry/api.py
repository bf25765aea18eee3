"""The four calls that user code may make, and the provider that they and every OpenTelemetry tracer use.

`span`, `batch`, `record` and `score` go through the OpenTelemetry API, so that they also work in a program that has its own
SDK provider.
"""

import logging
import math
import os
from collections.abc import Mapping
from numbers import Real
from typing import Any

from opentelemetry import trace

from mlotel_cli.records import BATCH_INDEX, BATCH_SIZE, BATCH_SPAN, RECORDED, SCORED
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.off import OFF, OffSpan
from mlotel_cli.telemetry.tracer import Backend, Provider, Recording, Span

logger = logging.getLogger("mlotel.telemetry")

SCOPE = "mlotel"
_NOT_APPLIED = (
    "OTEL_TRACES_SAMPLER",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
)
PROVIDER = Provider(OFF)
_own_tracer: trace.Tracer = PROVIDER.get_tracer(SCOPE)
_tracer: trace.Tracer = trace.get_tracer(SCOPE)  # the program's own provider, until `install` says otherwise
_off_spans: dict[str, OffSpan] = {}
_faults = Faults()


def install() -> bool:
    """Make PROVIDER the process's TracerProvider, before user code is imported; again is harmless.

    Returns:
        False when the program has set a provider of its own: `span` and `batch` then use that one.
    """
    global _tracer
    current = trace.get_tracer_provider()
    if isinstance(current, trace.ProxyTracerProvider):
        trace.set_tracer_provider(PROVIDER)
    elif current is not PROVIDER:
        logger.warning(
            "This program already has a TracerProvider (%s): its spans reach mlotel through "
            "provider.add_span_processor(mlotel_cli.MlotelSpanProcessor())",
            type(current).__name__,
        )
        return False
    _tracer = _own_tracer
    for name in _NOT_APPLIED:
        if os.environ.get(name):
            logger.warning("%s=%s does not apply: mlotel records every span, whole", name, os.environ[name])
    return True


def use(backend: Backend) -> None:
    """From now on spans become what `backend` makes of them."""
    if isinstance(backend, Recording):
        backend.processors = PROVIDER.processors
    PROVIDER.backend = backend


def span(name: str, attributes: Mapping[str, Any] | None = None) -> Any:
    """Open a span and make it current: a context manager and a decorator.

    Short for `opentelemetry.trace.get_tracer("mlotel").start_as_current_span(name, attributes=attributes)`.
    """
    if PROVIDER.backend is OFF and attributes is None and _tracer is _own_tracer:
        found = _off_spans.get(name)
        if found is not None:
            return found
        if len(_off_spans) < 1000:  # names are few; a generated one must not fill the memory
            return _off_spans.setdefault(name, OffSpan(_tracer, name))
    return _tracer.start_as_current_span(name, attributes=attributes)


def batch(index: int, *, size: int = 1) -> Any:
    """Open the root span of one batch, for a program that owns its loop.

    Args:
        index: number of the batch in the run; joins its spans, its row and its W&B step. Every index once.
        size: number of items in it; throughput counts them.
    """
    return _tracer.start_as_current_span(BATCH_SPAN, attributes={BATCH_INDEX: index, BATCH_SIZE: size})


def record(name: str, value: float, *, unit: str | None = None) -> None:
    """Keep a domain value with the batch that is being processed, such as the number of detections.

    It becomes `data/<name>` in W&B and `data.<name>` in Parquet; recorded several times in one batch, the row has
    the mean. Goes with the current span; outside any span it is left out, counted and said once.

    Args:
        name: name of the value.
        value: a finite Python number. A tensor is refused: reading it would make the host wait for the device.
        unit: its unit, as UCUM text such as "ms", "By" or "{detection}".
    """
    current = _find_span("record", name, value)
    if isinstance(current, Span):
        current.record(name, float(value), unit or "")
    elif current is not None:
        current.set_attribute(RECORDED + name, float(value))
        if unit:
            current.set_attribute(f"{RECORDED}{name}.unit", unit)


def score(name: str, value: float) -> None:
    """Keep the accuracy of the batch that is being processed, for a program that owns its loop.

    It becomes `accuracy/<name>` in W&B, in the row of the batch's latencies. (`mlotel eval` scores by its metrics.)

    Args:
        name: name of the metric.
        value: this batch's score, a finite Python number; a tensor is refused as in `record`.
    """
    current = _find_span("score", name, value)
    if current is not None:
        current.set_attribute(SCORED + name, float(value))


def _find_span(call: str, name: str, value: object) -> trace.Span | None:
    """The span that a value goes with; None, and a fault, when value or place is wrong."""
    current = trace.get_current_span()
    if not isinstance(value, Real) or not math.isfinite(value):
        what = "a tensor" if type(value).__module__.startswith("torch") else repr(value)
        _fault(current, f"{call}({name!r}, ...): {what} is no finite Python number; it is left out")
        return None
    if current.is_recording():
        return current
    if isinstance(PROVIDER.backend, Recording):  # ranges and nothing keep no values
        _fault(current, f"{call}({name!r}, ...) outside any running span belongs to no batch; it is left out")
    return None


def _fault(current: Any, message: str) -> None:
    backend = PROVIDER.backend
    faults = current._recording.faults if isinstance(current, Span) else getattr(backend, "faults", _faults)
    faults.add("record", message)


def _stop_in_child() -> None:
    """A forked child, such as a data loader's worker, has no recorder link: it records nothing."""
    PROVIDER.backend = OFF


os.register_at_fork(after_in_child=_stop_in_child)
