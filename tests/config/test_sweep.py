"""How the jobs of a sweep ended: their files, the table, and the exit code of the whole."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mlotel_cli.config.sweep import JOB_FILE, JobStatus, SweepWatch, finished_jobs, print_sweep
from tests.support.screens import LONG_NAME, LONG_PATH, WIDE_NAME, WIDTHS, check_whole, set_width

JOBS = (
    JobStatus(0, [f"data.dir={LONG_PATH}", "pipeline.time_scale=0.0125"], "complete", 0, 12_345.67),
    JobStatus(1, [f"pipeline={LONG_NAME}", f"run.name={WIDE_NAME}"], "failed", 1, 0.25, "batch 1734: no [plate]"),
    JobStatus(2, ["eval.repeats=1000000"], "interrupted", 130, 7.0),
)
BEGAN_S = 1_700_000_000.0


@pytest.fixture(autouse=True)
def _watch_is_put_back() -> Iterator[None]:
    before = (SweepWatch.directory, SweepWatch.started_s)
    yield
    SweepWatch.directory, SweepWatch.started_s = before


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "100")
    SweepWatch.directory, SweepWatch.started_s = tmp_path, BEGAN_S
    return tmp_path


def ended(folder: Path, job: int, exit_code: int = 0, *, error: str = "", at_s: float = BEGAN_S) -> JobStatus:
    status = JobStatus(job, [f"seed={job}"], "failed" if exit_code else "complete", exit_code, 1.25, error)
    (folder / str(job)).mkdir(exist_ok=True)
    status.write(folder / str(job))
    os.utime(folder / str(job) / JOB_FILE, (at_s, at_s))
    return status


def test_a_job_writes_how_it_ended(tmp_path: Path) -> None:
    JobStatus(3, ["seed=1"], "refused", 2, 0.5, "seed=x: must be a whole number").write(tmp_path)
    assert json.loads((tmp_path / "job.json").read_text()) == {
        "job": 3,
        "overrides": ["seed=1"],
        "status": "refused",
        "exit_code": 2,
        "seconds": 0.5,
        "error": "seed=x: must be a whole number",
    }


def test_jobs_are_found_in_the_order_of_their_numbers(sweep: Path) -> None:
    expected = [ended(sweep, job) for job in (10, 2, 0)]
    assert finished_jobs() == sorted(expected, key=lambda status: status.job)


def test_jobs_of_an_earlier_sweep_in_the_same_directory_are_left_out(sweep: Path) -> None:
    ended(sweep, 0, at_s=BEGAN_S - 2)
    now = ended(sweep, 1, at_s=BEGAN_S - 0.5)  # the clock of a file system may be a second behind
    assert finished_jobs() == [now]


def test_outside_a_sweep_there_are_no_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SweepWatch.directory = None
    assert (finished_jobs(), print_sweep(), capsys.readouterr().out) == ([], 0, "")


def test_the_watch_keeps_directory_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlotel_cli.config.sweep.time.time", lambda: BEGAN_S)
    SweepWatch().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": "sweeps/first"}}}))
    assert (SweepWatch.directory, SweepWatch.started_s) == (tmp_path / "sweeps" / "first", BEGAN_S)


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((2, 2), 2), ((130,), 130), ((0, 1), 1), ((0, 2), 1), ((2, 130), 1)]
)
def test_the_exit_code_is_that_of_all_jobs_or_1(sweep: Path, codes: tuple[int, ...], expected: int) -> None:
    for job, code in enumerate(codes):
        ended(sweep, job, code)
    assert print_sweep() == expected


def test_the_table_has_a_row_a_job_with_its_error_below(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(sweep, 0)
    ended(sweep, 1, 1, error="batch 3: no [plate]")
    print_sweep()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ["0", "complete", "1.2", "seed=0"] in lines
    assert ["1", "failed", "1.2", "seed=1"] in lines
    assert ["batch", "3:", "no", "[plate]"] in lines


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_is_whole_at_every_width(
    width: int | None, sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for job in JOBS:
        (sweep / str(job.job)).mkdir()
        job.write(sweep / str(job.job))
    set_width(monkeypatch, width)
    assert print_sweep() == 1
    title, table = capsys.readouterr().out.split("\n", 1)
    assert title.rstrip() == f"sweep {sweep}"
    figures = ("0", "1", "2", "0.0125", "1734", "1000000")
    texts = (*(text for job in JOBS for text in job.overrides), "batch 1734: no [plate]", "interrupted")
    check_whole(table, width=width, figures=figures, texts=texts)
    for seconds in ("12345.7", "0.2", "7.0"):
        assert (seconds in table.split()) == ("seconds" in table), "a column is shown or left out"
