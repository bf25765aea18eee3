"""Live figures go through the pipe and come out the same; the keys are those of version 0.1.0."""

from typing import Any

from mlotel_cli.snapshot import (
    Gaps,
    LatencyFigures,
    QueueDepth,
    SinkHealth,
    Snapshot,
    SourceReport,
    StageNow,
    ValueNow,
)
from mlotel_cli.typed_json import to_json
from mlotel_cli.wire import Answer, decode_answer, encode_answer

SNAPSHOT = Snapshot(
    uptime_s=93_784.0,
    batches=12_345,
    latency_ms=LatencyFigures(count=80, p50=134.2, max=1502.0),
    stages={"a/b": StageNow(count=80, p50_ms=12.0, busy=0.97)},
    queues={"a/b": QueueDepth(1, 2)},
    source=SourceReport("video", "connected", 191, {"full": 1200}, reconnects=2),
    gaps=Gaps(1, 40),
    data={"plates": ValueNow(4.38, 4.0, "{plate}")},
    sinks={"parquet": SinkHealth(sent=5), "otlp": SinkHealth(ok=False, lost=7, queued=3, detail=None)},
    http="http://127.0.0.1:9464",
    ready=True,
)
RATES = ["items_per_s", "batches_per_s", "failed_per_s", "dropped_per_s"]
KEYS = ["uptime_s", "batches", "items", "failed", *RATES, "slow_ms", "latency_ms", "stages", "queues", "source", "gaps"]


def test_it_comes_out_of_the_pipe_as_it_went_in() -> None:
    for snapshot in (SNAPSHOT, Snapshot()):
        assert decode_answer(encode_answer(Answer(snapshot=snapshot))) == Answer(snapshot=snapshot)


def test_the_keys() -> None:
    told: Any = to_json(SNAPSHOT)
    assert list(told) == [*KEYS, "data", "sinks", "http", "ready"]
    assert told["latency_ms"] == {"count": 80, "p50": 134.2, "p95": None, "p99": None, "max": 1502.0}
    queue = {"queue_count": 0, "queue_p50_ms": None, "queue_p95_ms": None}
    assert told["stages"] == {"a/b": {"count": 80, "p50_ms": 12.0, "p95_ms": None, **queue, "busy": 0.97}}
    assert told["queues"] == {"a/b": [1, 2]}
    assert told["sinks"]["parquet"] == {"ok": True, "sent": 5, "lost": 0, "detail": ""}
    assert told["sinks"]["otlp"] == {"ok": False, "sent": 0, "lost": 7, "queued": 3, "detail": None}
    assert set(told["source"]) == {"kind", "state", "received", "reconnects", "dropped"}
