"""The four functions for user code, and the provider that they and every OpenTelemetry tracer use.

`span`, `batch`, `record` and `score` use the OpenTelemetry API, so that they also work in a program with its own SDK
provider.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, cast

from opentelemetry import trace

from mlotel_cli.records import BATCH_INDEX, BATCH_SIZE, BATCH_SPAN, RECORDED, SCORED
from mlotel_cli.telemetry.attributes import is_tensor
from mlotel_cli.telemetry.backends.off import OFF, OffSpan
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.kept import KeptValues
from mlotel_cli.telemetry.span import Span
from mlotel_cli.telemetry.tracer import Backend, Provider, Recording

logger = logging.getLogger("mlotel.telemetry")

SCOPE = "mlotel"
_RECORD_ALL = ("always_on", "parentbased_always_on")
_NOT_APPLIED = (
    "OTEL_TRACES_SAMPLER",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
)
PROVIDER = Provider(OFF)
_own_tracer: trace.Tracer = PROVIDER.get_tracer(SCOPE)
_tracer: trace.Tracer = trace.get_tracer(SCOPE)  # of the program's own provider, until `install` succeeds
_off_spans: dict[str, OffSpan] = {}
_faults = Faults()
_before_batch: Callable[[], None] | None = None


def install() -> bool:
    """Make PROVIDER the process's TracerProvider; call it before user code is imported. A second call does nothing.

    Returns:
        False when the program has already set its own provider: `span` and `batch` then use that one.
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
    if _tracer is not _own_tracer:
        _tracer = _own_tracer
        _warn_of_environment()
    return True


def _warn_of_environment() -> None:
    for name in _NOT_APPLIED:
        value = os.environ.get(name, "")
        if value and value not in _RECORD_ALL:
            logger.warning("%s=%s does not apply: mlotel records every span, whole", name, value)


def use(backend: Backend) -> None:
    """Pass all spans to `backend` from now on."""
    if isinstance(backend, Recording):
        backend.processors = PROVIDER.processors
    PROVIDER.backend = backend


def span(name: str, attributes: Mapping[str, Any] | None = None) -> Any:
    """Open a span and make it current; a context manager and a decorator.

    It is short for `opentelemetry.trace.get_tracer("mlotel").start_as_current_span(name, attributes=attributes)`.
    """
    if PROVIDER.backend is OFF and attributes is None and _is_ours():
        found = _off_spans.get(name)
        if found is None or found.tracer is not _tracer:
            found = OffSpan(OFF, _tracer, name)
            if len(_off_spans) < 1000:  # generated names must not fill the memory
                _off_spans[name] = found
        return found
    return _tracer.start_as_current_span(name, attributes=attributes)


def _is_ours() -> bool:
    """Return whether spans go to PROVIDER, now or once a run starts: functions may be decorated before that."""
    return _tracer is _own_tracer or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def batch(index: int, *, size: int = 1) -> Any:
    """Open the root span of one batch, for a program that owns its loop.

    Args:
        index: number of the batch in the run, unique in it; joins the batch's spans, row and W&B step.
        size: number of items in the batch; throughput counts them.
    """
    if _before_batch is not None:
        _before_batch()
    return _tracer.start_as_current_span(BATCH_SPAN, attributes={BATCH_INDEX: index, BATCH_SIZE: size})


def call_before_batches(callback: Callable[[], None] | None) -> None:
    """Make `batch` call this first, so that a run can pause its loop while the recorder is behind. None removes it."""
    global _before_batch
    _before_batch = callback


def record(name: str, value: float, *, unit: str | None = None) -> None:
    """Add a domain value to the current batch, such as the number of detections.

    It becomes `data/<name>` in W&B and `data.<name>` in Parquet; of several values in one batch, the row has the mean.
    The current span decides which batch it is. Outside any batch the value is left out, logged once and counted.

    Args:
        name: name of the value.
        value: a finite Python number. A tensor is refused: reading it would make the host wait for the device.
        unit: its unit, as UCUM text such as "ms", "By" or "{detection}".
    """
    number = _number("record", name, value)
    current = trace.get_current_span()
    kept: KeptValues | None = getattr(PROVIDER.backend, "values", None)
    if kept is not None and number is not None and (index := getattr(current, "batch", None)) is not None:
        kept.keep(index, name, number, unit or "")
        return
    if number is None or not _takes_values(current, "record", name):
        return
    if isinstance(current, Span):
        current.record(name, number, unit or "")
        return
    attributes = cast("Mapping[str, Any]", getattr(current, "attributes", None) or {})
    before = attributes.get(RECORDED + name)
    earlier = cast("tuple[float, ...]", before if isinstance(before, tuple) else () if before is None else (before,))
    current.set_attribute(RECORDED + name, (*earlier, number) if earlier else number)
    if unit:
        current.set_attribute(f"{RECORDED}{name}.unit", unit)


def score(name: str, value: float) -> None:
    """Add an accuracy to the current batch, for a program that owns its loop (`mlotel eval` uses its metrics instead).

    It becomes `accuracy/<name>` in W&B, in the row of the batch's latencies. A second call with the same name replaces
    the value.

    Args:
        name: name of the metric.
        value: this batch's score, a finite Python number; a tensor is refused as in `record`.
    """
    number = _number("score", name, value)
    current = trace.get_current_span()
    if number is not None and _takes_values(current, "score", name):
        current.set_attribute(SCORED + name, number)


def _number(call: str, name: object, value: object) -> float | None:
    """Return `value` as a finite float; report a fault and return None when `name` or `value` is not allowed."""
    if not isinstance(name, str) or not name:
        _fault(f"{call}({name!r}, ...): the name must be text; it is left out")
        return None
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except (OverflowError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    what = "a tensor" if is_tensor(value) else repr(value)
    _fault(f"{call}({name!r}, ...): {what} is not a finite Python number; it is left out")
    return None


def _takes_values(current: trace.Span, call: str, name: str) -> bool:
    """Return whether the current span can hold a value: outside a batch there is no row for it."""
    if not current.is_recording():
        if isinstance(PROVIDER.backend, Recording):  # the other backends' spans never record
            _fault(f"{call}({name!r}, ...) outside any open span belongs to no batch; it is left out")
        return False
    if isinstance(current, Span) and current.batch is None:
        _fault(f"{call}({name!r}, ...) in span {current.name!r}, which is outside any batch; it is left out")
        return False
    return True


def _fault(message: str) -> None:
    current: Any = trace.get_current_span()
    owner = current.stamping if isinstance(current, Span) else PROVIDER.backend
    faults: Faults = getattr(owner, "faults", _faults)
    faults.add("record", message)


def _stop_in_child() -> None:
    """Record nothing in a forked child, such as a data loader's worker: it has no link to the recorder."""
    PROVIDER.backend = OFF


os.register_at_fork(after_in_child=_stop_in_child)
