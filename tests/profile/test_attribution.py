"""Work on the device joined to ranges, without a file of a profiler. Times are ns, worked out by hand."""

import pytest

from mlotel_cli.profile.attribution import Attributed, BusyTime, Work, attribute
from mlotel_cli.profile.timeline import Activity, Call, Kind, Range, Timeline


def range_(name: str, start: int, end: int, *, thread: int = 1, category: str = "internal", **more: object) -> Range:
    return Range(name, category, start, end, thread, 7, **more)  # type: ignore[arg-type]


def root(start: int, end: int, *, batch: int = 0, **more: object) -> Range:
    return range_("batch", start, end, category="batch", batch=batch, **more)  # type: ignore[arg-type]


def call(correlation: int, at: int, *, thread: int = 1, process: int = 7, name: str = "cudaLaunchKernel") -> Call:
    return Call(name, at, at + 2, thread, process, correlation)


def activity(
    correlation: int, start: int, end: int, *, kind: Kind = "kernel", device: int = 0, name: str = "gemm"
) -> Activity:
    return Activity(kind, name, start, end, device, 7, correlation)


def work_of(attributed: Attributed, name: str) -> Work:
    (found,) = (range_ for range_ in attributed.timeline.ranges if range_.name == name)
    return attributed.work.get(found, Work())


# -- one range's work -----------------------------------------------------------------------------------------------


def test_each_kind_of_activity_is_counted_in_its_own_figures() -> None:
    work = Work()
    work.add(activity(1, 0, 10, name="gemm"))
    work.add(activity(2, 20, 25, name="gemm"))
    work.add(activity(3, 30, 31, name="relu"))
    work.add(activity(4, 40, 70, kind="graph"))
    work.add(activity(5, 80, 84, kind="memset"))
    for size in (100, 50):
        work.add(Activity("memcpy", "copy", 90, 92, 0, 7, 6, "Host-to-Device", size))
    assert (work.kernels, work.kernel_ns, work.graphs, work.graph_ns, work.memset_ns) == (3, 16, 1, 30, 4)
    assert work.kernel_names == {"gemm": (2, 15), "relu": (1, 1)}
    assert work.copies == {"Host-to-Device": (150, 4, 2)}


def test_work_without_an_extent_is_none_on_the_device() -> None:
    assert not Work(syncs=3, sync_ns=9).has_device_work
    assert Work(extent_ns=1).has_device_work


# -- busy time ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intervals", "start", "end", "expected"),
    [
        ([(0, 10)], 0, 10, (0, 0)),
        ([(0, 10), (10, 20)], 0, 20, (0, 0)),  # they touch
        ([(0, 10), (5, 20), (6, 8)], 0, 20, (0, 0)),  # they overlap
        ([(30, 40), (0, 10), (15, 20)], 0, 40, (2, 15)),  # 10-15 and 20-30
        ([(0, 10), (15, 20), (30, 40)], 0, 20, (1, 5)),
        ([(0, 10), (15, 20), (30, 40)], 17, 35, (1, 10)),  # begins and ends inside
    ],
)
def test_pauses_between_two_moments(
    intervals: list[tuple[int, int]], start: int, end: int, expected: tuple[int, int]
) -> None:
    assert BusyTime(intervals).gaps(start, end) == expected


# -- joining ----------------------------------------------------------------------------------------------------------


def test_an_activity_belongs_to_the_range_of_its_call_and_to_all_around_it() -> None:
    ranges = [root(0, 100), range_("stage", 10, 50), range_("inside", 20, 30), range_("later", 60, 90)]
    timeline = Timeline(ranges, [call(1, 22), call(2, 12)], [activity(1, 65, 85), activity(2, 86, 89)])
    found = attribute(timeline)
    kernels = {name: work_of(found, name).kernels for name in ("batch", "stage", "inside", "later")}
    assert kernels == {"batch": 2, "stage": 2, "inside": 1, "later": 0}
    stage = work_of(found, "stage")
    assert (stage.kernel_ns, stage.extent_ns, stage.last_ns, stage.idle_ns, stage.gaps) == (23, 24, 89, 1, 1)
    assert ranges[3] not in found.work


def test_a_worker_without_a_range_belongs_to_the_only_thread_that_has_one() -> None:
    ranges = [root(0, 100), range_("stage", 10, 50)]
    found = attribute(Timeline(ranges, [call(1, 20, thread=2)], [activity(1, 25, 30)]))
    assert (work_of(found, "stage").kernels, found.num_unattributed, found.num_ambiguous) == (1, 0, 0)


def test_a_worker_between_two_threads_with_ranges_is_attributed_to_neither_and_counted() -> None:
    ranges = [range_("a", 10, 50, thread=1, batch=0), range_("b", 10, 50, thread=2, batch=1)]
    found = attribute(Timeline(ranges, [call(1, 20, thread=3)], [activity(1, 25, 32)]))
    assert (found.num_unattributed, found.unattributed_ns, found.num_ambiguous) == (1, 7, 1)
    assert dict(found.work) == {}


def test_a_root_and_its_own_stage_on_two_threads_are_one_place() -> None:
    ranges = [root(0, 100, thread=1), range_("stage", 10, 50, thread=2, batch=0)]
    found = attribute(Timeline(ranges, [call(1, 20, thread=3)], [activity(1, 25, 32)]))
    assert (work_of(found, "stage").kernels, work_of(found, "batch").kernels, found.num_ambiguous) == (1, 1, 0)


def test_an_activity_without_a_call_is_unattributed_but_not_ambiguous() -> None:
    found = attribute(Timeline([root(0, 100)], [], [activity(9, 10, 15)]))
    assert (found.num_unattributed, found.unattributed_ns, found.num_ambiguous) == (1, 5, 0)


def test_the_thread_that_hands_batches_on_works_for_none_of_them() -> None:
    """Thread 1 opened a root that moved on to thread 2; what it calls afterwards is for the next batch."""
    ranges = [root(0, 100, thread=1, crosses=True), range_("stage", 10, 50, thread=2, batch=0)]
    found = attribute(Timeline(ranges, [call(1, 20, thread=1)], [activity(1, 25, 30)]))
    assert (found.num_unattributed, found.num_ambiguous, dict(found.work)) == (1, 0, {})


def test_the_same_correlation_in_another_process_is_another_call() -> None:
    found = attribute(Timeline([root(0, 100)], [call(1, 20, process=8)], [activity(1, 25, 30)]))
    assert found.num_unattributed == 1


def test_pauses_and_extents_are_per_device() -> None:
    ranges = [root(0, 100)]
    calls = [call(n, n) for n in (1, 2, 3)]
    activities = [activity(1, 10, 20), activity(2, 30, 50), activity(3, 15, 95, device=1)]
    batch = work_of(attribute(Timeline(ranges, calls, activities)), "batch")
    assert (batch.extent_ns, batch.idle_ns, batch.gaps, batch.last_ns) == (40 + 80, 10, 1, 95)


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("cudaStreamSynchronize_v3020", True),
        ("cudaDeviceSynchronize", True),
        ("cudaMemcpy_v3020", True),
        ("cudaMemcpyAsync_v3020", False),
        ("cuMemcpyDtoH_v2", True),
        ("cudaFree_v3020", True),
        ("cudaFreeAsync_v11020", False),
        ("cudaLaunchKernel", False),
    ],
)
def test_calls_that_wait_for_the_device_are_counted_where_they_were_made(name: str, waits: bool) -> None:
    ranges = [root(0, 100), range_("stage", 10, 50)]
    found = attribute(Timeline(ranges, [Call(name, 20, 33, 1, 7, 1)], []))
    expected = (1, 13) if waits else (0, 0)
    for each in ("stage", "batch"):
        assert (work_of(found, each).syncs, work_of(found, each).sync_ns) == expected
