"""Joins the work on the device to the ranges that it belongs to. Pure.

Kernels may run after the range that launched them has ended, so overlap in time does not decide. An activity belongs to
the range in which its API call was made (the two share a correlation id), and to every range around that one. A call
from a thread without an open range, such as a worker of the stage, belongs to the open range of the only other thread
that has one. Where several threads have one, the call belongs to no range and is counted. The nodes of a CUDA graph
carry the correlation id of the graph's launch, so they need no case of their own.
"""

import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mlotel_cli.profile.timeline import Activity, Call, Range, Timeline, Track, nest

_SYNCHRONISING = ("Synchronize", "cudaMemcpy_", "cuMemcpyDtoH_", "cuMemcpyHtoD_", "cudaFree_")
"""Parts of the names of calls that wait for the device. A version suffix such as _v3020 may follow."""


@dataclass(slots=True)
class Work:
    """The work on the device that one range caused, with all ranges inside it. Times in ns.

    Attributes:
        kernels: number of kernels.
        kernel_ns: sum of their durations.
        graphs: number of CUDA graphs that were traced as a whole.
        graph_ns: sum of their durations.
        copies: (bytes, ns, number) by direction.
        memset_ns: time of memsets.
        syncs: number of calls that waited for the device.
        sync_ns: how long the host was in those calls.
        extent_ns: time from the start of its first activity to the end of its last one, summed over devices.
        last_ns: when its last activity ended; 0 without any.
        idle_ns: the part of the extent in which the device ran nothing, of any range.
        gaps: number of such pauses.
        kernel_names: (number, ns) by kernel.
    """

    kernels: int = 0
    kernel_ns: int = 0
    graphs: int = 0
    graph_ns: int = 0
    copies: dict[str, tuple[int, int, int]] = field(default_factory=dict[str, tuple[int, int, int]])
    memset_ns: int = 0
    syncs: int = 0
    sync_ns: int = 0
    extent_ns: int = 0
    last_ns: int = 0
    idle_ns: int = 0
    gaps: int = 0
    kernel_names: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    @property
    def has_device_work(self) -> bool:
        """True when an activity ran on the device."""
        return self.extent_ns > 0

    def add(self, activity: Activity) -> None:
        """Count one activity."""
        duration = activity.end_ns - activity.start_ns
        if activity.kind == "kernel":
            self.kernels += 1
            self.kernel_ns += duration
            number, total = self.kernel_names.get(activity.name, (0, 0))
            self.kernel_names[activity.name] = (number + 1, total + duration)
        elif activity.kind == "graph":
            self.graphs += 1
            self.graph_ns += duration
        elif activity.kind == "memcpy":
            num_bytes, total, number = self.copies.get(activity.direction, (0, 0, 0))
            self.copies[activity.direction] = (num_bytes + activity.num_bytes, total + duration, number + 1)
        else:
            self.memset_ns += duration


@dataclass(slots=True)
class Attributed:
    """A timeline with its work joined to ranges.

    Attributes:
        timeline: the recording, with its ranges nested.
        work: by range; a range without work is absent.
        num_unattributed: number of activities that belong to no range.
        unattributed_ns: their time.
        num_ambiguous: number of those whose thread had no open range while several other threads had one.
    """

    timeline: Timeline
    work: Mapping[Range, Work]
    num_unattributed: int = 0
    unattributed_ns: int = 0
    num_ambiguous: int = 0


class BusyTime:
    """The time in which a device was busy: disjoint intervals, in order."""

    def __init__(self, intervals: Iterable[tuple[int, int]]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(intervals):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def gaps(self, start: int, end: int) -> tuple[int, int]:
        """Return number and ns of the pauses between `start` and `end`; the device must be busy at both."""
        first = bisect.bisect_right(self._starts, start) - 1
        last = bisect.bisect_left(self._ends, end)
        pauses = [self._starts[n + 1] - self._ends[n] for n in range(first, last)]
        return len(pauses), sum(pauses)


def attribute(timeline: Timeline) -> Attributed:
    """Nest the ranges and join the device's work to them."""
    by_thread = nest(timeline.ranges)
    sources = {each.thread for each in timeline.ranges if each.is_root and not each.encloses}
    owners, ambiguous = _owners(timeline.calls, by_thread, sources)
    work: defaultdict[Range, Work] = defaultdict(Work)
    activities: defaultdict[Range, list[Activity]] = defaultdict(list)
    result = Attributed(timeline, work)
    for activity in timeline.activities:
        key = (activity.process, activity.correlation)
        owner = owners.get(key)
        if owner is None:
            result.num_unattributed += 1
            result.unattributed_ns += activity.end_ns - activity.start_ns
            result.num_ambiguous += key in ambiguous
            continue
        for around in _outwards(owner):
            work[around].add(activity)
            activities[around].append(activity)
    _add_gaps(work, activities, timeline.activities)
    _add_synchronisations(work, timeline.calls, owners)
    return result


def _outwards(range_: Range | None) -> Iterable[Range]:
    while range_ is not None:
        yield range_
        range_ = range_.parent


def _owners(
    calls: Sequence[Call], by_thread: Mapping[int, Track], sources: set[int]
) -> tuple[dict[tuple[int, int], Range], set[tuple[int, int]]]:
    """Return the range of each call by its (process, correlation), and the keys of calls that may belong to several.

    A call that a thread of `sources` makes outside its own ranges belongs to no range: that thread hands its batches on
    and reads the next ones.
    """
    owners: dict[tuple[int, int], Range] = {}
    ambiguous: set[tuple[int, int]] = set()
    for call in calls:
        key = (call.process, call.correlation)
        track = by_thread.get(call.thread)
        owner = track.innermost(call.start_ns) if track is not None else None
        if owner is None and call.thread not in sources:
            open_ranges = _open_elsewhere(call, by_thread)
            owner = open_ranges[0] if len(open_ranges) == 1 else None
            if len(open_ranges) > 1:
                ambiguous.add(key)
        if owner is not None:
            owners[key] = owner
    return owners, ambiguous


def _open_elsewhere(call: Call, by_thread: Mapping[int, Track]) -> list[Range]:
    """Return the innermost open range of each other thread of the process; not those that contain another."""
    found = [
        inner
        for thread, track in by_thread.items()
        if thread != call.thread and track.ranges[0].process == call.process
        if (inner := track.innermost(call.start_ns)) is not None
    ]
    containing = {around for inner in found for around in _outwards(inner.parent)}
    return [inner for inner in found if inner not in containing]


def _add_gaps(
    work: Mapping[Range, Work], activities: Mapping[Range, Sequence[Activity]], everything: Sequence[Activity]
) -> None:
    intervals: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for activity in everything:
        intervals[activity.device].append((activity.start_ns, activity.end_ns))
    busy = {device: BusyTime(each) for device, each in intervals.items()}
    for range_, own in activities.items():
        for device in {activity.device for activity in own}:
            start = min(activity.start_ns for activity in own if activity.device == device)
            end = max(activity.end_ns for activity in own if activity.device == device)
            number, idle_ns = busy[device].gaps(start, end)
            work[range_].extent_ns += end - start
            work[range_].last_ns = max(work[range_].last_ns, end)
            work[range_].idle_ns += idle_ns
            work[range_].gaps += number


def _add_synchronisations(
    work: defaultdict[Range, Work], calls: Sequence[Call], owners: Mapping[tuple[int, int], Range]
) -> None:
    for call in calls:
        if any(part in call.name for part in _SYNCHRONISING):
            for around in _outwards(owners.get((call.process, call.correlation))):
                work[around].syncs += 1
                work[around].sync_ns += call.end_ns - call.start_ns
