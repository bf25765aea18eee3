import os
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli import nsys
from mlotel_cli.errors import MlotelError, UsageError


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a fake nsys that prints its version, first on PATH, with the folders of a real installation."""
    folder = tmp_path / "opt" / "target-linux-x64"
    folder.mkdir(parents=True)
    program = folder / "nsys"
    program.write_text("#!/bin/sh\necho NVIDIA Nsight Systems version 2022.4.2.1-df9881f\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return program


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "profile"


def why(fake: Path, report: Path, printed: str = "") -> str:
    error = nsys.why_no_report(fake, report=report, printed=printed)
    assert type(error) is MlotelError
    assert error.exit_code == 1
    return str(error)


def test_the_program_is_found_on_the_path_and_at_its_path(fake: Path):
    assert nsys.find("nsys") == nsys.find(str(fake)) == fake
    assert nsys.version(fake) == "2022.4.2.1-df9881f"


def test_a_missing_program_says_what_to_install_and_what_to_do_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"profiler\.command=nsys: nsys is not on PATH\. Install .*profiler=torch"):
        nsys.find("nsys")
    with pytest.raises(UsageError, match="nsys is not at that path"):
        nsys.find("/nowhere/nsys")


def test_a_program_without_permission(fake: Path):
    fake.chmod(0o644)
    with pytest.raises(UsageError, match=r"no permission to execute .*nsys\. Run: chmod \+x"):
        nsys.find(str(fake))


def test_the_command_line(fake: Path):
    command = nsys.profile_command(
        fake, report=Path("/run/profile"), trace="cuda,nvtx", capture="a@b", graph_trace="node", args=["--x=1"]
    )
    assert command[:2] == [str(fake), "profile"]
    assert "--capture-range-end=stop" in command
    assert "--cuda-graph-trace=node" in command
    assert command[-2:] == ["--output=/run/profile", "--x=1"]
    on_a_cpu = nsys.profile_command(
        fake, report=Path("/run/profile"), trace="nvtx", capture="a@b", graph_trace="node", args=[]
    )
    assert not any("cuda" in word for word in on_a_cpu)


def test_a_full_disk(fake: Path, report: Path):
    report.with_suffix(".qdstrm").touch()
    message = why(fake, report, "Generating x\nwrite failed: No space left on device.\n")
    assert "the disk is full: write failed: No space left on device." in message
    assert f"kept: {report.with_suffix('.qdstrm')}" in message
    assert "profile.batches=20" in message


def usage(free: int) -> Any:
    return type("Usage", (), {"free": free})


def test_a_disk_that_is_full_without_a_word(fake: Path, report: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(4096))
    assert f"the disk is full: {report.parent} has no 16 MB left." in why(fake, report)


def test_the_disk_of_temporary_files_may_be_the_full_one(fake: Path, report: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", "/small")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(0 if str(folder) == "/small" else 1 << 40))
    assert "the disk is full: /small has no 16 MB left." in why(fake, report)
    monkeypatch.setenv("TMPDIR", "/large")
    assert "disk is full" not in why(fake, report)


def test_no_permission(fake: Path, report: Path):
    message = why(fake, report, "Failed to create '/x/profile.nsys-rep': Permission denied.\n")
    assert "no permission: Failed to create '/x/profile.nsys-rep': Permission denied." in message


def test_folders_that_may_not_be_written(fake: Path, report: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda folder, mode: mode != os.W_OK or Path(folder) != report.parent)
    assert f"no permission: {report.parent} is not writable." in why(fake, report, "Agent launcher failed.")


def test_a_folder_of_temporary_files_that_does_not_exist(fake: Path, report: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert "no permission: TMPDIR=/nowhere does not exist." in why(fake, report, "Agent launcher failed.")


def test_an_importer_that_is_elsewhere(fake: Path, report: Path):
    report.with_suffix(".qdstrm").touch()
    message = why(fake, report, "importer binary ... not found")
    assert f"wrote only its raw file {report.with_suffix('.qdstrm')}" in message
    assert "its importer is not beside it: ln -s PATH/TO/host-linux-x64" in message
    assert "QdstrmImporter -i" in message


def test_an_importer_that_lacks_a_library(fake: Path, report: Path, monkeypatch: pytest.MonkeyPatch):
    report.with_suffix(".qdstrm").touch()
    (fake.parent.parent / "host-linux-x64").mkdir()
    monkeypatch.setattr(nsys, "output", lambda _: "\tlibssh.so.4 => not found\n\tlibc.so.6 => /lib/libc.so.6\n")
    assert "its importer lacks libssh.so.4: install them (Debian: libssh-4)" in why(fake, report)


def test_a_raw_file_for_no_known_reason(fake: Path, report: Path):
    report.with_suffix(".qdstrm").touch()
    (fake.parent.parent / "host-linux-x64").mkdir()
    assert "Fix: Import failed: bad magic." in why(fake, report, "Importing\nImport failed: bad magic\n\n")


def test_a_report_that_was_not_exported(fake: Path, report: Path):
    report.with_suffix(".nsys-rep").touch()
    assert f"Run: nsys export --type=sqlite {report.with_suffix('.nsys-rep')}" in why(fake, report, "export failed")


def test_no_range_names_the_pair(fake: Path, report: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nsys, "version_of", lambda _: "0.2.17")
    message = why(fake, report, "No reports were generated")
    assert "nsys 2022.4.2.1-df9881f recorded no range of nvtx 0.2.17" in message
    assert "pip install 'nvtx<0.2.12'" in message
