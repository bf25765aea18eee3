"""The OTLP sink against a loopback receiver: what settings ask for, and that what is sent and lost adds up."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mlotel_cli.recorder.measurements import Family, Point
from mlotel_cli.recorder.otlp import otlp_sink
from mlotel_cli.recorder.otlp.otlp_sink import OtlpSink, create_otlp, notes
from mlotel_cli.records import SpanRecord
from mlotel_cli.summary import SenderCounts
from mlotel_cli.wire import MonitorOptions, Opening, OtlpOptions
from tests.support.otlp_receiver import receiving


def spans(count: int, *, first: int = 0) -> list[SpanRecord]:
    return [SpanRecord(n + 1, n + 1, 0, n, "s", "INTERNAL", "t", "", 0, 1) for n in range(first, first + count)]


class NoMeasurements:
    """Measures nothing."""

    def families(self) -> Sequence[Family]:
        return ()


class Counted:
    """One counter that rises with every look."""

    def __init__(self) -> None:
        self.looks = 0

    def families(self) -> Sequence[Family]:
        self.looks += 1
        return [Family("calls", "counter", "1", "Calls.", points=[Point(self.looks)])]


def start(
    url: str | None, *, measurements=None, said: list[str] | None = None, environ=None, **settings: Any
) -> OtlpSink:
    given: dict[str, Any] = {"endpoint": url, "timeout_s": 5.0, "queue_size": 10_000, "metrics_interval_s": 3600}
    identity = {"service.name": "s", "git.commit": None}
    return create_otlp(
        Opening(
            mode="eval", name="s", run_id="x", started_ns=5, identity=identity, otlp=OtlpOptions(**given | settings)
        ),
        environ=environ or {},
        measurements=(measurements or NoMeasurements()).families,
        say=(said if said is not None else []).append,
    )


def until(true: Callable[[], object], *, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def counts(counted: SenderCounts) -> tuple[int, int, int]:
    return counted.sent, counted.lost, counted.queued


def test_without_a_target_nothing_is_sent():
    export = start(None)
    assert (export.sends_spans, export.sends_metrics) == (False, False)
    export.add(spans(1))
    export.close(1)
    assert export.describe() is None
    assert notes(export.describe()) == []


def test_the_environment_may_belong_to_another_sdk():
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert start(None, environ=environ, from_environment=False).describe() is None
    export = start(None, environ=environ)
    export.close(1)
    assert export.describe().endpoint == "http://127.0.0.1:1/v1/traces"


def test_settings_that_cannot_work_are_said_and_end_nothing():
    said: list[str] = []
    assert start(None, said=said, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4318"}).describe() is None
    (line,) = said
    assert line.startswith("OTLP: OTEL_EXPORTER_OTLP_ENDPOINT=c:4318: allowed: ")


def test_everything_is_sent_with_what_identifies_the_run():
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=other,deployment=lab"}
    with receiving() as receiver:
        export = start(receiver.url, environ=environ)
        export.add(spans(1200))
        export.add([])
        export.close(5)
    assert {each.span.span_id for each in receiver.spans} == {(n + 1).to_bytes(8) for n in range(1200)}
    assert len(receiver.spans) == 1200
    resource = receiver.spans[0].resource
    assert (resource["service.name"], resource["deployment"]) == ("s", "lab")
    described = export.describe()
    assert counts(described) == (1200, 0, 0)
    assert (described.endpoint, described.retried) == (f"{receiver.url}/v1/traces", 0)
    assert notes(described) == []


def test_metrics_only():
    with receiving() as receiver:
        export = start(receiver.url, measurements=Counted(), environ={"OTEL_TRACES_EXPORTER": "none"})
        export.add(spans(3))
        export.close(5)
    assert (receiver.spans, len(receiver.metrics)) == ([], 1)
    assert export.describe().endpoint is None
    assert counts(export.describe()) == (0, 0, 0)


@pytest.mark.parametrize(
    ("monitor", "expected"), [(None, 5), (MonitorOptions(), 5), (MonitorOptions(restarts=1), "now")]
)
def test_counts_begin_with_the_recorder(monkeypatch, monitor, expected):
    given: dict[str, Any] = {}
    monkeypatch.setattr(otlp_sink, "MetricSender", lambda target, **options: given.update(options))
    opening = Opening(mode="eval", name="s", run_id="x", started_ns=5, monitor=monitor)
    environ = {"OTEL_METRICS_EXPORTER": "otlp"}
    create_otlp(opening, measurements=NoMeasurements().families, say=print, environ=environ)
    assert (given["started_ns"] == 5) == (expected == 5)
    assert given["started_ns"] == 5 or given["started_ns"] > 1_700_000_000_000_000_000


def test_a_protocol_that_does_not_apply_is_said():
    said: list[str] = []
    with receiving() as receiver:
        start(receiver.url, said=said, environ={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}).close(5)
    (line,) = said
    assert line.startswith("OTLP: OTEL_EXPORTER_OTLP_PROTOCOL=grpc does not apply: OTLP is sent as http/protobuf")


@pytest.mark.parametrize("is_used", [True, False])
def test_no_thread_is_left(is_used):
    before = set(threading.enumerate())
    with receiving() as receiver:
        export = start(receiver.url, measurements=Counted())
        if is_used:
            export.add(spans(1))
        export.close(5)
    until(lambda: set(threading.enumerate()) <= before)  # the receiver's own threads are about to end
