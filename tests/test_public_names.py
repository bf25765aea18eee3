"""The public names, exactly: adding one is a decision."""

import subprocess
import sys

import pytest

import mlotel_cli

NAMES = [
    "Batch",
    "Metric",
    "MlotelSpanProcessor",
    "WandbSpanMetricsExporter",
    "batch",
    "read_run",
    "record",
    "score",
    "span",
    "start_run",
]


def test_the_names_are_these() -> None:
    assert mlotel_cli.__all__ == NAMES
    assert dir(mlotel_cli) == NAMES
    assert len(NAMES) <= 12


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_documented_and_comes_from_where_it_lives(name: str) -> None:
    value = getattr(mlotel_cli, name)
    assert value.__doc__
    assert value.__name__ == name
    assert value.__module__ == mlotel_cli._HOMES[name]


def test_other_names_are_refused_by_name() -> None:
    with pytest.raises(AttributeError, match="module 'mlotel_cli' has no attribute 'Pipeline'"):
        _ = mlotel_cli.Pipeline


@pytest.mark.parametrize("name", ["Batch", "batch", "record", "score", "span"])
def test_what_user_code_needs_costs_no_heavy_import(name: str) -> None:
    program = (
        f"import sys, mlotel_cli; mlotel_cli.{name}; "
        "print(*{'torch', 'wandb', 'polars', 'hydra', 'rich', 'torchmetrics'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "\n"
