"""Whole evaluations of the parts in tests.support.parts, in this process or as the command would run."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.cli import Ended, mlotel, write_conf

ROOT = Path(__file__).parents[2]
_EVAL = """
defaults:
  - eval_base
  - override pipeline: null
  - override data: null
  - override metrics: null
  - _self_
tracker: {{mode: disabled}}
run: {{name: test}}
eval: {{warmup_batches: 0}}
pipeline: {{{pipeline}}}
data: {{{data}}}
metrics: {{{metrics}}}
"""


def target(name: str, **arguments: object) -> str:
    """The inside of a node in YAML: `_target_: tests.support.parts.<name>, argument: value`."""
    path = name if "." in name else f"tests.support.parts.{name}"
    return ", ".join([f"_target_: {path}", *(f"{key}: {value}" for key, value in arguments.items())])


def conf(
    folder: Path,
    *,
    pipeline: str = target("Stages"),
    data: str = target("Numbers"),
    metrics: str = f"right: {{{target('Right')}}}",
) -> Path:
    """A conf folder whose eval.yaml evaluates these parts; returns it."""
    return write_conf(folder, {"eval.yaml": _EVAL.format(pipeline=pipeline, data=data, metrics=metrics)})


def evaluate(folder: Path, *overrides: str, **parts: str) -> Ended:
    """`mlotel eval` of the parts, in this process; the run directory is `folder`/run."""
    flags = [word for word in overrides if word.startswith("-")]
    rest = [word for word in overrides if not word.startswith("-")]
    return mlotel("eval", "-cd", str(conf(folder, **parts)), *flags, f"run.dir={folder / 'run'}", *rest)


def command(*words: str, cwd: Path, timeout: float = 110) -> "subprocess.CompletedProcess[str]":
    """`mlotel ...` as a real process, offline and on one thread."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "mlotel_cli", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
