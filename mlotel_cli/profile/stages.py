"""A profile in figures, per stage, and per stage and batch: what stages.json, the table and W&B show. Pure.

A stage is what it is in an evaluation: the internal spans of one name, summed over a batch. Figures of the device are
absent where nothing ran on one.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlotel_cli.analysis.verdicts import verdict
from mlotel_cli.profile.attribution import Attributed, Work
from mlotel_cli.profile.timeline import QUEUE
from mlotel_cli.stats.describe import describe
from mlotel_cli.stats.description import Description
from mlotel_cli.typed_json import OPTIONAL, Json, from_json, to_json

SCHEMA_VERSION = 1
STAGE = "internal"


@dataclass(slots=True)
class StageBatch:
    """One stage in one batch, summed over its ranges. `work` is None where nothing ran on a device."""

    host_ns: int = 0
    queue_ns: int = 0
    calls: int = 0
    work: list[Work] = field(default_factory=list[Work])


def by_batch(attributed: Attributed) -> dict[int, dict[str, StageBatch]]:
    """Stages by batch and name, in order of first appearance; ranges outside any batch are left out."""
    table: dict[int, dict[str, StageBatch]] = {}
    for each in sorted(attributed.timeline.ranges, key=lambda each: each.start_ns):
        if each.batch is None or each.is_root:
            continue
        stages = table.setdefault(each.batch, {})
        duration = each.end_ns - each.start_ns
        if each.category == QUEUE:
            stages.setdefault(each.name.removeprefix("queue "), StageBatch()).queue_ns += duration
        elif each.category == STAGE:
            stage = stages.setdefault(each.name, StageBatch())
            stage.host_ns += duration
            stage.calls += 1
            work = attributed.work.get(each)
            if work is not None and (work.has_device_work or work.syncs):
                stage.work.append(work)
    return table


@dataclass(slots=True)
class ProfilerAbout:
    """The profiler of a run.

    Attributes:
        kind: nsys | torch.
        path: of the program.
        version: of the program, or of torch.
        trace: what nsys was told to trace.
        command: the command line of the workload under it.
    """

    kind: str = ""
    path: str | None = field(default=None, metadata=OPTIONAL)
    version: str | None = None
    trace: str | None = field(default=None, metadata=OPTIONAL)
    command: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class CopyFigures:
    """Copies in one direction, a batch: bytes, milliseconds, number."""

    bytes: float
    ms: float
    number: float


@dataclass(slots=True)
class KernelFigures:
    """Kernels of one name, a batch: number and milliseconds."""

    name: str
    number: float
    ms: float


@dataclass(slots=True)
class DeviceFigures:
    """A stage's work on the device, as `attribution.Work` counts it; means a batch.

    Attributes:
        device_ms: from the start of the first activity to the end of the last.
        idle_ms: the part of it in which the device did nothing.
        syncs: number of waits of the host for the device.
        copies: by direction.
        top_kernels: those that take longest, longest first.
    """

    kernels: float = 0.0
    kernel_ms: float = 0.0
    device_ms: float = 0.0
    idle_ms: float = 0.0
    idle_gaps: float = 0.0
    graphs: float = 0.0
    graph_ms: float = 0.0
    memset_ms: float = 0.0
    syncs: float = 0.0
    sync_ms: float = 0.0
    copy_ms: float = 0.0
    copy_bytes: float = 0.0
    copies: dict[str, CopyFigures] = field(default_factory=dict[str, CopyFigures])
    top_kernels: list[KernelFigures] = field(default_factory=list[KernelFigures])


@dataclass(slots=True)
class ProfiledStage:
    """One stage over all batches.

    Attributes:
        host_ms: time on the host in each batch.
        queue_ms: wait before it in each batch; None where it has no queue.
        device: its work on the device; None where there was none.
        verdict: what it waits for (`analysis.verdicts`).
    """

    batches: int
    calls: int
    host_ms: Description
    queue_ms: Description | None
    device: DeviceFigures | None
    verdict: str


@dataclass(slots=True)
class Unattributed:
    """Work of the device that belongs to no range; `ambiguous` counts what was launched while several stages ran."""

    activities: int = 0
    device_ms: float = 0.0
    ambiguous: int = 0


@dataclass(slots=True)
class ProfileSummary:
    """The content of stages.json.

    Attributes:
        batch_ms: time of each batch on the host.
        stages: by name, in order of first appearance.
        ranges_cut: spans that had not ended when the recording did; they count nowhere.
    """

    profiler: ProfilerAbout = field(default_factory=ProfilerAbout)
    schema_version: int = SCHEMA_VERSION
    batches: int = 0
    batch_ms: Description = field(default_factory=Description)
    stages: dict[str, ProfiledStage] = field(default_factory=dict[str, ProfiledStage])
    unattributed: Unattributed = field(default_factory=Unattributed)
    ranges: int = 0
    ranges_cut: int = 0

    def to_json(self) -> dict[str, Json]:
        """As stages.json has it."""
        return to_json(self)

    @classmethod
    def from_json(cls, told: Mapping[str, object]) -> "ProfileSummary":
        """Read stages.json.

        Raises:
            ValueError: a part has the wrong type.
        """
        return from_json(cls, told)


def summarise_stages(
    attributed: Attributed, *, profiler: ProfilerAbout | None = None, top_kernels: int = 5
) -> ProfileSummary:
    """The content of stages.json: distributions of host times without intervals, means a batch of the device's."""
    stages: defaultdict[str, list[StageBatch]] = defaultdict(list)
    for batch in by_batch(attributed).values():
        for name, stage in batch.items():
            stages[name].append(stage)
    roots = [each for each in attributed.timeline.ranges if each.is_root]
    return ProfileSummary(
        profiler=profiler or ProfilerAbout(),
        batches=len(roots),
        batch_ms=_describe([each.end_ns - each.start_ns for each in roots]),
        stages={name: _summarise(each, top_kernels=top_kernels) for name, each in stages.items()},
        unattributed=Unattributed(
            attributed.num_unattributed, attributed.unattributed_ns / 1e6, attributed.num_ambiguous
        ),
        ranges=len(attributed.timeline.ranges),
        ranges_cut=attributed.timeline.num_cut,
    )


def measured(work: Sequence[Work]) -> dict[str, float]:
    """Figures of one stage in one batch, by the names under which they become columns."""
    figures = {
        "kernels": float(sum(each.kernels for each in work)),
        "kernel_ms": sum(each.kernel_ns for each in work) / 1e6,
        "device_ms": sum(each.extent_ns for each in work) / 1e6,
        "idle_ms": sum(each.idle_ns for each in work) / 1e6,
        "idle_gaps": float(sum(each.gaps for each in work)),
        "graphs": float(sum(each.graphs for each in work)),
        "graph_ms": sum(each.graph_ns for each in work) / 1e6,
        "memset_ms": sum(each.memset_ns for each in work) / 1e6,
        "syncs": float(sum(each.syncs for each in work)),
        "sync_ms": sum(each.sync_ns for each in work) / 1e6,
    }
    copies = _copies(work)
    figures["copy_ms"] = sum(time_ns for _, time_ns, _ in copies.values()) / 1e6
    figures["copy_bytes"] = float(sum(num_bytes for num_bytes, _, _ in copies.values()))
    return figures


def _describe(values_ns: Sequence[int]) -> Description:
    return describe([value / 1e6 for value in values_ns], intervals=False)


def _summarise(batches: Sequence[StageBatch], *, top_kernels: int) -> ProfiledStage:
    host_ms = _describe([batch.host_ns for batch in batches if batch.calls])
    queue_ms = _describe([batch.queue_ns for batch in batches]) if any(batch.queue_ns for batch in batches) else None
    device = _summarise_device(batches, top_kernels=top_kernels)
    return ProfiledStage(
        batches=len(batches),
        calls=sum(batch.calls for batch in batches),
        host_ms=host_ms,
        queue_ms=queue_ms,
        device=device,
        verdict=verdict(
            host_ms=host_ms.mean or 0.0,
            device_ms=device.device_ms if device else None,
            busy_ms=device.device_ms - device.idle_ms if device else None,
            queue_ms=queue_ms.mean if queue_ms else None,
            sync_ms=device.sync_ms if device else 0.0,
        ),
    )


def _summarise_device(batches: Sequence[StageBatch], *, top_kernels: int) -> DeviceFigures | None:
    everything = [work for batch in batches for work in batch.work]
    if not everything:
        return None
    count = len(batches)
    per_batch = [measured(batch.work) for batch in batches]
    means = {name: statistics.fmean(row[name] for row in per_batch) for name in per_batch[0]}
    figures = from_json(DeviceFigures, means)
    figures.copies = {
        direction: CopyFigures(num_bytes / count, time_ns / 1e6 / count, number / count)
        for direction, (num_bytes, time_ns, number) in _copies(everything).items()
    }
    kernels: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for work in everything:
        for name, (number, time_ns) in work.kernel_names.items():
            kernels[name][0] += number
            kernels[name][1] += time_ns
    longest = sorted(kernels.items(), key=lambda item: -item[1][1])[:top_kernels]
    figures.top_kernels = [
        KernelFigures(name, number / count, time_ns / 1e6 / count) for name, (number, time_ns) in longest
    ]
    return figures


def _copies(work: Sequence[Work]) -> Mapping[str, tuple[int, int, int]]:
    total: dict[str, tuple[int, int, int]] = {}
    for each in work:
        for direction, (num_bytes, time_ns, number) in each.copies.items():
            before = total.get(direction, (0, 0, 0))
            total[direction] = (before[0] + num_bytes, before[1] + time_ns, before[2] + number)
    return total
