"""Merging a period's parts: every row once, whatever happens in between, in memory that does not grow with them."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from mlotel_cli.store import compact as compact_module
from mlotel_cli.store.compact import compact
from mlotel_cli.store.reading import current_parts, last_part, read_table
from tests.support.evaluation import ROOT


def make_parts(folder: Path, count: int, *, first: int = 1, rows: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(first, first + count):
        columns = {"batch": [number * rows + n for n in range(rows)]}
        if number % 2:  # columns come and go
            columns[f"x{number % 3}"] = [float(number)] * rows
        pl.DataFrame(columns).write_parquet(folder / f"part-{number:06d}.parquet")
    return folder


def batches(folder: Path) -> list[int]:
    return read_table(folder)["batch"].to_list()


def names(folder: Path) -> list[str]:
    return sorted(part.name for part in folder.iterdir())


def test_a_period_becomes_one_part_with_all_rows_and_columns(tmp_path):
    folder = make_parts(tmp_path / "t", 7)
    before = read_table(folder)
    compact(folder, first=1, last=7)
    assert names(folder) == ["part-000001-000007.parquet"]
    assert read_table(folder).equals(before)


def test_only_the_period_is_touched(tmp_path):
    folder = make_parts(tmp_path / "t", 6)
    compact(folder, first=1, last=2)
    compact(folder, first=3, last=5)
    assert names(folder) == ["part-000001-000002.parquet", "part-000003-000005.parquet", "part-000006.parquet"]
    assert batches(folder) == list(range(2, 14))


def test_many_parts_go_through_intermediate_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(compact_module, "FILES_AT_ONCE", 3)
    folder = make_parts(tmp_path / "t", 11)
    compact(folder, first=1, last=11)
    assert names(folder) == ["part-000001-000011.parquet"]
    assert batches(folder) == list(range(2, 24))


def test_the_merged_part_is_as_old_as_its_newest_row(tmp_path):
    folder = make_parts(tmp_path / "t", 3)
    os.utime(folder / "part-000003.parquet", (1000, 1000))
    compact(folder, first=1, last=3)
    assert (folder / "part-000001-000003.parquet").stat().st_mtime == 1000


@pytest.mark.parametrize("asked", [0, 1, 2, 3])
def test_told_to_stop_it_leaves_whole_rows(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(compact_module, "FILES_AT_ONCE", 2)
    folder = make_parts(tmp_path / "t", 6)
    answers = iter([True] * asked)
    compact(folder, first=1, last=6, may_go_on=lambda: next(answers, False))
    assert batches(folder) == list(range(2, 14))
    assert not list(folder.glob(".*"))


def test_nothing_to_merge_is_nothing_to_do(tmp_path):
    folder = make_parts(tmp_path / "t", 1)
    compact(folder, first=1, last=1)
    compact(tmp_path / "none", first=1, last=9)
    assert names(folder) == ["part-000001.parquet"]


@pytest.mark.slow
def test_killed_at_any_moment_every_row_is_there_once(tmp_path):
    """Real processes, killed after ever longer; what each leaves is read, tidied and taken up by the next."""
    folder = make_parts(tmp_path / "t", 240, rows=50)
    expected = list(range(50, 50 * 241))
    for turn in range(24):
        process = start(folder, 1, 240)
        time.sleep(0.08 * turn)  # a moment to die in, not something to wait for
        process.kill()
        finished = process.wait() == 0
        assert batches(folder) == expected
        if finished:
            break
    assert start(folder, 1, 240).wait(120) == 0  # however slow the machine: the last one is not killed
    assert batches(folder) == expected
    assert len(current_parts(folder)) == 1


@pytest.mark.parametrize("is_orphan", [False, True])
def test_without_its_recorder_it_changes_nothing(tmp_path, monkeypatch, is_orphan):
    folder = make_parts(tmp_path / "t", 3)
    parents = iter([42])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1 if is_orphan else 42))
    monkeypatch.setattr(os, "nice", lambda step: step)
    monkeypatch.setattr(sys, "argv", ["compact", str(folder), "1", "3"])
    compact_module.main()
    assert len(names(folder)) == (3 if is_orphan else 1)
    assert batches(folder) == list(range(2, 8))


def test_readable_all_the_time(tmp_path, monkeypatch):
    """A reader beside it sees all rows at every moment."""
    monkeypatch.setattr(compact_module, "FILES_AT_ONCE", 4)
    folder = make_parts(tmp_path / "t", 60)
    expected = list(range(2, 122))
    wrong: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if batches(folder) != expected:
                wrong.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    compact(folder, first=1, last=60)
    done.set()
    reader.join()
    assert wrong == []
    assert last_part(folder) == 60


def start(folder: Path, first: int, last: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mlotel_cli.store.compact", str(folder), str(first), str(last)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1"})
