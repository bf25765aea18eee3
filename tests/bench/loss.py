"""50,000 spans a second for ten seconds through the real recorder: how many are lost, and what it took."""

import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

SPANS_A_BATCH = 10


def measure(*, spans_per_s: int = 50_000, seconds: float = 10.0) -> dict[str, Any]:
    """Run paced; returns sent, recorded and lost spans, the rate reached, seconds paused and memory."""
    from mlotel_cli.link.handoff import Opening
    from mlotel_cli.modes.run import Session
    from mlotel_cli.telemetry import api

    folder = Path(tempfile.mkdtemp(prefix="mlotel-bench-"))
    session = Session(folder, say=print, imports=("polars",))
    tracker = {"mode": "disabled", "project": "bench", "entity": None, "group": None}
    opening = Opening(
        mode="loop", name="bench", run_id="bench", started_ns=time.time_ns(), tracker=tracker, settle_roots=True
    )
    batches_per_s, num_batches = spans_per_s / SPANS_A_BATCH, 0
    with session:
        session.open(opening, backend="otel", strict=True, flush_ms=50)
        session.record()
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            due = int(elapsed * batches_per_s)
            while num_batches < due:
                _one_batch(api, num_batches)
                num_batches += 1
            session.link.wait_for_room()
            time.sleep(0.0005)
        took = time.perf_counter() - start
    assert session.info is not None
    telemetry = session.info["summary"]["telemetry"]
    return {
        "spans sent": num_batches * SPANS_A_BATCH,
        "spans recorded": telemetry["spans_recorded"],
        "spans lost": telemetry["spans_lost"],
        "rows": sum(session.info["summary"]["batches"].values()),
        "spans/s reached": round(num_batches * SPANS_A_BATCH / took),
        "source paused, s": round(telemetry["source_paused_s"], 3),
        "recorder CPU, s": round(sum(os.times()[2:4]), 2),
        "peak memory of the workload, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak memory of the recorder, MiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }


def _one_batch(api: Any, index: int) -> None:
    with api.batch(index):
        for _ in range(SPANS_A_BATCH - 1):
            with api.span("stage"):
                pass
