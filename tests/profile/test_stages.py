"""Verdicts and sums of a profile's stages; whole recordings are in test_nsys.py."""

import pytest

from mlotel_cli.analysis.verdicts import verdict, verdict_of_events
from mlotel_cli.profile.attribution import Attributed, Work
from mlotel_cli.profile.stages import (
    CopyFigures,
    KernelFigures,
    ProfilerAbout,
    ProfileSummary,
    Unattributed,
    measured,
    summarise_stages,
)
from mlotel_cli.profile.timeline import Range, Timeline
from mlotel_cli.typed_json import from_json


@pytest.mark.parametrize(
    ("host_ms", "device_ms", "busy_ms", "queue_ms", "expected"),
    [
        (10, None, None, None, "host-bound"),
        (10, None, None, 10, "host-bound"),
        (10, None, None, 10.1, "waiting"),
        (10, 20, 16, None, "device-bound"),  # busy for 0.8 of the longer of the two
        (10, 20, 15.9, None, "launch-bound"),
        (20, 10, 10, None, "launch-bound"),
        (20, 18, 16, None, "device-bound"),
        (1, 20, 20, 20, "device-bound"),
        (1, 20, 20, 20.1, "waiting"),
    ],
)
def test_who_a_stage_waits_for(host_ms: float, device_ms: float, busy_ms: float, queue_ms: float, expected: str):
    assert verdict(host_ms=host_ms, device_ms=device_ms, busy_ms=busy_ms, queue_ms=queue_ms) == expected


@pytest.mark.parametrize(
    ("sync_ms", "busy_ms", "expected"),
    [
        (0, 10, "launch-bound"),
        (10, 8, "device-bound"),  # of the 10 ms without waiting, the device is busy for 8
        (7, 10, "launch-bound"),  # of 13, for 10
        (18, 10, "device-bound"),  # 20 ms on the host, 18 of them waiting for what an earlier stage launched too
        (16, 0, "device-bound"),
        (15.9, 0, "launch-bound"),
    ],
)
def test_a_host_that_waits_for_the_device_launches_nothing(sync_ms: float, busy_ms: float, expected: str):
    assert verdict(host_ms=20, device_ms=10, busy_ms=busy_ms, queue_ms=None, sync_ms=sync_ms) == expected


OPEN = "launch-bound or synchronising"


@pytest.mark.parametrize(
    ("latency_ms", "device_ms", "lag_ms", "queue_ms", "expected"),
    [
        (20, 20, 19, None, "device-bound"),  # launched within a millisecond, and 19 to do after that
        (20, 20, 16, None, "device-bound"),  # it may have waited for the host in 4 of 20 ms, no more
        (20, 20, 15.9, None, OPEN),
        (20, 20, 0, None, OPEN),  # host and device end together: who waited for whom?
        (20, 3, 0, None, "device-bound"),  # at earlier work for 17 of 20 ms
        (20, 10, 0, None, OPEN),  # at earlier work for 10, and at this or idle for 10
        (20, 3, 19, None, "device-bound"),  # launched long before the device came to it
        (20, 20, 19, 20.1, "waiting"),
        (20, 20, 0, 20.1, "waiting"),
        (20, 20, 0, 20, OPEN),
    ],
)
def test_what_two_events_tell(
    latency_ms: float, device_ms: float, lag_ms: float, queue_ms: float | None, expected: str
):
    said = verdict_of_events(latency_ms=latency_ms, device_ms=device_ms, lag_ms=lag_ms, queue_ms=queue_ms)
    assert said == expected


def stage(name: str, start: int, end: int, *, category: str = "internal", batch: int | None = 0) -> Range:
    return Range(name, category, start, end, 1, 7, batch)


def test_what_belongs_to_no_range_is_said():
    attributed = Attributed(Timeline([stage("batch", 0, 9, category="batch")]), {}, 3, 2_500_000, 1)
    assert summarise_stages(attributed).unattributed == Unattributed(activities=3, device_ms=2.5, ambiguous=1)


def test_copies_of_several_calls_add_up_by_direction():
    one, two = Work(), Work()
    one.copies = {"HtoD": (100, 2_000_000, 1)}
    two.copies = {"HtoD": (50, 1_000_000, 2), "DtoH": (8, 500_000, 1)}
    figures = measured([one, two])
    assert (figures["copy_bytes"], figures["copy_ms"]) == (158, 3.5)


def test_a_batchs_device_figures_are_means_per_batch_and_kernels_are_the_longest():
    ranges = [
        each
        for batch in (0, 1)
        for each in (
            stage("batch", 100 * batch, 100 * batch + 90, category="batch", batch=batch),
            stage("reader", 100 * batch + 1, 100 * batch + 80, batch=batch),
        )
    ]
    work: dict[Range, Work] = {}
    for number, each in enumerate(ranges[1::2], 1):
        own = work[each] = Work(kernels=number, kernel_ns=number * 1_000_000, extent_ns=4_000_000, idle_ns=1_000_000)
        own.kernel_names = {"gemm": (number, number * 900_000), "copy": (1, 100)}
        own.copies = {"HtoD": (64 * number, number * 1_000_000, 1)}
    reader = summarise_stages(Attributed(Timeline(ranges), work), top_kernels=1).stages["reader"]
    device = reader.device
    assert device is not None
    assert (device.kernels, device.kernel_ms, device.device_ms, device.idle_ms) == (1.5, 1.5, 4.0, 1.0)
    assert device.top_kernels == [KernelFigures("gemm", 1.5, pytest.approx(1.35))]
    assert device.copies == {"HtoD": CopyFigures(96, 1.5, 1)}
    assert reader.queue_ms is None
    assert reader.verdict == "launch-bound"  # busy for 3 of 4 ms


KEYS = ["profiler", "schema_version", "batches", "batch_ms", "stages", "unattributed", "ranges", "ranges_cut"]
STAGE_KEYS = ["batches", "calls", "host_ms", "queue_ms", "device", "verdict"]
DEVICE_KEYS = [
    *("kernels", "kernel_ms", "device_ms", "idle_ms", "idle_gaps", "graphs", "graph_ms", "memset_ms", "syncs"),
    *("sync_ms", "copy_ms", "copy_bytes", "copies", "top_kernels"),
]


@pytest.mark.parametrize(
    "about",
    [
        {"kind": "nsys", "path": "/opt/nsys", "version": "2025.1", "trace": "nvtx", "command": ["nsys"]},
        {"kind": "torch", "version": None, "command": []},
    ],
)
def test_stages_json_has_the_keys_of_its_first_version(about: dict[str, object]):
    batch, reader = stage("batch", 0, 9, category="batch"), stage("reader", 1, 8)
    work = Work(kernels=1, kernel_ns=1_000_000, extent_ns=2_000_000)
    work.copies, work.kernel_names = {"HtoD": (64, 1_000, 1)}, {"gemm": (1, 1_000_000)}
    attributed = Attributed(Timeline([batch, reader, stage("writer", 8, 9)]), {reader: work})
    told = summarise_stages(attributed, profiler=from_json(ProfilerAbout, about)).to_json()

    assert list(told) == KEYS
    assert list(told["profiler"].items()) == list(about.items())
    assert list(told["stages"]["reader"]) == STAGE_KEYS
    assert list(told["stages"]["reader"]["device"]) == DEVICE_KEYS
    assert list(told["stages"]["reader"]["device"]["copies"]["HtoD"]) == ["bytes", "ms", "number"]
    assert list(told["stages"]["reader"]["device"]["top_kernels"][0]) == ["name", "number", "ms"]
    assert (told["stages"]["writer"]["device"], told["stages"]["writer"]["queue_ms"]) == (None, None)
    assert list(told["unattributed"]) == ["activities", "device_ms", "ambiguous"]
    assert ProfileSummary.from_json(told).to_json() == told
