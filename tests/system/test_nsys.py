"""`mlotel profile` and the real nsys, end to end, in processes of their own."""

import csv
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli import read_run
from mlotel_cli.profile.attribution import attribute
from mlotel_cli.profile.nsys_export import read_timeline
from mlotel_cli.profile.stages import by_batch
from tests.support.nsys_file import NEW, OLD, NsysFile

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]
QUICK = ["tracker.mode=disabled", "pipeline.time_scale=0.02", "data.num_batches=40", "eval.warmup_batches=2"]


def environment(nsys: Path, **more: str) -> dict[str, str]:
    path = f"{nsys.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def mlotel(nsys: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mlotel_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(nsys, **more))


def info_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


def test_a_profile_has_the_rows_of_an_evaluation(nsys: Path, tmp_path: Path):
    done = mlotel(nsys, "profile", *QUICK, "profile.batches=20", f"run.dir={tmp_path}/run")

    assert done.returncode == 0, done.stderr
    run = read_run(tmp_path / "run")
    assert run.status == "complete"
    rows = run.batches
    assert rows["batch"].to_list() == list(range(20))
    assert rows["status"].unique().to_list() == ["scored"]
    assert rows["data.num_detections"].null_count() == 0
    assert 10 <= rows["data.num_detections"].mean() <= 15  # the rising part of the sine that the dummy records
    for stage in ("model_1", "model_2", "model_3"):
        assert rows[f"{stage}.host_ms"].min() >= 0.5  # its shortest sleep is 25 ms x 0.02
        assert rows[f"{stage}.calls"].to_list() == [1] * 20
    assert (rows["latency_ms"] >= rows["model_1.host_ms"] + rows["model_2.host_ms"] + rows["model_3.host_ms"]).all()
    # The child went on after the capture: its metric over the run was computed then, and it ended in order.
    assert run.summary.accuracy["score"].value == pytest.approx(rows["accuracy.score"].mean())
    assert run.summary.warmup.batches == 2
    assert run.spans.height == 20 * 4
    command = run.info["profiler"]["command"]
    assert command[:3] == [str(nsys), "profile", "--trace=nvtx"]
    assert "--capture-range-end=stop" in command
    assert "$ " + str(nsys) in done.stderr
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert stages["batches"] == 20
    assert stages["stages"]["model_2"]["host_ms"]["p50"] == pytest.approx(rows["model_2.host_ms"].median())
    assert (tmp_path / "run" / "profile.nsys-rep").stat().st_size > 1_000
    assert not list((tmp_path / "run").glob(".profile*"))


def test_the_other_way_round(nsys: Path, tmp_path: Path):
    nsys_profile = [str(nsys), "profile", "-t", "nvtx", "-s", "none", "--cpuctxsw=none", "--export=sqlite"]
    evaluation = [sys.executable, "-m", "mlotel_cli", "eval", "telemetry.backend=nvtx", *QUICK]
    done = subprocess.run(
        [*nsys_profile, "-o", str(tmp_path / "x"), *evaluation, "eval.max_batches=15", f"run.dir={tmp_path}/run"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(nsys),
    )

    assert done.returncode == 0, done.stderr
    table = by_batch(attribute(read_timeline(tmp_path / "x.sqlite")))
    assert {index: list(stages) for index, stages in table.items()} == {
        index: ["model_1", "model_2", "model_3"] for index in range(15)
    }
    rows = read_run(tmp_path / "run").batches
    assert rows.height == 15
    assert rows["accuracy.score"].null_count() == 0
    assert rows["latency_ms"].null_count() == 15
    assert not [name for name in rows.columns if name.endswith(".host_ms")]


def test_third_party_spans_are_ranges_too(nsys: Path, tmp_path: Path):
    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = tmp_path / "client.py"
    script.write_text(f"""
from urllib.request import urlopen
from opentelemetry.instrumentation.urllib import URLLibInstrumentor
import mlotel_cli
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.nvtx import Nvtx
api.install()
api.use(Nvtx())
URLLibInstrumentor().instrument()
with mlotel_cli.batch(3), mlotel_cli.span("reader"):
    urlopen("http://127.0.0.1:{server.server_port}/").read()
""")
    options = ["-t", "nvtx", "-s", "none", "--cpuctxsw=none", "--export=sqlite", "-o", str(tmp_path / "x")]
    subprocess.run(
        [str(nsys), "profile", *options, sys.executable, str(script)],
        check=True,
        capture_output=True,
        env=environment(nsys),
    )
    server.shutdown()
    server.server_close()

    ranges = attribute(read_timeline(tmp_path / "x.sqlite")).timeline.ranges
    (request,) = (each for each in ranges if each.category == "client")
    assert request.name.startswith("GET")
    assert request.batch == 3
    assert request.parent is not None
    assert request.parent.name == "reader"


REPORTS = {"kernels": ("nvtxkernsum", "nvtx_kern_sum"), "projection": ("nvtxgpuproj", "nvtx_gpu_proj_trace")}


def report(nsys: Path, what: str, recording: Path) -> list[dict[str, str]]:
    """Rows of one of nsys's own reports, under the name that this version has for it."""
    for name in REPORTS[what]:
        command = [str(nsys), "stats", "--report", name, "--format", "csv", "--output", "-", str(recording)]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        header = next((number for number, line in enumerate(said) if "PID,TID" in line), None)
        if header is not None:
            return list(csv.DictReader(line for line in said[header:] if line))
    raise AssertionError(f"nsys has no report {what}: {said}")


@pytest.mark.parametrize("version", [OLD, NEW])
def test_nsyss_own_reports_agree_on_generated_cuda_recordings(nsys: Path, tmp_path: Path, version: str):
    """Nested stages of 20 batches, with kernels, copies and CUDA graphs that run long after they were launched."""
    dice, recording, correlation = random.Random(0), tmp_path / "x.sqlite", itertools.count(1)
    busy_until = 0
    with NsysFile(recording, version) as file:
        for batch in range(20):
            start = batch * 10_000
            file.root(batch, start, start + 9_000)
            for number, stage in enumerate(("detector", "crop", "reader")):
                file.push_pop(stage, begins := start + 1_000 + 2_500 * number, begins + 2_000)
                file.push_pop(f"inside {stage}", begins + 500, begins + 1_500)
                for call in sorted(dice.sample(range(begins + 1, begins + 1_990), dice.randrange(6))):
                    shared = next(correlation)
                    file.call(shared, call, call + 5)
                    for _ in range(dice.choice((1, 1, 3))):  # three nodes of a graph
                        begins_there = max(busy_until, call + 10) + dice.randrange(300)
                        busy_until = begins_there + dice.randrange(1, 800)
                        if dice.random() < 0.3:
                            file.copy(shared, begins_there, busy_until, size=64, kind=1)
                        else:
                            file.kernel(shared, begins_there, busy_until, name=dice.choice(("gemm", "conv")))

    attributed = attribute(read_timeline(recording))

    kernels: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for each, work in attributed.work.items():
        for name, (number, time_ns) in work.kernel_names.items():
            kernels[f"mlotel:{each.name}", f"void {name}<float>(int)"][0] += number
            kernels[f"mlotel:{each.name}", f"void {name}<float>(int)"][1] += time_ns
    reported = report(nsys, "kernels", recording)
    assert {
        (row["NVTX Range"], row["Kernel Name"]): [int(row["Kern Inst"]), int(row["Total Time (ns)"])]
        for row in reported
    } == dict(kernels)
    assert len(kernels) == 14
    extents = {(each.name, each.start_ns): work.extent_ns for each, work in attributed.work.items()}
    assert {
        (row["Name"].removeprefix("mlotel:"), int(row["Orig Start (ns)"])): int(row["Projected Duration (ns)"])
        for row in report(nsys, "projection", recording)
    } == extents


def test_a_crash_of_the_workload_is_its_own_error(nsys: Path, tmp_path: Path):
    (tmp_path / "conf" / "pipeline").mkdir(parents=True)
    (tmp_path / "conf" / "pipeline" / "crashing.yaml").write_text("_target_: crashing_pipeline.Crashing\n")
    (tmp_path / "crashing_pipeline.py").write_text("""
class Crashing:
    def __init__(self):
        self.calls = 0
        self.stages = {"reader": self.read}

    def read(self, items):
        self.calls += 1
        if self.calls > 7:
            raise ValueError("out of plates")
        return items[:, 1].long()
""")
    done = mlotel(
        nsys,
        *["profile", "-cd", str(tmp_path / "conf"), "pipeline=crashing", "tracker.mode=disabled"],
        *["eval.warmup_batches=2", f"run.dir={tmp_path}/run"],
    )

    assert done.returncode == 1
    error = [line for line in done.stderr.splitlines() if line.startswith("mlotel:")]
    assert len(error) == 1
    assert "batch 5" in error[0]
    assert "reader" in error[0]
    assert "out of plates" in error[0]
    run = read_run(tmp_path / "run")
    assert run.status == "failed"
    assert run.batches["status"].to_list() == ["scored"] * 5 + ["failed"]
    assert run.batches["reader.host_ms"].null_count() == 0


def test_a_ctrl_c_keeps_what_was_recorded(nsys: Path, tmp_path: Path):
    words = ["profile", "tracker.mode=disabled", "pipeline.time_scale=0.05", "profile.batches=10000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlotel_cli", *words, "data.num_batches=20000", f"run.dir={tmp_path}/run"],
        env=environment(nsys),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    results = tmp_path / "run" / ".profile.results.jsonl"
    deadline = time.monotonic() + 100
    while (not results.exists() or results.read_text().count('{"settle":') < 10) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = json.loads(results.read_text().splitlines()[0])["started"]["pid"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)

    assert process.returncode == 130, err
    run = read_run(tmp_path / "run")
    assert run.status == "interrupted"
    finished = run.batches.filter(run.batches["status"] == "scored")
    assert finished.height >= 10
    assert finished["model_1.host_ms"].null_count() == 0
    assert (tmp_path / "run" / "profile.nsys-rep").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_ranges_that_nsys_does_not_see(nsys: Path, tmp_path: Path):
    """Told to leave the domain out, nsys is as blind as with a version of nvtx that it does not know."""
    blind = 'profiler.args=["--nvtx-domain-exclude=mlotel"]'
    done = mlotel(nsys, "profile", *QUICK, "profile.batches=5", blind, f"run.dir={tmp_path}/run")

    assert done.returncode == 1
    assert "recorded no range of nvtx" in done.stderr
    assert "pip install 'nvtx<0.2.12'" in done.stderr
    assert info_of(tmp_path / "run")["status"] == "failed"
    assert read_run(tmp_path / "run").batches["accuracy.score"].null_count() == 0


def test_an_importer_that_is_missing(nsys: Path, tmp_path: Path):
    target = nsys.resolve().parent
    shutil.copytree(target, tmp_path / target.name, symlinks=True, copy_function=os.link)
    broken = tmp_path / target.name / "nsys"

    done = mlotel(nsys, "profile", *QUICK, "profile.batches=5", f"profiler.command={broken}", f"run.dir={tmp_path}/run")

    assert done.returncode == 1
    assert f"wrote only its raw file {tmp_path}/run/profile.qdstrm" in done.stderr
    assert "its importer is not beside it: ln -s" in done.stderr
    assert (tmp_path / "run" / "profile.qdstrm").exists()


def on_small_disk(folder: Path, size: str, command: list[str]) -> list[str]:
    """`command` where `folder` is a disk of that size, mounted for it alone; skips where that may not be done."""
    folder.mkdir()
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o "$0" none "$1" && shift && "$@"']
    mounted = [*unshare, f"size={size}", str(folder)]
    tried = subprocess.run([*mounted, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no disk may be mounted here: {tried.stderr.strip()}")
    return [*mounted, *command]


@pytest.mark.parametrize(("full", "size"), [("run", "1m"), ("run", "200k"), ("temporary", "200k")])
def test_a_full_disk(nsys: Path, tmp_path: Path, full: str, size: str):
    """The report does not fit beside the results; nor do they; nor does what nsys records before it imports it."""
    small = tmp_path / "small"
    run_dir = (small if full == "run" else tmp_path) / "run"
    words = ["profile", *QUICK[:1], "pipeline.time_scale=0", "data.num_batches=2100", "profile.batches=2000"]
    command = on_small_disk(small, size, [sys.executable, "-m", "mlotel_cli", *words, f"run.dir={run_dir}"])
    more = {"TMPDIR": str(small)} if full == "temporary" else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(nsys, **more))

    assert done.returncode == 1, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("mlotel:")]
    assert "the disk is full" in error or "No space left on device" in error
    assert "Traceback" not in done.stderr
    if full == "temporary":
        assert read_run(run_dir).status == "failed"


def test_a_folder_that_may_not_be_written(nsys: Path, tmp_path: Path):
    words = ["profile", *QUICK, "profile.batches=5", f"run.dir={tmp_path}/run"]
    command = on_small_disk(tmp_path / "small", "100m,ro", [sys.executable, "-m", "mlotel_cli", *words])
    more = environment(nsys, TMPDIR=str(tmp_path / "small"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=more)

    assert done.returncode == 1, done.stderr
    assert f"no permission: {tmp_path}/small is not writable" in done.stderr


def test_a_missing_nsys(tmp_path: Path):
    done = mlotel(Path("/nowhere/nsys"), "profile", *QUICK, f"run.dir={tmp_path}/run", "profiler.command=no-such-nsys")

    assert done.returncode == 2
    assert "profiler.command=no-such-nsys: nsys is not on PATH" in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_torch_profiler_gives_the_same_answer(tmp_path: Path):
    done = mlotel(
        Path("/nowhere/nsys"), "profile", "profiler=torch", *QUICK, "profile.batches=20", f"run.dir={tmp_path}/run"
    )

    assert done.returncode == 0, done.stderr
    rows = read_run(tmp_path / "run").batches
    assert rows["batch"].to_list() == list(range(20))
    assert rows["model_3.host_ms"].min() >= 0.5
    assert rows["accuracy.score"].null_count() == rows["data.num_detections"].null_count() == 0
    assert (tmp_path / "run" / "profile.trace.json").exists()
    assert json.loads((tmp_path / "run" / "stages.json").read_text())["profiler"]["kind"] == "torch"
