"""A profile in figures: per stage, and per stage and batch. Pure; what stages.json, the table and W&B show.

A stage is what it is in an evaluation: the internal spans of one name, summed over a batch. Figures of the device are
absent where nothing ran on one.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlotel_cli.profile.attribution import Attributed, Work
from mlotel_cli.stats.describe import describe

SCHEMA_VERSION = 1
STAGE = "internal"
QUEUE = "queue"
BUSY = 0.8
"""Share of a stage's time from which on the device counts as the one that everybody waits for."""

Verdict = Literal["device-bound", "launch-bound", "host-bound", "waiting", "launch-bound or synchronising"]
UNDECIDED: Verdict = "launch-bound or synchronising"
"""All that events alone can say of a stage that ends with its device; it may have no work for the device at all."""


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


def summarise_stages(attributed: Attributed, *, top_kernels: int = 5) -> dict[str, Any]:
    """The content of stages.json, but for what is known of the profiler itself.

    Times in milliseconds. `host_ms` has the distribution over batches (`stats.describe` without intervals); figures of
    the device are means per batch: `kernel_ms` sums kernels, `device_ms` is from the first activity to the last,
    `idle_ms` the part of it in which the device did nothing, `copies` are by direction.
    """
    stages: defaultdict[str, list[StageBatch]] = defaultdict(list)
    for batch in by_batch(attributed).values():
        for name, stage in batch.items():
            stages[name].append(stage)
    roots = [each for each in attributed.timeline.ranges if each.is_root]
    return {
        "schema_version": SCHEMA_VERSION,
        "batches": len(roots),
        "batch_ms": _describe([each.end_ns - each.start_ns for each in roots]),
        "stages": {name: _summarise(each, top_kernels=top_kernels) for name, each in stages.items()},
        "unattributed": {
            "activities": attributed.num_unattributed,
            "device_ms": attributed.unattributed_ns / 1e6,
            "ambiguous": attributed.num_ambiguous,
        },
        "ranges": len(attributed.timeline.ranges),
        "ranges_cut": attributed.timeline.num_cut,
    }


def verdict(
    *,
    host_ms: float,
    device_ms: float | None,
    busy_ms: float | None,
    queue_ms: float | None,
    sync_ms: float = 0.0,
) -> Verdict:
    """Who a stage waits for, by what a profiler saw.

    Args:
        host_ms: time on the host.
        device_ms: from the first activity of the device to the last; None without one.
        busy_ms: the part of it in which the device did something.
        queue_ms: time in the queue before the stage.
        sync_ms: the part of `host_ms` in which the host waited for the device, for earlier stages' work too.

    Returns:
        waiting: in the queue for longer than it works. device-bound: the host waits for the device, or the device is
        busy for most of the stage. launch-bound: the device waits for the host's launches. host-bound: no device takes
        part.
    """
    if queue_ms is not None and queue_ms > max(host_ms, device_ms or 0.0):
        return "waiting"
    if device_ms is None or busy_ms is None:
        return "host-bound"
    length_ms = max(host_ms - sync_ms, device_ms)
    return "device-bound" if busy_ms >= BUSY * length_ms or sync_ms >= BUSY * host_ms else "launch-bound"


def verdict_of_events(*, latency_ms: float, device_ms: float, lag_ms: float, queue_ms: float | None) -> Verdict:
    """Who a stage waits for, by two events per span.

    Until the first event passes, the device is at earlier work; once the host is done, all its launches lie ready. In
    between it may have waited for the host, or not: a stage that waits for its own results looks like one whose device
    waits for launches, and like one that has no work for the device. Only a profile tells them apart.

    Args:
        latency_ms: from the start on the host until host and device are done.
        device_ms: between the events.
        lag_ms: how long the device went on after the host.
        queue_ms: time in the queue before the stage.
    """
    if queue_ms is not None and queue_ms > latency_ms:
        return "waiting"
    undecided_ms = max(0.0, device_ms - lag_ms)
    return "device-bound" if latency_ms - undecided_ms >= BUSY * latency_ms else UNDECIDED


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


def _describe(values_ns: Sequence[int]) -> dict[str, Any]:
    return describe([value / 1e6 for value in values_ns], intervals=False)


def _summarise(batches: Sequence[StageBatch], *, top_kernels: int) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "batches": len(batches),
        "calls": sum(batch.calls for batch in batches),
        "host_ms": _describe([batch.host_ns for batch in batches if batch.calls]),
        "queue_ms": _describe([batch.queue_ns for batch in batches]) if any(b.queue_ns for b in batches) else None,
        "device": _summarise_device(batches, top_kernels=top_kernels),
    }
    device, queue = summary["device"], summary["queue_ms"]
    summary["verdict"] = verdict(
        host_ms=summary["host_ms"]["mean"] or 0.0,
        device_ms=device["device_ms"] if device else None,
        busy_ms=device["device_ms"] - device["idle_ms"] if device else None,
        queue_ms=queue["mean"] if queue else None,
        sync_ms=device["sync_ms"] if device else 0.0,
    )
    return summary


def _summarise_device(batches: Sequence[StageBatch], *, top_kernels: int) -> dict[str, Any] | None:
    everything = [work for batch in batches for work in batch.work]
    if not everything:
        return None
    count = len(batches)
    per_batch = [measured(batch.work) for batch in batches]
    figures: dict[str, Any] = {name: statistics.fmean(row[name] for row in per_batch) for name in per_batch[0]}
    figures["copies"] = {
        direction: {"bytes": num_bytes / count, "ms": time_ns / 1e6 / count, "number": number / count}
        for direction, (num_bytes, time_ns, number) in _copies(everything).items()
    }
    kernels: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for work in everything:
        for name, (number, time_ns) in work.kernel_names.items():
            kernels[name][0] += number
            kernels[name][1] += time_ns
    longest = sorted(kernels.items(), key=lambda item: -item[1][1])[:top_kernels]
    figures["top_kernels"] = [
        {"name": name, "number": number / count, "ms": time_ns / 1e6 / count} for name, (number, time_ns) in longest
    ]
    return figures


def _copies(work: Sequence[Work]) -> Mapping[str, tuple[int, int, int]]:
    total: dict[str, tuple[int, int, int]] = {}
    for each in work:
        for direction, (num_bytes, time_ns, number) in each.copies.items():
            before = total.get(direction, (0, 0, 0))
            total[direction] = (before[0] + num_bytes, before[1] + time_ns, before[2] + number)
    return total
