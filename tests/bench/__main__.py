"""`make bench`: cost per span, throughput with telemetry, spans lost. Figures hold for this machine and this moment."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import collector, loss, spans
from tests.bench.workload import make_stages

CONSOLE = Console()
KINDS = ("bare", "off", "on", "hand")


def main() -> None:
    """Run all parts, or the one that is named."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("part", nargs="?", choices=("spans", "throughput", "loss", "collector", "executor"))
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the throughput comparison")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one throughput stretch")
    given = parser.parse_args()
    CONSOLE.print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {time.ctime()}")
    if given.part in (None, "spans"):
        print_spans(spans.measure())
    if given.part in (None, "throughput"):
        for rate in (200, 1_000):
            print_throughput(rate, measure_throughput(rate, rounds=given.rounds, seconds=given.seconds))
    if given.part in (None, "loss"):
        print_loss(loss.measure())
    if given.part in (None, "collector"):
        print_collector(collector.measure(rounds=given.rounds))
    if given.part in (None, "executor"):
        print_executor(rounds=given.rounds, seconds=given.seconds)


def print_executor(*, rounds: int, seconds: float) -> None:
    """One line per kind of stage, one for the sequential executor. Ends with 1 when one is below what is required."""
    import torch

    from tests.bench import executor

    torch.set_num_threads(1)
    kinds = {
        "three stages that sleep": executor.sleeping(),
        "two stages of matrix products": executor.multiplying({"detect": 0.005, "read": 0.0035}),
    }
    failed = False
    for kind, stages in kinds.items():
        share = executor.measure_pipelined(stages, rounds=3 * rounds, seconds=seconds / 3)
        times = ", ".join(f"{name} {each:.2f}" for name, each in share.alone_ms.items())
        rate = statistics.median(share.batches_per_s)
        CONSOLE.print(f"pipelined, {kind} (alone {times} ms): {rate:.1f} batches/s")
        CONSOLE.print(f"  of 1 / max(stage time in the same run): {_spread(share.of_same)}", end="")
        CONSOLE.print(f"; beside each other without queues: {_spread(share.of_beside)}")
        failed |= statistics.median(share.of_same) < executor.REQUIRED_SHARE
    for with_spans in (False, True):
        found = executor.measure_sequential(with_spans=with_spans)
        CONSOLE.print(
            f"sequential over a bare loop, spans {'recorded' if with_spans else 'off'}, {found.pairs} pairs of "
            f"{found.bare_ms:.2f} ms: {found.ratio:.4f}, 95 % interval {found.low:.4f} to {found.high:.4f}"
        )
        failed |= found.is_too_much
    CONSOLE.print(
        f"required: {executor.REQUIRED_SHARE} of 1 / max(stage time); no interval above {executor.ALLOWED_OVERHEAD:.0%}"
    )
    if failed:
        sys.exit(1)


def print_spans(costs: dict[str, float]) -> None:
    """One line per kind, beside the SDK."""
    sdk = costs["OpenTelemetry SDK + BatchSpanProcessor"]
    table = Table(title="one span", title_justify="left")
    for column in ("kind", "us", "share of the SDK's"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, cost in costs.items():
        table.add_row(kind, f"{cost:.2f}", f"{cost / sdk:.3f}")
    CONSOLE.print(table)
    for kind in ("mlotel nvtx, tracer", "mlotel nvtx, span() alias"):
        CONSOLE.print(f"{kind}: {costs[kind] / costs[spans.NVTX]:.2f} x {spans.NVTX}")
    CONSOLE.print(f"mlotel nvtx: memory grows by {spans.grown_kib()} KiB over 1,000,000 ranges")


def measure_throughput(rate: int, *, rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    """Alternate the kinds, `rounds` times, each in a process of its own."""
    num_matmuls = _calibrate(rate)
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            command = [sys.executable, "-m", "tests.bench.workload", kind, str(num_matmuls), str(seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
            results[kind].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def _calibrate(rate: int) -> int:
    """Matrix products a stage for about `rate` batches/s of the bare loop here and now."""
    import torch

    torch.set_num_threads(1)
    (stage, *_) = make_stages(1_000).values()
    data = torch.randn(64, 64)
    with torch.inference_mode():
        stage(data)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            stage(data)
            times.append(time.perf_counter() - start)
    return max(1, round(1 / rate / 3 / (min(times) / 1_000)))


def print_throughput(rate: int, results: dict[str, list[dict[str, float]]]) -> None:
    """Ratios to the run of the same round with telemetry off."""
    table = Table(title=f"CPU-bound pipeline, torch on one thread, about {rate} batches/s", title_justify="left")
    for column in ("kind", "batch/s", "throughput / off", "p99, ms", "p99 / off"):
        table.add_column(column, justify="left" if column == "kind" else "right", no_wrap=True)
    for kind, runs in results.items():
        row: list[Any] = [kind]
        for key, digits in (("batches_per_s", 0), ("p99_ms", 2)):
            ratios = [run[key] / off[key] for run, off in zip(runs, results["off"], strict=True)]
            row += [f"{statistics.median(run[key] for run in runs):.{digits}f}", _spread(ratios)]
        table.add_row(*row)
    CONSOLE.print(table)


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f}-{max(ratios):.2f})"


def print_loss(result: dict[str, Any]) -> None:
    """One line per figure."""
    table = Table(title="50,000 spans/s for 10 s", title_justify="left", show_header=False)
    for name, value in result.items():
        table.add_row(name, str(value))
    CONSOLE.print(table)


def print_collector(results: dict[str, list[dict[str, float]]]) -> None:
    """Ratios to the run of the same round that sends nothing."""
    table = Table(title=f"a monitor, {collector.BATCHES} batches, and a collector that never answers")
    for column in ("kind", "p50, ms", "p99, ms", "p99 / nothing sent", "spans lost"):
        table.add_column(column, justify="left" if column == "kind" else "right", no_wrap=True)
    for kind, runs in results.items():
        pairs = zip(runs, results["nothing sent"], strict=True)
        figures = [f"{statistics.median(run[key] for run in runs):.2f}" for key in ("p50_ms", "p99_ms")]
        lost = f"{statistics.median(run['spans_lost'] for run in runs):.0f}"
        table.add_row(kind, *figures, _spread([run["p99_ms"] / other["p99_ms"] for run, other in pairs]), lost)
    CONSOLE.print(table)


main()
