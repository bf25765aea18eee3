"""The table of `mlotel doctor`, with a stand-in for nsys that writes what the real one writes."""

import sqlite3
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlotel_cli import doctor
from tests.support.cli import mlotel
from tests.support.screens import LONG_NAME, LONG_PATH, WIDE_NAME, WIDTHS, check_whole, set_width

NSYS = """#!{python}
import sqlite3, subprocess, sys
if sys.argv[1] == "--version":
    print("NVIDIA Nsight Systems version 2022.4.2.1-df9881f")
    raise SystemExit
report = sys.argv[sys.argv.index("-o") + 1]
assert subprocess.run([sys.argv[-3], sys.argv[-2], sys.argv[-1]]).returncode == 0
open(report + ".qdstrm", "w").close()
ranges = {ranges}
if ranges is None:
    print("Importer error status: The importer binary and its dependencies were not found.")
    raise SystemExit
with sqlite3.connect(report + ".sqlite") as database:
    if ranges:
        database.execute("CREATE TABLE NVTX_EVENTS (eventType INT, text TEXT, textId INT)")
        database.execute("CREATE TABLE StringIds (id INT, value TEXT)")
        database.execute("INSERT INTO StringIds VALUES (18, 'mlotel-probe')")
        for _ in range(ranges):
            database.execute("INSERT INTO NVTX_EVENTS VALUES (59, NULL, 18)")
        database.execute("INSERT INTO NVTX_EVENTS VALUES (75, 'NVTX', NULL)")
"""


@pytest.fixture
def fake_nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], Path]:
    """Install a stand-in for nsys, laid out as Debian lays out the real one, that records so many ranges."""

    def install(ranges: int | None) -> Path:
        target = tmp_path / "lib" / "x86_64-linux-gnu" / "nsight-systems" / "target-linux-x64"
        target.mkdir(parents=True)
        (target / "nsys").write_text(NSYS.format(python=sys.executable, ranges=ranges))
        (target / "nsys").chmod(stat.S_IRWXU)
        (tmp_path / "lib" / "nsight-systems" / "host-linux-x64").mkdir(parents=True)
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "nsys").symlink_to(target / "nsys")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
        return target

    return install


def found(name: str) -> doctor.Finding:
    return next(finding for finding in doctor.findings() if finding.name == name)


def test_nsys_that_records(fake_nsys: Callable[[int | None], Path]) -> None:
    fake_nsys(3)
    finding = doctor.find_nsys()
    assert finding.state == "ok"
    assert finding.value.startswith("2022.4.2.1-df9881f (")
    assert f"records the ranges of nvtx {doctor.version_of('nvtx')}" in finding.value


def test_nsys_that_records_nothing(fake_nsys: Callable[[int | None], Path]) -> None:
    fake_nsys(0)
    finding = doctor.find_nsys()
    assert (finding.state, finding.fix) == ("problem", "pip install 'nvtx<0.2.12' or a newer nsys")
    assert "records 0 of 3 ranges" in finding.value


def test_nsys_without_importer(fake_nsys: Callable[[int | None], Path], tmp_path: Path) -> None:
    target = fake_nsys(None)
    finding = doctor.find_nsys()
    assert finding.state == "problem"
    host = tmp_path / "lib/nsight-systems/host-linux-x64"
    assert finding.fix == f"its importer is not beside it: ln -s {host} {target.parent / 'host-linux-x64'}"


def test_nsys_with_a_broken_importer(fake_nsys: Callable[[int | None], Path]) -> None:
    target = fake_nsys(None)
    (target.parent / "host-linux-x64").mkdir()
    assert doctor.find_nsys().fix.endswith("The importer binary and its dependencies were not found.")


def test_no_nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor.find_nsys()
    assert (finding.state, finding.value) == ("absent", "not found on PATH")
    assert "nsight-systems" in finding.fix


def test_ranges_are_counted_by_name_and_kind(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("CREATE TABLE NVTX_EVENTS (eventType INT, text TEXT, textId INT)")
        database.execute("CREATE TABLE StringIds (id INT, value TEXT)")
        database.execute("INSERT INTO StringIds VALUES (1, 'reader')")
        rows = [(59, None, 1), (59, "reader", None), (59, "other", None), (60, "reader", None)]
        database.executemany("INSERT INTO NVTX_EVENTS VALUES (?, ?, ?)", rows)
    database.close()
    assert doctor.count_ranges(tmp_path / "a.sqlite", "reader") == 2


def test_wandb_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_BASE_URL", "WANDB_CACHE_DIR", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    finding = doctor.find_wandb()
    assert (finding.state, finding.fix) == ("absent", "wandb login (or set WANDB_API_KEY)")
    assert list(home.rglob("*")) == []


def test_wandb_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    finding = doctor.find_wandb()
    assert finding.state == "ok"
    assert "a key for http://127.0.0.1:9 is configured" in finding.value


def test_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda distribution: None)
    finding = doctor.find_extra("video", "av")
    assert (finding.state, finding.fix) == ("absent", "pip install 'mlotel[video]'")


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Finding:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(doctor, "CHECKS", {"torch": broken})
    monkeypatch.setattr(doctor, "EXTRAS", {})
    (finding,) = doctor.findings()
    assert (finding.name, finding.state, finding.fix) == ("torch", "problem", "reinstall torch")
    assert "libcudart" in finding.value


def test_command_prints_every_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = mlotel("doctor")
    assert ended.code == 0
    for name in (*doctor.CHECKS, *doctor.EXTRAS):
        assert name in ended.out


@pytest.mark.parametrize("width", WIDTHS)
def test_findings_are_whole_at_every_width(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        doctor.Finding("python", f"3.11.12 ({LONG_PATH})"),
        doctor.Finding(LONG_NAME, "2022.4.2.1-df9881f, records 0 of 31234 ranges", "problem", f"ln -s {LONG_PATH} x"),
        doctor.Finding(WIDE_NAME, "not found on PATH", "absent", "pip install 'nvtx<0.2.12' or a newer nsys"),
    ]
    monkeypatch.setattr(doctor, "findings", lambda: iter(found))
    set_width(monkeypatch, width)
    doctor.print_findings()
    table = capsys.readouterr().out.split("\n", 1)[1]
    texts = [text for each in found for text in (each.name, each.value, each.fix) if text]
    check_whole(table, width=width, figures=("3.11.12", "2022.4.2.1", "0", "31234"), texts=texts)
