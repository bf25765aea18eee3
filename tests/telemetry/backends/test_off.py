"""The off backend records nothing and changes no current span."""

import threading

import pytest
from opentelemetry import trace

from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF, OffHere, OffSpan
from tests.support.telemetry import Telemetry


@pytest.fixture
def off(telemetry: Telemetry) -> Telemetry:
    telemetry.provider.backend = OFF
    return telemetry


def test_every_call_of_a_span_is_harmless(off: Telemetry) -> None:
    with off.span("stage", attributes={"a": object()}) as span, off.tracer.start_span("other") as other:
        for one in (span, other):
            one.set_attribute("a", 1)
            one.add_event("event")
            one.record_exception(ValueError("x"))
            one.end()
        assert trace.get_current_span() is trace.INVALID_SPAN
        assert not span.is_recording()
    assert off.ended == []


def test_exceptions_go_through(off: Telemetry) -> None:
    with pytest.raises(ValueError, match="x"), off.span("stage"):
        raise ValueError("x")


def test_a_recorded_span_outside_stays_current(off: Telemetry) -> None:
    off.provider.backend = off.recording
    with off.span("outer") as outer:
        off.provider.backend = OFF
        with off.span("inner"):
            assert trace.get_current_span() is outer
    assert [span.name for span in off.ended] == ["outer"]


def test_the_alias_gives_the_same_object_for_the_same_name(use: Telemetry) -> None:
    api.use(OFF)
    assert api.span("stage") is api.span("stage")
    assert isinstance(api.span("stage"), OffSpan)
    with api.span("stage"), api.span("stage"):
        assert trace.get_current_span() is trace.INVALID_SPAN
    assert use.ended == []


def test_generated_names_do_not_fill_the_memory(use: Telemetry) -> None:
    api.use(OFF)
    for number in range(2000):
        with api.span(f"stage {number}"):
            pass
    assert len(api._off_spans) == 1000
    api._off_spans.clear()


def test_off_on_one_thread_only(telemetry: Telemetry) -> None:
    provider, tracer = telemetry.provider, telemetry.tracer
    provider.backend = OffHere(telemetry.recording)

    def work() -> None:
        with tracer.start_as_current_span("elsewhere"):
            tracer.start_span("started").end()

    work()
    assert telemetry.ended == []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [span.name for span in telemetry.ended] == ["started", "elsewhere"]
    assert telemetry.parents()["started"] == "elsewhere"
