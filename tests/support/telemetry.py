"""A provider of its own for every test, with a clock and ids that the test knows."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry import trace

from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.clock import Clock
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.span import Span
from mlotel_cli.telemetry.tracer import Provider, Recording, Tracer

EPOCH_NS = 1_000_000
"""What the fake clock's zero is as a date; its n-th reading is 10 * n."""


@dataclass
class Telemetry:
    """Provider, recording and what was emitted, in the order in which it ended."""

    ended: list[Span] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.recording = self.new_recording()
        self.provider = Provider(self.recording)
        self.tracer: Tracer = self.provider.get_tracer("test")

    def new_recording(self, **options: Any) -> Recording:
        clock = Clock(itertools.count(10, 10).__next__, epoch_offset_ns=EPOCH_NS)
        return Recording(self.ended.append, clock=clock, first_id=1, faults=self.faults, **options)

    def span(self, name: str, **options: Any) -> Any:
        return self.tracer.start_as_current_span(name, **options)

    def only(self) -> Span:
        (span,) = self.ended
        return span

    def named(self, name: str) -> Span:
        (span,) = (span for span in self.ended if span.name == name)
        return span

    def parents(self) -> dict[str, str | None]:
        """Name of the parent by name, in the order in which the spans ended."""
        names = {span.get_span_context().span_id: span.name for span in self.ended}
        return {span.name: names[span.parent.span_id] if span.parent else None for span in self.ended}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No test leaves a span current or a backend in use."""
    before = api.PROVIDER.backend
    yield
    current, api.PROVIDER.backend = trace.get_current_span(), before
    assert current is trace.INVALID_SPAN


@pytest.fixture
def use(telemetry: Telemetry) -> Iterator[Telemetry]:
    """The process's own provider records; `api.span` and the others go to it, without `install`."""
    tracer, recording = api._tracer, api.PROVIDER.backend
    api._tracer = api._own_tracer
    api.use(telemetry.recording)
    yield telemetry
    api._tracer, api.PROVIDER.backend = tracer, recording


def current_name() -> str | None:
    """Name of the current span; None outside any."""
    current = trace.get_current_span()
    return None if current is trace.INVALID_SPAN else current.name  # type: ignore[attr-defined]
