"""Spans as a Chrome trace, the JSON that ui.perfetto.dev and chrome://tracing read. Pure.

Batches have tracks of their own, on which batches that overlap in time lie beside each other; every thread has a track.
An arrow leads from a batch to its stages, one after the other. Waiting in a queue is an asynchronous slice of category
`queue`, because several batches wait at the same time, which slices of a thread cannot show.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from mlotel_cli.records import SpanRecord, span_role
from mlotel_cli.trace.waterfall import ranks

_PID = 1
_FIRST_TID = 2  # a thread with the number of its process would be called the main thread
_CATEGORIES = {"batch": "batch", "waiting": "queue", "compute": "stage"}

Event = dict[str, Any]


def chrome_trace(spans: Sequence[SpanRecord], *, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the file, for `json.dump`.

    Times are microseconds since the first span, because a double cannot hold nanoseconds since the epoch. `otherData`
    has the start of the first span. `info` is the run.json of the spans' run.
    """
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))
    zero_ns = ordered[0].start_ns if ordered else 0
    tracks = _Tracks()
    rank = ranks(ordered)
    events: list[Event] = []
    roots = _root_tracks(ordered, tracks)
    below = [span for span in ordered if span_role(span) == "compute"]
    for span in sorted(below, key=lambda each: (rank[each.span_id], each.thread)):
        tracks.thread(span.thread)  # in the order in which a batch reaches them, by which viewers sort
    nested = _nested(below)
    stages: defaultdict[int, list[SpanRecord]] = defaultdict(list)
    for span in below:
        if span.span_id in nested:  # arrows can only lead to slices of a thread
            stages[span.parent_id].append(span)
    for span, tid in roots:
        events.append(_slice(span, tid, zero_ns))
        events += _instants(span, tid, zero_ns)
        events += _flow(span, tid, stages[span.span_id], tracks, zero_ns)
    for span in ordered:
        kind = span_role(span)
        if kind == "compute" and span.span_id in nested:
            events.append(_slice(span, tracks.thread(span.thread), zero_ns))
        elif kind != "batch":
            events += _asynchronous(span, tracks.thread(span.thread), zero_ns)
        if kind != "batch":
            events += _instants(span, tracks.thread(span.thread), zero_ns)
    name = f"mlotel {info.get('mode', 'run')} {info.get('name', '')}".strip()
    return {
        "displayTimeUnit": "ms",
        "traceEvents": [*_metadata(name, tracks), *events],
        "otherData": {"start_unix_ns": str(zero_ns), "mlotel.run.id": str(info.get("run_id", ""))},
    }


class _Tracks:
    """Thread numbers by name; a batch track and a thread never share one."""

    def __init__(self) -> None:
        self.tids: dict[tuple[str, str], int] = {}

    def thread(self, name: str) -> int:
        return self._number(("thread", name))

    def batches(self, slot: int) -> int:
        return self._number(("batch", f"batches {slot + 1}"))

    def _number(self, key: tuple[str, str]) -> int:
        return self.tids.setdefault(key, len(self.tids) + _FIRST_TID)


def _root_tracks(ordered: Iterable[SpanRecord], tracks: _Tracks) -> list[tuple[SpanRecord, int]]:
    """Return the roots, each with the first track of batches that is free."""
    free_from: list[int] = []
    placed: list[tuple[SpanRecord, int]] = []
    for span in ordered:
        if span_role(span) == "batch":
            slot = next((n for n, end_ns in enumerate(free_from) if end_ns <= span.start_ns), len(free_from))
            free_from[slot : slot + 1] = [span.end_ns]
            placed.append((span, tracks.batches(slot)))
    return placed


def _nested(ordered: Sequence[SpanRecord]) -> set[int]:
    """Return the ids of spans that nest properly on their thread, as slices of a thread must."""
    open_ends: defaultdict[str, list[int]] = defaultdict(list)
    fitting: set[int] = set()
    for span in ordered:
        stack = open_ends[span.thread]
        while stack and stack[-1] <= span.start_ns:
            stack.pop()
        if not stack or span.end_ns <= stack[-1]:
            stack.append(span.end_ns)
            fitting.add(span.span_id)
    return fitting


def _flow(root: SpanRecord, root_tid: int, stages: Sequence[SpanRecord], tracks: _Tracks, zero_ns: int) -> list[Event]:
    """Return arrows from the root to each of its stages in turn."""
    stops = [("s", root_tid, root.start_ns)]
    stops += [("t", tracks.thread(span.thread), span.start_ns) for span in stages[:-1]]
    stops += [("f", tracks.thread(span.thread), span.start_ns) for span in stages[-1:]]
    shared = {"name": "batch", "cat": "flow", "id": f"{root.span_id:016x}", "pid": _PID, "bp": "e"}
    return [{**shared, "ph": ph, "tid": tid, "ts": _us(ns, zero_ns)} for ph, tid, ns in stops] if stages else []


def _slice(span: SpanRecord, tid: int, zero_ns: int) -> Event:
    start, end = _us(span.start_ns, zero_ns), _us(span.end_ns, zero_ns)
    return {**_described(span), "ph": "X", "pid": _PID, "tid": tid, "ts": start, "dur": round(end - start, 3)}


def _asynchronous(span: SpanRecord, tid: int, zero_ns: int) -> list[Event]:
    local = {"local": f"{span.span_id:016x}"}  # `id` would be global and not belong to the process
    shared = {"cat": _category(span), "name": span.name, "id2": local, "pid": _PID, "tid": tid}
    begin = {**_described(span), **shared, "ph": "b", "ts": _us(span.start_ns, zero_ns)}
    return [begin, {**shared, "ph": "e", "ts": _us(span.end_ns, zero_ns)}]


def _instants(span: SpanRecord, tid: int, zero_ns: int) -> list[Event]:
    shared = {"cat": "event", "ph": "i", "s": "t", "pid": _PID, "tid": tid}
    return [
        {**shared, "name": name, "ts": _us(time_ns, zero_ns), "args": {**_plain(attributes), "batch": span.batch}}
        for time_ns, name, attributes in span.events
    ]


def _described(span: SpanRecord) -> Event:
    args: dict[str, Any] = {"batch": span.batch, **_plain(span.attributes), "span_id": f"{span.span_id:016x}"}
    if span.device_ns is not None:
        args["device_ms"] = span.device_ns / 1e6
    if span.status != "UNSET":
        args["status"] = f"{span.status}: {span.status_message}" if span.status_message else span.status
    name = f"{span.name} {span.batch}" if span_role(span) == "batch" else span.name
    return {"name": name, "cat": _category(span), "args": args}


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON can hold them: NaN and infinity become text."""
    return {
        name: [_finite(each) for each in cast("list[Any]", value)]
        if isinstance(value, list | tuple)
        else _finite(value)
        for name, value in attributes.items()
    }


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _category(span: SpanRecord) -> str:
    return _CATEGORIES[span_role(span)]


def _us(time_ns: int, zero_ns: int) -> float:
    return (time_ns - zero_ns) / 1e3


def _metadata(process: str, tracks: _Tracks) -> list[Event]:
    shared = {"ph": "M", "pid": _PID}
    events: list[Event] = [{**shared, "name": "process_name", "tid": 0, "args": {"name": process}}]
    in_order = sorted(tracks.tids.items(), key=lambda item: (item[0][0] != "batch", item[1]))
    for position, ((_, name), tid) in enumerate(in_order):
        events.append({**shared, "name": "thread_name", "tid": tid, "args": {"name": name}})
        events.append({**shared, "name": "thread_sort_index", "tid": tid, "args": {"sort_index": position}})
    return events
