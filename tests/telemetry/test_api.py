"""span, batch, record and score work in a run of mlotel, in a program with its own SDK, and outside both."""

import logging
import os
from typing import Any

import numpy as np
import pytest
import torch
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.faults import Faults, TelemetryError
from tests.support.telemetry import Telemetry
from tests.support.wire import message_of
from tests.telemetry.test_tracer import run_program


def recorded(span: Any) -> Any:
    return message_of(span).recorded


# -- span and batch ---------------------------------------------------------------------------------------------------


def test_span_and_batch(use: Telemetry) -> None:
    with api.batch(3, size=4) as batch:
        with api.span("detector", {"threshold": 0.5}) as detector:
            assert trace.get_current_span() is detector
        with api.span("reader"):
            pass
    assert use.parents() == {"detector": "batch", "reader": "batch", "batch": None}
    assert (batch.attributes, detector.attributes) == ({"batch.index": 3, "batch.size": 4}, {"threshold": 0.5})
    assert {span.batch for span in use.ended} == {3}
    assert {span.tracer.scope for span in use.ended} == {"mlotel"}


def test_batch_is_a_decorator_too(use: Telemetry) -> None:
    @api.batch(7)
    def loop() -> None:
        api.record("n", 1)

    loop()
    assert (use.only().batch, recorded(use.only())) == (7, [("n", 1.0, "")])


# -- record and score -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kept"),
    [(3, 3.0), (0.5, 0.5), (True, 1.0), (np.float32(0.25), 0.25), (np.int64(2), 2.0)],
)
def test_finite_numbers_are_kept(use: Telemetry, value: Any, kept: float) -> None:
    with api.batch(0), api.span("stage") as span:
        api.record("n", value, unit="{box}")
        api.record("n", value)
        api.score("recall", value)
    assert recorded(span) == [("n", kept, "{box}"), ("n", kept, "")]
    assert span.attributes == {"mlotel.accuracy.recall": kept}
    assert use.faults.counts() == {}


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        (float("nan"), "nan is not a finite Python number"),
        (float("inf"), "inf is not a finite Python number"),
        (10**400, "is not a finite Python number"),
        ("3", "'3' is not a finite Python number"),
        (None, "None is not a finite Python number"),
        (np.zeros(2), "is not a finite Python number"),
        (torch.tensor(1.0), "a tensor is not a finite Python number"),
    ],
)
@pytest.mark.parametrize("call", [api.record, api.score])
def test_others_are_left_out_counted_and_said(
    use: Telemetry, call: Any, value: Any, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    with api.batch(0) as span:
        call("n", value)
    assert (recorded(span), set(span.attributes)) == (None, {"batch.index", "batch.size"})
    assert use.faults.counts() == {"record": 1}
    assert f"{call.__name__}('n', ...)" in caplog.text
    assert logged in caplog.text


@pytest.mark.parametrize("name", [3, "", None])
def test_a_name_must_be_text(use: Telemetry, name: Any) -> None:
    with api.batch(0) as span:
        api.record(name, 1.0)
        api.score(name, 1.0)
    assert recorded(span) is None
    assert use.faults.counts() == {"record": 2}


def test_strict_raises(use: Telemetry) -> None:
    use.recording.faults = Faults(strict=True)
    with api.batch(0), pytest.raises(TelemetryError, match="nan is not a finite"):
        api.record("n", float("nan"))


def test_outside_any_span(use: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    api.record("n", 1.0)
    api.score("recall", 1.0)
    assert use.faults.counts() == {"record": 2}
    assert "record('n', ...) outside any open span belongs to no batch; it is left out" in caplog.text


def test_in_a_span_that_is_in_no_batch(use: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    with api.span("warm-up") as span:
        api.record("n", 1.0)
        api.score("recall", 1.0)
    assert (recorded(span), span.attributes) == (None, {})
    assert use.faults.counts() == {"record": 2}
    assert "record('n', ...) in span 'warm-up', which is outside any batch; it is left out" in caplog.text


def test_after_the_end_of_the_current_span(use: Telemetry) -> None:
    with api.batch(0) as span:
        span.end()
        api.record("n", 1.0)
    assert (recorded(span), use.faults.counts()) == (None, {"record": 1})


def test_nothing_is_said_while_off(use: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    api.use(OFF)
    with api.batch(0), api.span("stage"):
        api.record("n", 1.0)
        api.score("recall", 1.0)
    assert (use.ended, use.faults.counts(), caplog.records) == ([], {}, [])


# -- in a program with an SDK of its own ------------------------------------------------------------------------------


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(api, "_tracer", provider.get_tracer("program"))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def test_values_travel_as_attributes_of_foreign_spans(foreign: InMemorySpanExporter) -> None:
    with api.batch(1, size=2):
        with api.span("stage"):
            api.record("n", 1, unit="{box}")
            api.record("n", 2.5)
            api.record("m", 4)
        api.score("recall", 0.5)
        api.score("recall", 0.75)
    stage, batch = foreign.get_finished_spans()
    assert stage.attributes == {"mlotel.data.n": (1.0, 2.5), "mlotel.data.n.unit": "{box}", "mlotel.data.m": 4.0}
    assert batch.attributes == {"batch.index": 1, "batch.size": 2, "mlotel.accuracy.recall": 0.75}


def test_install_leaves_a_foreign_provider_alone(
    foreign: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    assert api.install() is False
    assert "already has a TracerProvider (TracerProvider)" in caplog.text
    assert "add_span_processor(mlotel_cli.MlotelSpanProcessor())" in caplog.text
    with api.span("stage"):
        pass
    assert [span.name for span in foreign.get_finished_spans()] == ["stage"]


# -- installing -------------------------------------------------------------------------------------------------------


def test_nothing_happens_before_a_run() -> None:
    program = """
        import logging, sys
        logging.basicConfig(stream=sys.stdout)
        from mlotel_cli.telemetry import api
        @api.span("decorated")
        def generate():
            yield 1
        with api.batch(0), api.span("stage"):
            api.record("n", 1.0)
            list(generate())
        from mlotel_cli.telemetry.tracer import Recording
        ended = []
        api.install()
        api.use(Recording(ended.append))
        for _ in generate():
            with api.span("inside"):
                pass
        print([span.name for span in ended], [span.parent for span in ended])
    """
    assert run_program(program).splitlines() == ["['inside', 'decorated'] [None, None]"]


@pytest.mark.parametrize(
    ("environment", "logged"),
    [
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, ["OTEL_TRACES_SAMPLER=traceidratio"]),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, []),
        (
            {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "4", "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "5"},
            ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=4", "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT=5"],
        ),
        ({}, []),
    ],
)
def test_what_of_the_environment_does_not_apply_is_said(
    environment: dict[str, str], logged: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(api, "_tracer", trace.NoOpTracer())
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: api.PROVIDER)
    with caplog.at_level(logging.WARNING):
        assert (api.install(), api.install()) == (True, True)
    assert [record.message for record in caplog.records] == [
        f"{one} does not apply: mlotel records every span, whole" for one in logged
    ]


# -- forks ------------------------------------------------------------------------------------------------------------


def test_a_forked_child_records_nothing() -> None:
    program = """
        import os
        from mlotel_cli.telemetry import api
        from mlotel_cli.telemetry.tracer import Recording
        api.install()
        ended = []
        api.use(Recording(ended.append))
        with api.span("before"):
            child = os.fork()
            if not child:
                with api.span("in the child") as span:
                    print("child", len(ended), span.is_recording(), flush=True)
                os._exit(len(ended))
            print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print([span.name for span in ended])
    """
    assert run_program(program).splitlines() == ["child 0 False", "exit 0", "['before']"]
