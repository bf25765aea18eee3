"""Run directories in every state they can be found in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from mlotel_cli.errors import UsageError
from mlotel_cli.recorder.parquet_sink import ParquetSink
from mlotel_cli.records import BatchRecord, Sample, SpanRecord
from mlotel_cli.store.reading import RECORDER_MODULE, read_run, read_table
from mlotel_cli.summary import Summary

NO_PROCESS = 2**22 + 1  # above the largest pid that Linux gives


def make_run(folder: Path, **info) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"schema_version": 1, "status": "running", "recorder_pid": NO_PROCESS, "summary": None}
    (folder / "run.json").write_text(json.dumps(given | info))
    return folder


@pytest.fixture
def stand_in():
    """Starts processes whose command line looks like a recorder's."""
    started = []

    def start(run_dir: str, *, module: str = RECORDER_MODULE, cwd: Path | None = None) -> int:
        command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", "-m", module, "5", "6"]
        process = subprocess.Popen(
            [*command, run_dir, "polars"], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        process.communicate()


def test_a_finished_run_is_what_run_json_says(tmp_path):
    run = read_run(make_run(tmp_path, status="complete", summary={"batches": {"done": 1}}, name="dummy"))
    assert (run.status, run.summary, run.info["name"], run.path) == (
        "complete",
        Summary(batches={"done": 1}),
        "dummy",
        tmp_path,
    )


@pytest.mark.parametrize("status", ["complete", "failed", "interrupted"])
def test_an_ended_run_needs_no_process(tmp_path, status):
    assert read_run(str(make_run(tmp_path, status=status))).status == status


def test_a_run_is_running_while_its_recorder_is(tmp_path, stand_in):
    folder = make_run(tmp_path / "r", recorder_pid=stand_in(str(tmp_path / "r")))
    run = read_run(folder)
    assert (run.status, run.summary) == ("running", None)


def test_a_recorder_started_elsewhere_with_a_relative_path_is_the_runs_own(tmp_path, stand_in, monkeypatch):
    folder = make_run(tmp_path / "outputs" / "r", recorder_pid=stand_in("outputs/r", cwd=tmp_path))
    monkeypatch.chdir(folder.parent)
    assert read_run("r").status == "running"


def test_a_killed_recorder_leaves_an_interrupted_run(tmp_path):
    assert read_run(make_run(tmp_path)).status == "interrupted"
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"  # reading changes nothing


def test_a_zombie_is_not_running(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass", "-m", RECORDER_MODULE, str(tmp_path)])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert read_run(make_run(tmp_path, recorder_pid=process.pid)).status == "interrupted"
    finally:
        process.wait()


def test_a_pid_that_another_program_has_now_does_not_count(tmp_path):
    assert read_run(make_run(tmp_path, recorder_pid=os.getpid())).status == "interrupted"


def test_a_pid_that_another_runs_recorder_has_now_does_not_count(tmp_path, stand_in):
    folder = make_run(tmp_path / "r", recorder_pid=stand_in(str(tmp_path / "other")))
    assert read_run(folder).status == "interrupted"


def test_a_program_that_only_names_the_folder_does_not_count(tmp_path, stand_in):
    folder = make_run(tmp_path / "r", recorder_pid=stand_in(str(tmp_path / "r"), module="http.server"))
    assert read_run(folder).status == "interrupted"


@pytest.mark.parametrize("pid", [None, 0])
def test_a_run_without_a_pid_is_not_running(tmp_path, pid):
    assert read_run(make_run(tmp_path, recorder_pid=pid)).status == "interrupted"


@pytest.mark.parametrize("content", [None, "", '{"status": "comp', "[]", '"status"', "{}", "\udcff"])
def test_what_is_no_run_directory_says_so(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"is no run directory: .*Give the folder") as caught:
        read_run(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_that_is_not_there_is_no_run_directory(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_run(tmp_path / "nowhere")


def test_tables_are_read_anew_at_every_access(tmp_path):
    run = read_run(make_run(tmp_path))
    assert run.batches.shape == run.spans.shape == run.samples.shape == (0, 0)
    sink = ParquetSink(tmp_path)
    for batch in (2, 0, 1):
        sink.write(BatchRecord(batch, batch, 0, 1, 1, "scored", samples=[Sample(str(batch), {"f1": 1.0})]))
        sink.write_span(SpanRecord(1, batch + 1, 0, batch, f"s{batch}", "INTERNAL", "", "", 0, 1))
    sink.flush()
    assert run.batches["batch"].to_list() == [0, 1, 2]  # batch order, whatever the order of completion
    assert run.spans["name"].to_list() == ["s2", "s0", "s1"]
    assert run.samples["id"].to_list() == ["2", "0", "1"]
    sink.write(BatchRecord(3, 3, 0, 1, 1, "scored"))
    sink.close()
    assert run.batches["batch"].to_list() == [0, 1, 2, 3]


def test_a_part_that_is_gone_for_good_is_an_error_not_fewer_rows(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    pl.DataFrame({"batch": [0]}).write_parquet(tmp_path / "t" / "part-000001.parquet")
    missing = tmp_path / "t" / "part-000002.parquet"
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [*listed(folder, pattern), missing])
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "t")
