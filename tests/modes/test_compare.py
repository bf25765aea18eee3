import json
from pathlib import Path

import polars as pl
import pytest

from tests.support.cli import mlotel


def write_run(folder: Path, mode: str, stage_ms: list[float], *, first: int = 0) -> Path:
    (folder / "batches.parquet").mkdir(parents=True)
    info = {"status": "complete", "mode": mode, "summary": {}}
    (folder / "run.json").write_text(json.dumps(info))
    count = len(stage_ms)
    rows = {
        "batch": range(count),
        "source_batch": range(first, first + count),
        "repeat": [0] * count,
        "status": ["scored"] * count,
        "latency_ms": stage_ms,
        "plate_[reader].host_ms": stage_ms,
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
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == ["plate_[reader]", "10.000", "12.000", "1.200"]
    assert "p50 over 2 common batches" in ended.out
    assert "warning: plate_[reader]: profile differs by 20% from eval, more than 10%" in ended.out
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
