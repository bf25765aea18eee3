"""A monitor's exports with a clock in the test's hand: what is served, when it is ready, which traces are sent."""

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlotel_cli.recorder import monitor_exports
from mlotel_cli.recorder.live.http_server import Reply
from mlotel_cli.recorder.machine import GpuReading, GpuWatch
from mlotel_cli.recorder.monitor_exports import MonitorExports, Remembered
from mlotel_cli.recorder.otlp.otlp_sink import OtlpSink
from mlotel_cli.records import BatchRecord, SpanRecord, StageTime
from mlotel_cli.snapshot import SinkHealth, Snapshot, SourceReport
from mlotel_cli.store.run_json import Before, Totals
from mlotel_cli.typed_json import to_json
from mlotel_cli.wire import HttpOptions, MonitorOptions, Opening, ProcessReport, Report
from tests.recorder.test_exports import FakeOtlp

MONITOR = MonitorOptions(slow_ms=100.0, background_rate=0.0)
OPENING = Opening(
    mode="monitor",
    name="lpr",
    run_id="abc",
    started_ns=1,
    identity={"service.name": "lpr", "mlotel.run.id": "abc"},
    max_names=10,
    monitor=MONITOR,
)
TOLD = Report(
    SourceReport("video", "connected", 9, {"full": 2}),
    {"source": (1, 8)},
    ProcessReport(rss_bytes=1000, cpu_s=1.5, pid=7),
)


class Made:
    """A monitor's exports, its clock, and what it told."""

    def __init__(self, opening, before) -> None:
        self.now = 1000.0
        self.answers: list[Snapshot] = []
        self.said: list[str] = []
        self.sinks = {"parquet": SinkHealth()}
        self.gpus = GpuWatch(opener=lambda: None)
        self.exports = MonitorExports(
            opening,
            run_dir="outputs/monitor/x",
            answer=self.answers.append,
            say=self.said.append,
            sinks=lambda: self.sinks,
            clock=lambda: self.now,
            gpus=self.gpus,
            before=before,
        )
        self.url = self.exports.describe()["http"]

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.exports.tick()

    def tell(self, **changes) -> None:
        self.exports.take_report(replace(TOLD, **changes))

    def batch(self, index=0, *, latency_ms=5.0, status="done", names=("reader", "batch")) -> None:
        for name in names:
            record = SpanRecord(1, 2, 0, index, name, "INTERNAL", "s", "Main", 0, 5_000_000)
            for take in self.exports.span_takers:
                take(record)
        stages = {"reader": StageTime(latency_ms, None, 1.0, 1)}
        self.exports.add_batch(BatchRecord(index, index, 0, 0, 4, status, latency_ms, stages=stages, data={"n": 1.0}))

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def scrape(self) -> dict[str, dict[str, float]]:
        """Values by family and the values of its labels, without the service."""
        families = text_string_to_metric_families(self.ask("/metrics")[1])
        return {
            family.name: {
                ",".join(value for key, value in sample.labels.items() if key != "service_name"): sample.value
                for sample in family.samples
            }
            for family in families
        }


@contextlib.contextmanager
def making(monkeypatch, *, otlp=None, opening=OPENING, before=None) -> Iterator[Made]:
    monkeypatch.setattr(monitor_exports, "create_otlp", lambda opening, **options: otlp or OtlpSink())
    made = Made(opening, before)
    try:
        yield made
    finally:
        made.exports.close()


@pytest.fixture
def made(monkeypatch) -> Iterator[Made]:
    with making(monkeypatch) as made:
        yield made


def test_ready_only_while_batches_flow_and_the_source_is_connected(made):
    assert made.ask("/readyz") == (503, "the workload has not reported yet\n")
    made.tell(source=SourceReport(state="connecting"))
    assert made.ask("/readyz") == (503, "the source is connecting\n")
    made.tell()
    assert made.ask("/readyz") == (503, "no batch yet\n")
    made.batch()
    assert made.ask("/readyz") == (200, "ok\n")
    made.pass_s(10.0)
    made.tell()
    assert made.ask("/readyz") == (200, "ok\n")
    made.pass_s(1.0)
    assert made.ask("/readyz") == (503, "no batch for 11 s\n")
    made.batch()
    made.pass_s(9.5)
    assert made.ask("/readyz") == (503, "nothing heard of the workload for 10 s\n")
    made.tell()
    assert made.ask("/readyz") == (200, "ok\n")
    made.exports.end()
    assert made.ask("/readyz") == (503, "the run is ending\n")
    assert made.ask("/healthz") == (200, "ok\n")


def test_a_camera_that_sends_a_frame_a_minute_is_ready_between_two(made):
    for _ in range(4):
        made.batch()
        for _ in range(12):
            made.pass_s(5.0)
            made.tell()
    made.pass_s(119.0)
    made.tell()
    assert made.ask("/readyz") == (200, "ok\n")
    made.pass_s(2.0)
    made.tell()
    assert made.ask("/readyz") == (503, "no batch for 181 s\n")
    for _ in range(10):
        made.batch()
        made.pass_s(1.0)
    made.pass_s(11.0)
    made.tell()
    assert made.ask("/readyz") == (503, "no batch for 12 s\n")


def test_healthy_while_the_main_loop_turns(made):
    made.tell()
    made.batch()
    made.pass_s(5.0)
    assert made.ask("/healthz") == (200, "ok\n")
    made.now += 10.5  # without a tick
    assert made.ask("/healthz") == (503, "the recorder does nothing since 10 s\n")
    assert made.ask("/readyz")[1] == "the recorder does nothing since 10 s\n"
    made.pass_s(0.0)
    assert made.ask("/healthz") == (200, "ok\n")


def test_the_workload_gets_a_snapshot_once_a_second(made):
    for _ in range(30):
        made.pass_s(0.1)
    assert len(made.answers) == 3
    made.tell()
    made.batch()
    made.pass_s(1.0)
    told = json.loads(json.dumps(to_json(made.answers[-1]), allow_nan=False))
    assert (told["batches"], told["items"], told["ready"], told["http"]) == (1, 4, True, made.url)
    assert told["source"]["dropped"] == {"full": 2}
    assert told["stages"]["reader"]["queue_p50_ms"] == 1.0
    assert told["sinks"]["http"] == {"ok": True, "sent": 0, "lost": 0, "detail": made.url}


def test_drops_are_rates_too(made):
    made.tell(source=replace(TOLD.source, dropped={"full": 10}))
    made.pass_s(1.0)
    made.tell(source=replace(TOLD.source, dropped={"full": 16, "corrupt": 4}))
    made.pass_s(1.0)
    assert made.answers[-1].dropped_per_s == 10.0


def test_a_scrape_has_every_family(made):
    made.gpus.readings = (GpuReading("GPU-1", "H200", 0.5, 10.0, 20.0, 300.0, 40.0),)
    made.sinks = {
        "parquet": SinkHealth(sent=7, lost=1),
        "wandb": SinkHealth(ok=False, detail="x"),
    }
    made.tell()
    made.batch()
    made.pass_s(1.0)
    found = made.scrape()
    assert found["traces_span_metrics_calls"] == {
        "SPAN_KIND_INTERNAL,reader,STATUS_CODE_UNSET": 1,
        "SPAN_KIND_INTERNAL,batch,STATUS_CODE_UNSET": 1,
    }
    assert found["mlotel_batches"] == {"done": 1, "failed": 0, "skipped": 0, "incomplete": 0}
    assert found["mlotel_sink_sent"] == {"parquet": 7, "wandb": 0, "http": 0}
    assert found["mlotel_sink_lost"] == {"parquet": 1, "wandb": 0, "http": 0}
    assert found["mlotel_sink_healthy"] == {"parquet": 1, "wandb": 0, "http": 1}
    assert found["mlotel_queue_depth"] == {"source": 1}
    assert found["mlotel_source_dropped"] == {"full": 2, "corrupt": 0}
    assert found["hw_gpu_utilization_ratio"] == {"GPU-1,H200": 0.5}
    assert found["process_memory_usage_bytes"]["workload"] == 1000
    assert set(found) > {
        "traces_span_metrics_duration_seconds",
        "mlotel_batch_latency_seconds",
        "mlotel_stage_queue_duration_seconds",
        "mlotel_data_value",
        "mlotel_items",
        "mlotel_source_received",
        "mlotel_queue_capacity",
        "mlotel_recorder_restarts",
        "process_cpu_time_seconds",
        "hw_power_watts",
        "hw_temperature_celsius",
        "target_info",
    }
    assert "mlotel_traces" not in found  # no sink takes traces


def test_the_status_page_is_served_before_anything_happened(made):
    status, html = made.ask("/")
    assert status == 200
    assert "not ready: the workload has not reported yet" in html


def test_traces_are_sent_when_slow_or_failed_and_metrics_count_all(monkeypatch):
    otlp = FakeOtlp(spans=True, metrics=True)
    with making(monkeypatch, otlp=otlp) as made:
        made.batch(0)
        made.batch(1, latency_ms=150.0)
        made.batch(2, status="failed")
        made.pass_s(1.0)
        assert [[(span.batch, span.name) for span in spans] for spans in otlp.got] == [
            [(1, "reader"), (1, "batch")],
            [(2, "reader"), (2, "batch")],
        ]
        found = made.scrape()
        assert sum(found["traces_span_metrics_calls"].values()) == 6
        assert found["mlotel_traces"] == {"failed": 1, "slow": 1, "background": 0, "dropped": 1}
        assert found["mlotel_sink_sent"]["otlp"] == 4
        assert found["mlotel_sink_healthy"]["otlp_metrics"] == 1
        assert made.exports.deliver(2.0).sent == 4
        assert otlp.closed_s == 2.0


def test_a_late_span_of_a_kept_batch_is_sent_with_the_next_turn(monkeypatch):
    otlp = FakeOtlp(spans=True, metrics=False)
    with making(monkeypatch, otlp=otlp) as made:
        made.batch(1, latency_ms=150.0)
        for take in made.exports.span_takers:
            take(SpanRecord(1, 3, 0, 1, "late", "INTERNAL", "s", "Main", 0, 1))
        made.pass_s(0.1)
        assert [span.name for spans in otlp.got for span in spans] == ["reader", "batch", "late"]
        for take in made.exports.span_takers:
            take(SpanRecord(1, 4, 0, 1, "last", "INTERNAL", "s", "Main", 0, 1))
        made.exports.deliver(1.0)
        assert [span.name for span in otlp.got[-1]] == ["last"]


def test_slow_batches_are_listed_by_what_the_sampler_calls_slow(made):
    made.pass_s(1.0)
    made.batch(7, latency_ms=150.0)
    made.pass_s(1.0)
    assert '<td data-label="batch">7</td>' in made.ask("/")[1]
    assert made.answers[-1].slow_ms == 100.0


def test_without_a_collector_no_span_waits(made):
    assert len(made.exports.span_takers) == 1


def test_a_port_that_is_taken_is_said_once_and_the_run_goes_on(monkeypatch, made):
    port = int(made.url.rpartition(":")[2])
    opening = replace(OPENING, monitor=replace(MONITOR, http=HttpOptions(port=port)))
    with making(monkeypatch, opening=opening) as other:
        (said,) = other.said
        assert said.startswith(
            f"No /metrics and no status page: cannot listen on 127.0.0.1:{port}: Address already in use"
        )
        other.batch()
        other.pass_s(1.0)
        assert other.answers[-1].http is None
        assert other.answers[-1].sinks["http"].ok is False
        assert len(other.said) == 1


def test_one_that_took_over_goes_on_counting_for_people_and_begins_anew_for_prometheus(monkeypatch):
    before = Before(Totals.from_json({"batches": {"done": 90}, "items": 360}), 3600.0)
    with making(monkeypatch, before=before) as made:
        made.batch()
        made.pass_s(1.0)
        told = made.answers[-1]
        assert (told.batches, told.items, told.uptime_s) == (91, 364, 3601.0)
        assert made.scrape()["mlotel_batches"] == {"done": 1, "failed": 0, "skipped": 0, "incomplete": 0}


def test_sinks_count_on_for_people_and_anew_for_prometheus(monkeypatch):
    otlp = FakeOtlp(spans=True, metrics=True)
    earlier = {"sent": 5, "lost": 2}
    before = Before(sinks={"otlp": earlier, "otlp_metrics": earlier, "parquet": earlier})
    with making(monkeypatch, otlp=otlp, before=before) as made:
        made.batch(latency_ms=500.0)
        made.pass_s(1.0)
        told = made.answers[-1].sinks
        assert (told["otlp"].sent, told["otlp"].lost, told["parquet"].sent) == (7, 2, 5)
        assert made.exports.describe()["sinks"]["otlp"] == {"sent": 7, "lost": 2, "queued": 0}
        assert made.scrape()["mlotel_sink_sent"]["otlp"] == 2
        delivered = made.exports.deliver(1.0)
        assert (delivered.sent, delivered.lost, delivered.metrics.lost) == (7, 2, 2)


def test_an_answer_is_given_again_for_a_moment():
    now, computed = [0.0], []

    def route() -> Reply:
        computed.append(now[0])
        return Reply(str(len(computed)).encode())

    remembered = Remembered(route, clock=lambda: now[0])
    bodies = []
    for now[0] in (0.0, 0.1, 0.19, 0.2, 0.3, 0.5):
        bodies.append(remembered().body)
    assert bodies == [b"1", b"1", b"1", b"2", b"2", b"3"]
