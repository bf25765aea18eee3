"""Does memory stay flat? Runs `mlotel monitor` on the dummy pipeline and watches workload and recorder from outside.

    python -m tests.bench.soak                       ten minutes, as fast as possible
    python -m tests.bench.soak --batches 1000000     so many batches

Exits with 1 when either process grew by more than the bar after warming up.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MEGABYTE = 1 << 20
STEADY = 0.2
"""The first part of the run, as a share, in which memory may still grow: code and buffers come into use."""


@dataclass(slots=True)
class Sample:
    """Both processes at one moment."""

    seconds: float
    workload_bytes: int
    recorder_bytes: int


def rss_bytes(pid: int) -> int:
    """Resident memory; 0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def recorder_of(run_dir: Path) -> int | None:
    try:
        return int(json.loads((run_dir / "run.json").read_text())["recorder_pid"])
    except (OSError, ValueError, KeyError):
        return None


def watch(process: "subprocess.Popen[bytes]", run_dir: Path, *, seconds: float, every_s: float) -> Iterator[Sample]:
    """Sample until the process ends, or `seconds` are over, which ends it."""
    began = time.monotonic()
    while process.poll() is None:
        time.sleep(every_s)
        now = time.monotonic() - began
        recorder = recorder_of(run_dir)
        if recorder is not None:
            sample = Sample(now, rss_bytes(process.pid), rss_bytes(recorder))
            if sample.workload_bytes and sample.recorder_bytes:
                yield sample
        if now >= seconds:
            process.send_signal(signal.SIGTERM)
            process.wait()


def growth(values: list[int]) -> float:
    """Megabytes from the first steady tenth to the last tenth, medians."""
    start = int(len(values) * STEADY)
    tenth = max(1, len(values) // 10)
    return (statistics.median(values[-tenth:]) - statistics.median(values[start : start + tenth])) / MEGABYTE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--bar", type=float, default=10.0, help="megabytes")
    parser.add_argument("--time-scale", type=float, default=0.0, help="of the dummy pipeline")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        words = [f"run.dir={run_dir}", "monitor.http.port=0", "tracker.mode=disabled"]
        words += [f"pipeline.time_scale={options.time_scale}", *options.overrides]
        if options.batches:
            words.append(f"monitor.max_batches={options.batches}")
        process = subprocess.Popen(
            [sys.executable, "-m", "mlotel_cli", "monitor", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        seconds = 3600.0 * 6 if options.batches else options.minutes * 60
        samples = list(watch(process, run_dir, seconds=seconds, every_s=options.every))
        info = json.loads((run_dir / "run.json").read_text())
    return report(samples, info, bar=options.bar)


def report(samples: list[Sample], info: dict[str, object], *, bar: float) -> int:
    """Print both curves in ten points, and the verdict."""
    summary = info["summary"]
    assert isinstance(summary, dict)
    print(f"{'seconds':>8} {'workload MB':>12} {'recorder MB':>12}")
    for sample in samples[:: max(1, len(samples) // 12)]:
        print(
            f"{sample.seconds:8.0f} {sample.workload_bytes / MEGABYTE:12.1f} {sample.recorder_bytes / MEGABYTE:12.1f}"
        )
    # The last second is the recorder's closing: it reads what it summarises.
    running = samples[:-2] or samples
    grown = {
        "workload": growth([sample.workload_bytes for sample in running]),
        "recorder": growth([sample.recorder_bytes for sample in running]),
    }
    print(f"batches: {summary['batches']}, lost: {summary['telemetry'].get('batches_lost')}")
    for name, megabytes in grown.items():
        print(f"{name}: {megabytes:+.1f} MB after warming up (allowed {bar:g})")
    return int(max(grown.values()) > bar or info["status"] != "complete")


if __name__ == "__main__":
    sys.exit(main())
