"""The command itself: help, version, flags in any order, and what it does not import."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlotel_cli import cli, launch
from mlotel_cli.launch import HydraFlags
from tests.support.cli import mlotel

ORDERS = [
    ["-m", "a=1,2", "-cd", "c", "-cn", "n", "b=3"],
    ["a=1,2", "-m", "b=3", "--config-dir", "c", "--config-name", "n"],
    ["a=1,2", "b=3", "--config-name=n", "--config-dir=c", "--multirun"],
]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, HydraFlags, list[str]]]:
    calls: list[tuple[str, HydraFlags, list[str]]] = []

    def note(mode: str, flags: HydraFlags, overrides: list[str]) -> int:
        calls.append((mode, flags, overrides))
        return 0

    monkeypatch.setattr(launch, "launch", note)
    return calls


@pytest.mark.parametrize("words", ORDERS)
def test_flags_in_any_order(launched: list[Any], words: list[str]) -> None:
    assert mlotel("eval", *words).code == 0
    assert launched == [("eval", HydraFlags(multirun=True, config_dir=Path("c"), config_name="n"), ["a=1,2", "b=3"])]


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--cfg", "job", "-p", "eval", "--resolve"], HydraFlags(cfg="job", package="eval", resolve=True)),
        (["-c", "all"], HydraFlags(cfg="all")),
        (["--info"], HydraFlags(info="all")),
        (["-i", "defaults-tree"], HydraFlags(info="defaults-tree")),
        (["--debug"], HydraFlags(debug=True)),
        ([], HydraFlags()),
    ],
)
def test_flags(launched: list[Any], words: list[str], flags: HydraFlags) -> None:
    assert mlotel("eval", *words, "a=1").code == 0
    assert launched == [("eval", flags, ["a=1"])]


@pytest.mark.parametrize("mode", ["eval", "profile", "monitor"])
def test_every_mode_has_a_command(launched: list[Any], mode: str) -> None:
    assert mlotel(mode, "-cd", "c", "a=1").code == 0
    assert launched == [(mode, HydraFlags(config_dir=Path("c")), ["a=1"])]
    assert f"mlotel {mode}" in mlotel(mode, "--help").out


def test_overrides_that_look_like_numbers_or_deletions(launched: list[Any]) -> None:
    mlotel("eval", "a=-1", "~b", "+c=2", "d=[1,2]")
    assert launched[0][2] == ["a=-1", "~b", "+c=2", "d=[1,2]"]


def test_exit_code_is_the_launchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "launch", lambda mode, flags, overrides: 4)
    assert mlotel("eval").code == 4


@pytest.mark.parametrize(("words", "expected"), [(["--cfg", "jobs"], "'jobs' is not one of"), (["--nope"], "--nope")])
def test_wrong_flags(launched: list[Any], words: list[str], expected: str) -> None:
    ended = mlotel("eval", *words)
    assert ended.code == 2
    assert expected in ended.err
    assert launched == []


def test_hydra_flags_reach_hydra() -> None:
    flags = HydraFlags(multirun=True, config_dir=Path("c"), config_name="n")
    assert flags.arguments() == ["--multirun"]
    assert HydraFlags(cfg="job", package="eval", resolve=True).arguments() == [
        "--resolve",
        "--cfg",
        "job",
        "--package",
        "eval",
    ]


def test_help_names_every_command() -> None:
    ended = mlotel("--help")
    assert ended.code == 0
    for command in ("eval", "doctor"):
        assert command in ended.out


def test_help_of_eval_shows_hydras_flags_and_examples() -> None:
    out = mlotel("eval", "--help").out
    for flag in (
        "--multirun",
        "--cfg",
        "--package",
        "--resolve",
        "--info",
        "--config-dir",
        "-cd",
        "--config-name",
        "-cn",
    ):
        assert flag in out
    assert "mlotel eval -m pipeline.time_scale=0.1,0.2" in out


def test_no_arguments_show_help() -> None:
    ended = mlotel()
    assert "Usage" in ended.out + ended.err


def test_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlotel_cli.hardware.version_of", lambda name: "1.2.3")
    ended = mlotel("--version")
    assert (ended.code, ended.out) == (0, "mlotel 1.2.3\n")


def test_no_option_repeats_a_configuration_key() -> None:
    import typer.main

    from tests.config.test_check import composed

    command = typer.main.get_command(cli.app).commands["eval"]  # pyright: ignore[reportAttributeAccessIssue]
    options = {option.lstrip("-") for parameter in command.params for option in parameter.opts}
    assert "config-dir" in options
    assert options & {str(key) for key in composed()} == set()


def test_commands_are_short() -> None:
    import inspect

    commands: list[Callable[..., Any]] = [cli.evaluate, cli.doctor, cli.root]
    for command in commands:
        body = inspect.getsource(command).partition('"""')[2].splitlines()
        assert len(body) <= 15, command


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["eval", "--help"]])
def test_cold_commands_import_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys\nfrom mlotel_cli.cli import app\n"
        f"try: app({words!r}, prog_name='mlotel')\n"
        "except SystemExit as end: assert not end.code\n"
        "print('HEAVY', sorted({'torch', 'wandb', 'polars', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)))"
    )
    root = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.endswith("HEAVY []\n")


def test_module_is_the_command() -> None:
    root = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-m", "mlotel_cli", "--help"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0
    assert "Usage: mlotel " in done.stdout
