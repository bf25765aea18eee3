"""Messages between the two processes: what one end writes is what the other end reads, and junk costs only itself."""

import json
import marshal
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlotel_cli.config.policies import Retention, TrackerOptions
from mlotel_cli.records import BATCH_SIZE, RECORDED, Sample, SpanRecord
from mlotel_cli.snapshot import Gaps, Snapshot, SourceReport
from mlotel_cli.summary import Telemetry, Warmup
from mlotel_cli.telemetry.clock import Clock
from mlotel_cli.telemetry.tracer import Provider, Recording
from mlotel_cli.wire import (
    Answer,
    Attachment,
    Closing,
    HttpOptions,
    Info,
    Message,
    MonitorOptions,
    Opening,
    OtlpOptions,
    ProcessReport,
    Report,
    Settled,
    SpanMessage,
    decode_answer,
    encode,
    encode_answer,
    from_plain,
    split_frames,
    to_plain,
    unpack,
)
from tests.support.wire import frame, read, received

SPAN = SpanMessage(1, 2, 0, None, 0, "stage", "INTERNAL", "", "", 10, 20)
MESSAGES: list[Message] = [
    Opening(mode="loop", name="n", run_id="f00", started_ns=7),
    Opening(
        mode="monitor",
        name="n",
        run_id="f00",
        started_ns=7,
        overrides=["a=1"],
        config={"a": [1, {"b": None}]},
        identity={"git.commit": None},
        tracker=TrackerOptions(mode="offline", tags=["x"], finish_timeout_s=3.0),
        otlp=OtlpOptions(endpoint="http://127.0.0.1:1", headers={"k": "v"}, from_environment=False),
        monitor=MonitorOptions(
            http=HttpOptions(port=9, fd=3),
            window_s=2.0,
            slow_ms=1.5,
            retention=Retention(max_gb=1.0, max_age_h=2.0, compact_s=3.0),
            restarts=2,
        ),
        settle_roots=True,
    ),
    Settled(3, 1, 2, 16, "scored", 4, 100, 0.5, 90, {"hit": 0.5}, [Sample("a", {"hit": None}, "p", "t", b"x")], "why"),
    Settled(0, 0, 0, 1, "incomplete", None, 100),
    Info.of({"notes": ["a"], "config": {"b": 1}}),
    Attachment("stages", ["a", "b"], [["x", 1.0]], ("a", "b", "title"), ["f"]),
    Report(
        SourceReport("video", "connected", 5, {"full": 1}, 2), {"source": (1, 8)}, ProcessReport(9, 1.5, 7), Gaps(1, 2)
    ),
    Closing("failed", "why", {"hit": None}, {"hit": [0.1, 0.2]}, 1.0, warmup=Warmup(3), telemetry=Telemetry(faults={})),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_written_is_read(message: Message) -> None:
    assert received(message) == message


def test_what_a_span_packs_is_read_as_a_stamp() -> None:
    ended: list[Any] = []
    ticks = iter(range(100, 1000, 100))
    recording = Recording(ended.append, clock=Clock(now=lambda: next(ticks), epoch_offset_ns=5_000), first_id=1)
    tracer = Provider(recording).get_tracer("mine")
    root_span = tracer.start_as_current_span("batch", attributes={"batch.index": 3, "batch.size": 2})
    with root_span, tracer.start_as_current_span("reader") as reader:
        reader.record("boxes", 4.0, "{box}")
        reader.set_attribute("threshold", 0.5)
    inner, outer = (received(span.pack()) for span in ended)
    assert inner.span == SpanRecord(
        trace_id=1,
        span_id=2,
        parent_id=1,
        batch=3,
        name="reader",
        kind="INTERNAL",
        scope="mine",
        thread="MainThread",
        start_ns=5_200,
        end_ns=5_300,
        attributes={"threshold": 0.5},
    )
    assert (inner.opened, inner.recorded) == (None, [("boxes", 4.0, "{box}")])
    assert (outer.opened, list(outer.recorded)) == (2, [])
    assert (outer.span.start_ns, outer.span.end_ns, outer.span.attributes[BATCH_SIZE]) == (5_100, 5_400, 2)


def test_every_field_of_a_span_arrives_in_its_place() -> None:
    event, link = (11, "e", {"a": 1}), (5, 6, {})
    full = SpanMessage(1, 2, 3, 4, 5, "n", "CLIENT", "s", "t", 10, 20, 7, 8, "ERROR", "m", {"k": 1}, [event], [link])
    stamp = received(full)
    assert stamp.span == SpanRecord(
        trace_id=1,
        span_id=2,
        parent_id=3,
        batch=5,
        name="n",
        kind="CLIENT",
        scope="s",
        thread="t",
        start_ns=10,
        end_ns=20,
        device_ns=7,
        status="ERROR",
        status_message="m",
        attributes={"k": 1},
        events=[event],
        links=[link],
        lag_ns=8,
    )
    assert stamp.opened == 4


def test_values_recorded_through_a_foreign_sdk_come_as_attributes() -> None:
    attributes = {RECORDED + "boxes": (4, 5.0), RECORDED + "boxes.unit": "{box}", "other": 1.0}
    assert received(SPAN._replace(attributes=attributes)).recorded == [("boxes", 4.0, "{box}"), ("boxes", 5.0, "{box}")]


def test_numbers_of_numpy_travel_with_a_settlement() -> None:
    sample = Sample("a", {"hit": np.float32(0.5), "miss": None})
    settled = Settled(
        0, np.int64(3), 0, np.int64(2), "scored", 1, 5, accuracy={"hit": np.float64(0.25)}, samples=[sample]
    )
    plain = Settled(
        0, 3, 0, 2, "scored", 1, 5, accuracy={"hit": 0.25}, samples=[Sample("a", {"hit": 0.5, "miss": None})]
    )
    assert received(settled) == plain
    assert from_plain(json.loads(json.dumps(to_plain(settled))), Settled) == plain


def test_what_cannot_be_written_is_lost_alone() -> None:
    lost: list[tuple[Message, str]] = []
    odd = SPAN._replace(attributes={"x": object()})
    worse = replace(MESSAGES[3], accuracy={"hit": "no number"})  # type: ignore[type-var, arg-type]
    data = encode([SPAN, odd, worse, MESSAGES[4]], lose=lambda message, why: lost.append((message, type(why).__name__)))
    assert [type(message).__name__ for message in read(data)] == ["Stamp", "Info"]
    assert lost == [(odd, "ValueError"), (worse, "ValueError")]


def test_frames_are_taken_whole_and_half_ones_wait() -> None:
    first, second = frame(SPAN), frame(*MESSAGES[:2])
    buffer = bytearray(first + second[:-1])
    assert [len(each) for each in split_frames(buffer)] == [1]
    assert bytes(buffer) == second[:-1]
    buffer += second[-1:]
    assert [unpack(packed) for each in split_frames(buffer) for packed in each] == MESSAGES[:2]
    assert not buffer


def test_bytes_that_are_no_frame_are_an_error() -> None:
    with pytest.raises(ValueError, match="the workload sent what cannot be read"):
        list(split_frames(bytearray(struct.pack("<I", 8) + b"no frame")))


@pytest.mark.parametrize(
    "packed",
    [
        (),
        ("nonsense", 1),
        ("span", 1, 2, 3),
        ("settle", 1),
        ("open", "{}"),
        ("open", "no json"),
        ("close", json.dumps({"wall_s": "soon"})),
        ("report", json.dumps({"queues": {"a": [1]}})),
        ("report", json.dumps([])),
        (None,),
    ],
)
def test_a_message_that_makes_no_sense_is_refused(packed: tuple[Any, ...]) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        unpack(marshal.loads(marshal.dumps(packed)))


def test_a_report_of_another_version_is_read_as_far_as_it_is_known() -> None:
    told = {"source": {"received": 3, "colour": "red"}, "news": 1}
    assert unpack(("report", json.dumps(told))) == Report(SourceReport(received=3))


def test_a_settlement_survives_a_file() -> None:
    settled = MESSAGES[2]
    assert isinstance(settled, Settled)
    assert from_plain(json.loads(json.dumps(to_plain(settled))), Settled) == settled


@pytest.mark.parametrize(
    "answer", [Answer(say="a\nb"), Answer(snapshot=Snapshot(batches=3)), Answer(result={"status": "complete"})]
)
def test_an_answer_is_one_line(answer: Answer) -> None:
    line = encode_answer(answer)
    assert line.count("\n") == 1
    assert decode_answer(line) == answer


@pytest.mark.parametrize("line", ["", '{"say": "sec', "[]", '{"say": 3}'])
def test_half_an_answer_is_none(line: str) -> None:
    assert decode_answer(line) is None
