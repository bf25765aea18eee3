"""Attributes, events, links, status and exceptions of a span follow the rules of the OpenTelemetry API."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from mlotel_cli.telemetry.faults import Faults, TelemetryError
from tests.support.telemetry import EPOCH_NS, Telemetry
from tests.support.wire import message_of

OTHER = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))


def test_attributes_are_copied_when_they_are_set(telemetry: Telemetry) -> None:
    start, boxes, nested = {"sizes": [1, 2]}, [1.0], {"a": [1]}
    with telemetry.span("stage", attributes=start) as span:
        start["sizes"].append(3)
        start["late"] = [4]
        span.set_attribute("boxes", boxes)
        span.set_attributes({"nested": nested})
        boxes.append(2.0)
        nested["a"].append(2)
    assert span.attributes == {"sizes": (1, 2), "boxes": (1.0,), "nested": {"a": (1,)}}


def test_a_later_value_replaces_an_earlier_one(telemetry: Telemetry) -> None:
    with telemetry.span("stage", attributes={"a": 1, "b": 2}) as span:
        span.set_attribute("a", "text")
        span.set_attributes({"b": 3, "c": np.float32(0.5)})
    assert span.attributes == {"a": "text", "b": 3, "c": 0.5}


def test_what_is_read_is_a_copy(telemetry: Telemetry) -> None:
    with telemetry.span("stage", attributes={"a": 1}) as span:
        span.attributes["b"] = 2
    assert span.attributes == {"a": 1}


@pytest.mark.parametrize("how", ["start", "set_attribute", "set_attributes", "add_event", "add_link"])
def test_a_tensor_is_refused_counted_and_the_rest_kept(
    telemetry: Telemetry, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    given: Any = {"tensor": torch.zeros(2), "good": 1}
    with telemetry.span("stage", attributes=given if how == "start" else None) as span:
        if how == "set_attribute":
            span.set_attribute("tensor", given["tensor"])
            span.set_attribute("good", 1)
        elif how == "set_attributes":
            span.set_attributes(given)
        elif how == "add_event":
            span.add_event("event", given)
        elif how == "add_link":
            span.add_link(OTHER, given)
    kept = (
        span.events[0][2] if how == "add_event" else span.links[0].attributes if how == "add_link" else span.attributes
    )
    assert kept == {"good": 1}
    assert telemetry.faults.counts() == {"attribute": 1}
    assert f"{how} of span 'stage': attribute 'tensor': a tensor cannot be an attribute value" in caplog.text.replace(
        "set_attributes" if how == "set_attribute" else "", how if how == "set_attribute" else ""
    )


def test_strict_raises_and_leaves_no_span_current(telemetry: Telemetry) -> None:
    telemetry.recording.faults = Faults(strict=True)
    with pytest.raises(TelemetryError, match="a tensor"), telemetry.span("stage") as span:
        span.set_attribute("x", torch.zeros(1))
    with pytest.raises(TelemetryError, match="a tensor"), telemetry.span("stage", attributes={"x": torch.zeros(1)}):
        pytest.fail("the block was entered")
    assert [(span.name, span.status.status_code) for span in telemetry.ended] == [("stage", StatusCode.ERROR)]


def test_many_threads_may_set_the_first_attribute_at_once(telemetry: Telemetry) -> None:
    for attempt in range(30):
        go = threading.Barrier(4)
        with telemetry.span(f"stage {attempt}") as span:

            def write(number: int, span: Any = span, go: threading.Barrier = go) -> None:
                go.wait()
                span.set_attribute(f"a{number}", number)
                span.add_event(f"e{number}")
                span.record(f"r{number}", 1.0, "")

            threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert (len(span.attributes), len(span.events), len(message_of(span).recorded)) == (4, 4, 4)


def test_events_have_a_date_a_name_and_copied_attributes(telemetry: Telemetry) -> None:
    given = {"boxes": [1]}
    with telemetry.span("stage") as span:  # starts at 10
        span.add_event("now", given)
        given["boxes"].append(2)
        span.add_event("then", timestamp=EPOCH_NS + 3)
        span.add_event("zero", timestamp=0)
    assert span.events == (
        (EPOCH_NS + 20, "now", {"boxes": (1,)}),
        (EPOCH_NS + 3, "then", {}),
        (0, "zero", {}),
    )


def test_links_are_kept_and_invalid_ones_ignored_unless_they_carry_something(telemetry: Telemetry) -> None:
    state = SpanContext(0, 0, is_remote=True, trace_state=TraceState([("vendor", "x")]))
    given: Any = [Link(OTHER, {"a": [1]}), Link(INVALID_SPAN_CONTEXT), None]
    with telemetry.span("stage", links=given) as span:
        span.add_link(INVALID_SPAN_CONTEXT)
        span.add_link(INVALID_SPAN_CONTEXT, {"why": "lost"})
        span.add_link(state)
    assert [(link.context, link.attributes) for link in span.links] == [
        (OTHER, {"a": (1,)}),
        (INVALID_SPAN_CONTEXT, {"why": "lost"}),
        (state, {}),
    ]
    assert message_of(span).links == [(0xABC, 0xDEF, {"a": (1,)}), (0, 0, {"why": "lost"}), (0, 0, {})]


def test_a_span_can_be_renamed(telemetry: Telemetry) -> None:
    with telemetry.span("before") as span:
        span.update_name("after")
    assert (span.name, message_of(span).name) == ("after", "after")


OK, ERROR, UNSET = StatusCode.OK, StatusCode.ERROR, StatusCode.UNSET


@pytest.mark.parametrize(
    ("calls", "code", "description"),
    [
        ([], UNSET, None),
        ([(ERROR, "why")], ERROR, "why"),
        ([(ERROR, "why"), (ERROR, "other")], ERROR, "other"),
        ([(ERROR, "why"), (ERROR,)], ERROR, None),
        ([(ERROR, "why"), (UNSET,)], ERROR, "why"),
        ([(ERROR, "why"), (OK,)], OK, None),
        ([(OK,), (ERROR, "why")], OK, None),
        ([(OK,), (UNSET,)], OK, None),
        ([(OK, "why")], OK, None),
        ([(UNSET, "why")], UNSET, None),
        ([(Status(ERROR, "why"),)], ERROR, "why"),
        ([(Status(ERROR, "why"), "ignored")], ERROR, "why"),
        ([(Status(OK),), (Status(ERROR, "why"),)], OK, None),
        ([("ERROR",)], UNSET, None),
    ],
)
def test_status_rules(telemetry: Telemetry, calls: Any, code: StatusCode, description: str | None) -> None:
    with telemetry.span("stage") as span:
        for call in calls:
            span.set_status(*call)
    assert (span.status.status_code, span.status.description) == (code, description)
    assert message_of(span)[13:15] == (code.name, description or "")


class CameraError(Exception):
    pass


def test_an_exception_is_described_by_the_semantic_conventions(telemetry: Telemetry) -> None:
    with telemetry.span("stage") as span:
        try:
            raise CameraError("no frame")
        except CameraError as error:
            span.record_exception(error, {"camera": [3]}, timestamp=EPOCH_NS + 1)
            span.record_exception(ValueError("v"), {"exception.message": "mine"}, escaped=True)
    (time_ns, name, first), (_, _, second) = span.events
    assert (time_ns, name) == (EPOCH_NS + 1, "exception")
    stacktrace = first.pop("exception.stacktrace")
    assert first == {
        "exception.type": f"{__name__}.CameraError",
        "exception.message": "no frame",
        "exception.escaped": "False",
        "camera": (3,),
    }
    assert stacktrace.startswith("Traceback (most recent call last):\n")
    assert stacktrace.endswith("CameraError: no frame\n")
    assert second == {
        "exception.type": "ValueError",
        "exception.message": "mine",
        "exception.stacktrace": "ValueError: v\n",
        "exception.escaped": "True",
    }
    assert span.status.status_code is UNSET


def test_an_exception_without_readable_text_does_not_hide_itself(telemetry: Telemetry) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("broken")

    with pytest.raises(MuteError), telemetry.span("stage") as span:
        raise MuteError
    assert span.status.description == "MuteError: <its text cannot be read>"


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("set_attribute", ("a", 1)),
        ("set_attributes", ({"a": 1},)),
        ("add_event", ("event",)),
        ("add_link", (OTHER,)),
        ("update_name", ("other",)),
        ("set_status", (StatusCode.ERROR, "late")),
        ("record_exception", (ValueError("late"),)),
        ("record", ("n", 1.0, "")),
    ],
)
def test_calls_after_the_end_are_ignored_with_a_warning(
    telemetry: Telemetry, method: str, arguments: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with telemetry.span("stage", attributes={"kept": 1}) as span:
        pass
    before = message_of(span)
    getattr(span, method)(*arguments)
    assert message_of(span) == before
    assert telemetry.faults.counts() == {"ended": 1}
    assert "on the ended span 'stage' is ignored" in caplog.text


def test_text_that_utf8_cannot_hold_still_travels(telemetry: Telemetry) -> None:
    with telemetry.span("photo \udc80") as span:
        span.add_event("event \udc80")
        span.set_status(StatusCode.ERROR, "status \udc80")
        span.record("count \udc80", 1.0, "\udc80")
    packed = message_of(span)
    assert (packed.name, packed.status_message) == ("photo ?", "status ?")
    assert packed.events[0][1] == "event ?"
    assert packed.recorded == [("count ?", 1.0, "?")]


def test_a_name_that_is_no_text_becomes_one(telemetry: Telemetry) -> None:
    with telemetry.span(3) as span:  # type: ignore[arg-type]
        pass
    assert message_of(span).name == "3"
