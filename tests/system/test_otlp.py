"""OTLP of whole evaluations, against a loopback receiver: span by span as in Parquet, and every span accounted for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from mlotel_cli import read_run
from mlotel_cli.store.reading import Run
from tests.support.evaluation import ROOT, command, evaluate, target
from tests.support.otlp_receiver import Received, Receiver, Reply, attributes, receiving, rejecting

KINDS = {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
STATUSES = {"UNSET": 0, "OK": 1, "ERROR": 2}
NUMBERS = target("Numbers", num_batches=30)


def exported(folder: Path, receiver: Receiver, *overrides: str, **parts: str) -> Run:
    """Evaluate in this process, with a recorder that sends to `receiver`."""
    endpoint = f"telemetry.otlp.endpoint={receiver.url}"
    ended = evaluate(folder, endpoint, *overrides, **({"data": NUMBERS} | parts))
    assert ended.code == 0, ended.err
    (folder / "stdout").write_text(ended.out)
    (folder / "stderr").write_text(ended.err)
    return read_run(folder / "run")


def otlp(run: Run) -> dict[str, Any]:
    """What the summary says of it; every span recorded was sent or lost."""
    telemetry = run.summary.telemetry
    described = telemetry.otlp
    assert described.sent + described.lost == telemetry.spans_recorded == run.spans.height
    assert described.queued == 0
    return described


def assert_equal(received: Received, row: dict[str, Any]) -> None:
    """A span that arrived is the row of spans.parquet, field by field."""
    span = received.span
    assert span.trace_id.hex() == row["trace_id"]
    assert (span.parent_span_id.hex() or None) == row["parent_id"]
    assert (span.name, received.scope) == (row["name"], row["scope"])
    assert (span.kind, span.status.code) == (KINDS[row["kind"]], STATUSES[row["status"]])
    assert span.status.message == (row["status_message"] or "")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (row["start_ns"], row["end_ns"])
    found = attributes(span.attributes)
    assert found.pop("thread.name") == row["thread"]
    assert found.pop("mlotel.device_ns", None) == row["device_ns"]
    given = json.loads(row["attributes"] or "{}")
    if row["batch"] is not None:
        assert found["batch.index"] == row["batch"]
        given.setdefault("batch.index", row["batch"])
    assert found == given
    events = [
        {"time_ns": e.time_unix_nano, "name": e.name, "attributes": attributes(e.attributes)} for e in span.events
    ]
    assert events == json.loads(row["events"] or "[]")


def test_what_arrives_is_what_parquet_holds(tmp_path: Path) -> None:
    with receiving() as receiver:
        run = exported(tmp_path, receiver, "eval.on_error=skip", pipeline=target("Raises", at=7))
    described = otlp(run)
    assert (described.lost, described.detail) == (0, "")
    by_id = {each.span.span_id.hex(): each for each in receiver.spans}
    rows = run.spans.to_dicts()
    assert len(receiver.spans) == len(by_id) == len(rows) == 90
    for row in rows:
        assert_equal(by_id[row["span_id"]], row)
    failed = [each.span for each in receiver.spans if each.span.status.code == STATUSES["ERROR"]]
    assert {span.name for span in failed} == {"double", "batch"}
    assert any(event.name == "exception" for span in failed for event in span.events)
    resource = receiver.spans[0].resource
    identity = run.info["identity"]
    assert {name: resource.get(name) for name in identity} == identity
    assert resource["telemetry.sdk.language"] == "python"


def test_metrics_agree_with_the_rows(tmp_path: Path) -> None:
    with receiving() as receiver:
        run = exported(tmp_path, receiver)
    (group,) = receiver.metrics[-1].resource_metrics
    (scope,) = group.scope_metrics
    metrics = {metric.name: metric for metric in scope.metrics}
    calls = {
        attributes(point.attributes)["span.name"]: point.as_double
        for point in metrics["traces.span.metrics.calls"].sum.data_points
    }
    assert calls == {"batch": 30, "add": 30, "double": 30}
    durations = {
        attributes(point.attributes)["span.name"]: point
        for point in metrics["traces.span.metrics.duration"].histogram.data_points
    }
    spans = run.spans
    for name, point in durations.items():
        rows = spans.filter(spans["name"] == name)
        assert point.count == rows.height
        assert point.sum == pytest.approx(float((rows["end_ns"] - rows["start_ns"]).sum()) / 1e9)
        assert point.start_time_unix_nano == run.info["started_ns"]


def test_a_server_that_is_busy_gets_everything_once(tmp_path: Path) -> None:
    busy = Reply(status=503, headers={"Retry-After": "1"})
    with receiving(lambda number, path: busy if number < 2 and "traces" in path else None) as receiver:
        run = exported(tmp_path, receiver)
    described = otlp(run)
    assert (described.lost, len(receiver.spans)) == (0, described.sent)
    assert described.retried >= 1
    assert len({each.span.span_id for each in receiver.spans}) == len(receiver.spans)


def test_a_server_that_rejects_some(tmp_path: Path) -> None:
    with receiving(lambda number, path: rejecting(5, "no room") if "traces" in path else None) as receiver:
        run = exported(tmp_path, receiver)
    described = otlp(run)
    requests = sum("traces" in path for path, _, _ in receiver.requests)
    assert described.lost == 5 * requests
    note = f"OTLP traces: {described.lost} of 90 spans did not reach {receiver.url}/v1/traces (no room)"
    assert any(line.startswith(note) for line in run.info["notes"])
    assert note in (tmp_path / "stdout").read_text()
    said = (tmp_path / "stderr").read_text()
    assert said.count(f"OTLP traces to {receiver.url}/v1/traces: the server rejected 5") == 1


def test_a_server_that_hangs_costs_seconds_and_the_spans(tmp_path: Path) -> None:
    with receiving(lambda number, path: Reply(hangs=True)) as receiver:
        run = exported(tmp_path, receiver)
    assert otlp(run).lost == 90
    assert run.status == "complete"
    assert (run.info["ended_ns"] - run.info["started_ns"]) / 1e9 < 20


def test_a_server_that_dies_in_the_middle(tmp_path: Path) -> None:
    """What it had taken is sent, the rest is lost, and the run itself is complete."""
    with receiving() as receiver:
        words = [
            "eval",
            "pipeline.time_scale=0.05",
            "data.num_batches=300",
            "tracker.mode=disabled",
            "run.dir=run",
            f"telemetry.otlp.endpoint={receiver.url}",
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "mlotel_cli", *words],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert receiver.arrived.wait(60)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    run = read_run(tmp_path / "run")
    described = otlp(run)
    assert run.summary.batches == {"scored": 300}
    assert 0 < described.sent <= len(receiver.spans)
    assert described.lost > 0
    assert said.count(f"OTLP traces to {receiver.url}/v1/traces: not delivered (") == 1


@pytest.mark.parametrize("override", ["telemetry.otlp.endpoint=localhost:4318", "telemetry.otlp.timeout_s=0.0"])
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path: Path, override: str) -> None:
    ended = command("eval", override, "run.dir=run", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"mlotel: {override}: allowed: ")
    assert not (tmp_path / "run").exists()


def test_the_standard_variables_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "gate")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=lab")
        ended = evaluate(tmp_path, data=NUMBERS)
    assert ended.code == 0, ended.err
    assert otlp(read_run(tmp_path / "run")).sent == len(receiver.spans) == 90
    assert {path for path, _, _ in receiver.requests} == {"/v1/traces"}
    headers = receiver.requests[0][1]
    assert (headers["x-key"], headers["content-encoding"]) == ("secret", "gzip")
    resource = receiver.spans[0].resource
    assert (resource["service.name"], resource["deployment.environment"]) == ("gate", "lab")


# -- monitor ----------------------------------------------------------------------------------------------------------


def monitored(folder: Path, receiver: Receiver, *overrides: str) -> Run:
    """A monitor of 400 batches of the talk's pipeline, as a real process."""
    ended = command(
        "monitor",
        f"telemetry.otlp.endpoint={receiver.url}",
        "pipeline.time_scale=0.01",
        "monitor.max_batches=400",
        "monitor.http.port=0",
        "tracker.mode=disabled",
        "run.dir=run",
        *overrides,
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr
    return read_run(folder / "run")


def test_a_monitor_sends_its_background_s_share_of_whole_traces_and_counts_every_span(tmp_path: Path) -> None:
    with receiving() as receiver:
        run = monitored(tmp_path, receiver, "telemetry.background_rate=0.25", "telemetry.slow_ms=1e6")
    spans = run.spans
    assert spans.height == 1600
    sampler = TraceIdRatioBased(0.25)
    kept = {
        trace
        for trace in spans["trace_id"].unique()
        if sampler.should_sample(None, int(trace, 16), "batch").decision.is_sampled()
    }
    assert 0 < len(kept) < 400
    expected = set(spans.filter(spans["trace_id"].is_in(list(kept)))["span_id"])
    assert {each.span.span_id.hex() for each in receiver.spans} == expected
    described = run.summary.telemetry.otlp
    assert (described.sent, described.lost) == (len(expected), 0)
    by_name = {
        attributes(point.attributes)["span.name"]: point.as_double
        for metric in receiver.metrics[-1].resource_metrics[0].scope_metrics[0].metrics
        if metric.name == "traces.span.metrics.calls"
        for point in metric.sum.data_points
    }
    assert by_name == {"batch": 400, "model_1": 400, "model_2": 400, "model_3": 400}


def test_a_monitor_sends_every_slow_trace(tmp_path: Path) -> None:
    with receiving() as receiver:
        run = monitored(tmp_path, receiver, "telemetry.background_rate=0", "telemetry.slow_ms=2")
    rows = run.batches
    slow = set(rows.filter(rows["latency_ms"] > 2)["batch"])
    assert len(slow) > 0
    assert {attributes(each.span.attributes)["batch.index"] for each in receiver.spans} == slow
    assert len(receiver.spans) == 4 * len(slow)


def test_a_monitor_whose_recorder_is_killed_goes_on_in_the_same_tables(tmp_path: Path) -> None:
    words = ["monitor", "pipeline.time_scale=0.02", "monitor.max_batches=1500", "monitor.http.port=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlotel_cli", *words, "tracker.mode=disabled", "run.dir=run"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "run"
    deadline = time.monotonic() + 60
    while not list((folder / "batches.parquet").glob("part-000002.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(json.loads((folder / "run.json").read_text())["recorder_pid"], signal.SIGKILL)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    run = read_run(folder)
    indexes = run.batches["batch"].to_list()
    assert len(indexes) == len(set(indexes))
    assert indexes[0] == 0
    assert indexes[-1] == 1499
    telemetry = run.summary.telemetry
    assert 1500 - len(indexes) <= telemetry.batches_lost < 1000
    assert telemetry.recorder_restarts == 1
