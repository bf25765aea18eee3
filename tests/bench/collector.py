"""What a collector that answers nothing costs a monitor: p99 of its batches, in turn with a run that sends nothing."""

import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

from mlotel_cli import read_run

BATCHES = 4_000
_CONF = """
defaults: [eval_base, {override pipeline: null}, {override data: null}, _self_]
pipeline: {_target_: tests.bench.collector.Pipeline}
data: {_target_: tests.bench.collector.Data}
tracker: {mode: disabled}
"""


class Pipeline:
    """Three stages of equal work on one torch thread."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        weights = torch.randn(384, 384)
        self.stages = {name: lambda data: (data @ weights).tanh() for name in ("detector", "plates", "reader")}


class Data:
    """The same batch for ever, so that only the machine makes one differ from another."""

    def __iter__(self) -> Generator[tuple[Any, None]]:
        import torch

        data = torch.randn(384, 384)
        while True:
            yield data, None


@contextlib.contextmanager
def black_hole() -> Generator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def measure(*, rounds: int) -> dict[str, list[dict[str, float]]]:
    """p50 and p99 of every run, ms, and what was lost; the runs alternate."""
    results: dict[str, list[dict[str, float]]] = {"nothing sent": [], "black hole": []}
    with black_hole() as address, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "eval.yaml").write_text(_CONF)
        for number in range(rounds):
            for kind, runs in results.items():
                run_dir = Path(folder) / f"{kind.replace(' ', '_')}_{number}"
                keys = [f"telemetry.otlp.endpoint={address}"] if kind == "black hole" else []
                runs.append(_run(Path(folder), run_dir, *keys))
    return results


def _run(conf: Path, run_dir: Path, *keys: str) -> dict[str, float]:
    words = ["monitor", "-cd", str(conf), f"monitor.max_batches={BATCHES}", "monitor.http.port=0"]
    always = ["telemetry.background_rate=1", "run.name=bench", f"run.dir={run_dir}"]
    command = [sys.executable, "-m", "mlotel_cli", *words, *always, *keys]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    run = read_run(run_dir)
    latency_ms = run.batches["latency_ms"]
    return {
        "p50_ms": float(latency_ms.quantile(0.5) or 0),
        "p99_ms": float(latency_ms.quantile(0.99) or 0),
        "spans_lost": float(run.summary.telemetry.otlp.lost if run.summary.telemetry.otlp else 0),
    }
