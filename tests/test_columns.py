"""Columns are named and understood alike everywhere, whatever a stage, a metric or a recorded value is called."""

from pathlib import Path

import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlotel_cli.analysis.summarise import summarise
from mlotel_cli.columns import (
    BatchColumns,
    StageColumn,
    accuracy_column,
    data_column,
    parse_columns,
    score_column,
    stage_column,
    type_of,
)
from mlotel_cli.compare.stage_pairs import StageComparison, compare_stages
from mlotel_cli.recorder.live import prometheus
from mlotel_cli.recorder.spanmetrics import SpanMetrics
from mlotel_cli.recorder.wandb.wandb_rows import RowBuilder
from mlotel_cli.records import BatchRecord
from mlotel_cli.store.reading import read_run
from mlotel_cli.trace.picks import choose
from mlotel_cli.wire import Closing
from tests.support.cli import mlotel
from tests.support.traces import Trace, row, write_run

STAGES = ("data.load", "accuracy.x", "batch", "queue", "a/b", "a.host_ms")
WANDB_KEYS = ("data_load", "accuracy_x", "batch_2", "queue", "a_b", "a_host_ms")
WAITS_MS, DEVICE_MS, SLOW_MS = 2, 3, 500
NUM_BATCHES = 4


def takes_ms(stage: str) -> int:
    return 10 * (1 + STAGES.index(stage))


def traces_of(slow: str) -> list[Trace]:
    """Batches of all stages one after the other; of the last batch, stage `slow` takes `SLOW_MS` longer."""
    traces: list[Trace] = []
    for batch in range(NUM_BATCHES):
        at_ms = 10_000 * batch
        trace = Trace(batch, at_ms, at_ms + 1_000)
        for stage in STAGES:
            trace.wait(stage, at_ms, at_ms + WAITS_MS)
            at_ms += WAITS_MS
            end_ms = at_ms + takes_ms(stage) + (SLOW_MS if stage == slow and batch == NUM_BATCHES - 1 else 0)
            trace.add(stage, at_ms, end_ms, device_ns=DEVICE_MS * 10**6)
            at_ms = end_ms
        trace.root.end_ns = trace.spans[-1].end_ns
        traces.append(trace)
    return traces


def rows_of(traces: list[Trace], *, factor: float = 1.0) -> list[BatchRecord]:
    """Their rows, with a score and two recorded values; every time but the latency by `factor`."""
    rows: list[BatchRecord] = []
    for trace in traces:
        record = row(trace, **{"boxes": 7.0, "decode.host_ms": 9.0 + trace.batch})
        record.accuracy = {"map": 0.5, "decode.queue_ms": 0.25}
        for time in record.stages.values():
            time.host_ms *= factor
            time.device_ms = DEVICE_MS * factor
            time.queue_ms = WAITS_MS * factor
        rows.append(record)
    return rows


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def traces(stage: str) -> list[Trace]:
    return traces_of(stage)


@pytest.fixture
def run_dir(traces: list[Trace], tmp_path: Path) -> Path:
    return write_run(tmp_path / "eval", traces, rows_of(traces))


def test_summary(stage: str, run_dir: Path) -> None:
    summary = summarise(read_run(run_dir).batches, Closing(wall_s=1.0))
    assert list(summary.latency_ms.stages) == list(STAGES)
    figures = summary.latency_ms.stages[stage]
    assert (figures.host.count, figures.host.p50) == (4, takes_ms(stage))
    assert figures.host.max == takes_ms(stage) + SLOW_MS
    assert (figures.device.mean, figures.queue.mean) == (3.0, 2.0)
    assert {name: each.mean for name, each in summary.data.items()} == {"boxes": 7.0, "decode.host_ms": 10.5}


def test_mean_scores(run_dir: Path) -> None:
    accuracy = summarise(read_run(run_dir).batches, Closing(wall_s=1.0), mean_scores=True).accuracy
    assert {name: score.value for name, score in accuracy.items()} == {"map": 0.5, "decode.queue_ms": 0.25}


def test_compare(stage: str, traces: list[Trace], run_dir: Path, tmp_path: Path) -> None:
    profile = write_run(tmp_path / "profile", [], rows_of(traces, factor=1.05), mode="profile")
    comparison = compare_stages(read_run(run_dir).batches, read_run(profile).batches)
    assert [each.name for each in comparison.rows if each.measure == "host"] == list(STAGES)
    host = takes_ms(stage)
    assert [each for each in comparison.rows if each.name == stage and each.measure != "latency"] == [
        StageComparison(stage, "host", host, pytest.approx(1.05 * host), pytest.approx(1.05), 4),
        StageComparison(stage, "device", 3.0, pytest.approx(3.15), pytest.approx(1.05), 4),
        StageComparison(stage, "queue", 2.0, pytest.approx(2.1), pytest.approx(1.05), 4),
    ]
    assert not {"decode", "data.decode", "accuracy.decode"} & {each.name for each in comparison.rows}


def test_trace(stage: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(run_dir / "batches.parquet", run_dir / "spans.parquet")
    worst = next(pick for pick in choice.picks if pick.role == "worst")
    ratio = (takes_ms(stage) + SLOW_MS) / takes_ms(stage)
    assert (worst.batch, worst.why) == (3, f"{stage} +500 ms ({ratio:.1f} x)")

    monkeypatch.setenv("COLUMNS", "300")
    drawn = mlotel("trace", str(run_dir), "--batch", "3")
    assert drawn.code == 0
    assert "\nscored  map 0.5  decode.queue_ms 0.25  boxes 7  decode.host_ms 12\n" in drawn.out


def test_wandb(stage: str, traces: list[Trace]) -> None:
    builder = RowBuilder()
    logged = [builder.row(record) for record in rows_of(traces)]
    key = WANDB_KEYS[STAGES.index(stage)]
    assert [each[f"latency/{key}_ms"] for each in logged] == [takes_ms(stage)] * 3 + [takes_ms(stage) + SLOW_MS]
    assert [each[f"device/{key}_ms"] for each in logged] == [3.0] * 4
    assert [each[f"queue/{key}_ms"] for each in logged] == [2.0] * 4
    assert logged[0]["latency/batch_ms"] == sum(map(takes_ms, STAGES)) + WAITS_MS * len(STAGES)
    assert logged[0]["accuracy/map"] == 0.5
    assert logged[0]["accuracy/decode_queue_ms"] == 0.25
    assert (logged[0]["data/boxes"], logged[0]["data/decode_host_ms"]) == (7.0, 9.0)


def test_prometheus(stage: str, traces: list[Trace]) -> None:
    metrics = SpanMetrics({"service.name": "s"})
    for trace in traces:
        for span in trace.spans:
            metrics.add_span(span)
    for record in rows_of(traces):
        metrics.add_batch(record)
    scraped = prometheus.render(metrics.families(), {}).decode()
    samples = [sample for family in text_string_to_metric_families(scraped) for sample in family.samples]

    def total_s(name: str, **labels: str) -> float:
        (found,) = [s.value for s in samples if s.name == f"{name}_seconds_sum" and s.labels.items() >= labels.items()]
        return found

    host_s = (4 * takes_ms(stage) + SLOW_MS) / 1e3
    if stage != "batch":  # a span metric counts root and stage of that name together
        assert total_s("traces_span_metrics_duration", span_name=stage) == pytest.approx(host_s)
    assert total_s("mlotel_stage_device_duration", stage=stage) == pytest.approx(0.012)
    assert total_s("mlotel_stage_queue_duration", stage=stage) == pytest.approx(0.008)


def test_what_was_built_is_understood() -> None:
    schema = {
        "batch": pl.Int64(),
        "latency_ms": pl.Float64(),
        stage_column("data.load", "calls"): pl.Int64(),
        stage_column("data.load", "lag_ms"): pl.Float64(),
        stage_column("waited", "queue_ms"): pl.Float64(),
        accuracy_column("map"): pl.Float64(),
        data_column("decode.calls"): pl.Float64(),
        data_column("decode.host_ms"): pl.Float64(),
        "source.wait_ms": pl.Float64(),
        "unknown": pl.String(),
    }
    parsed = parse_columns(schema)
    assert parsed == BatchColumns(
        stages=[
            StageColumn("data.load", "calls"),
            StageColumn("data.load", "lag_ms"),
            StageColumn("waited", "queue_ms"),
        ],
        accuracy={"map": "accuracy.map"},
        data={"decode.calls": "data.decode.calls", "decode.host_ms": "data.decode.host_ms"},
    )
    assert [column.name for column in parsed.times] == ["data.load.lag_ms", "waited.queue_ms"]


def test_types_of_columns_that_have_no_fixed_one() -> None:
    assert type_of("load.calls", [1, None, 2]) == "Int64"
    assert type_of("data.load.calls", [1.0]) == type_of("load.host_ms", [1]) == "Float64"
    assert type_of(score_column("calls"), [1.0]) == type_of("load.calls", [True]) == "Float64"
