"""What an evaluation hands to OTLP: every span as it arrives, and metrics only if a collector takes them."""

from collections.abc import Sequence
from dataclasses import asdict

from mlotel_cli.recorder import exports
from mlotel_cli.recorder.exports import Exports, OtlpExports
from mlotel_cli.recorder.otlp.otlp_sink import OtlpSink
from mlotel_cli.records import BatchRecord, SpanRecord, StageTime
from mlotel_cli.summary import OtlpCounts, SenderCounts
from mlotel_cli.wire import Opening, Report

OPENING = Opening(mode="eval", name="lpr", run_id="abc", started_ns=5, identity={"service.name": "lpr"}, max_names=10)


class FakeOtlp:
    """Remembers what it was given."""

    def __init__(self, *, spans: bool, metrics: bool) -> None:
        self.sends_spans, self.sends_metrics = spans, metrics
        self.got: list[list[SpanRecord]] = []
        self.closed_s: float | None = None

    def add(self, spans: Sequence[SpanRecord]) -> None:
        self.got.append(list(spans))

    def describe(self) -> OtlpCounts | None:
        one = SenderCounts("http://x", sum(map(len, self.got)))
        spans = one if self.sends_spans else SenderCounts()
        return OtlpCounts(**asdict(spans), metrics=one if self.sends_metrics else None)

    def close(self, timeout_s: float) -> None:
        self.closed_s = timeout_s


def span(name="reader") -> SpanRecord:
    return SpanRecord(1, 2, 0, 0, name, "INTERNAL", "s", "Main", 0, 5_000_000)


def row() -> BatchRecord:
    return BatchRecord(0, 0, 0, 0, 4, "scored", 8.0, stages={"reader": StageTime(5.0, calls=1)})


def create(monkeypatch, otlp) -> OtlpExports:
    monkeypatch.setattr(exports, "create_otlp", lambda opening, **options: otlp)
    return OtlpExports(OPENING, say=print)


def feed(made, *spans: SpanRecord) -> None:
    for each in spans:
        for take in made.span_takers:
            take(each)


def count(made: OtlpExports, name: str) -> float:
    return sum(point.value for family in made.families() if family.name == name for point in family.points)


def test_every_span_once_and_the_metrics_of_all(monkeypatch):
    otlp = FakeOtlp(spans=True, metrics=True)
    made = create(monkeypatch, otlp)
    feed(made, span(), span())
    made.tick()
    made.tick()
    feed(made, span("late"))
    made.add_batch(row())
    assert made.deliver(3.0) == otlp.describe()
    assert [[each.name for each in spans] for spans in otlp.got] == [["reader", "reader"], ["late"]]
    assert otlp.closed_s == 3.0
    assert (count(made, "traces.span.metrics.calls"), count(made, "mlotel.batches")) == (3, 1)
    assert any(family.name == "process.cpu.time" for family in made.families())


def test_without_metrics_nothing_is_counted(monkeypatch):
    made = create(monkeypatch, FakeOtlp(spans=True, metrics=False))
    feed(made, span())
    made.add_batch(row())
    assert len(made.span_takers) == 1
    assert (count(made, "traces.span.metrics.calls"), count(made, "mlotel.batches")) == (0, 0)


def test_with_metrics_only_no_span_is_kept(monkeypatch):
    otlp = FakeOtlp(spans=False, metrics=True)
    made = create(monkeypatch, otlp)
    feed(made, span())
    made.tick()
    assert (otlp.got, count(made, "traces.span.metrics.calls")) == ([], 1)


def test_without_a_collector_a_span_costs_nothing(monkeypatch):
    made = create(monkeypatch, OtlpSink())
    assert made.span_takers == ()
    made.add_batch(row())
    assert count(made, "mlotel.batches") == 0
    assert made.deliver(1.0) is None


def test_no_exports_do_nothing():
    made = Exports()
    made.add_batch(row())
    made.take_report(Report())
    made.tick()
    made.end()
    made.close()
    assert (made.span_takers, made.describe(), made.deliver(1.0)) == ((), {}, None)
