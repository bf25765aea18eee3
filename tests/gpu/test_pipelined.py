"""A stream per stage on a real device: the values are right, stages overlap, and the host does not wait."""

import contextlib
import time
from typing import Any

import pytest
import torch

from mlotel_cli.execute import Inference, Numbered, PipelinedExecutor, SequentialExecutor, create_executor
from mlotel_cli.records import Batch
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.device import CudaEvents, DeviceTimer
from mlotel_cli.telemetry.tracer import Recording
from tests.support.wire import message_of

NUM_BATCHES = 60
SIDE = 1024


def stage(factor: float) -> Any:
    """A few hundred kernels whose temporaries are freed at once: memory that is reused too early shows."""

    def run(x: torch.Tensor) -> torch.Tensor:
        for _ in range(100):
            x = (x * factor).sub(x).add_(1.0)
        return x

    return run


def stages() -> dict[str, Any]:
    return {"first": stage(0.5), "second": stage(0.25), "third": stage(0.75)}


def source(number: int = NUM_BATCHES) -> Any:
    for index in range(number):
        data = torch.full((SIDE, SIDE), float(index), device="cuda") / 7
        yield Numbered(index, 0, Batch(index, ["a"], data))


def results(executor: Any) -> list[torch.Tensor]:
    with Inference("cuda")(), contextlib.closing(executor.run(source())) as running:
        found = []
        for one in running:
            assert one.error is None
            found.append(one.output.clone())  # on the caller's stream
    torch.cuda.synchronize()
    return found


@pytest.mark.parametrize("replicas", [{}, {"second": 3}])
def test_values_are_those_of_the_sequential_executor(replicas: dict[str, int]) -> None:
    expected = results(SequentialExecutor(stages()))
    made = create_executor(stages(), inference=Inference("cuda"), kind="pipelined", replicas=replicas)
    for _ in range(3):
        found = results(made)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_stages_of_different_batches_overlap_on_the_device_and_queues_take_no_device_time() -> None:
    spans: list[Any] = []
    before = api.PROVIDER.backend
    made = create_executor(stages(), inference=Inference("cuda"), kind="pipelined")
    results(made)
    api.use(Recording(spans.append, device=DeviceTimer(CudaEvents("cuda"))))
    try:
        results(made)
    finally:
        api.use(before)
    deadline = time.monotonic() + 10
    while not all([span.is_resolved() for span in spans]) and time.monotonic() < deadline:
        time.sleep(0.001)
    packed = [message_of(span) for span in spans]
    assert all(each.device_ns is None for each in packed if each.name.startswith("queue "))
    by_stage = {
        name: [(each.end_ns - each.device_ns, each.end_ns) for each in packed if each.name == name]
        for name in ("first", "second", "third")
    }
    assert all(len(each) == NUM_BATCHES for each in by_stage.values())
    overlaps = sum(
        begin < other_end and other_begin < end
        for begin, end in by_stage["first"]
        for other_begin, other_end in by_stage["third"]
    )
    assert overlaps > 0


def test_nothing_waits_on_the_host() -> None:
    made = PipelinedExecutor(
        stages(),
        inference=Inference("cuda"),
        streams=create_executor(stages(), inference=Inference("cuda"), kind="pipelined").streams,  # type: ignore[attr-defined]
    )
    batches = list(source(10))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with Inference("cuda")():
            assert [one.error for one in made.run(iter(batches))] == [None] * 10
    finally:
        torch.cuda.set_sync_debug_mode("default")
