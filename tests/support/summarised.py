"""Runs whose summaries are known: what version 0.1.0 wrote of them lies in tests/data/summaries, one file a run."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlotel_cli.records import BatchRecord, StageTime
from tests.support.traces import pipelined, row, write_run

FOLDER = Path(__file__).parent.parent / "data" / "summaries"


class Summarised(NamedTuple):
    """What a summary is made of: rows, what the workload says at the end, the executor's configuration."""

    rows: list[BatchRecord]
    closing: Mapping[str, Any]
    executor: Mapping[str, Any]
    mean_scores: bool = False

    def write(self, folder: Path) -> Path:
        """A run directory with these rows, and a trace of each."""
        return write_run(folder, [pipelined(each.batch, 41.0 * each.batch) for each in self.rows], self.rows)


def with_devices() -> Summarised:
    """Every key that an evaluation can have: device times, queues, verdicts, recorded values, a cold start."""
    draw = random.Random(7)
    rows: list[BatchRecord] = []
    for n in range(120):
        record = row(pipelined(n, 41.0 * n), boxes=10 + draw.random())
        record.latency_ms = 300.0 if n == 0 else 100 + draw.random()
        record.size, record.source_wait_ms = 1 + n % 3, draw.random()
        record.status = "skipped" if n == 50 else "scored"
        record.accuracy = {"score": float(draw.random() < 0.7)}
        record.stages["detector"].device_ms, record.stages["detector"].lag_ms = 29 + draw.random(), 28 + draw.random()
        record.stages["reader"].device_ms = 2 + draw.random() if n % 2 else None
        record.stages["reader"].host_ms += draw.random()
        rows.append(record)
    closing = {
        "status": "complete",
        "accuracy": {"map": 0.25, "broken": None, "mean": _mean_score(rows)},
        "accuracy_ci95": {"map": [0.2, 0.3]},
        "wall_s": 4.95,
        "scoring_s": 0.5,
        "caller_s": 0.6,
        "cpu_s": 8.9,
        "cores": 2,
        "warmup": {"batches": 3, "first_batch_ms": 12.5, "total_s": 0.25},
        "telemetry": {
            "device_abandoned": 0,
            "device_captured": 2,
            "device_elsewhere": 1,
            "source_paused_s": 0.5,
            "faults": {"record": 2},
        },
    }
    return Summarised(rows, closing, {"kind": "pipelined", "queue_size": 2, "replicas": {"reader": 1}})


def sequential() -> Summarised:
    """A short evaluation on a CPU, with a control that found no pair."""
    draw = random.Random(3)
    rows = [row(pipelined(n, 41.0 * n)) for n in range(40)]
    for record in rows:
        record.latency_ms = 90 + draw.random()
        for stage in record.stages.values():
            stage.queue_ms = None
    closing = {
        "accuracy": {"score": 1.0},
        "wall_s": 4.0,
        "scoring_s": 0.25,
        "caller_s": 0.25,
        "cpu_s": 1.0,
        "cores": 4,
        "warmup": {"batches": 0, "first_batch_ms": None, "total_s": 0.0},
        "telemetry": {"control": None, "source_paused_s": 0.0, "faults": {}},
    }
    return Summarised(rows, closing, {"kind": "sequential", "queue_size": 2, "replicas": {}})


def own_loop() -> Summarised:
    """A program's own loop that was killed: its scores are the accuracy, and the workload said nothing."""
    draw = random.Random(5)
    rows = [
        BatchRecord(n, n, 0, n * 10**7, 1 + n % 2, "done", 9 + draw.random(), stages={"a/b": StageTime(8.0, calls=1)})
        for n in range(60)
    ]
    for record in rows:
        record.accuracy = {"recall": float(draw.random() < 0.5)}
    return Summarised(rows, {"status": "interrupted", "error": "killed"}, {}, mean_scores=True)


def nothing() -> Summarised:
    """A run that ended before its first batch."""
    return Summarised([], {"accuracy": {}, "warmup": None, "telemetry": {}}, {"kind": "sequential", "queue_size": 2})


RECORDED: Mapping[str, Any] = {
    "hot_path_us_per_batch": 12.5,
    "spans_recorded": 480,
    "spans_lost": None,
    "spans_late": 1,
    "spans_unnamed": 0,
    "items_refused": 0,
    "otlp": {
        "endpoint": "http://127.0.0.1:4318/v1/traces",
        "sent": 470,
        "lost": 10,
        "queued": 0,
        "retried": 1,
        "detail": "refused",
        "metrics": {"endpoint": None, "sent": 0, "lost": 0, "queued": 0, "retried": 0, "detail": ""},
    },
}
"""What the recorder adds to every summary's `telemetry` in the end."""

MADE = {"with_devices": with_devices, "sequential": sequential, "own_loop": own_loop, "nothing": nothing}


def text(summary: object) -> str:
    """As run.json has it."""
    return json.dumps(summary, indent=2, default=str)


def _mean_score(rows: list[BatchRecord]) -> float:
    return sum(each.accuracy["score"] * each.size for each in rows) / sum(each.size for each in rows)
