"""Who has a run directory before there is a run in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlotel_cli.errors import UsageError
from mlotel_cli.store.claim import Claim

HOLDS = """
import sys
from pathlib import Path
from mlotel_cli.store.claim import Claim
with Claim.releasing():
    Claim.take(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_is_held_until_the_run_is_over(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="another run that began at the same moment has it"), Claim.releasing():
            Claim.take(run_dir)
        assert run_dir.is_dir()
        other.communicate()
    with Claim.releasing():
        Claim.take(run_dir)
    assert Claim.directory is None


def fail(run_dir: Path, error: Exception, *names: str) -> None:
    """A command that takes the directory, leaves in it what a start leaves, and `names`, and fails."""
    with Claim.releasing():
        Claim.take(run_dir)
        (run_dir / ".hydra").mkdir(exist_ok=True)
        for name in (".hydra/config.yaml", "mlotel.log", *names):
            (run_dir / name).touch()
        raise error


def test_a_mistake_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such stage"):
        fail(tmp_path / "a" / "run", UsageError("no such stage"))
    assert not (tmp_path / "a" / "run").exists()


@pytest.mark.parametrize("name", ["run.json", "notes.txt"])
def test_files_of_other_programs_stay(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        fail(tmp_path / "run", UsageError("no such stage"), name)
    assert (tmp_path / "run" / name).exists()


def test_a_folder_that_was_there_and_another_error_leave_everything(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        fail(tmp_path, UsageError("no such stage"))
    with pytest.raises(ValueError, match="odd"):
        fail(tmp_path / "run", ValueError("odd"))
    assert sorted(os.listdir(tmp_path)) == sorted([".hydra", "mlotel.log", "run"])
    assert (tmp_path / "run" / "mlotel.log").exists()


def test_what_cannot_be_made_is_left_to_the_writer(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Claim.releasing():
        Claim.take(tmp_path / "file" / "run")
        assert Claim.directory is None
