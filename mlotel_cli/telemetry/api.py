"""The four calls that user code may make, and the provider that they and every OpenTelemetry tracer use.

`span`, `batch`, `record` and `score` go through the OpenTelemetry API, so that they also work in a program that has its
own SDK provider.
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
_tracer: trace.Tracer = trace.get_tracer(SCOPE)  # the program's own provider, until `install` says otherwise
_off_spans: dict[str, OffSpan] = {}
_faults = Faults()
_before_batch: Callable[[], None] | None = None


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
    """From now on spans become what `backend` makes of them."""
    if isinstance(backend, Recording):
        backend.processors = PROVIDER.processors
    PROVIDER.backend = backend


def span(name: str, attributes: Mapping[str, Any] | None = None) -> Any:
    """Open a span and make it current: a context manager and a decorator.

    Short for `opentelemetry.trace.get_tracer("mlotel").start_as_current_span(name, attributes=attributes)`.
    """
    if PROVIDER.backend is OFF and attributes is None and _is_ours():
        found = _off_spans.get(name)
        if found is None or found.tracer is not _tracer:
            found = OffSpan(OFF, _tracer, name)
            if len(_off_spans) < 1000:  # names are few; a generated one must not fill the memory
                _off_spans[name] = found
        return found
    return _tracer.start_as_current_span(name, attributes=attributes)


def _is_ours() -> bool:
    """Whether spans go to PROVIDER, or would: a program may decorate its functions before it starts a run."""
    return _tracer is _own_tracer or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def batch(index: int, *, size: int = 1) -> Any:
    """Open the root span of one batch, for a program that owns its loop.

    Args:
        index: number of the batch in the run; joins its spans, its row and its W&B step. Every index once.
        size: number of items in it; throughput counts them.
    """
    if _before_batch is not None:
        _before_batch()
    return _tracer.start_as_current_span(BATCH_SPAN, attributes={BATCH_INDEX: index, BATCH_SIZE: size})


def call_before_batches(callback: Callable[[], None] | None) -> None:
    """Have `batch` call this first: a run holds its loop back while the recorder is behind. None ends that."""
    global _before_batch
    _before_batch = callback


def record(name: str, value: float, *, unit: str | None = None) -> None:
    """Keep a domain value with the batch that is being processed, such as the number of detections.

    It becomes `data/<name>` in W&B and `data.<name>` in Parquet; recorded several times in one batch, the row has
    the mean. Goes with the current span; outside any batch it is left out, counted and said once.

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
    """Keep the accuracy of the batch that is being processed, for a program that owns its loop.

    It becomes `accuracy/<name>` in W&B, in the row of the batch's latencies; scored twice, the later value counts.
    (`mlotel eval` scores by its metrics.)

    Args:
        name: name of the metric.
        value: this batch's score, a finite Python number; a tensor is refused as in `record`.
    """
    number = _number("score", name, value)
    current = trace.get_current_span()
    if number is not None and _takes_values(current, "score", name):
        current.set_attribute(SCORED + name, number)


def _number(call: str, name: object, value: object) -> float | None:
    """`value` as a finite float; None, and a fault, when it or `name` is none that can be kept."""
    if not isinstance(name, str) or not name:
        _fault(f"{call}({name!r}, ...): the name is no text; it is left out")
        return None
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except (OverflowError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    what = "a tensor" if is_tensor(value) else repr(value)
    _fault(f"{call}({name!r}, ...): {what} is no finite Python number; it is left out")
    return None


def _takes_values(current: trace.Span, call: str, name: str) -> bool:
    """Whether a value can go with the current span; outside a running batch there is no row for it."""
    if not current.is_recording():
        if isinstance(PROVIDER.backend, Recording):  # ranges keep no values, and nothing neither
            _fault(f"{call}({name!r}, ...) outside any running span belongs to no batch; it is left out")
        return False
    if isinstance(current, Span) and current.batch is None:
        _fault(f"{call}({name!r}, ...) in span {current.name!r}, which is in no batch; it is left out")
        return False
    return True


def _fault(message: str) -> None:
    current: Any = trace.get_current_span()
    owner = current.stamping if isinstance(current, Span) else PROVIDER.backend
    faults: Faults = getattr(owner, "faults", _faults)
    faults.add("record", message)


def _stop_in_child() -> None:
    """A forked child, such as a data loader's worker, has no recorder link: it records nothing."""
    PROVIDER.backend = OFF


os.register_at_fork(after_in_child=_stop_in_child)
