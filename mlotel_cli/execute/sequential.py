"""Runs one batch after the other, one stage after the other, on the calling thread."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from opentelemetry import trace

from mlotel_cli.execute.batches import (
    NO_PARENT,
    Finished,
    Numbered,
    WaitForRoom,
    never,
    record_arrival,
    root_attributes,
)
from mlotel_cli.pipeline import outputs
from mlotel_cli.records import BATCH_SPAN
from mlotel_cli.telemetry.api import PROVIDER, SCOPE


class SequentialExecutor:
    """Runs one batch after the other on the calling thread. See `Executor`."""

    is_concurrent = False

    def __init__(self, stages: Mapping[str, Callable[[Any], Any]] | Callable[[Any], Any]) -> None:
        """Take named stages, or one callable that opens its own spans."""
        self._given = stages
        self._stages: Mapping[str, Callable[[Any], Any]] = {}
        self._whole: Callable[[Any], Any] | None = None
        if isinstance(stages, Mapping):
            self._stages = stages
        else:
            self._whole = stages
        self._tracer = PROVIDER.get_tracer(SCOPE)

    def run(self, batches: Iterator[Numbered], *, wait_for_room: WaitForRoom = never) -> Generator[Finished]:
        """Yield every batch as it finishes. A stage's Exception is in `Finished.error` and is not raised."""
        now = time.perf_counter_ns
        while True:
            asked = now()
            numbered = next(batches, None)
            if numbered is None:
                return
            yield self._run_one(numbered, wait_ns=now() - asked)
            wait_for_room()

    def outputs(self, data: Any) -> Iterator[tuple[str, Any]]:
        """Yield each stage's name and output; nothing for a callable that opens its own spans."""
        return outputs(self._given, data)

    def depths(self) -> dict[str, tuple[int, int]]:
        """Return an empty mapping: no batch ever waits before a stage."""
        return {}

    def _run_one(self, numbered: Numbered, *, wait_ns: int) -> Finished:
        batch = numbered.batch
        value, error, name = batch.data, None, ""
        open_span = self._tracer.start_as_current_span
        root: trace.Span = trace.INVALID_SPAN
        start_ns = time.perf_counter_ns()
        if batch.size < 1:  # an empty batch makes many stages fail with an unclear error
            return Finished(numbered, None, None, "", root, start_ns, wait_ns)
        try:
            with open_span(BATCH_SPAN, NO_PARENT, attributes=root_attributes(numbered)) as root:
                record_arrival(self._tracer, batch, None, start_ns=start_ns)
                if self._whole is not None:
                    value = self._whole(value)
                for name, stage in self._stages.items():
                    with open_span(name):
                        value = stage(value)
        except Exception as raised:
            value, error = None, raised
        busy_ns = time.perf_counter_ns() - start_ns
        return Finished(numbered, value, error, name if error else "", root, start_ns, wait_ns, busy_ns)
