"""Runs the stages of a pipeline over batches: each stage in a span, under one root span per batch."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.context.context import Context

from mlotel_cli.records import BATCH_INDEX, BATCH_SIZE, BATCH_SPAN, Batch
from mlotel_cli.telemetry.api import PROVIDER, SCOPE

_NO_PARENT = Context()


@dataclass(slots=True)
class Numbered:
    """A batch with its number in the run and the pass it belongs to."""

    index: int
    repeat: int
    batch: Batch


@dataclass(slots=True)
class Finished:
    """A batch that went through, or failed on the way.

    Attributes:
        output: what the last stage returned; None after a failure.
        error: what a stage raised.
        stage: the stage that raised; empty where unknown.
        root: the batch's root span.
        start_ns: when it was picked up, `perf_counter_ns`.
        wait_ns: how long the source took to deliver it.
        busy_ns: from pick-up until it was through, whether spans were recorded or not.
    """

    numbered: Numbered
    output: Any
    error: Exception | None
    stage: str
    root: trace.Span
    start_ns: int
    wait_ns: int
    busy_ns: int = 0


class Inference:
    """The state that torch keeps per thread: every thread that runs a stage enters it itself."""

    def __init__(self, device: str, *, autocast: str | None = None) -> None:
        """`device` is a torch device; `autocast` the name of a dtype, such as bfloat16, or None."""
        self._device = device
        self._autocast = autocast

    @contextlib.contextmanager
    def __call__(self) -> Generator[None]:
        """Inference mode, the device, and autocast where asked for. Does not synchronise."""
        import torch

        device = torch.device(self._device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if device.type == "cuda":
                stack.enter_context(torch.cuda.device(device))
            if self._autocast is not None:
                stack.enter_context(torch.autocast(device.type, dtype=getattr(torch, self._autocast)))
            yield


class SequentialExecutor:
    """One batch after the other, one stage after the other, on the calling thread."""

    def __init__(self, stages: Mapping[str, Callable[[Any], Any]] | Callable[[Any], Any]) -> None:
        """Take named stages, or one callable that opens its own spans."""
        self._stages: Mapping[str, Callable[[Any], Any]] = {}
        self._whole: Callable[[Any], Any] | None = None
        if isinstance(stages, Mapping):
            self._stages = stages
        else:
            self._whole = stages
        self._tracer = PROVIDER.get_tracer(SCOPE)

    def run(self, batches: Iterator[Numbered]) -> Iterator[Finished]:
        """Yield every batch when it is through; an Exception of a stage is the batch's, not the caller's."""
        now = time.perf_counter_ns
        while True:
            asked = now()
            numbered = next(batches, None)
            if numbered is None:
                return
            yield self._run_one(numbered, wait_ns=now() - asked)

    def _run_one(self, numbered: Numbered, *, wait_ns: int) -> Finished:
        batch = numbered.batch
        value, error, name = batch.data, None, ""
        open_span = self._tracer.start_as_current_span
        root: trace.Span = trace.INVALID_SPAN
        start_ns = time.perf_counter_ns()
        if batch.size < 1:  # a stage may well fail on nothing, with an error that says nothing
            return Finished(numbered, None, None, "", root, start_ns, wait_ns)
        try:
            with open_span(
                BATCH_SPAN, _NO_PARENT, attributes={BATCH_INDEX: numbered.index, BATCH_SIZE: batch.size}
            ) as root:
                if self._whole is not None:
                    value = self._whole(value)
                for name, stage in self._stages.items():
                    with open_span(name):
                        value = stage(value)
        except Exception as raised:
            value, error = None, raised
        busy_ns = time.perf_counter_ns() - start_ns
        return Finished(numbered, value, error, name if error else "", root, start_ns, wait_ns, busy_ns)
