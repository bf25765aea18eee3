"""Times of a simulated device, from spans through the real recorder process to rows and verdicts."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlotel_cli.config.policies import TrackerOptions
from mlotel_cli.execute.batches import Finished, Numbered
from mlotel_cli.modes.run import Session
from mlotel_cli.records import Batch
from mlotel_cli.store.reading import read_run
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.device import DeviceTimer
from mlotel_cli.wire import Opening

WORK_MS = 150.0
"""Of the device, a stage. The host's own part takes a small share of it, on a busy machine too."""


@dataclass
class Event:
    passes_ns: int = 0


class Device:
    """One stream on the host's clock: what it is given takes `WORK_MS`, one after the other."""

    def __init__(self) -> None:
        self._busy_until_ns = 0
        self._lock = threading.Lock()

    def launch(self) -> None:
        with self._lock:
            self._busy_until_ns = max(self._busy_until_ns, time.perf_counter_ns()) + round(WORK_MS * 1e6)

    def wait(self) -> None:
        while time.perf_counter_ns() < self._busy_until_ns:
            time.sleep(0.001)

    def new_event(self) -> Event:
        return Event()

    def record(self, event: Event) -> None:
        with self._lock:
            event.passes_ns = max(self._busy_until_ns, time.perf_counter_ns())

    def record_aside(self, event: Event) -> None:
        event.passes_ns = time.perf_counter_ns()

    def has_passed(self, event: Event) -> bool:
        return time.perf_counter_ns() >= event.passes_ns

    def elapsed_ns(self, start: Event, end: Event) -> int:
        return end.passes_ns - start.passes_ns

    def obstacle(self) -> None:
        return None


@pytest.mark.system
def test_rows_and_verdicts(tmp_path: Path):
    device, before = Device(), api.PROVIDER.backend
    tracker = TrackerOptions(mode="disabled")
    opening = Opening(mode="eval", name="t", run_id="r", started_ns=time.time_ns(), tracker=tracker)
    try:
        with Session(tmp_path, say=print) as session:
            session.open(opening, backend="otel", strict=False, flush_ms=5, device=DeviceTimer(device))
            session.record()
            for index in range(2):
                start_ns = time.perf_counter_ns()
                with api.batch(index) as root:
                    with api.span("launched"):
                        device.launch()
                    with api.span("waited"):
                        device.launch()
                        device.wait()
                numbered = Numbered(index, 0, Batch(index, ["0"], None))
                session.settle(Finished(numbered, None, None, "", root, start_ns, wait_ns=0).settled("scored"))
    finally:
        api.PROVIDER.backend = before

    run = read_run(tmp_path)
    for row in run.batches.rows(named=True):
        for name in ("launched", "waited"):
            assert row[f"{name}.device_ms"] == pytest.approx(WORK_MS, abs=WORK_MS / 5)
        assert row["launched.host_ms"] == pytest.approx(row["launched.lag_ms"], abs=WORK_MS / 5)
        assert row["waited.host_ms"] >= 2 * WORK_MS  # behind what was launched before it
        assert row["waited.lag_ms"] < WORK_MS / 5
        assert row["latency_ms"] >= 2 * WORK_MS
    stages = run.summary.latency_ms.stages
    assert {name: stage.verdict for name, stage in stages.items()} == {
        "launched": "device-bound",
        "waited": "launch-bound or synchronising",
    }
    assert run.summary.telemetry.device_abandoned == run.summary.telemetry.device_elsewhere == 0
    assert run.spans.filter(run.spans["name"] == "launched")["lag_ns"].min() > 0
