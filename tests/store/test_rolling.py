"""When parts are merged and which are deleted; the process that merges is a fake here, but for one test."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from mlotel_cli.config.policies import Retention
from mlotel_cli.store.compact import compact
from mlotel_cli.store.reading import count_rows, current_parts, newest_rows, read_table
from mlotel_cli.store.rolling import HANGS_S, LAST_COMPACTION_S, LOOK_EVERY_S, Rolling

NOW = 1_000_000.0


class Merging:
    """A compaction that ends when the test says so; `works` makes it do the work then."""

    def __init__(self, words: Sequence[str], *, works: bool = True) -> None:
        self.words = list(words)
        self.works = works
        self.code: int | None = None
        self.killed = False

    def end(self, code: int = 0) -> None:
        if self.works and not code:
            for folder, first, last in zip(self.words[::3], self.words[1::3], self.words[2::3], strict=True):
                compact(Path(folder), first=int(first), last=int(last))
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        if self.code is None:
            if not self.killed:
                raise subprocess.TimeoutExpired("compact", timeout or 0)
            self.code = -9
        return self.code

    def kill(self) -> None:
        self.killed = True


class Rig:
    """Two tables, a clock, and what was started."""

    def __init__(self, folder: Path, **retention: float) -> None:
        self.folders = [folder / "batches.parquet", folder / "spans.parquet"]
        self.now = self.set_s = 0.0
        self.started: list[Merging] = []
        self.retention = Retention(**({"max_gb": 1.0, "max_age_h": 1.0, "compact_s": 60.0} | retention))
        self.rolling = self.make()

    def make(self) -> Rolling:
        return Rolling(
            self.folders,
            self.retention,
            start=self.start,
            clock=lambda: self.now,
            wall=lambda: NOW + self.now + self.set_s,
        )

    def start(self, words: Sequence[str]) -> Merging:
        self.started.append(Merging(words))
        return self.started[-1]

    def write(self, table: int, *numbers: int, age_s: float = 0.0, size: int = 1000) -> None:
        folder = self.folders[table]
        folder.mkdir(exist_ok=True)
        for number in numbers:
            part = folder / f"part-{number:06d}.parquet"
            pl.DataFrame({"batch": [number], "pad": [os.urandom(size).hex()]}).write_parquet(part)
            os.utime(part, (NOW - age_s, NOW - age_s))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.rolling.tick()

    def names(self, table: int) -> list[str]:
        return [part.name for part in current_parts(self.folders[table])]

    def batches(self, table: int) -> list[int]:
        return read_table(self.folders[table])["batch"].to_list()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_period_s_parts_are_merged_when_it_is_over(rig: Rig):
    rig.write(0, 1, 2)
    rig.write(1, 1, 2, 3)
    rig.tick(59)
    assert rig.started == []
    rig.tick(1)
    (merging,) = rig.started
    assert merging.words == [str(rig.folders[0]), "1", "2", str(rig.folders[1]), "1", "3"]
    merging.end()
    rig.tick(1)
    assert rig.names(1) == ["part-000001-000003.parquet"]
    rig.write(1, 4, 5)
    rig.tick(60)
    assert rig.started[1].words == [str(rig.folders[1]), "4", "5"]


def test_a_period_without_parts_starts_nothing(rig: Rig):
    rig.write(0, 1)
    rig.tick(60)
    rig.tick(60)
    assert rig.started == []


def test_what_failed_is_tried_again_with_the_next_period(rig: Rig):
    rig.write(0, 1, 2)
    rig.tick(60)
    rig.started[0].end(code=1)
    rig.write(0, 3)
    rig.tick(60)
    assert rig.started[1].words == [str(rig.folders[0]), "1", "3"]


def test_one_that_takes_longer_than_a_period_is_left_alone_and_one_that_hangs_is_ended(rig: Rig):
    rig.write(0, 1, 2)
    rig.tick(60)
    rig.write(0, 3, 4)
    rig.tick(HANGS_S - 1)
    assert not rig.started[0].killed
    assert len(rig.started) == 1
    rig.tick(1)
    assert rig.started[0].killed
    assert rig.started[1].words == [str(rig.folders[0]), "1", "4"]


def test_a_process_that_cannot_be_started_ends_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    def fail(words: Sequence[str]) -> Merging:
        raise OSError("no process")

    monkeypatch.setattr(rig.rolling, "_start", fail)
    rig.write(0, 1, 2)
    rig.tick(60)
    assert rig.batches(0) == [1, 2]


def test_the_oldest_go_when_there_is_no_room_of_whichever_table(tmp_path: Path):
    rig = Rig(tmp_path, max_gb=12_000 / 1e9)
    for number in (1, 2, 3, 4):
        rig.write(0, number, age_s=100 - number)
        rig.write(1, number, age_s=100 - number)
    size = (rig.folders[0] / "part-000001.parquet").stat().st_size
    rig.tick(LOOK_EVERY_S)
    left = 12_000 // size
    assert len(rig.names(0)) + len(rig.names(1)) == left
    assert rig.batches(0)[-1] == rig.batches(1)[-1] == 4
    assert abs(len(rig.names(0)) - len(rig.names(1))) <= 1
    assert rig.rolling.deleted_bytes == pytest.approx((8 - left) * size, rel=0.1)


def test_what_is_too_old_goes_and_each_table_keeps_its_newest_part(rig: Rig):
    rig.write(0, 1, 2, age_s=3700)
    rig.write(0, 3, age_s=3500)
    rig.write(1, 1, 2, age_s=9999)
    rig.tick(LOOK_EVERY_S)
    assert rig.batches(0) == [3]
    assert rig.batches(1) == [2]


def test_a_clock_that_is_set_forward_makes_nothing_old(tmp_path: Path):
    rig = Rig(tmp_path, compact_s=1e6)
    rig.write(0, 1, age_s=1800)
    rig.write(0, 2, 3)
    rig.tick(LOOK_EVERY_S)
    rig.set_s = 50 * 365 * 86_400.0
    rig.write(0, 4, age_s=-rig.set_s - 2 * LOOK_EVERY_S)  # after it was set
    rig.tick(LOOK_EVERY_S)
    assert rig.batches(0) == [1, 2, 3, 4]
    newest = max(part.stat().st_mtime for part in rig.folders[0].iterdir())
    assert newest <= NOW + rig.now + rig.set_s
    rig.tick(1800)
    assert rig.batches(0) == [2, 3, 4]


def test_a_clock_that_is_set_back_or_slowly_changes_nothing(rig: Rig):
    rig.write(0, 1, 2)
    before = [part.stat().st_mtime for part in sorted(rig.folders[0].iterdir())]
    for set_s in (-7200.0, -7190.0, -7180.0):
        rig.set_s = set_s
        rig.tick(LOOK_EVERY_S)
    assert [part.stat().st_mtime for part in sorted(rig.folders[0].iterdir())] == before


def test_nothing_is_deleted_while_parts_are_merged(tmp_path: Path):
    rig = Rig(tmp_path, max_age_h=0.01)
    rig.write(0, 1, 2, 3, age_s=1)
    rig.tick(60)
    assert rig.batches(0) == [1, 2, 3]
    rig.started[0].end()
    rig.write(0, 4)
    rig.tick(LOOK_EVERY_S)
    assert rig.batches(0) == [4]


def test_numbers_go_on_behind_what_was_deleted(rig: Rig):
    rig.write(0, 1, 2, age_s=9999)
    rig.write(0, 3)
    rig.tick(LOOK_EVERY_S)
    assert rig.names(0) == ["part-000003.parquet"]
    rig.tick(60)
    assert rig.started == []  # one part needs no merging


def test_a_recorder_that_takes_over_tidies_and_goes_on(rig: Rig):
    rig.write(0, 1, 2, 3, 4)
    compact(rig.folders[0], first=1, last=2)
    rig.write(0, 1, 2)  # as if it had been killed before it removed them
    (rig.folders[0] / ".part-000003-000004.parquet.tmp").write_bytes(b"half")
    rig.rolling = rig.make()
    assert sorted(part.name for part in rig.folders[0].iterdir()) == [
        "part-000001-000002.parquet",
        "part-000003.parquet",
        "part-000004.parquet",
    ]
    rig.tick(60)
    assert rig.started[0].words == [str(rig.folders[0]), "3", "4"]


def test_the_end_merges_the_last_period_unless_that_takes_long(rig: Rig):
    rig.write(0, 1, 2)
    rig.rolling.close()
    assert rig.started[0].killed
    assert rig.batches(0) == [1, 2]
    assert LAST_COMPACTION_S <= 10


# -- reading a table that rolls ---------------------------------------------------------------------------------------


def test_the_newest_rows_are_read_from_the_last_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "t"
    folder.mkdir()
    for number in range(1, 6):
        pl.DataFrame({"batch": [number * 10 + n for n in range(3)]}).write_parquet(
            folder / f"part-{number:06d}.parquet"
        )
    (folder / "part-000001.parquet").write_bytes(b"not read")
    assert newest_rows(folder, 4)["batch"].to_list() == [42, 50, 51, 52]
    assert newest_rows(folder, 6)["batch"].to_list() == [40, 41, 42, 50, 51, 52]
    assert newest_rows(tmp_path / "none", 5).height == 0
    (folder / "part-000001.parquet").unlink()
    assert newest_rows(folder, 100).height == count_rows(folder) == 12
    assert count_rows(tmp_path / "none") == 0


def test_a_table_whose_oldest_parts_are_gone_is_whole(tmp_path: Path):
    folder = tmp_path / "t"
    folder.mkdir()
    for number in (7, 8):
        pl.DataFrame({"batch": [number]}).write_parquet(folder / f"part-{number:06d}.parquet")
    assert read_table(folder)["batch"].to_list() == [7, 8]


def test_compaction_runs_as_a_module():
    ended = subprocess.run(
        [sys.executable, "-m", "mlotel_cli.store.compact"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
