"""The W&B sink on the real wandb and wandb-core: what lands in the .wandb file and at a backend on the loopback."""

import contextlib
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb  # the recorder process imports it at its start, too: no test measures that
from PIL import Image

from mlotel_cli.recorder.wandb.wandb_run import as_wandb
from mlotel_cli.recorder.wandb.wandb_sink import TrackerSettings, WandbSink, create_tracker
from mlotel_cli.records import BatchRecord, Sample, StageTime
from mlotel_cli.wire import Attachment
from tests.support.wandb_backend import WandbBackend
from tests.support.wandb_file import WandbFile, find_wandb_file, read_wandb_file, records

KEY = "0123456789" * 4
SUMMARY = {
    "accuracy": {"ap50": {"value": 0.5, "ci95": [0.25, 0.75]}},
    "latency_ms": {"batch": {"mean": 1.5, "p99": None}, "stages": {"net.head": {"host": {"p50": 1 / 3}}}},
    "budget": {"passed": None},
}


@pytest.fixture(autouse=True)
def _own_process_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a machine without W&B, as the recorder process would own it; wandb is left afterwards."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "exit", sys.exit)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    wandb.teardown()
    for name in set(os.environ) - set(before):
        del os.environ[name]
    assert list(home.iterdir()) == []


def tracker(tmp_path: Path, *, said: list[str] | None = None, **changes: Any) -> WandbSink:
    given: dict[str, Any] = {"mode": "auto", "project": "cars", "entity": None, "name": "first", "group": "sweep"}
    given |= {"job_type": "eval", "tags": ["a", "b"], "notes": "why", "dir": tmp_path / "run", "system_metrics": False}
    (tmp_path / "run").mkdir(exist_ok=True)
    lines = [] if said is None else said
    sink = create_tracker(TrackerSettings(**given | changes), say=lines.append)
    assert isinstance(sink, WandbSink)
    return sink


def record(batch: int, **changes: Any) -> BatchRecord:
    values: dict[str, Any] = {
        "status": "scored",
        "latency_ms": batch + 1 / 3,
        "stages": {
            "detector": StageTime(host_ms=batch * 0.1, device_ms=0.2, queue_ms=0.3, calls=1),
            "net.head": StageTime(host_ms=1e-9, calls=1),
        },
        "accuracy": {"ap50": 1 / (batch + 1)},
        "data": {"num_detections": float(batch)},
        "samples": [Sample(f"frame-{batch}", {"ap50": 1 / (batch + 1), "match": None}, "[1]", "[2]")],
    }
    return BatchRecord(batch=batch, source_batch=batch, repeat=0, start_ns=0, size=1, **values | changes)


def row(batch: int) -> dict[str, float]:
    return {
        "batch": batch,
        "latency/batch_ms": batch + 1 / 3,
        "latency/detector_ms": batch * 0.1,
        "device/detector_ms": 0.2,
        "queue/detector_ms": 0.3,
        "latency/net_head_ms": 1e-9,
        "accuracy/ap50": 1 / (batch + 1),
        "data/num_detections": float(batch),
    }


def written(tmp_path: Path) -> WandbFile:
    return read_wandb_file(find_wandb_file(tmp_path / "run"))


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of batches, without the keys that wandb adds."""
    plain = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    return [row for row in plain if "batch" in row]


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition: Callable[[], object], *, timeout_s: float = 20.0) -> None:
    """Return once `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def cores(parent: int) -> list[int]:
    """The wandb-core processes that `parent` started."""
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            if name == "wandb-core" and int(rest.split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def online(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # wandb-core takes whole seconds
    monkeypatch.setenv("WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS", "1")


@pytest.mark.slow
def test_offline_the_file_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/the/workload's/own")
    said: list[str] = []
    sink = tracker(tmp_path, said=said, mode="offline")
    sink.update_config({"seed": 1, "pipeline": {"time_scale": 0.5}})
    sink.start()
    for batch in (1, 0, 3, 2):
        sink.write(record(batch))
    sink.write(record(5, status="failed", accuracy={}, samples=[], latency_ms=None, stages={}, data={}))
    sink.write(record(4, status="skipped", accuracy={}, samples=[]))
    for batch in range(6, 300):
        sink.write(record(batch))
    sink.update_config({"mlotel.run.id": "late"})
    sink.close(SUMMARY, exit_code=3)

    file = written(tmp_path)
    rows = [row(batch) for batch in range(300)]
    del rows[4]["accuracy/ap50"]
    rows[5] = {"batch": 5}
    assert shown(file.history) == rows
    assert file.steps == list(range(301))
    config = {key: value for key, value in file.config.items() if key != "_wandb"}
    assert config == {"seed": 1, "pipeline": {"time_scale": 0.5}, "mlotel.run.id": "late"}
    assert {name: metric.step_metric for name, metric in file.metrics.items()} == {"batch": ""} | dict.fromkeys(
        ("latency/*", "device/*", "queue/*", "accuracy/*", "data/*"), "batch"
    )
    table = file.summary["worst_samples"]
    summary = {key: value for key, value in file.summary.items() if not key.startswith("_") and key != "worst_samples"}
    assert summary == SUMMARY
    assert (file.exit_code, file.torn) == (3, False)
    run = file.run
    assert (run.project, run.display_name, run.run_group, run.job_type) == ("cars", "first", "sweep", "eval")
    assert (list(run.tags), run.notes) == (["a", "b"], "why")
    assert not run.HasField("git")

    described = sink.describe()
    assert (described["mode"], described["url"], described["id"]) == ("offline", None, run.run_id)
    assert (described["rows_logged"], described["rows_lost"], described["error"]) == (300, 0, None)
    assert described["renamed"] == {"latency/net_head_ms": "net.head"}
    run_dir = tmp_path / "run" / described["dir"]
    assert said == [f"W&B: recording offline. Upload later with: wandb sync {run_dir}"]
    content = json.loads((run_dir / "files" / table["path"]).read_text())
    assert content["columns"] == ["id", "ap50", "match", "prediction", "target", "batch"]
    assert content["data"] == [
        [f"frame-{batch}", 1 / (batch + 1), None, "[1]", "[2]", batch] for batch in range(299, 279, -1)
    ]


@pytest.mark.slow
def test_online_every_batch_arrives_exactly_once_whatever_the_network_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with WandbBackend() as backend:
        online(monkeypatch, backend.url)
        sink = tracker(tmp_path, said=said)
        sink.update_config({"seed": 1})
        sink.start()
        for batch in range(100):
            sink.write(record(batch))
        backend.wait_until(lambda: bool(backend.runs) and len(backend.run.history) == 100)
        backend.faults.extend(["500", "cut_after"])
        for batch in range(100, 200):
            sink.write(record(batch))
        backend.wait_until(lambda: len(backend.faults_done) == 2)
        for batch in range(200, 300):
            sink.write(record(batch))
        sink.close(SUMMARY)

    run = backend.run
    assert shown(run.history) == [row(batch) for batch in range(300)]
    assert backend.complaints == []
    assert backend.faults_done == ["500", "cut_after"]
    assert (run.complete, run.exit_code) == (True, 0)
    assert (run.settings["groupName"], run.settings["jobType"], run.settings["tags"]) == ("sweep", "eval", ["a", "b"])
    assert run.config["seed"] == 1
    assert {key: run.summary[key] for key in SUMMARY} == SUMMARY
    assert run.artifacts == [f"run-{run.name}-worst_samples"]
    assert run.summary["worst_samples"]["path"] in run.files
    described = sink.describe()
    assert described["url"] == f"{backend.url}/loopback/cars/runs/{run.name}"
    assert (described["mode"], described["rows_logged"], described["rows_lost"]) == ("online", 300, 0)
    assert said == [f"W&B: {described['url']}"]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["closed", "hang", "reject_key"])
def test_without_a_willing_server_the_run_is_offline_within_ten_seconds(
    trouble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with contextlib.ExitStack() as stack:
        if trouble == "closed":
            url = f"http://127.0.0.1:{closed_port()}"
        else:
            url = stack.enter_context(WandbBackend(trouble)).url
        online(monkeypatch, url)
        started = time.monotonic()
        sink = tracker(tmp_path, said=said, mode="online")
        sink.start()
        for batch in range(10):
            sink.write(record(batch))
        sink.close(SUMMARY)
        took_s = time.monotonic() - started

    assert took_s < 10
    assert shown(written(tmp_path).history) == [row(batch) for batch in range(10)]
    assert written(tmp_path).exit_code == 0
    described = sink.describe()
    assert (described["mode"], described["rows_logged"], described["rows_lost"]) == ("offline", 10, 0)
    (line,) = said
    assert line.startswith(f"W&B: {url} did not accept the run (")
    assert line.endswith(f"; recording offline. Upload later with: wandb sync {tmp_path / 'run' / described['dir']}")
    if trouble == "reject_key":
        assert "user is not logged in" in line


@pytest.mark.parametrize(
    ("mode", "environment", "why"),
    [
        (
            "online",
            {},
            "no API key for https://a.example, although online was asked for (`wandb login` stores a key); ",
        ),
        ("auto", {"WANDB_API_KEY": "short"}, "no usable API key for https://a.example (WANDB_API_KEY invalid: "),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "recording offline. Upload later with: wandb sync "),
    ],
    ids=["no key", "malformed key", "WANDB_MODE"],
)
def test_why_a_run_is_offline_is_said(
    mode: str, environment: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for name, value in ({"WANDB_BASE_URL": "https://a.example"} | environment).items():
        monkeypatch.setenv(name, value)
    sink = tracker(tmp_path, said=said, mode=mode)
    sink.start()
    sink.close(SUMMARY)
    assert (sink.describe()["mode"], sink.describe()["error"]) == ("offline", None)
    (line,) = said
    assert line.startswith(f"W&B: {why}")


def test_a_key_in_the_netrc_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbBackend() as backend:
        netrc = tmp_path / "netrc"
        netrc.write_text(f"machine {backend.url.removeprefix('http://')} login user password {KEY}\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        sink = tracker(tmp_path)
        sink.start()
        sink.write(record(0))
        sink.close(SUMMARY)
    assert shown(backend.run.history) == [row(0)]
    assert (sink.describe()["mode"], sink.describe()["error"], backend.complaints) == ("online", None, [])


@pytest.mark.slow
def test_a_server_that_goes_silent_during_the_run_does_not_hold_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with WandbBackend() as backend:
        online(monkeypatch, backend.url)
        sink = tracker(tmp_path, said=said, finish_timeout_s=2.0)
        sink.start()
        for batch in range(10):
            sink.write(record(batch))
        backend.wait_until(lambda: bool(backend.runs) and len(backend.run.history) == 10)
        backend.behaviour = "hang"
        for batch in range(10, 20):
            sink.write(record(batch))
        started = time.monotonic()
        sink.close(SUMMARY)
        took_s = time.monotonic() - started

    assert took_s < 8
    assert shown(written(tmp_path).history) == [row(batch) for batch in range(20)]
    error = sink.describe()["error"]
    assert "the upload was not done after 2 s. Upload the rest with: wandb sync" in error
    assert said[1:] == [f"W&B: {error}"]


def test_a_wandb_core_that_dies_is_counted_and_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    sink = tracker(tmp_path, said=said, mode="offline")
    sink.start()
    sink.write(record(0))
    wait_for(lambda: sink.describe()["rows_logged"] == 1)
    (core,) = cores(os.getpid())
    os.kill(core, signal.SIGKILL)
    num_written = 1
    deadline = time.monotonic() + 20
    while sink.describe()["error"] is None and time.monotonic() < deadline:
        sink.write(record(num_written))
        num_written += 1
        time.sleep(0.001)
    sink.write(record(num_written))
    sink.close(SUMMARY)

    described = sink.describe()
    assert described["error"] == "wandb-core ended with status -9"
    assert described["rows_lost"] >= 1
    assert described["rows_logged"] + described["rows_lost"] == num_written + 1
    assert "WANDB_SERVICE" not in os.environ
    assert len(said) == 2
    assert said[1].startswith("W&B: stopped (wandb-core ended with status -9). Every batch is in batches.parquet")


PROGRAM = """
    import sys
    from pathlib import Path

    from mlotel_cli.recorder.wandb.wandb_sink import TrackerSettings, create_tracker
    from mlotel_cli.records import BatchRecord

    settings = TrackerSettings(
        mode="auto", project="p", entity=None, name="n", group=None, job_type="eval", dir=Path(sys.argv[1])
    )
    tracker = create_tracker(settings, say=lambda line: print(line, flush=True))
    tracker.start()
    for batch in range(300):
        tracker.write(BatchRecord(batch, batch, 0, 0, 1, "done", latency_ms=batch / 3))
    sys.stdin.readline()
    tracker.close({"a": 1})
    print(tracker.describe()["error"], flush=True)
"""


@contextlib.contextmanager
def at_a_terminal(run_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """PROGRAM as a process of its own, on a terminal where wandb could ask; gives it and the terminal."""
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), str(run_dir)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        try:
            yield process, terminal
        finally:
            process.kill()
            os.close(terminal)


def read_all(terminal: int) -> list[str]:
    """Every line the process has shown; it must have ended."""
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while chunk := os.read(terminal, 65536):
            shown += chunk
    return shown.decode().replace("\r\n", "\n").splitlines()


def num_rows(run_dir: Path) -> int:
    try:
        return len(read_wandb_file(find_wandb_file(run_dir)).history)
    except ValueError:  # there is no file yet
        return 0


@pytest.mark.slow
def test_without_a_key_nothing_is_asked_and_nothing_shown_but_one_line(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with at_a_terminal(run_dir) as (process, terminal):
        os.write(terminal, b"\n")
        assert process.wait(20) == 0
        echo, line, error = read_all(terminal)
    assert (echo, error) == ("", "None")
    assert line.startswith("W&B: no API key for https://")
    assert "; recording offline. Upload later with: wandb sync " in line
    file = read_wandb_file(find_wandb_file(run_dir))
    assert [row["latency/batch_ms"] for row in file.history] == [batch / 3 for batch in range(300)]
    assert (file.summary["a"], file.exit_code) == (1, 0)


@pytest.mark.slow
def test_a_killed_recorder_loses_at_most_the_last_second(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with at_a_terminal(run_dir) as (process, _):
        wait_for(lambda: run_dir.joinpath("wandb").is_dir() and num_rows(run_dir) > 0)
        wait_for(lambda: num_rows(run_dir) == 300, timeout_s=6.0)
        (core,) = cores(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda: not Path(f"/proc/{core}").exists())
    assert num_rows(run_dir) == 300


def test_a_profile_leaves_its_table_its_chart_and_its_files(tmp_path: Path):
    report = tmp_path / "profile.nsys-rep"
    report.write_bytes(b"what nsys wrote")
    said: list[str] = []
    sink = tracker(tmp_path, said=said, mode="offline", job_type="profile")
    sink.start()
    sink.write(record(0))
    sink.attach(
        Attachment(
            "stages",
            columns=["stage", "host_p50_ms"],
            rows=[["detector", 1.5], ["reader", None]],
            chart=("stage", "host_p50_ms", "host p50"),
            files=[str(report)],
        )
    )
    sink.close({})

    path = find_wandb_file(tmp_path / "run")
    last = read_wandb_file(path).history[-2:]
    assert any(row.get("stages", {}).get("_type") == "table-file" for row in last)
    (table,) = (tmp_path / "run").rglob("stages_*.table.json")
    assert json.loads(table.read_text())["data"] == [["detector", 1.5], ["reader", None]]
    artifacts = [each.artifact for each in records(path) if each.WhichOneof("record_type") == "artifact"]
    assert any(
        artifact.type == "profile" and [entry.path for entry in artifact.manifest.contents] == ["profile.nsys-rep"]
        for artifact in artifacts
    ), artifacts
    assert not [line for line in said if "was not logged" in line]


def test_a_png_becomes_an_image_and_other_cells_stay() -> None:
    import wandb

    red = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(red, format="PNG")

    image = as_wandb(red.getvalue())

    assert isinstance(image, wandb.Image)
    assert (image._width, image._height) == (4, 2)
    assert [as_wandb(cell) for cell in ("text", 0.5, None)] == ["text", 0.5, None]
