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
EXAMPLES = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*/README.md")))
NEEDS_MORE = ("my.mp4", "my_", "HOST", "127.0.0.1")
"""Commands with these name files, cameras and servers that are not here."""
RUN_ELSEWHERE = {
    "mlotel eval -cd examples/lpr/conf": "tests/examples/lpr/test_eval.py",
    "mlotel eval -cd examples/lpr/conf data=night": "tests/examples/lpr/test_eval.py",
    "mlotel eval -cd examples/lpr/conf metrics=by_condition": "tests/examples/lpr/test_eval.py",
    "mlotel eval -cd examples/instrument_only/conf": "tests/examples/instrument_only/test_instrument_only.py",
}
"""The file that runs a command and looks at its figures as well; the command stands in it."""


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands_of(block: str) -> list[str]:
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line]


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in commands_of(block)]


def indented(text: str) -> list[str]:
    """The commands of mlotel in indented blocks, without their comments."""
    lines = commands_of("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    return [line for line in lines if line.startswith("mlotel ")]


def scripts() -> list[list[str]]:
    """What is run one after the other: the commands of mlotel in a block, or one of an example. Each is here once."""
    found = [commands_of(block) for text in (README, EXAMPLES) for block in blocks("bash", text)]
    found += [[line] for line in indented(EXAMPLES)]
    known, kept = set(RUN_ELSEWHERE), list[list[str]]()
    for lines in found:
        lines = [line.replace("--config-dir", "-cd") for line in lines if line.startswith("mlotel ")]
        lines = [line for line in lines if not any(word in line for word in NEEDS_MORE)]
        if not known.issuperset(lines):
            known.update(lines)
            kept.append(lines)
    return kept


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
    assert "@@" not in README + EXAMPLES
    assert len([line for line in commands() if line.startswith(("make ", "mlotel "))]) >= 7
    assert len(scripts()) >= 3


def test_what_is_run_elsewhere_is_run_there() -> None:
    for command, file in RUN_ELSEWHERE.items():
        assert f'"{command}"' in (ROOT / file).read_text(), command


def shorter(command: str, script: list[str]) -> list[str]:
    """What a command gets here besides: no W&B, fewer batches, and an end and a port of its own for a monitor."""
    mode = command.split()[1]
    if "--cfg" in command or mode not in ("eval", "profile", "monitor"):
        return []
    monitors = ["monitor.max_batches=3", "monitor.http.port=0"] if mode == "monitor" else []
    run_dir = command.partition("run.dir=")[2].split(" ")[0] or "none"
    looked_at = [line.partition("--batch ")[2].split(" ")[0] for line in script if f" {run_dir} " in line]
    numbers = [int(number) for words in looked_at for number in re.findall(r"\d+", words)]
    batches = [f"eval.max_batches={2 + max(numbers, default=0)}"] if "examples/lpr" in command else []
    return ["tracker.mode=disabled", *batches, *monitors]


def profiles(lines: list[str]) -> bool:
    return any(line.startswith("mlotel profile") for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(lines, id=" ".join(lines[0].split()[:4]), marks=[pytest.mark.nsys] if profiles(lines) else [])
        for lines in scripts()
    ],
)
def test_the_commands_run_one_after_the_other(lines: list[str], project: Path) -> None:
    if profiles(lines) and not shutil.which("nsys", path=PATH):
        pytest.skip("nsys is not installed: tests/system/install_nsys.sh unpacks it")
    for command in lines:
        assert run(command, project, *shorter(command, lines)).strip(), command
        if command.startswith("mlotel eval -cd project/conf"):
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


def test_the_code_of_the_first_block_is_all_that_a_stage_needs() -> None:
    first = blocks("python")[0]
    calls: list[str] = []
    exec(first, {"reader": lambda crops: calls.append(crops) or "ABC", "crops": "crops"})
    assert calls == ["crops"]
