"""Sends the ranges of a profiler to the recorder as spans, so that a profile gets its rows as an evaluation does."""

import itertools
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mlotel_cli.link.handoff import RecorderLink
from mlotel_cli.link.persistent import PersistentLink
from mlotel_cli.profile.attribution import Attributed, Work
from mlotel_cli.profile.stages import StageBatch, by_batch, measured
from mlotel_cli.profile.timeline import Range
from mlotel_cli.records import KIND
from mlotel_cli.wire import SpanMessage

_KINDS = ("server", "client", "producer", "consumer")
_COLUMNS = {
    "kernels": "{kernel}",
    "kernel_ms": "ms",
    "idle_ms": "ms",
    "copy_ms": "ms",
    "copy_bytes": "By",
    "syncs": "{call}",
}
"""Figures of the device that become columns of a batch's row, with their units."""


def replay(
    attributed: Attributed,
    link: RecorderLink | PersistentLink,
    *,
    started_ns: int | None,
    recorded: Mapping[int, Sequence[Sequence[Any]]] | None = None,
) -> dict[int, int]:
    """Send every range of a batch to the recorder as a span.

    Args:
        attributed: the recording.
        link: takes the spans.
        started_ns: start of the recording, in ns since the epoch; used where the recording has no time of its own.
        recorded: values given to `record()`, by batch: (name, value, unit).

    Returns:
        The number of spans, by batch.
    """
    ranges = _of_batches(attributed.timeline.ranges)
    if not ranges:
        return {}
    offset = attributed.timeline.epoch_offset_ns
    if offset is None:
        offset = (started_ns or 0) - min(each.start_ns for each in ranges)
    counter = itertools.count(random.SystemRandom().getrandbits(62) + 1)
    ids = {each: next(counter) for each in ranges}
    traces = {batch: int.from_bytes(os.urandom(16), "big") or 1 for batch in {each.batch for each in ranges}}
    opened = Counter(each.batch for each in ranges if each.batch is not None)
    figures = by_batch(attributed)
    for each in ranges:
        is_root = each.is_root
        message = _message(each, attributed.work.get(each), ids=ids, trace_id=traces[each.batch], offset_ns=offset)
        if is_root and each.batch is not None:
            values = _recorded(figures.get(each.batch, {}), (recorded or {}).get(each.batch, ()))
            message = message._replace(opened=opened[each.batch], recorded=values)
        link.send(message)
        if is_root:
            link.wait_for_room()
    return dict(opened)


def _message(each: Range, work: Work | None, *, ids: Mapping[Range, int], trace_id: int, offset_ns: int) -> SpanMessage:
    """Return the span of a range. As in an evaluation, it ends when the device has done its work."""
    on_device = work if work is not None and work.has_device_work else None
    lag_ns = max(0, on_device.last_ns - each.end_ns) if on_device else None
    return SpanMessage(
        trace_id=trace_id,
        span_id=ids[each],
        parent_id=ids.get(each.parent, 0) if each.parent is not None else 0,
        opened=None,
        batch=each.batch,
        name=each.name,
        kind=each.category.upper() if each.category in _KINDS else "INTERNAL",
        scope="profiler",
        thread=str(each.thread & 0xFFFFFF),
        start_ns=each.start_ns + offset_ns,
        end_ns=each.end_ns + (lag_ns or 0) + offset_ns,
        device_ns=on_device.extent_ns if on_device else None,
        lag_ns=lag_ns,
        attributes=_attributes(each),
    )


def _of_batches(ranges: Sequence[Range]) -> list[Range]:
    """Return the ranges of batches whose root was recorded, by end."""
    rooted = {each.batch for each in ranges if each.is_root and each.batch is not None}
    return sorted((each for each in ranges if each.batch in rooted), key=lambda each: each.end_ns)


def _attributes(each: Range) -> Mapping[str, Any] | None:
    known = each.is_root or each.category == "internal" or each.category in _KINDS
    return None if known or not each.category else {KIND: each.category}


def _recorded(stages: Mapping[str, StageBatch], given: Sequence[Sequence[Any]]) -> list[tuple[str, float, str]]:
    """Return the values of a batch: those that the program recorded, then those of the device."""
    values = [(str(name), float(value), str(unit)) for name, value, unit in given]
    return values + [
        (f"{name}.{column}", figures[column], unit)
        for name, stage in stages.items()
        if stage.work
        for figures in [measured(stage.work)]
        for column, unit in _COLUMNS.items()
    ]
