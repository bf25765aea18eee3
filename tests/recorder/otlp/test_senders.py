"""Spans and metrics sent to a loopback receiver: what is sent, what is lost, and that it adds up."""

import threading
import time
from collections.abc import Sequence

import pytest

from mlotel_cli.recorder.measurements import Family
from mlotel_cli.recorder.otlp import senders
from mlotel_cli.recorder.otlp.otlp_sink import notes
from mlotel_cli.records import SpanRecord
from tests.recorder.otlp.test_otlp_sink import Counted, counts, spans, start, until
from tests.support.otlp_receiver import Reply, attributes, receiving, rejecting, rejecting_points


def test_spans_leave_before_the_end(monkeypatch):
    monkeypatch.setattr(senders, "SEND_EVERY_S", 0.01)
    with receiving() as receiver:
        export = start(receiver.url)
        export.add(spans(3))
        until(lambda: len(receiver.spans) == 3)
        until(lambda: export.describe().sent == 3)
        export.close(5)


def test_a_server_that_is_busy_once_gets_everything_once():
    busy = Reply(status=503, headers={"Retry-After": "0"})
    said: list[str] = []
    with receiving(lambda number, path: busy if number == 0 else None) as receiver:
        export = start(receiver.url, said=said, environ={"OTEL_METRICS_EXPORTER": "none"})
        export.add(spans(10))
        export.close(5)
    assert len(receiver.spans) == 10
    assert counts(export.describe()) == (10, 0, 0)
    assert export.describe().retried == 1
    assert export.describe().metrics is None
    assert [line.partition(": ")[2].partition(" (")[0] for line in said] == ["not delivered", "delivered again"]


def test_rejected_spans_are_lost_and_the_others_sent():
    with receiving(lambda number, path: rejecting(4)) as receiver:
        export = start(receiver.url)
        export.add(spans(10))
        export.close(5)
    described = export.describe()
    assert counts(described) == (6, 4, 0)
    expected = f"OTLP traces: 4 of 10 spans did not reach {receiver.url}/v1/traces (too old); every span is in"
    assert notes(described) == [f"{expected} spans.parquet"]


def test_a_server_cannot_reject_more_than_it_got():
    with receiving(lambda number, path: rejecting(99)) as receiver:
        export = start(receiver.url)
        export.add(spans(3))
        export.close(5)
    assert counts(export.describe()) == (0, 3, 0)


def test_refused_requests_are_lost_and_do_not_stop_the_next():
    with receiving(lambda number, path: Reply(status=400) if number == 0 else None) as receiver:
        export = start(receiver.url, environ={"OTEL_METRICS_EXPORTER": "none"})
        export.add(spans(senders.MAX_SPANS))
        until(lambda: export.describe().lost == senders.MAX_SPANS)
        export.add(spans(5, first=senders.MAX_SPANS))
        export.close(5)
    assert counts(export.describe()) == (5, senders.MAX_SPANS, 0)


def test_no_server_listens_and_the_end_is_near():
    with receiving() as receiver:
        url = receiver.url
    said: list[str] = []
    export = start(url, said=said)
    export.add(spans(2000))
    begun = time.monotonic()
    export.close(5)
    assert time.monotonic() - begun < 3
    assert counts(export.describe()) == (0, 2000, 0)
    assert [line for line in said if "traces" in line] == [
        f"OTLP traces to {url}/v1/traces: not delivered (Connection refused); the recorder tries again "
        "and drops what finds no room"
    ]


def test_a_server_that_hangs_does_not_hold_the_end_and_is_not_counted_twice():
    with receiving(lambda number, path: Reply(hangs=True)) as receiver:
        export = start(receiver.url, timeout_s=30)
        export.add(spans(600))
        until(lambda: receiver.requests)
        begun = time.monotonic()
        export.close(0.2)
        assert time.monotonic() - begun < 2
        assert counts(export.describe()) == (0, 600, 0)
    assert counts(export.describe()) == (0, 600, 0)


def test_what_arrives_after_the_end_was_counted_stays_lost():
    """The answer comes after `close` gave up: the spans are lost in the books, and in them once."""
    answer = threading.Event()

    def slow(number: int, path: str) -> Reply | None:
        answer.wait(10)
        return None

    with receiving(slow) as receiver:
        export = start(receiver.url, timeout_s=30, environ={"OTEL_METRICS_EXPORTER": "none"})
        export.add(spans(senders.MAX_SPANS))
        until(lambda: receiver.requests)
        export.close(0.05)
        assert counts(export.describe()) == (0, senders.MAX_SPANS, 0)
        answer.set()
        until(lambda: receiver.spans)
        until(lambda: not any(thread.name == "mlotel-otlp-traces" for thread in threading.enumerate()))
    assert counts(export.describe()) == (0, senders.MAX_SPANS, 0)


def test_adding_never_waits_and_the_queue_is_bounded():
    with receiving(lambda number, path: Reply(hangs=True)) as receiver:
        export = start(receiver.url, queue_size=1000, timeout_s=30)
        begun = time.monotonic()
        for first in range(0, 5000, 100):
            export.add(spans(100, first=first))
        assert time.monotonic() - begun < 1
        sent, lost, queued = counts(export.describe())
        assert sent == 0
        assert queued <= 1000 + senders.MAX_SPANS
        assert lost + queued == 5000
        export.close(0.05)
    assert counts(export.describe()) == (0, 5000, 0)


@pytest.mark.parametrize(("age_s", "is_behind"), [(1.0, True), (0.0, False), (3600.0, False), (-3600.0, False)])
def test_while_the_recorder_is_behind_it_has_the_interpreter_for_itself(monkeypatch, age_s, is_behind):
    """With a share of next to nothing one request is sent, and the next at the end of the run."""
    monkeypatch.setattr(senders, "SHARE", 1e-6)
    ended_ns = time.time_ns() - round(age_s * 1e9)
    given = [SpanRecord(n + 1, n + 1, 0, n, "s", "INTERNAL", "t", "", 0, ended_ns) for n in range(2000)]
    with receiving() as receiver:
        export = start(receiver.url)
        export.add(given)
        if is_behind:
            until(lambda: export.describe().sent)
            time.sleep(0.05)  # time in which nothing may happen
            assert export.describe().sent == senders.MAX_SPANS
        else:
            until(lambda: export.describe().sent >= 3 * senders.MAX_SPANS)
        export.close(5)
    assert counts(export.describe()) == (2000, 0, 0)


@pytest.mark.parametrize(("lag_s", "rest_s"), [(0.2, None), (0.31, 0.00417), (0.6, 0.009), (3.0, 0.049), (20.0, 0.049)])
def test_the_further_the_recorder_is_behind_the_longer_are_the_rests(lag_s, rest_s):
    sender = senders.SpanSender(senders.Target("traces", "http://c"), resource={}, queue_size=10, say=print)
    waited: list[float] = []
    sender._changed.wait_for = lambda condition, seconds: waited.append(seconds)
    sender._lag_s = lag_s
    sender._rest(0.001)
    assert waited == ([] if rest_s is None else [pytest.approx(rest_s, rel=0.01)])


def test_spans_that_come_after_the_end_are_lost():
    with receiving() as receiver:
        export = start(receiver.url)
        export.close(5)
        export.add(spans(2))
    assert counts(export.describe()) == (0, 2, 0)


def test_what_cannot_be_encoded_is_lost_and_nothing_else():
    broken = SpanRecord(1 << 200, 1, 0, 0, "s", "INTERNAL", "t", "", 0, 1)
    with receiving() as receiver:
        export = start(receiver.url)
        export.add([broken, *spans(5, first=1)])
        export.close(5)
    assert counts(export.describe()) == (5, 1, 0)
    assert len(receiver.spans) == 5


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_are_sent_every_interval_and_at_the_end():
    measurements = Counted()
    with receiving() as receiver:
        export = start(receiver.url, measurements=measurements, metrics_interval_s=0.02)
        until(lambda: len(receiver.metrics) >= 2)
        export.close(5)
    points = [
        metric.sum.data_points[0]
        for request in receiver.metrics
        for metric in request.resource_metrics[0].scope_metrics[0].metrics
    ]
    assert [point.as_double for point in points] == list(range(1, measurements.looks + 1))
    assert {point.start_time_unix_nano for point in points} == {5}
    assert attributes(receiver.metrics[0].resource_metrics[0].resource.attributes)["service.name"] == "s"
    described = export.describe().metrics
    assert (described.sent, described.lost) == (measurements.looks, 0)


def test_metrics_that_were_not_taken_are_counted_and_said_apart_from_spans():
    with receiving(lambda number, path: None if "traces" in path else rejecting_points(1)) as receiver:
        export = start(receiver.url, measurements=Counted())
        export.add(spans(3))
        export.close(5)
    described = export.describe()
    assert counts(described) == (3, 0, 0)
    assert (described.metrics.sent, described.metrics.lost) == (0, 1)
    assert notes(described) == [f"OTLP metrics: 1 of 1 data points did not reach {receiver.url}/v1/metrics"]


def test_measurements_that_raise_cost_that_export_only():
    class Broken(Counted):
        def families(self) -> Sequence[Family]:
            families = super().families()
            if self.looks == 1:
                raise RuntimeError("dictionary changed size during iteration")
            return families

    with receiving() as receiver:
        export = start(receiver.url, measurements=Broken(), metrics_interval_s=0.02)
        until(lambda: receiver.metrics)
        export.close(5)
