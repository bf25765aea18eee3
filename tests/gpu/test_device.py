"""Device times of spans against torch.profiler, on a real device."""

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mlotel_cli.telemetry.device import CudaEvents, DeviceTimer
from mlotel_cli.telemetry.tracer import Provider, Recording

ROUNDS = 30


def matmul(size: int) -> Callable[[], Any]:
    left, right = (torch.randn(size, size, device="cuda") for _ in range(2))
    return lambda: left @ right


def convolution(channels: int, side: int) -> Callable[[], Any]:
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).cuda()
    images_BCHW = torch.randn(8, channels, side, side, device="cuda")
    return lambda: layer(images_BCHW)


def measure(load: Callable[[], Any], *, rounds: int = ROUNDS) -> tuple[list[Any], DeviceTimer]:
    """Spans of `load`, resolved; the device is let run dry between them."""
    spans: list[Any] = []
    timer = DeviceTimer(CudaEvents("cuda"))
    tracer = Provider(Recording(spans.append, device=timer)).get_tracer("test")
    for _ in range(rounds):
        with tracer.start_as_current_span("load"):
            load()
        torch.cuda.synchronize()
    deadline = time.monotonic() + 10
    while not all([span.is_resolved() for span in spans]) and time.monotonic() < deadline:
        time.sleep(0.001)
    return spans, timer


def kernel_us(load: Callable[[], Any]) -> float:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(ROUNDS):
            load()
            torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / ROUNDS


@pytest.mark.parametrize("size", [1024, 2048, 4096, 8192])
@torch.inference_mode()
def test_a_matmul_within_two_percent_of_the_profiler(size: int):
    load = matmul(size)
    measure(load, rounds=5)
    spans, _ = measure(load)
    device_us = statistics.median(span.pack()[12] for span in spans) / 1e3
    assert device_us == pytest.approx(kernel_us(load), rel=0.02, abs=3)


@pytest.mark.parametrize(("channels", "side"), [(64, 128), (128, 256)])
@torch.inference_mode()
def test_a_convolution_within_two_percent_of_the_profiler(channels: int, side: int):
    load = convolution(channels, side)
    measure(load, rounds=5)
    spans, _ = measure(load)
    device_us = statistics.median(span.pack()[12] for span in spans) / 1e3
    assert device_us == pytest.approx(kernel_us(load), rel=0.02, abs=3)


def test_a_span_ends_when_its_result_exists():
    load = matmul(8192)
    spans, _ = measure(load, rounds=3)
    for span in spans:
        packed = span.pack()
        assert packed[11] - packed[10] >= packed[12] * 0.98


def test_nothing_synchronises():
    load = matmul(1024)
    torch.cuda.set_sync_debug_mode("error")
    try:
        spans: list[Any] = []
        tracer = Provider(Recording(spans.append, device=DeviceTimer(CudaEvents("cuda")))).get_tracer("test")
        for _ in range(10):
            with tracer.start_as_current_span("load"):
                load()
        while not all([span.is_resolved() for span in spans]):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_events_are_recycled():
    load = matmul(64)
    _, timer = measure(load, rounds=2_000)
    assert timer.abandoned == 0
    assert timer.pooled <= timer.created


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

    assert all([span.is_resolved() for span in spans])
    assert [span.pack()[12] is None for span in spans] == [True, False]
    assert timer.captured == 1


def test_asking_for_events_breaks_no_capture_on_another_thread():
    load = matmul(1024)
    spans, timer = measure(load, rounds=3)
    tracer = Provider(Recording(spans.append, device=timer)).get_tracer("test")
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            [span.is_resolved() for span in list(spans)]

    asking = threading.Thread(target=ask)
    with tracer.start_as_current_span("long"):
        for _ in range(500):
            load()
    asking.start()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            load()
    finally:
        stop.set()
        asking.join()
    graph.replay()
    torch.cuda.synchronize()
