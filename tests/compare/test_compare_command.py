import json
from pathlib import Path

import polars as pl
import pytest

from tests.support.cli import mlotel
from tests.support.screens import LONG_NAME, LONG_PATH, PIPE, WIDE_NAME, WIDTHS, check_whole, set_width


def write_run(
    folder: Path, mode: str, stage_ms: list[float], *, first: int = 0, stage: str = "plate_[reader]", config: str = ""
) -> Path:
    (folder / "batches.parquet").mkdir(parents=True)
    info = {"status": "complete", "mode": mode, "device": "cpu", "summary": {}}
    (folder / "run.json").write_text(json.dumps(info))
    if config:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(config)
    count = len(stage_ms)
    rows = {
        "batch": range(count),
        "source_batch": range(first, first + count),
        "repeat": [0] * count,
        "status": ["scored"] * count,
        "latency_ms": stage_ms,
        f"{stage}.host_ms": stage_ms,
    }
    pl.DataFrame(rows).write_parquet(folder / "batches.parquet" / "part-000001.parquet")
    return folder


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_both_figures_ratio_and_warning(tmp_path: Path):
    left = write_run(tmp_path / "e", "eval", [10.0, 10.0, 10.0])
    right = write_run(tmp_path / "p", "profile", [12.0, 12.0])

    ended = mlotel("compare", str(left), str(right))

    assert ended.code == 0
    line = next(line for line in ended.out.splitlines() if "plate_[reader]" in line)
    assert line.split() == ["plate_[reader]", "10.000", "12.000", "1.200"]
    assert "p50 over 2 common batches" in ended.out
    assert f"warning: plate_[reader]: {right} differs by 20% from {left}, more than 10%: the profiler, or" in ended.out
    assert "1 of its 3 batches are not in the other run" in ended.out


def test_no_warning_where_nothing_was_disturbed(tmp_path: Path):
    left = write_run(tmp_path / "e", "eval", [10.0])
    right = write_run(tmp_path / "p", "profile", [10.5])
    assert "warning" not in mlotel("compare", str(left), str(right)).out


def test_runs_that_share_nothing(tmp_path: Path):
    left = write_run(tmp_path / "e", "eval", [10.0])
    right = write_run(tmp_path / "p", "profile", [10.0], first=7)
    ended = mlotel("compare", str(left), str(right))
    assert ended.code == 2
    assert "have no finished batch in common: 1 and 1 batches" in ended.err


def test_a_folder_that_is_no_run(tmp_path: Path):
    ended = mlotel("compare", str(tmp_path), str(tmp_path))
    assert ended.code == 2
    assert f"mlotel: {tmp_path} is no run directory" in ended.err
    assert "Traceback" not in ended.err


def test_runs_of_two_pipelines(tmp_path: Path):
    left = write_run(tmp_path / "e", "eval", [10.0])
    right = write_run(tmp_path / "p", "profile", [10.0], stage="vehicle")
    ended = mlotel("compare", str(left), str(right))
    assert ended.code == 2
    assert "have no stage in common: plate_[reader] in the one, vehicle in the other" in ended.err
    assert not ended.out


def test_another_configuration_is_said_and_no_profiler_is_blamed(tmp_path: Path):
    config = "seed: 0\npipeline: {scale: 1, seed: '${seed}'}\ndata: {seed: '${seed}', n: 1}\nrun: {dir: %s}\n"
    left = write_run(tmp_path / "e", "eval", [10.0], config=config % "a")
    right = write_run(tmp_path / "p", "profile", [20.0], config=config.replace("scale: 1", "scale: [2]") % "b")
    same = write_run(tmp_path / "s", "profile", [20.0], config=config % "c")

    said = mlotel("compare", str(left), str(right)).out
    assert "warning: the runs did not do the same work: pipeline.scale 1 / [2]\n" in said
    assert "differs by 100%" in said
    assert "disturbed" not in said
    said = mlotel("compare", str(left), str(same)).out
    assert "the same work" not in said
    assert "disturbed" in said


def test_of_many_differences_a_few_are_named(tmp_path: Path):
    keys = [f"k{number}" for number in range(8)]
    left, right = (
        write_run(tmp_path / str(value), "eval", [10.0], config=json.dumps({"data": dict.fromkeys(keys, value)}))
        for value in (1, 2)
    )
    said = mlotel("compare", str(left), str(right)).out
    assert "data.k4 1 / 2; and 3 more\n" in said
    assert "data.k5" not in said


@pytest.mark.parametrize("config", ["data: [", "- a list", "data: {n: '${nowhere:1}'}"])
def test_a_configuration_that_cannot_be_read_is_no_obstacle(tmp_path: Path, config: str):
    left = write_run(tmp_path / "e", "eval", [10.0], config=config)
    right = write_run(tmp_path / "p", "profile", [10.0], config=config)
    ended = mlotel("compare", str(left), str(right))
    assert (ended.code, ended.err) == (0, "")
    assert "warning" not in ended.out


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_is_whole_at_every_width(tmp_path: Path, width: int | None, monkeypatch: pytest.MonkeyPatch):
    left = write_run(tmp_path / LONG_PATH[1:] / "e", "eval", [12345.6789] * 3, stage=LONG_NAME)
    right = write_run(tmp_path / LONG_PATH[1:] / "p", "profile", [9876.5431] * 3, stage=LONG_NAME)
    for run in (left, right):
        part = run / "batches.parquet" / "part-000001.parquet"
        frame = pl.read_parquet(part)
        frame.with_columns(frame["latency_ms"].alias(f"{WIDE_NAME}.host_ms")).write_parquet(part)
    set_width(monkeypatch, width)
    ended = mlotel("compare", str(left), str(right))
    assert ended.code == 0
    table, warnings = ended.out.split("warning", 1)
    texts = ("p50 over 3 common batches, ms", LONG_NAME, WIDE_NAME)
    check_whole(table, width=width, figures=("12,345.679", "9,876.543", "0.800"), texts=texts)
    assert str(left) in warnings
    assert str(right) in warnings
    assert width is not PIPE or "profile / eval" in table
