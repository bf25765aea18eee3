"""README's commands run and its code works: the files it shows are written out, the commands run beside them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlotel_cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "examples" / "instrument_only" / "README.md").read_text(encoding="utf-8")
LPR = (ROOT / "examples" / "lpr" / "README.md").read_text(encoding="utf-8")
SHORT = ["tracker.mode=disabled", "eval.max_batches=2", "eval.warmup_batches=1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands_of(block: str) -> list[str]:
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line]


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in commands_of(block)]


def indented(text: str) -> list[str]:
    """The commands of an indented block, without their comments."""
    lines = [line.partition("  #")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith("mlotel ")]


PATH = f"{ROOT / '.nsys' / 'bin'}{os.pathsep}{os.environ['PATH']}"


def run(command: str, cwd: Path, *more: str) -> str:
    program, *words = shlex.split(command)
    assert program == "mlotel"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "PATH": PATH}
    done = subprocess.run(
        [sys.executable, "-m", "mlotel_cli", *words, *more],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that README shows, where it says that they are."""
    for language in ("python", "yaml"):
        for block in blocks(language):
            name, _, content = block.partition("\n")
            if name.startswith("# project/"):
                file = tmp_path / name.removeprefix("# ")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README + LPR
    assert len(commands()) >= 7
    assert len(indented(LPR)) >= 3


def mlotel_blocks() -> list[list[str]]:
    """The commands of each block that has one of mlotel's."""
    found = [commands_of(block) for block in blocks("bash")]
    return [lines for lines in found if any(line.startswith("mlotel ") for line in lines)]


def as_tested(command: str) -> list[str]:
    """What a command gets here besides: no W&B, fewer frames, and an end and a port of its own for a monitor."""
    mode = command.split()[1]
    if "--cfg" in command or mode not in ("eval", "profile", "monitor"):
        return []
    shorter = ["eval.max_batches=18"] if "examples/lpr" in command else []
    monitors = ["monitor.max_batches=3", "monitor.http.port=0"] if mode == "monitor" else []
    return ["tracker.mode=disabled", *shorter, *monitors]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lines", mlotel_blocks(), ids=lambda lines: " ".join(lines[0].split()[:3]))
def test_the_commands_of_a_block_run_one_after_the_other(lines: list[str], project: Path) -> None:
    if any(line.startswith("mlotel profile") for line in lines) and not shutil.which("nsys", path=PATH):
        pytest.skip("nsys is not installed: tests/system/install_nsys.sh unpacks it")
    for command in lines:
        assert run(command, project, *as_tested(command)).strip(), command
        if command.startswith("mlotel eval --config-dir project/conf"):
            (run_json,) = (project / "outputs" / "eval").glob("*/run.json")
            batches = mlotel_cli.read_run(run_json.parent).batches
            assert batches.height == 100
            assert {"features.host_ms", "head.host_ms", "label.host_ms", "accuracy.accuracy"} <= set(batches.columns)


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make")])
def test_a_make_target_of_readme_exists_and_does_what_readme_says(command: str) -> None:
    done = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = {"demo": "mlotel eval --config-dir examples/lpr/conf", "test": "-m pytest"}
    assert expected.get(command.split()[1], "") in done.stdout


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path) -> None:
    output = run("mlotel eval --config-dir examples/lpr/conf", ROOT, *SHORT, f"run.dir={tmp_path / 'run'}")
    assert all(name in output for name in ("plate_exact_match", "vehicle_detector", "plate_reader"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        line
        for line in indented(LPR + EXAMPLE)
        if "my.mp4" not in line and "my_" not in line and "by_condition" not in line
    ],
)
def test_a_command_of_an_example_runs(command: str, tmp_path: Path) -> None:
    assert run(command, ROOT, *SHORT, f"run.dir={tmp_path / 'run'}").strip()


def test_the_code_of_the_first_block_is_all_that_a_stage_needs() -> None:
    first = blocks("python")[0]
    calls: list[str] = []
    exec(first, {"reader": lambda crops: calls.append(crops) or "ABC", "crops": "crops"})
    assert calls == ["crops"]
