"""A profile in figures: per stage, and per stage and batch. Pure; what stages.json, the table and W&B show.

A stage is what it is in an evaluation: the internal spans of one name, summed over a batch. Figures of the device are
absent where nothing ran on one.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlotel_cli.analysis.verdicts import verdict
from mlotel_cli.profile.attribution import Attributed, Work
from mlotel_cli.stats.describe import describe

SCHEMA_VERSION = 1
STAGE = "internal"
QUEUE = "queue"


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
