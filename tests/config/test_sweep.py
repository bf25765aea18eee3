"""The table that ends a sweep."""

from pathlib import Path

import pytest

from mlotel_cli.config.sweep import JobStatus, SweepWatch, finished_jobs, print_sweep
from tests.support.screens import LONG_NAME, LONG_PATH, WIDE_NAME, WIDTHS, check_whole, set_width

JOBS = (
    JobStatus(0, [f"data.dir={LONG_PATH}", "pipeline.time_scale=0.0125"], "complete", 0, 12_345.67),
    JobStatus(1, [f"pipeline={LONG_NAME}", f"run.name={WIDE_NAME}"], "failed", 1, 0.25, "batch 1734: no [plate]"),
    JobStatus(2, ["eval.repeats=1000000"], "interrupted", 130, 7.0),
)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep whose jobs have ended."""
    monkeypatch.setattr(SweepWatch, "directory", tmp_path)
    monkeypatch.setattr(SweepWatch, "started_s", 0.0)
    for job in JOBS:
        (tmp_path / str(job.job)).mkdir()
        job.write(tmp_path / str(job.job))
    return tmp_path


def test_jobs_are_read_back_in_order(sweep: Path) -> None:
    assert finished_jobs() == list(JOBS)


@pytest.mark.parametrize(("codes", "code"), [([0, 0], 0), ([2, 2], 2), ([0, 2], 1), ([], 0)])
def test_the_exit_code_is_that_of_all_jobs_or_1(
    codes: list[int], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SweepWatch, "directory", tmp_path)
    for number, each in enumerate(codes):
        (tmp_path / str(number)).mkdir()
        JobStatus(number, [], "complete", each, 1.0).write(tmp_path / str(number))
    assert print_sweep() == code


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_is_whole_at_every_width(
    width: int | None, sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_width(monkeypatch, width)
    assert print_sweep() == 1
    title, table = capsys.readouterr().out.split("\n", 1)
    assert title.rstrip() == f"sweep {sweep}"
    figures = ("0", "1", "2", "0.0125", "1734", "1000000")
    texts = (*(text for job in JOBS for text in job.overrides), "batch 1734: no [plate]", "interrupted")
    check_whole(table, width=width, figures=figures, texts=texts)
    for seconds in ("12345.7", "0.2", "7.0"):
        assert (seconds in table.split()) == ("seconds" in table), "a column is shown or left out"
