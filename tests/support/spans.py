"""Recording spans with a clock and ids that a test knows, read back as the recorder reads them."""

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mlotel_cli.records import SpanRecord
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.clock import Clock
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.tracer import Recording
from tests.support.wire import received

STEP_NS = 1000
"""Every reading of the clock is this much later than the one before."""


@dataclass
class Recorded:
    """What was emitted, in the order in which it ended; `values` are those of `record()`: name, value, unit."""

    spans: list[SpanRecord] = field(default_factory=list)
    values: list[tuple[str, float, str]] = field(default_factory=list)

    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def tree(self) -> list[tuple[str, str | None]]:
        """(name, name of the parent), in the order in which the spans started."""
        names = {span.span_id: span.name for span in self.spans}
        ordered = sorted(self.spans, key=lambda span: span.start_ns)
        return [(span.name, names[span.parent_id] if span.parent_id else None) for span in ordered]

    def named(self, name: str) -> SpanRecord:
        (span,) = (span for span in self.spans if span.name == name)
        return span


@contextmanager
def recording(**options: Any) -> Generator[Recorded]:
    """Record every span of this process inside the block; the n-th reading of the clock is n * STEP_NS."""
    recorded, before = Recorded(), api.PROVIDER.backend
    offset_ns: int = options.pop("epoch_offset_ns", 0)
    clock = Clock(itertools.count(STEP_NS, STEP_NS).__next__, epoch_offset_ns=offset_ns)
    api.install()

    def emit(span: Any) -> None:
        stamp = received(span.pack())
        recorded.spans.append(stamp.span)
        recorded.values.extend(stamp.recorded)

    api.use(Recording(emit, clock=clock, first_id=1, faults=Faults(strict=True), **options))
    try:
        yield recorded
    finally:
        api.use(before)
