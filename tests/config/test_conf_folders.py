"""Shell completion offers groups and options, also in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlotel_cli import cli
from mlotel_cli.config.conf_folders import ONLY, builtin_conf, complete_override
from tests.support.cli import write_conf

ROOT = Path(cli.__file__).parents[1]
CONF = builtin_conf()


def complete(incomplete: str, *overrides: str, config_dir: Path | None = None) -> list[str]:
    context = SimpleNamespace(params={"overrides": list(overrides), "config_dir": config_dir})
    return complete_override(context, incomplete)


def test_groups() -> None:
    groups = {f"{path.relative_to(CONF).as_posix()}=" for path in CONF.rglob("*") if any(path.glob("*.yaml"))}
    assert complete("") == sorted(groups - {f"{group}=" for group in ONLY})
    assert {"pipeline=", "telemetry=", "hydra/job_logging="} <= groups
    assert complete("t", "seed=3") == ["telemetry=", "tracker="]


def test_options_of_a_group() -> None:
    assert complete("telemetry=") == ["telemetry=default", "telemetry=off"]
    assert complete("telemetry=o") == ["telemetry=off"]
    assert complete("nothing=o") == []


def test_config_dir_adds_its_own(tmp_path: Path) -> None:
    conf = write_conf(tmp_path, {"pipeline/mine.yaml": "", "region/north.yaml": "", "pipeline/dummy.yaml": ""})
    assert complete("pipeline=", config_dir=conf) == ["pipeline=dummy", "pipeline=mine", "pipeline=module"]
    assert complete("reg", config_dir=conf) == ["region="]


def test_config_dir_that_does_not_exist(tmp_path: Path) -> None:
    assert complete("telemetry=o", config_dir=tmp_path / "nope") == ["telemetry=off"]


def test_word_that_bash_split() -> None:
    assert complete("of", "telemetry", "=") == ["off"]
    assert complete("", "seed=3", "telemetry") == ["default", "off"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["mlotel", "eval", "tele"], ["telemetry="]),
        (["mlotel", "eval", "telemetry", "="], ["default", "off"]),
        (["mlotel", "eval", "telemetry", "=", "o"], ["off"]),
        (["mlotel", "eval", "seed", "=", "3", "pip"], ["pipeline="]),
        (["mlotel", "ev"], ["eval"]),
    ],
)
def test_real_bash(tmp_path: Path, line: list[str], expected: list[str]) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    program = tmp_path / "mlotel"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mlotel_cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    words = " ".join(f"'{word}'" for word in line)
    script = f"""
        eval "$(_MLOTEL_COMPLETE=source_bash mlotel)"
        COMP_WORDS=({words}); COMP_CWORD={len(line) - 1}
        _mlotel_completion mlotel
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([bash, "--norc", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split() == expected, done.stderr


def test_the_groups_of_one_command() -> None:
    context = SimpleNamespace(params={}, command=SimpleNamespace(name="profile"))
    assert complete_override(context, "profiler=") == ["profiler=nsys", "profiler=torch"]
    assert "pipeline=dummy" in complete_override(context, "pipeline=")
    context.command.name = "eval"
    assert complete_override(context, "profiler=") == []
