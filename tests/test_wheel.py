"""The wheel: built, installed beside nothing but its dependencies, and run from somewhere else."""

import email
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed `mlotel` of a fresh environment that borrows this one's dependencies, and only those."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    site = next(folder.glob("lib/python*/site-packages"))
    # A .pth inside a borrowed folder is not read, so an editable mlotel in it stays invisible.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "mlotel"


def run(command: Path, *words: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([command, *words], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_the_conf_and_nothing_else_beside_the_package(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    conf = {f"mlotel_cli/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "mlotel_cli").rglob("*.py")}
    page = {f"mlotel_cli/recorder/live/{name}" for name in ("page.css", "page.js", "page.html", "components.html")}
    assert names == conf | code | page | {"mlotel_cli/py.typed"}


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = next(name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name)
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert (metadata["Name"], metadata["Requires-Python"]) == ("mlotel", ">=3.11")
    assert set(metadata.get_all("Provides-Extra", [])) == {"video", "detection", "examples", "gpu", "dev"}
    assert "mlotel = mlotel_cli.cli:app" in archive.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in archive.namelist()


def test_version(command: Path, tmp_path: Path) -> None:
    assert run(command, "--version", cwd=tmp_path) == "mlotel 0.1.0\n"


def test_built_in_conf_is_the_installed_one(command: Path, tmp_path: Path) -> None:
    out = run(command, "eval", "--info", "searchpath", cwd=tmp_path)
    assert f"file://{command.parents[1]}" in out
    assert str(ROOT / "conf") not in out


def test_runs_from_a_folder_with_a_conf_of_its_own(command: Path, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "eval.yaml").write_text("defaults:\n  - eval_base\n  - _self_\nrun: {name: from their conf}\n")
    words = ("data.num_batches=3", "pipeline.time_scale=0.01", "tracker.mode=disabled", "run.dir=here")
    run(command, "eval", "-cd", "conf", *words, cwd=tmp_path)
    info = (tmp_path / "here" / "run.json").read_text()
    assert '"from their conf"' in info
    assert '"complete"' in info
