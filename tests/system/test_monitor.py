"""`mlotel monitor` as a real process: how it ends, what it survives, what it counts."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.monitoring import ROOT, Monitor, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

DUMMY = ("pipeline.time_scale=0.02",)
PIPELINES = """
import threading
import time
from pathlib import Path

import torch


class Slow:
    def __init__(self, *, seconds, hang_at=None, fail_every=None):
        self.seconds, self.hang_at, self.fail_every, self.count = seconds, hang_at, fail_every, -1
        self.stages = {"wait": self.wait}

    def wait(self, items):
        self.count += 1
        if self.count == self.hang_at:
            threading.Event().wait()
        if self.fail_every and self.count % self.fail_every == 0:
            raise RuntimeError("no luck [with this one]")
        time.sleep(self.seconds)
        return items


class Ticks:
    '''A number every `every_s`, `count` of them, taken or not.'''

    def __init__(self, *, every_s, count=None):
        self.every_s, self.count, self.closed = every_s, count, threading.Event()

    def __iter__(self):
        Path("asked").touch()
        number = 0
        while number != self.count and not self.closed.wait(self.every_s):
            yield torch.tensor([float(number)])
            number += 1

    def close(self):
        self.closed.set()
"""
SOURCE = """
_target_: parts.Ticks
every_s: 0.01
count: null
"""


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("project")
    (project / "parts.py").write_text(PIPELINES)
    (project / "conf" / "pipeline").mkdir(parents=True)
    (project / "conf" / "source").mkdir()
    (project / "conf" / "pipeline" / "slow.yaml").write_text("_target_: parts.Slow\nseconds: 0.0\n")
    (project / "conf" / "source" / "ticks.yaml").write_text(SOURCE)
    return project / "conf"


def ticking(conf: Path, *more: str) -> tuple[str, ...]:
    return ("--config-dir", str(conf), "pipeline=slow", "source=ticks", "eval.warmup_batches=0", *more)


def test_a_signal_is_its_normal_end(tmp_path: Path) -> None:
    with Monitor(tmp_path, *DUMMY) as monitor:
        monitor.wait_for_batches(50)
        assert monitor.get("/readyz")[0] == 200
        assert monitor.metric("traces_span_metrics_calls_total", service_name="dummy", span_name="model_1") > 10
        recorder = monitor.recorder
        assert monitor.end(signal.SIGTERM) == 0, monitor.printed
        wait_until(lambda: not Path(f"/proc/{recorder}").exists())
    info, rows = monitor.info, monitor.result.batches
    assert (info["status"], info["mode"], info["ended"]) == ("complete", "monitor", "SIGTERM")
    assert rows["batch"].to_list() == list(range(rows.height)), "every batch that began is there"
    assert set(rows["status"]) == {"done"}
    assert info["summary"]["batches"] == {"done": rows.height}
    assert info["summary"]["telemetry"]["spans_lost"] == 0
    assert info["source"]["received"] >= rows.height
    assert "latency, ms a batch" in monitor.printed
    assert "ended: SIGTERM" in monitor.printed


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_terminal_that_goes_end_it_as_well(tmp_path: Path, signum: signal.Signals) -> None:
    with Monitor(tmp_path, *DUMMY, "executor=pipelined") as monitor:
        monitor.wait_for_batches(10)
        monitor.process.send_signal(signum)  # and again at once, as a wrapper does that signals the group as well
        assert monitor.end(signum) == 0, monitor.printed
    assert (monitor.info["status"], monitor.info["ended"]) == ("complete", signum.name)


def test_a_signal_before_the_pipeline_is_ready(tmp_path: Path, conf: Path) -> None:
    """An option needs a first batch for its example inputs, and this source never has one."""
    words = ticking(conf, "source.every_s=3600", "optimize=bf16")
    with Monitor(tmp_path, *words) as monitor:
        wait_until((tmp_path / "asked").exists)
        assert monitor.end(signal.SIGTERM) == 143, monitor.printed
    assert not (tmp_path / "run" / "run.json").exists()


def test_max_batches_and_then_the_summary(tmp_path: Path) -> None:
    with Monitor(tmp_path, *DUMMY, "monitor.max_batches=30") as monitor:
        assert monitor.process.wait(60) == 0, monitor.printed
    assert monitor.result.batches.height == 30
    assert monitor.info["ended"] == "monitor.max_batches=30"


def test_the_source_ends(tmp_path: Path, conf: Path) -> None:
    with Monitor(tmp_path, *ticking(conf, "source.count=20")) as monitor:
        assert monitor.process.wait(60) == 0, monitor.printed
    assert monitor.result.batches.height == 20
    assert (monitor.info["ended"], monitor.info["source"]["state"]) == ("the source ended", "ended")


def test_a_second_signal_leaves_at_once(tmp_path: Path, conf: Path) -> None:
    with Monitor(tmp_path, *ticking(conf, "+pipeline.hang_at=20", "monitor.grace_s=600")) as monitor:
        monitor.wait_for_batches(20)
        monitor.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            monitor.process.wait(1)
        assert monitor.end(signal.SIGTERM) == 143
        wait_until(lambda: monitor.info["status"] != "running")
    assert monitor.info["status"] == "interrupted"
    assert monitor.result.batches.filter(status="done").height == 20


@pytest.mark.parametrize("kind", ["sequential", "pipelined"])
def test_a_stage_that_hangs_costs_the_grace_and_no_more(tmp_path: Path, conf: Path, kind: str) -> None:
    with Monitor(
        tmp_path, *ticking(conf, "+pipeline.hang_at=20", "monitor.grace_s=0.5", f"executor={kind}")
    ) as monitor:
        monitor.wait_for_batches(20)
        assert monitor.end() == 0, monitor.printed
    assert monitor.info["status"] == "complete"
    assert "monitor.grace_s=0.5 is over; what was under way is left unfinished" in monitor.printed
    assert monitor.result.batches.filter(status="done").height == 20


def test_a_recorder_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with Monitor(tmp_path, *DUMMY) as monitor:
        monitor.wait_for_batches(50)
        killed = monitor.recorder
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: monitor.recorder != killed)
        before = monitor.num_batches()
        monitor.wait_for_batches(before + 50)
        assert monitor.metric("mlotel_recorder_restarts_total") == 1
        assert monitor.end() == 0, monitor.printed
    telemetry, rows = monitor.info["summary"]["telemetry"], monitor.result.batches
    assert telemetry["recorder_restarts"] == 1
    assert rows["batch"].n_unique() == rows.height
    missing = rows["batch"].max() + 1 - rows.height  # type: ignore[operator]
    assert 0 <= missing <= telemetry["batches_lost"] <= missing + 300
    assert "another recorder starts in 0.0 s" in monitor.printed


def test_a_workload_that_is_killed_leaves_readable_files(tmp_path: Path) -> None:
    with Monitor(tmp_path, *DUMMY) as monitor:
        monitor.wait_for_batches(50)
        monitor.process.kill()
        wait_until(lambda: monitor.info["status"] != "running")
    rows = monitor.result.batches
    assert monitor.info["status"] == "interrupted"
    assert rows.filter(status="done")["batch"].to_list() == list(range(rows.filter(status="done").height))
    assert monitor.info["summary"]["batches"]["done"] >= 50


@pytest.mark.parametrize("when_full", ["drop_oldest", "drop_newest"])
def test_a_slow_stage_drops_and_everything_adds_up(tmp_path: Path, conf: Path, when_full: str) -> None:
    slow = ticking(conf, "pipeline.seconds=0.05", f"+source.when_full={when_full}", "+source.queue_size=4")
    with Monitor(tmp_path, *slow, "source.count=200") as monitor:
        assert monitor.process.wait(60) == 0, monitor.printed
    source, rows = monitor.info["source"], monitor.result.batches
    assert source["received"] == 200 == rows.height + source["dropped"]["full"]
    assert source["dropped"]["full"] > 50
    # Four items wait, so the newest of them waited four times a stage; the oldest kept is always the next to run.
    latency = rows["latency_ms"].sort()
    waits = {"drop_oldest": (4, 40), "drop_newest": (150, 1000)}[when_full]
    assert waits[0] < latency[rows.height // 2] - 50 < 300
    assert "source: dropped" in monitor.printed


def test_latency_counts_the_waiting(tmp_path: Path, conf: Path) -> None:
    """Three numbers make a batch, ten milliseconds apart: the oldest waited for the newest."""
    batched = ticking(conf, "+source.batch_size=3", "+source.batch_wait_ms=5000", "source.count=60")
    with Monitor(tmp_path, *batched) as monitor:
        assert monitor.process.wait(60) == 0, monitor.printed
    rows = monitor.result.batches
    assert set(rows["size"]) == {3}
    assert rows["latency_ms"].min() >= 20  # type: ignore[operator]
    assert rows["source.queue_ms"].min() >= 20  # type: ignore[operator]


def test_batches_that_fail_are_counted_and_said_once(tmp_path: Path, conf: Path) -> None:
    with Monitor(tmp_path, *ticking(conf, "+pipeline.fail_every=5", "source.count=50")) as monitor:
        assert monitor.process.wait(60) == 0, monitor.printed
    assert monitor.info["summary"]["batches"] == {"done": 40, "failed": 10}
    assert monitor.printed.count("no luck [with this one]") == 1
    assert "stage wait raised RuntimeError: no luck [with this one] (said once;" in monitor.printed


def test_a_batch_that_fails_ends_the_run_when_asked_to(tmp_path: Path, conf: Path) -> None:
    words = ticking(conf, "+pipeline.fail_every=5", "monitor.on_error=fail")
    with Monitor(tmp_path, *words) as monitor:
        assert monitor.process.wait(60) == 1, monitor.printed
    assert monitor.info["status"] == "failed"
    assert "batch 0: stage wait raised RuntimeError: no luck" in monitor.printed


def refused(tmp_path: Path, *words: str) -> str:
    """What the command says that is refused; nothing may have been recorded."""
    ended = subprocess.run(
        [sys.executable, "-m", "mlotel_cli", "monitor", "run.dir=run", "tracker.mode=disabled", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert not (tmp_path / "run" / "run.json").exists()
    return ended.stderr


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(tmp_path, f"monitor.http.port={port}")
    assert f"monitor.http.port={port}: in use on 127.0.0.1" in said
    assert not (tmp_path / "run").exists()


def test_of_two_that_start_together_one_has_the_port_and_the_other_nothing(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for folder in folders:
        folder.mkdir()
    one, other = (Monitor(folder, *DUMMY, f"monitor.http.port={port}") for folder in folders)
    with one, other:
        wait_until(lambda: one.process.poll() or other.process.poll(), what=f"{one.printed} {other.printed}")
        loser, winner = (one, other) if one.process.poll() else (other, one)
        assert loser.process.wait() == 2, loser.printed
        assert f"monitor.http.port={port}: in use on 127.0.0.1" in loser.printed
        assert not loser.run_dir.exists()
        winner.wait_until_ready()
        assert winner.info["http"] == f"http://127.0.0.1:{port}"
        assert winner.end() == 0, winner.printed


def test_a_video_that_is_not_there(tmp_path: Path) -> None:
    assert "source.uri=gate.mp4: there is no such file" in refused(
        tmp_path, "source=video", "source.uri=gate.mp4", "monitor.http.port=0"
    )


def test_a_policy_that_does_not_exist(tmp_path: Path) -> None:
    said = refused(tmp_path, "source.when_full=drop_all", "monitor.http.port=0")
    assert "source.when_full=drop_all: allowed: drop_oldest, drop_newest, block" in said
    assert not (tmp_path / "run").exists()


def test_no_spans_no_monitor(tmp_path: Path) -> None:
    assert "telemetry.backend=nvtx: a monitor lives on its spans" in refused(
        tmp_path, "telemetry.backend=nvtx", "monitor.http.port=0"
    )
