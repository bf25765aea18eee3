"""The recording of a profiler, in one form for all profilers: ranges, API calls, activities on the device. Pure.

Times are nanoseconds on the profiler's clock. `nest` joins ranges to parents and batches; attribution.py joins the work
on the device to ranges.
"""

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

ROOT = "batch"
"""Category of the root range of a batch."""
QUEUE = "queue"
"""Category of a range in which a batch waits."""

Kind = Literal["kernel", "memcpy", "memset", "graph"]
"""The kind of an activity; `graph` is a CUDA graph that was traced as a whole."""


@dataclass(slots=True, eq=False)
class Range:
    """A span, as the profiler recorded it.

    Attributes:
        category: `batch`, the span's kind in lower case, or the value of its `mlotel.kind`.
        thread: the thread on which it started; unique over processes.
        batch: the index of its batch, from its payload; `nest` fills it in for ranges without one.
        parent: the range around it, filled in by `nest`.
        crosses: True when it ended on another thread.
    """

    name: str
    category: str
    start_ns: int
    end_ns: int
    thread: int
    process: int
    batch: int | None = None
    parent: "Range | None" = None
    crosses: bool = False

    @property
    def is_root(self) -> bool:
        """True for the root range of a batch."""
        return self.category == ROOT

    @property
    def encloses(self) -> bool:
        """True when it contains what its thread does meanwhile; a batch that moves on to other threads does not."""
        return not (self.crosses and self.category in (ROOT, QUEUE))


@dataclass(slots=True, eq=False)
class Call:
    """A CUDA API call on the host. It shares `correlation` with the activities that it caused."""

    name: str
    start_ns: int
    end_ns: int
    thread: int
    process: int
    correlation: int


@dataclass(slots=True, eq=False)
class Activity:
    """One piece of work on the device. A copy has `num_bytes` and a `direction`, such as "Host-to-Device"."""

    kind: Kind
    name: str
    start_ns: int
    end_ns: int
    device: int
    process: int
    correlation: int
    direction: str = ""
    num_bytes: int = 0


@dataclass(slots=True)
class Timeline:
    """A recording.

    Attributes:
        ranges: the ranges of mlotel that began and ended in the recording.
        epoch_offset_ns: a time plus this offset is nanoseconds since the epoch; None where the profiler has none.
        num_cut: number of ranges that were left out because they did not end in the recording.
        version: the version of the profiler.
    """

    ranges: list[Range] = field(default_factory=list[Range])
    calls: list[Call] = field(default_factory=list[Call])
    activities: list[Activity] = field(default_factory=list[Activity])
    epoch_offset_ns: int | None = None
    num_cut: int = 0
    version: str = ""


class Track:
    """The ranges of one thread, by time."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        """Sort the ranges; of two with the same start, the longer one is the outer one."""
        self.ranges = sorted(ranges, key=lambda each: (each.start_ns, -each.end_ns))
        self._starts = [each.start_ns for each in self.ranges]
        self._latest_end: list[int] = []  # of this range and all before it; `innermost` stops by it
        latest = 0
        for each in self.ranges:
            latest = max(latest, each.end_ns)
            self._latest_end.append(latest)

    def innermost(self, time_ns: int, *, below: int | None = None) -> Range | None:
        """Return the range that began last of those open at `time_ns`, or of the first `below` ranges."""
        position = bisect.bisect_right(self._starts, time_ns) if below is None else below
        while position and self._latest_end[position - 1] >= time_ns:
            position -= 1
            if self.ranges[position].end_ns >= time_ns:
                return self.ranges[position]
        return None

    def parents(self) -> Iterable[tuple[Range, Range | None]]:
        """Yield each range with the one that was open on this thread when it began."""
        for position, each in enumerate(self.ranges):
            yield each, self.innermost(each.start_ns, below=position)


def tracks(ranges: Sequence[Range]) -> dict[int, Track]:
    """Return tracks by thread; they hold the ranges that enclose what their thread does."""
    by_thread: defaultdict[int, list[Range]] = defaultdict(list)
    for each in ranges:
        if each.encloses:
            by_thread[each.thread].append(each)
    return {thread: Track(each) for thread, each in by_thread.items()}


def nest(ranges: Sequence[Range]) -> dict[int, Track]:
    """Fill in parents and batches. Returns the tracks by thread.

    The parent of a range is the range of the same thread that it began in. A range on another thread has the batch's
    index as its payload; its parent is that batch's root. So is the parent of waiting that crosses threads.
    """
    roots = {each.batch: each for each in ranges if each.is_root}
    by_thread = tracks(ranges)
    for each in ranges:
        if not each.encloses and not each.is_root:
            each.parent = roots.get(each.batch)
    for track in by_thread.values():
        for each, outer in track.parents():  # parents come first: they began earlier
            if each.is_root:
                continue
            if outer is not None and (each.batch is None or each.batch == outer.batch):
                each.parent = outer
                each.batch = outer.batch
            elif each.batch is not None:
                each.parent = roots.get(each.batch)
    return by_thread
