"""Sums and means of a profile's stages; whole recordings are in test_nsys_export.py."""

import pytest

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
