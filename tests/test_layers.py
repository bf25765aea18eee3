"""The shape of the package, read from its source: imports only go down, names are unique, modules are tested."""

import ast
import functools
import re
import tomllib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import mlotel_cli

PACKAGE = Path(mlotel_cli.__file__).parent
LAYERS = (
    {"columns", "errors", "records", "stats", "tensors", "typed_json"},
    {"figures", "hardware", "screen", "snapshot", "summary"},
    {"config"},
    {"wire"},
    {"telemetry", "nsys"},
    {"store"},
    {"link", "analysis"},
    {"recorder", "pipeline", "sources", "metrics", "optimize", "dummy"},
    {"execute"},
    {"modes"},
    {"trace", "profile", "compare", "runs", "doctor"},
    {"launch"},
    {"cli"},
    {"__main__"},
)
"""From the bottom up; a folder counts as one. Nothing imports a neighbour of its own layer."""
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PUBLIC = "__init__"
"""The public names, resolved on first use: they reach up to whatever they name. Pipelines are users of them."""


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name below it."""
    found: dict[str, Path] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imported(source: str, known: set[str]) -> Iterator[str]:
    """Yield what a source imports from the package, wherever in the file: `telemetry.tracer`, or `__init__`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] != "mlotel_cli":
                continue
            below = name.removeprefix("mlotel_cli").lstrip(".")
            while below and below not in known:
                below = below.rpartition(".")[0]
            yield below or PUBLIC


def top(module: str) -> str:
    return module.partition(".")[0]


MODULES = modules()


@functools.cache
def edges() -> list[tuple[str, str]]:
    """Every import of the package: (the module that imports, what it imports)."""
    return sorted(
        {(name, target) for name, path in MODULES.items() for target in imported(path.read_text(), set(MODULES))}
    )


def is_allowed(name: str, target: str) -> bool:
    if name == PUBLIC or top(name) == top(target):
        return True
    if target == PUBLIC:
        return top(name) == "dummy"
    return RANKS[top(target)] < RANKS[top(name)]


def violations(found: Iterable[tuple[str, str]]) -> list[str]:
    return [
        f"mlotel_cli.{name} must not import mlotel_cli.{target}"
        for name, target in found
        if not is_allowed(name, target)
    ]


def test_imports_go_down() -> None:
    assert violations(edges()) == []


def test_every_module_has_a_layer() -> None:
    assert {top(name) for name in MODULES} - {PUBLIC} <= set(RANKS)


def test_no_cycles() -> None:
    targets = {name: {target for source, target in edges() if source == name and target != name} for name in MODULES}
    targets[PUBLIC] = set()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for target in targets.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_telemetry_never_names_the_recorder() -> None:
    assert [edge for edge in edges() if top(edge[0]) == "telemetry" and top(edge[1]) == "recorder"] == []


def test_no_mode_imports_another() -> None:
    modes = {f"modes.{name}" for name in ("evaluate", "loop", "monitor", "sdk")}
    assert [(name, target) for name, target in edges() if name != target and {name, target} <= modes] == []


def test_the_rule_can_fail() -> None:
    for lower, upper in pairwise(LAYERS):
        down, up = (f"{min(upper)}.x", f"{min(lower)}.y"), (f"{min(lower)}.y", f"{min(upper)}.x")
        assert violations([down, up]) == [f"mlotel_cli.{up[0]} must not import mlotel_cli.{up[1]}"]
    assert len(violations([("store.x", "config.y"), ("config.y", "store.x"), ("wire", "trace")])) == 2


def test_imports_are_found_wherever_they_hide() -> None:
    source = """
import mlotel_cli.errors
import os, mlotel_cli.telemetry.tracer as t
def f():
    from mlotel_cli.config.check import check
    from mlotel_cli import span, records
"""
    known = {"errors", "telemetry", "telemetry.tracer", "config", "records"}
    assert sorted(imported(source, known)) == ["__init__", "config", "errors", "records", "telemetry.tracer"]


SEAMS = {
    "recorder.otlp.otlp_json": "OTLP's JSON stays beside OTLP's protobuf; `trace` writes it",
}
"""Modules of under 60 lines with one importer, and why they are on their own."""


def plain_modules() -> dict[str, Path]:
    """Return the modules but for `__init__` and `__main__`."""
    return {name: path for name, path in MODULES.items() if path.stem not in (PUBLIC, "__main__")}


def test_no_two_modules_share_a_name() -> None:
    by_name: dict[str, list[str]] = {}
    for name, path in plain_modules().items():
        by_name.setdefault(path.stem, []).append(name)
    assert [names for names in by_name.values() if len(names) > 1] == []


def test_a_small_module_with_one_importer_is_a_seam() -> None:
    importers: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, target in edges():
        importers.setdefault(target, set()).add(name)
    small = {
        name
        for name, path in plain_modules().items()
        if len(path.read_text().splitlines()) < 60 and len(importers[name] - {name}) <= 1
    }
    assert small == set(SEAMS)


MANY_PARAMETERS = {
    "cli.command": "an option of the command line each",
    "telemetry.span.__init__": "OpenTelemetry's start_as_current_span",
    "telemetry.tracer.start_as_current_span": "OpenTelemetry's",
    "telemetry.backends.nvtx.current_span": "OpenTelemetry's start_as_current_span",
    "telemetry.backends.torch_ranges.current_span": "OpenTelemetry's start_as_current_span",
}
"""Functions of more than 8 parameters, and who set them."""


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the parameters without self and cls."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_no_function_has_more_than_8_parameters() -> None:
    found = {
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and num_parameters(node) > 8
    }
    assert found == set(MANY_PARAMETERS)


def test_parameters_are_counted_without_self() -> None:
    (function,) = ast.parse("def f(self, a, /, b, *rest, c, d=1, **more): ...").body
    assert isinstance(function, ast.FunctionDef)
    assert num_parameters(function) == 4


TESTED_ELSEWHERE = {
    "errors": "classes; each command's test raises them",
    "config.policies": "settings; tests/config/test_check.py",
    "config.schema": "settings; tests/config/test_check.py",
    "execute.batches": "tests/execute/test_arrivals.py and test_sequential.py",
    "recorder.measurements": "data; tests of the exporters that read them",
    "stats.description": "data; tests/stats/test_describe.py",
    "stats.thresholds": "constants; tests/stats/test_describe.py",
}
"""Modules without a test file of their own, and where they are tested."""


def test_every_module_has_a_test_file_where_it_is_looked_for() -> None:
    tests = Path(__file__).parent
    missing = {
        name
        for name, path in plain_modules().items()
        if not (tests / path.relative_to(PACKAGE).with_name(f"test_{path.stem}.py")).exists()
    }
    assert missing == set(TESTED_ELSEWHERE)


def test_heavy_imports_at_module_level_are_the_listed_ones() -> None:
    ruff = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    heavy = set(ruff["flake8-tidy-imports"]["banned-module-level-imports"])
    assert {"torch", "wandb", "polars", "hydra"} <= heavy
    allowed = {
        name
        for pattern, rules in ruff["per-file-ignores"].items()
        if "TID253" in rules and pattern.startswith("mlotel_cli")
        for name in re.sub(r"^mlotel_cli/\{?|\}?\.py$", "", pattern).split(",")
    }
    found = {
        name
        for name, path in MODULES.items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(
            (module or "").partition(".")[0] in heavy
            for module in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        )
    }
    assert {name.replace(".", "/") for name in found} == allowed
