"""The Chrome trace: the rules of its format, and what a viewer shows."""

import json
import math
import re
from collections import Counter, defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.trace.perfetto import chrome_trace
from tests.support.traces import Trace, pipelined

INFO = {"mode": "eval", "name": "lpr", "run_id": "abc"}


def events(*traces: Trace) -> list[dict[str, Any]]:
    spans = [span for trace in traces for span in trace.spans]
    return json.loads(json.dumps(chrome_trace(spans, info=INFO), allow_nan=False))["traceEvents"]


def tracks(found: list[dict[str, Any]]) -> dict[int, str]:
    return {event["tid"]: event["args"]["name"] for event in found if event["name"] == "thread_name"}


def check(found: list[dict[str, Any]]) -> None:
    """What every reader of the format relies on."""
    names = tracks(found)
    for event in found:
        assert {"ph", "pid", "tid", "name"} <= event.keys()
        assert event["ph"] == "M" or (event["ts"] >= 0 and event["tid"] in names and event["tid"] != event["pid"])
    check_nesting([event for event in found if event["ph"] == "X"])
    halves = Counter((e["ph"], e["cat"], e["name"], e["id2"]["local"]) for e in found if e["ph"] in "be")
    assert all(count == 1 for count in halves.values())
    assert {half[1:] for half in halves if half[0] == "b"} == {half[1:] for half in halves if half[0] == "e"}
    check_arrows(found)


def check_nesting(slices: list[dict[str, Any]]) -> None:
    """Slices of a track lie inside or outside each other."""
    by_track: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for event in slices:
        by_track[event["tid"]].append((event["ts"], round(event["ts"] + event["dur"], 3)))
    for on_track in by_track.values():
        open_ends: list[float] = []
        for start, end in sorted(on_track, key=lambda each: (each[0], -each[1])):
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)


def check_arrows(found: list[dict[str, Any]]) -> None:
    """An arrow begins and ends where a slice begins."""
    starts = {(event["tid"], event["ts"]) for event in found if event["ph"] == "X"}
    flows: defaultdict[str, str] = defaultdict(str)
    for event in found:
        if event.get("cat") == "flow":
            flows[event["id"]] += event["ph"]
            assert (event["tid"], event["ts"]) in starts
    assert all(re.fullmatch("st*f", phases) for phases in flows.values())


def test_a_pipelined_batch() -> None:
    found = events(pipelined(7))
    check(found)
    names = tracks(found)
    shown = [(e["ph"], e["cat"], e["name"], names[e["tid"]], e["ts"], e.get("dur")) for e in found if e["ph"] in "Xb"]
    assert shown == [
        ("X", "batch", "batch 7", "batches 1", 0, 100_000),
        ("b", "queue", "queue detector", "source", 0, None),
        ("X", "stage", "detector", "detector", 10_000, 30_000),
        ("X", "stage", "resize", "detector", 15_000, 10_000),
        ("b", "queue", "queue reader", "detector", 40_000, None),
        ("X", "stage", "reader", "reader", 60_000, 39_000),
    ]
    arrows = [(e["ph"], names[e["tid"]], e["ts"]) for e in found if e.get("cat") == "flow"]
    assert arrows == [("s", "batches 1", 0), ("t", "detector", 10_000), ("f", "reader", 60_000)]
    assert all(e["args"]["batch"] == 7 for e in found if e["ph"] in "Xb")


def test_batches_under_way_at_once_have_tracks_beside_each_other() -> None:
    found = events(pipelined(0), pipelined(1, 50), pipelined(2, 120))
    check(found)
    names = tracks(found)
    assert {e["name"]: names[e["tid"]] for e in found if e.get("cat") == "batch"} == {
        "batch 0": "batches 1",
        "batch 1": "batches 2",
        "batch 2": "batches 1",
    }
    assert list(names.values()) == ["batches 1", "batches 2", "detector", "reader", "source"]


def test_the_process_is_the_run_and_the_epoch_is_kept() -> None:
    trace = chrome_trace(pipelined().spans, info=INFO)
    assert trace["traceEvents"][0]["args"]["name"] == "mlotel eval lpr"
    assert trace["otherData"] == {"start_unix_ns": "1700000000000000000", "mlotel.run.id": "abc"}


def test_spans_that_overlap_on_a_thread_become_asynchronous() -> None:
    trace = Trace(0, 0, 100)
    trace.add("a", 0, 60, thread="t")
    trace.add("b", 40, 90, thread="t")
    found = events(trace)
    check(found)
    assert [(e["ph"], e["name"]) for e in found if e["ph"] in "Xb"] == [("X", "batch 0"), ("X", "a"), ("b", "b")]


def test_errors_device_time_attributes_and_events_are_arguments() -> None:
    trace = Trace(0, 0, 10, status="ERROR", status_message="gone")
    trace.add(
        "work", 1, 9, device_ns=2_500_000, attributes={"boxes": 3, "score": math.nan, "all": [math.inf, 1.5]},
        events=((1_700_000_000_002_000_000, "retry", {"n": 2}),),
    )  # fmt: skip
    found = events(trace)
    root, work = (next(e for e in found if e["name"] == name and e["ph"] == "X") for name in ("batch 0", "work"))
    assert root["args"]["status"] == "ERROR: gone"
    assert (work["args"]["device_ms"], work["args"]["boxes"], work["args"]["score"]) == (2.5, 3, "nan")
    assert work["args"]["all"] == ["inf", 1.5]
    (instant,) = (e for e in found if e["ph"] == "i")
    assert (instant["name"], instant["ts"], instant["args"]) == ("retry", 2000, {"n": 2, "batch": 0})


def test_an_event_of_a_batch_lies_on_its_track() -> None:
    found = events(Trace(0, 0, 10, events=((1_700_000_000_002_000_000, "exception", {}),)))
    check(found)
    assert [tracks(found)[e["tid"]] for e in found if e["ph"] == "i"] == ["batches 1"]
    assert list(tracks(found).values()) == ["batches 1"]


def test_nanoseconds_survive() -> None:
    trace = Trace(0, 0, 3_600_000)  # an hour
    trace.add("late", 3_599_999.123456, 3_599_999.123457)
    (late,) = (e for e in events(trace) if e["name"] == "late")
    assert (late["ts"], late["dur"]) == (3_599_999_123.456, 0.001)


def test_no_span_is_an_empty_trace() -> None:
    assert [e["name"] for e in chrome_trace([], info={})["traceEvents"]] == ["process_name"]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.sampled_from("abq"), st.integers(0, 2)), max_size=15)
)
def test_any_spans_make_a_valid_file(spans: list[tuple[int, int, str, int]]) -> None:
    traces = [Trace(batch, 3 * batch, 70) for batch in range(3)]
    for start, length, thread, batch in spans:
        if thread == "q":
            traces[batch].wait("x", start, start + length)
        else:
            traces[batch].add("s", start, start + length, thread=thread)
    check(events(*traces))
