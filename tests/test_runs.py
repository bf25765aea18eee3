"""The list of runs: which are found, what it says of them, and that one broken folder hides no other."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlotel_cli.recorder.parquet_sink import ParquetSink
from mlotel_cli.records import BatchRecord
from mlotel_cli.runs import list_runs, print_runs
from tests.support.cli import mlotel

SUMMARY = {
    "accuracy": {"ap50": {"value": 0.5, "ci95": None}, "cer": {"value": None, "ci95": None}},
    "latency_ms": {"batch": {"p50": 1.25, "p95": None}, "stages": {}},
    "throughput": {"items_per_s": 1234.5, "wall_items_per_s": 1000.0},
    "batches": {"scored": 7, "failed": 1},
}


def make_run(folder: Path, *, started_s: int = 0, **info: Any) -> Path:
    folder.mkdir(parents=True)
    content = {"mode": "eval", "name": "n", "status": "complete", "started_ns": started_s * 10**9, "run_id": "abc"}
    (folder / "run.json").write_text(json.dumps(content | {"summary": SUMMARY} | info))
    return folder


def test_all_runs_newest_first_with_a_sweep_s_jobs(tmp_path: Path):
    make_run(tmp_path / "eval" / "a", started_s=1)
    make_run(tmp_path / "eval" / "sweep" / "0", started_s=3)
    make_run(tmp_path / "eval" / "sweep" / "1", started_s=4, mode="profile")
    make_run(tmp_path / "monitor" / "b", started_s=2)
    make_run(tmp_path / ".hidden" / "c")
    runs, skipped = list_runs(tmp_path)
    assert [Path(run.path).relative_to(tmp_path).as_posix() for run in runs] == [
        "eval/sweep/1",
        "eval/sweep/0",
        "monitor/b",
        "eval/a",
    ]
    assert skipped == []


def test_a_run_directory_itself_and_nothing_below_it(tmp_path: Path):
    folder = make_run(tmp_path / "a")
    make_run(folder / "wandb" / "files")
    (run,) = list_runs(folder)[0]
    assert run.path == str(folder)


def test_headline_figures(tmp_path: Path):
    make_run(tmp_path / "a")
    (run,) = list_runs(tmp_path)[0]
    assert (run.batches, run.p50_ms, run.p95_ms, run.items_per_s) == (8, 1.25, None, 1234.5)
    assert run.accuracy == {"ap50": 0.5, "cer": None}
    assert (run.mode, run.name, run.run_id, run.status) == ("eval", "n", "abc", "complete")


def test_a_run_that_says_running_and_has_no_recorder(tmp_path: Path):
    folder = make_run(tmp_path / "dead", status="running", summary=None, recorder_pid=None)
    sink = ParquetSink(folder)
    for batch in range(3):
        sink.write(BatchRecord(batch, batch, 0, 1, 1, "scored"))
    sink.flush()
    (run,) = list_runs(tmp_path)[0]
    assert (run.status, run.batches, run.p50_ms, run.accuracy) == ("interrupted?", 3, None, {})


def test_a_run_that_goes_on(tmp_path: Path):
    folder = make_run(tmp_path / "live", status="running", summary=None)
    script = "import sys, time; sys.stdout.write('up\\n'); sys.stdout.flush(); time.sleep(60)"
    words = [sys.executable, "-c", script, "-m", "mlotel_cli.recorder", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        info = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(info | {"recorder_pid": process.pid}))
        (run,) = list_runs(tmp_path)[0]
        process.kill()
    assert (run.status, run.batches) == ("running", 0)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"status": "complete"}', '{"status": "complete", "mode": 1}'])
def test_what_is_no_run_is_skipped_with_a_note(tmp_path: Path, content: str):
    make_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(content)
    runs, (note,) = list_runs(tmp_path)
    assert [Path(run.path).name for run in runs] == ["good"]
    assert str(tmp_path / "bad") in note
    assert "is no run directory" in note
    ended = mlotel("runs", str(tmp_path))
    assert ended.code == 0
    assert ended.err == f"skipped: {note}\n"


def test_a_summary_of_which_parts_are_missing_is_listed(tmp_path: Path):
    make_run(tmp_path / "a", summary={"batches": {"done": 3}, "latency_ms": None, "accuracy": None})
    (run,) = list_runs(tmp_path)[0]
    assert (run.batches, run.p50_ms, run.items_per_s, run.accuracy) == (3, None, None, {})


@pytest.mark.parametrize("summary", [{"batches": {"done": "many"}}, {"latency_ms": {"batch": 5}}, [1]])
def test_a_summary_that_makes_no_sense_hides_no_other_run(tmp_path: Path, summary: object):
    make_run(tmp_path / "bad", summary=summary)
    make_run(tmp_path / "good")
    runs, (note,) = list_runs(tmp_path)
    assert [Path(run.path).name for run in runs] == ["good"]
    assert note.startswith(f"{tmp_path / 'bad'} is no run directory: its run.json makes no sense (")


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_run(tmp_path / "a", name="[red]night\x1b[2J")
    make_run(tmp_path / "b", summary=None, status="failed", mode="loop")
    print_runs(list_runs(tmp_path)[0], console=Console(width=200))
    lines = capsys.readouterr().out.splitlines()
    columns = ["started", "mode", "name", "status", "batches", "p50 ms", "p95 ms", "items/s", "accuracy", "path"]
    assert lines[0].split() == " ".join(columns).split()
    assert lines[1].split()[2:] == (
        ["eval", "[red]night[2J", "complete", "8", "1.25", "1,234", "ap50", "0.500", "+1", str(tmp_path / "a")]
    )
    assert lines[2].split()[2:] == ["loop", "n", "failed", "0", str(tmp_path / "b")]


@pytest.mark.parametrize(
    ("width", "columns"),
    [(60, "mode status path"), (80, "mode status batches p50 ms path"), (120, "started mode")],
)
def test_a_narrow_table_cuts_no_figure_and_no_path(tmp_path: Path, width: int, columns: str):
    """Half a figure is a wrong one, and without its path a run cannot be opened."""
    folder = tmp_path / "outputs" / ("x" * 50)
    make_run(folder)
    console = Console(width=width, file=io.StringIO())
    print_runs(list_runs(tmp_path)[0], console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(lines[0].split()).startswith(columns)
    assert "…" not in text
    at = lines[0].index("path")
    assert "".join(line[at:].strip() for line in lines[1:]) == str(folder)
    assert ("1.25" in text) == ("p50" in columns or width == 120)


def test_json_for_scripts(tmp_path: Path):
    make_run(tmp_path / "a")
    ended = mlotel("runs", str(tmp_path), "--json")
    (run,) = json.loads(ended.out)
    assert (run["path"], run["p50_ms"], run["accuracy"]["ap50"]) == (str(tmp_path / "a"), 1.25, 0.5)


def test_nothing_there(tmp_path: Path):
    ended = mlotel("runs", str(tmp_path))
    assert (ended.code, ended.out, ended.err) == (0, "", f"{tmp_path} holds no run\n")
    assert json.loads(mlotel("runs", str(tmp_path), "--json").out) == []
    ended = mlotel("runs", str(tmp_path / "none"))
    assert ended.code == 2
    assert ended.err.startswith(f"mlotel: {tmp_path / 'none'}: no such folder. Give")


def test_the_default_is_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_run(tmp_path / "outputs" / "a")
    monkeypatch.chdir(tmp_path)
    (run,) = json.loads(mlotel("runs", "--json").out)
    assert run["path"] == os.path.join("outputs", "a")
