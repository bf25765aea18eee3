"""The examples of `--help` and of conf/ are commands that compose; those of `--help` fit into 80 columns."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from rich.text import Text

from mlotel_cli import cli
from tests.support.cli import mlotel

ROOT = Path(cli.__file__).parents[1]
APP = typer.main.get_command(cli.app)
COMMANDS = {"": APP, **APP.commands}  # pyright: ignore[reportAttributeAccessIssue]
HYDRA = ("eval", "profile", "monitor")
EPILOGS = {name: Text.from_markup(command.epilog or "").plain for name, command in COMMANDS.items()}


def examples() -> list[str]:
    lines = [line.partition(" # ")[0].strip() for epilog in EPILOGS.values() for line in epilog.splitlines()]
    return sorted({line for line in lines if line.startswith("mlotel ") and "COMMAND" not in line})


def examples_of_conf() -> list[str]:
    lines = [line for path in (ROOT / "conf").rglob("*.yaml") for line in path.read_text().splitlines()]
    return sorted(line.removeprefix("#   ") for line in lines if line.startswith("#   mlotel "))


def composed(command: str) -> list[str]:
    """The words of a command that prints its configuration; of a sweep, its first run's."""
    words = shlex.split(command)[1:]
    if "-m" in words:
        words = [re.sub(r",.*", "", word) for word in words if word != "-m"]
    return words if "--cfg" in words else [*words, "--cfg", "job"]


@pytest.mark.parametrize("command", [each for each in [*examples(), *examples_of_conf()] if each.split()[1] in HYDRA])
def test_an_example_composes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ended = mlotel(*composed(command))
    assert ended.code == 0, ended.err
    assert "_target_" in ended.out


@pytest.mark.parametrize("command", examples())
def test_an_example_has_the_options_that_it_uses(command: str) -> None:
    name, options = command.split()[1], re.findall(r" (--?[a-z-]+)", command)
    known = {each for parameter in COMMANDS[name].params for each in (*parameter.opts, *parameter.secondary_opts)}
    assert set(options) <= known


@pytest.mark.parametrize("name", EPILOGS)
def test_no_line_of_an_example_wraps_at_80_columns(name: str) -> None:
    assert [line for line in EPILOGS[name].splitlines() if len(line) > 78] == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name])
def test_a_command_says_in_one_short_line_what_it_does(name: str) -> None:
    text = COMMANDS[name].help or ""
    assert text.endswith(".")
    assert len(text) <= 67
    assert text in mlotel("--help").out
