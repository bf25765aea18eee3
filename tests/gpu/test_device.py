"""Device times of spans against torch.profiler, on a real device.

Between the two events of a span on an idle stream lies the host's launching too. To be compared with kernels, a span
is opened while the device is busy with something else: then its work lies ready when the first event passes.
"""

import itertools
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mlotel_cli.telemetry.device import CudaEvents, DeviceTimer
from mlotel_cli.telemetry.tracer import Provider, Recording
from tests.support.wire import message_of

ROUNDS = 30
BUSY_CYCLES = 4_000_000
"""Of the device's clock, a few milliseconds: longer than it takes to launch what a span here contains."""


def matmul(size: int) -> Callable[[], Any]:
    left, right = (torch.randn(size, size, device="cuda") for _ in range(2))
    return lambda: left @ right


def convolution(channels: int, side: int) -> Callable[[], Any]:
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).cuda()
    images_BCHW = torch.randn(8, channels, side, side, device="cuda")
    return lambda: layer(images_BCHW)


def resolve(spans: list[Any]) -> None:
    """Ask until all of them are."""
    deadline = time.monotonic() + 10
    while not all([span.is_resolved() for span in spans]):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def measure(
    load: Callable[[], Any], *, rounds: int = ROUNDS, cycles: int = BUSY_CYCLES
) -> tuple[list[Any], DeviceTimer]:
    """Spans of `load`, resolved, each opened on a device that is busy for `cycles`."""
    spans: list[Any] = []
    timer = DeviceTimer(CudaEvents("cuda"))
    tracer = Provider(Recording(spans.append, device=timer)).get_tracer("test")
    for _ in range(rounds):
        if cycles:
            torch.cuda._sleep(cycles)
        with tracer.start_as_current_span("load"):
            load()
        torch.cuda.synchronize()
    resolve(spans)
    return spans, timer


def device_us(spans: list[Any]) -> float:
    """Median over spans."""
    return statistics.median(message_of(span).device_ns for span in spans) / 1e3


def kernel_us(load: Callable[[], Any]) -> float:
    """Median over rounds of what torch.profiler says that the kernels of one took."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(ROUNDS):
            load()
            torch.cuda.synchronize()
    ran = [event for event in profile.events() if event.device_type is torch.autograd.DeviceType.CUDA]
    a_round = len(ran) // ROUNDS
    assert len(ran) == a_round * ROUNDS > 0, [event.name for event in ran]
    times = [event.self_device_time_total for event in sorted(ran, key=lambda event: event.time_range.start)]
    return statistics.median(sum(times[first : first + a_round]) for first in range(0, len(times), a_round))


@pytest.mark.parametrize("size", [1024, 2048, 4096, 8192])
@torch.inference_mode()
def test_a_matmul_within_two_percent_of_the_profiler(size: int):
    assert_agrees(matmul(size))


@pytest.mark.parametrize(("channels", "side"), [(64, 128), (128, 256)])
@torch.inference_mode()
def test_a_convolution_within_two_percent_of_the_profiler(channels: int, side: int):
    assert_agrees(convolution(channels, side))


def assert_agrees(load: Callable[[], Any]) -> None:
    """To 2 %, and the microseconds that two events take themselves."""
    measure(load, rounds=5)
    kernel_us(load)
    spans, _ = measure(load)
    assert device_us(spans) == pytest.approx(kernel_us(load), rel=0.02, abs=3)


@torch.inference_mode()
def test_a_span_ends_when_its_result_exists():
    load = matmul(8192)
    measure(load, rounds=3)
    spans, _ = measure(load, rounds=3, cycles=0)
    for span in spans:
        start_ns, end_ns, device_ns, lag_ns = message_of(span)[9:13]
        assert device_ns > 5_000_000
        assert end_ns - start_ns == pytest.approx(device_ns, rel=0.02, abs=50_000)
        assert lag_ns > 0.9 * device_ns  # the host launched it and went on


@torch.inference_mode()
def test_a_span_on_an_idle_device_ends_with_the_host():
    load = matmul(64)
    measure(load, rounds=3)
    spans, _ = measure(load, rounds=30, cycles=0)
    assert statistics.median(message_of(span).lag_ns for span in spans) < 50_000


def test_nothing_synchronises():
    load = matmul(1024)
    load()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        spans: list[Any] = []
        tracer = Provider(Recording(spans.append, device=DeviceTimer(CudaEvents("cuda")))).get_tracer("test")
        for _ in range(10):
            with tracer.start_as_current_span("load"):
                load()
        resolve(spans)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_events_are_recycled():
    load = matmul(64)
    spans: list[Any] = []
    timer = DeviceTimer(CudaEvents("cuda"))
    tracer = Provider(Recording(spans.append, device=timer)).get_tracer("test")
    for _ in range(1_000):
        for _ in range(20):
            with tracer.start_as_current_span("load"):
                load()
        resolve(spans)
        spans.clear()
    assert timer.abandoned == 0
    assert timer.created <= 20 * 2 + 3  # and those of the anchor
    assert timer.pooled == timer.created - 1


def test_a_graph_capture_is_left_alone():
    load = matmul(256)
    load()
    torch.cuda.synchronize()
    timer = DeviceTimer(CudaEvents("cuda"))
    spans: list[Any] = []
    tracer = Provider(Recording(spans.append, device=timer)).get_tracer("test")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), tracer.start_as_current_span("captured"):
        load()
    with tracer.start_as_current_span("replayed"):
        graph.replay()
    torch.cuda.synchronize()

    resolve(spans)
    assert [message_of(span).device_ns is None for span in spans] == [True, False]
    assert timer.captured == 1


def test_asking_for_events_breaks_no_capture_on_another_thread():
    """In the default mode of a capture, a plain cudaEventQuery anywhere in the process invalidates it."""
    load = matmul(1024)
    load()
    torch.cuda.synchronize()
    events = CudaEvents("cuda")
    event = events.new_event()
    events.record(event)
    stop, answers = threading.Event(), itertools.count()
    asked = 0

    def ask() -> None:
        nonlocal asked
        while not stop.is_set():
            events.has_passed(event)
            asked = next(answers)

    asking = threading.Thread(target=ask)
    asking.start()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            load()
            before, deadline = asked, time.monotonic() + 10
            while asked < before + 100 and asking.is_alive():
                assert time.monotonic() < deadline
            load()
    finally:
        stop.set()
        asking.join()
    graph.replay()
    torch.cuda.synchronize()
    assert asked > 100


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_spans_on_another_device_are_counted_and_change_nothing_else():
    spans: list[Any] = []
    timer = DeviceTimer(CudaEvents("cuda:1"))
    tracer = Provider(Recording(spans.append, device=timer)).get_tracer("test")
    for device in (1, 0, 1):
        with torch.cuda.device(device), tracer.start_as_current_span("load"):
            torch.ones(64, device="cuda").sum()
    resolve(spans)
    assert [message_of(span).device_ns is None for span in spans] == [False, True, False]
    assert timer.elsewhere == 1
