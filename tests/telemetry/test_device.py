"""Device times are tested on a simulated device: its streams execute their work on a simulated clock."""

import ctypes
import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlotel_cli.records import KIND
from mlotel_cli.telemetry import device as device_module
from mlotel_cli.telemetry.clock import Clock
from mlotel_cli.telemetry.device import ANCHOR_EVERY_NS, CudaEvents, DeviceTimer, Mark, Obstacle, relax_capture
from mlotel_cli.telemetry.tracer import Provider, Recording
from tests.support.wire import message_of


@dataclass
class Event:
    """An event that passes at `passes_ns` on the host's clock; None before it is recorded."""

    passes_ns: int | None = None


@dataclass
class SimulatedDevice:
    """Two streams and one clock; `work` keeps the current stream busy. Reading the clock takes `tick_ns`."""

    time_ns: int = 0
    busy_until_ns: int = 0
    tick_ns: int = 0
    hindered: Obstacle | None = None
    stuck: bool = False
    recorded: list[Event] = field(default_factory=list)

    def now(self) -> int:
        self.time_ns += self.tick_ns
        return self.time_ns

    def work(self, duration_ns: int) -> None:
        self.busy_until_ns = max(self.busy_until_ns, self.time_ns) + duration_ns

    def new_event(self) -> Event:
        return Event()

    def record(self, event: Event) -> None:
        event.passes_ns = max(self.busy_until_ns, self.time_ns)
        self.recorded.append(event)

    def record_aside(self, event: Event) -> None:
        event.passes_ns = self.time_ns

    def has_passed(self, event: Event) -> bool:
        assert event.passes_ns is not None
        return not self.stuck and event.passes_ns <= self.time_ns

    def elapsed_ns(self, start: Event, end: Event) -> int:
        assert start.passes_ns is not None
        assert end.passes_ns is not None
        assert self.has_passed(start)
        assert self.has_passed(end)
        return end.passes_ns - start.passes_ns

    def obstacle(self) -> Obstacle | None:
        return self.hindered


@pytest.fixture
def device() -> SimulatedDevice:
    return SimulatedDevice()


@pytest.fixture
def timer(device: SimulatedDevice) -> DeviceTimer:
    return DeviceTimer(device, now=device.now, patience_ns=1_000)


def begin(timer: DeviceTimer) -> Mark:
    mark = timer.begin()
    assert mark is not None
    return mark


def test_a_span_ends_when_the_device_does(device: SimulatedDevice, timer: DeviceTimer):
    device.time_ns = 100
    mark = begin(timer)
    device.work(500)
    device.time_ns = 110  # the host continues after the launch
    timer.finish(mark)
    assert not timer.resolve(mark)
    device.time_ns = 599
    assert not timer.resolve(mark)
    device.time_ns = 700

    assert timer.resolve(mark)
    assert (mark.device_ns, mark.end_ns) == (500, 600)


def test_work_that_was_queued_before_is_not_the_spans(device: SimulatedDevice, timer: DeviceTimer):
    device.work(300)
    mark = begin(timer)  # passes at 300
    device.work(200)
    timer.finish(mark)
    device.time_ns = 500
    assert timer.resolve(mark)
    assert (mark.device_ns, mark.end_ns) == (200, 500)


def test_nested_spans_have_times_of_their_own(device: SimulatedDevice, timer: DeviceTimer):
    outer = begin(timer)
    device.work(100)
    inner = begin(timer)
    device.work(50)
    timer.finish(inner)
    device.work(25)
    timer.finish(outer)
    device.time_ns = 1_000

    assert timer.resolve(inner)
    assert timer.resolve(outer)
    assert (inner.device_ns, outer.device_ns) == (50, 175)


def test_events_are_used_again_once_they_have_passed_and_none_is_lost(device: SimulatedDevice, timer: DeviceTimer):
    assert timer.anchor()
    for _ in range(20_000):
        marks = [begin(timer), begin(timer)]
        device.work(10)
        device.time_ns += 5
        for mark in marks:
            timer.finish(mark)
        device.time_ns += ANCHOR_EVERY_NS // 1_000  # the anchor is renewed twenty times
        assert all(timer.resolve(mark) for mark in marks)

    assert timer.created <= 7  # four of two spans, the anchor, the best of the next one, and its next try
    assert timer.pooled == timer.created - 1


def test_an_event_is_not_used_again_before_it_has_passed(device: SimulatedDevice, timer: DeviceTimer):
    device.work(1_000)
    first = begin(timer)
    timer.finish(first)
    second = begin(timer)
    assert len({id(event) for event in device.recorded}) == 3
    timer.finish(second)
    assert timer.pooled == 0


def test_events_that_never_pass_are_given_up_counted_and_not_used_again(device: SimulatedDevice, timer: DeviceTimer):
    mark = begin(timer)
    timer.finish(mark)
    device.stuck = True
    device.time_ns = 999
    assert not timer.resolve(mark)
    device.time_ns = 1_000
    assert timer.resolve(mark)
    assert (mark.device_ns, mark.end_ns) == (None, None)
    assert (timer.abandoned, timer.pooled) == (1, 0)


@pytest.mark.parametrize("when", ["at the start", "at the end"])
@pytest.mark.parametrize("why", ["captured", "elsewhere"])
def test_a_graph_capture_and_another_device_get_no_events(
    device: SimulatedDevice, timer: DeviceTimer, why: Obstacle, when: str
):
    if when == "at the start":
        device.hindered = why
        assert timer.begin() is None
    else:
        mark = begin(timer)
        device.hindered = why
        timer.finish(mark)
        assert timer.resolve(mark)
        assert mark.device_ns is None
        assert timer.pooled == 1
    assert (timer.captured, timer.elsewhere) == ((1, 0) if why == "captured" else (0, 1))
    assert len(device.recorded) == (0 if when == "at the start" else 1)


def test_the_anchor_is_the_tightest_and_is_renewed(device: SimulatedDevice, timer: DeviceTimer):
    device.tick_ns = 3
    assert timer.anchor()
    first = timer._anchor
    mark = begin(timer)
    timer.finish(mark)
    device.time_ns += ANCHOR_EVERY_NS
    assert timer.resolve(mark)
    assert timer._anchor is not first
    assert mark.end_ns is not None
    assert abs(mark.end_ns - 30) <= 40  # a few readings of the clock


def test_of_several_tries_the_tightest_is_the_anchor(device: SimulatedDevice):
    readings = iter([0, 9, 10, 13, 20, 23, 30, 37, 40, 48])
    timer = DeviceTimer(device, now=lambda: next(readings))
    assert timer.anchor()
    assert timer._anchor_ns == 11  # in the middle of 10 and 13
    assert (timer.created, timer.pooled) == (2, 1)


def test_an_anchor_serves_for_five_seconds(device: SimulatedDevice, timer: DeviceTimer):
    first, taken_ns = timer._nearest_anchor()
    assert taken_ns == 0
    device.time_ns = ANCHOR_EVERY_NS
    assert timer._nearest_anchor() == (first, 0)
    device.time_ns += 1
    assert timer._nearest_anchor()[1] == ANCHOR_EVERY_NS + 1


def test_an_anchor_that_cannot_be_had_is_not_asked_for_at_every_span(device: SimulatedDevice, timer: DeviceTimer):
    """A try holds the interpreter lock for thousands of queries; spans get their device time without an anchor too."""
    tries: list[int] = []
    device.record_aside = lambda event: tries.append(device.time_ns)  # type: ignore[method-assign]
    device.has_passed = lambda event: event.passes_ns is not None  # type: ignore[method-assign]
    for _ in range(100):
        mark = begin(timer)
        timer.finish(mark)
        device.time_ns += 10_000_000
        assert timer.resolve(mark)
        assert (mark.device_ns, mark.end_ns) == (0, None)
    assert tries == [10_000_000, 520_000_000]  # half a second apart


def torch_with(
    monkeypatch: pytest.MonkeyPatch, *, devices: int, current: int = 0, capturing: bool = False
) -> list[int]:
    """Make torch.cuda report that number of devices; return the devices that threads are set to."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: f"a stream of {device}, priority {priority}")
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: ("event", enable_timing))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(device_module, "relax_capture", lambda: True)
    return chosen


def test_the_calls_to_torch(monkeypatch: pytest.MonkeyPatch):
    torch_with(monkeypatch, devices=1, capturing=True)
    events, recorded = CudaEvents("cuda:0"), []
    event = SimpleNamespace(record=lambda *stream: recorded.append(stream), elapsed_time=lambda end: end)
    events.record(event)
    events.record_aside(event)
    assert recorded == [(), ("a stream of cuda:0, priority -1",)]
    assert events.elapsed_ns(event, 1.5) == 1_500_000
    assert events.new_event() == ("event", True)
    assert events.obstacle() == "captured"


@pytest.mark.parametrize(
    ("device", "current", "obstacle"),
    [("cuda:1", 1, None), ("cuda:1", 0, "elsewhere"), ("cuda:0", 1, "elsewhere"), ("cuda", 1, None)],
)
def test_of_several_devices_one_is_measured(
    monkeypatch: pytest.MonkeyPatch, device: str, current: int, obstacle: Obstacle | None
):
    """An event belongs to the device that it was first recorded on; recording it on another device is an error."""
    chosen = torch_with(monkeypatch, devices=2, current=current)
    events = CudaEvents(device)
    assert events.obstacle() == obstacle
    assert events.has_passed(SimpleNamespace(query=lambda: True))
    assert chosen == [int(device[-1]) if device[-1].isdigit() else current]


def test_with_one_device_the_current_one_is_not_asked_for(monkeypatch: pytest.MonkeyPatch):
    chosen = torch_with(monkeypatch, devices=1, current=7)
    events = CudaEvents("cuda")
    assert events.obstacle() is None
    assert events.has_passed(SimpleNamespace(query=lambda: True))
    assert chosen == []


def test_a_device_that_gets_stuck_costs_no_event_that_had_passed(device: SimulatedDevice, timer: DeviceTimer):
    passes = iter([True, *[False] * 1_000_000])
    device.has_passed = lambda event: next(passes)  # type: ignore[method-assign]
    assert not timer.anchor()
    assert (timer.created, timer.pooled) == (2, 1)


def test_a_device_that_is_stuck_gives_no_anchor(device: SimulatedDevice, timer: DeviceTimer):
    device.stuck = True
    assert not timer.anchor()


def test_a_recorded_span_carries_its_device_time_and_ends_with_it(device: SimulatedDevice, timer: DeviceTimer):
    spans: list[Any] = []
    recording = Recording(spans.append, clock=Clock(device.now, epoch_offset_ns=1_000_000), device=timer)
    tracer = Provider(recording).get_tracer("test")

    with tracer.start_as_current_span("stage"):
        device.work(700)
        device.time_ns += 10
    (span,) = spans
    assert not span.is_resolved()
    device.time_ns = 800

    assert span.is_resolved()
    packed = message_of(span)
    assert packed[9:13] == (1_000_000, 1_000_700, 700, 690)  # the host finished at 10


def test_the_host_may_be_the_later_one(device: SimulatedDevice, timer: DeviceTimer):
    spans: list[Any] = []
    recording = Recording(spans.append, clock=Clock(device.now, epoch_offset_ns=0), device=timer)

    with Provider(recording).get_tracer("test").start_as_current_span("stage"):
        device.work(5)
        device.time_ns = 90

    (span,) = spans
    assert span.is_resolved()
    assert message_of(span)[10:13] == (90, 90, 0)  # the second event is recorded at 90, on an idle stream


# -- captures on other threads ----------------------------------------------------------------------------------------


def test_the_thread_that_asks_is_told_apart_from_captures(tmp_path: Path):
    driver = tmp_path / "driver.c"
    driver.write_text("int mode = -1; int cuThreadExchangeStreamCaptureMode(int *m) { mode = *m; return mode != 2; }")
    library = tmp_path / "driver.so"
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, driver], check=True)
    assert relax_capture(str(library))
    assert ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "mode").value == 2


def test_without_a_driver_nothing_is_told_apart(tmp_path: Path):
    assert not relax_capture(str(tmp_path / "none.so"))
    assert not relax_capture("libc.so.6")


def test_every_asking_thread_is_told_apart_once(monkeypatch: pytest.MonkeyPatch):
    told: list[int] = []
    monkeypatch.setattr(device_module, "relax_capture", lambda: told.append(threading.get_ident()) or True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: device)
    events = CudaEvents("cuda")
    passed = SimpleNamespace(query=lambda: True)
    assert events.has_passed(passed)
    assert events.has_passed(passed)
    thread = threading.Thread(target=events.has_passed, args=(passed,))
    thread.start()
    thread.join()
    assert len(told) == len(set(told)) == 2


def test_waiting_in_a_queue_takes_no_events(device: SimulatedDevice):
    timer = DeviceTimer(device, now=device.now)
    tracer = Provider(Recording([].append, device=timer)).get_tracer("test")
    tracer.start_span("queue reader", attributes={KIND: "queue"}).end()
    with tracer.start_as_current_span("queue reader", attributes={KIND: "queue"}):
        pass
    assert (timer.created, device.recorded) == (0, [])
    tracer.start_span("reader", attributes={"other": 1}).end()
    assert len(device.recorded) == 2
