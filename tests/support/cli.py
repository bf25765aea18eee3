"""Running the `mlotel` command in this process with a mode that only notes what it was given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from typer.testing import CliRunner

from mlotel_cli import launch
from mlotel_cli.cli import app
from mlotel_cli.config.schema import EvalConfig, Job


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class FakeMode:
    """Stands in for a mode: notes each job and then does what `behave` says."""

    jobs: list[tuple[DictConfig, Job]] = field(default_factory=list)
    behave: Callable[[DictConfig, Job], Any] = lambda cfg, job: None

    def run(self, cfg: DictConfig, job: Job) -> None:
        self.jobs.append((cfg, job))
        self.behave(cfg, job)

    def mode(self) -> launch.Mode:
        return launch.Mode("eval", EvalConfig, self.run)

    @property
    def cfg(self) -> DictConfig:
        return self.jobs[-1][0]

    @property
    def job(self) -> Job:
        return self.jobs[-1][1]


def mlotel(*words: str) -> Ended:
    """Run the command as the shell would."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def write_conf(folder: Path, files: dict[str, str]) -> Path:
    """Write configuration files below `folder`/conf and return that folder."""
    (folder / "conf").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "conf"
