"""One measured stretch of a CPU-bound pipeline, in a process of its own.

`python -m tests.bench.workload KIND MATMULS SECONDS`, KIND being bare | off | on | hand. Prints one JSON line.
bare: the stages in a loop; off: telemetry off; on: telemetry on, every batch settled, W&B offline; hand:
time.perf_counter, nvtx, an OpenTelemetry SDK span and a wandb.log around every stage, written by hand.
"""

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mlotel_cli.execute import Numbered, SequentialExecutor
from mlotel_cli.records import Batch

STAGES = ("detect", "align", "read")
WARM_S = 2.5  # the recorder and wandb are up by then


def make_stages(num_matmuls: int) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Three stages of `num_matmuls` small matrix products each."""
    weights = torch.randn(64, 64) / 8

    def stage(x: torch.Tensor) -> torch.Tensor:
        for _ in range(num_matmuls):
            x = x @ weights
        return x

    return dict.fromkeys(STAGES, stage)


def batches(seconds: float) -> Iterator[Numbered]:
    """Endless input for so long."""
    data, index, end = torch.randn(64, 64), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield Numbered(index, 0, Batch(index, ["0"], data))
        index += 1


def run_bare(stages: dict[str, Any], seconds: float) -> list[int]:
    """Start of every batch, ns."""
    stamps = []
    for numbered in batches(seconds):
        stamps.append(time.perf_counter_ns())
        value = numbered.batch.data
        for stage in stages.values():
            value = stage(value)
    return stamps


def run_off(stages: dict[str, Any], seconds: float) -> list[int]:
    """Start of every batch, ns."""
    return [finished.start_ns for finished in SequentialExecutor(stages).run(batches(seconds))]


def run_on(stages: dict[str, Any], seconds: float) -> list[int]:
    """Start of every batch, ns."""
    from mlotel_cli.link.handoff import Opening
    from mlotel_cli.modes.run import Session

    folder = Path(tempfile.mkdtemp(prefix="mlotel-bench-"))
    session = Session(folder, say=_quiet, imports=("polars", "wandb"))
    tracker = {"mode": "offline", "project": "bench", "entity": None, "group": None}
    opening = Opening(mode="eval", name="bench", run_id="bench", started_ns=time.time_ns(), tracker=tracker)
    stamps = []
    with session:
        session.open(opening, backend="otel", strict=True, flush_ms=50)
        session.record()
        for finished in SequentialExecutor(stages).run(batches(seconds)):
            stamps.append(finished.start_ns)
            index = finished.numbered.index
            session.settle(
                index,
                status="scored",
                size=1,
                source_batch=index,
                repeat=0,
                root=finished.root,
                start_ns=finished.start_ns,
                wait_ns=finished.wait_ns,
                accuracy={"score": 1.0},
            )
            session.link.wait_for_room()
    assert session.info is not None
    assert session.info["summary"]["telemetry"]["spans_lost"] == 0
    assert session.info["wandb"]["rows_logged"] == len(stamps)
    return stamps


def run_by_hand(stages: dict[str, Any], seconds: float) -> list[int]:
    """Start of every batch, ns."""
    import nvtx
    import wandb

    from tests.bench.spans import sdk_tracer

    tracer, _, shutdown = sdk_tracer()
    os.environ["WANDB_SILENT"] = "true"
    folder = tempfile.mkdtemp(prefix="mlotel-bench-")
    run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(console="off", x_disable_stats=True))
    stamps = []
    for numbered in batches(seconds):
        stamps.append(time.perf_counter_ns())
        value = numbered.batch.data
        with tracer.start_as_current_span("batch"):
            for name, stage in stages.items():
                start = time.perf_counter()
                with nvtx.annotate(name), tracer.start_as_current_span(name):
                    value = stage(value)
                run.log({f"latency/{name}_ms": (time.perf_counter() - start) * 1e3, "batch": numbered.index})
    run.finish()
    shutdown()
    return stamps


def _quiet(_text: str) -> None:
    pass


RUN = {"bare": run_bare, "off": run_off, "on": run_on, "hand": run_by_hand}


def main() -> None:
    """Print throughput (batches/s) and batch p99 (ms) of the stretch after warm-up."""
    kind, num_matmuls, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    with torch.inference_mode():
        stamps = RUN[kind](make_stages(num_matmuls), WARM_S + seconds)
    begin = stamps[0] + int(WARM_S * 1e9)
    kept = [stamp for stamp in stamps if stamp >= begin]
    periods_ms = [(later - earlier) / 1e6 for earlier, later in itertools.pairwise(kept)]
    rate = (len(kept) - 1) / (kept[-1] - kept[0]) * 1e9
    print(json.dumps({"batches_per_s": rate, "p99_ms": statistics.quantiles(periods_ms, n=100)[98]}))


if __name__ == "__main__":
    main()
