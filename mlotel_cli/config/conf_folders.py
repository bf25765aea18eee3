"""The conf folders: the one that mlotel ships, and shell completion of overrides from the files in them.

Standard library only: importing Hydra would make completion too slow.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

ONLY = {"profiler": "profile", "source": "monitor"}
"""Groups that only one command has."""


def builtin_conf() -> Path:
    """Return the conf folder that mlotel ships: in the package of a wheel, or one folder above it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    beside = package / "conf"
    return beside if beside.is_dir() else package.parent / "conf"


def complete_override(ctx: Any, incomplete: str) -> list[str]:
    """Return the completions of `incomplete`: `group=` names, or a group's options after its name."""
    folders = [builtin_conf()]
    if config_dir := ctx.params.get("config_dir"):
        folders.insert(0, Path(config_dir))
    command = getattr(getattr(ctx, "command", None), "name", None)
    options = {group: names for group, names in _options(folders).items() if ONLY.get(group, command) == command}
    before = [word for word in ctx.params.get("overrides") or () if word != "="]
    # bash splits words at `=`: `pipeline=du` arrives as pipeline, =, du, and `pipeline=` as pipeline alone.
    if before and before[-1] in options:
        return [name for name in options[before[-1]] if name.startswith(incomplete)]
    group, equals, start = incomplete.partition("=")
    if equals:
        return [f"{group}={name}" for name in options.get(group, ()) if name.startswith(start)]
    return [f"{name}=" for name in options if name.startswith(incomplete)]


def _options(folders: list[Path]) -> dict[str, list[str]]:
    """Return the option names of each configuration group in all folders."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for file in _yaml_files(folder):
            group = file.parent.relative_to(folder).as_posix()
            if group != ".":
                found.setdefault(group, set()).add(file.stem)
    return {group: sorted(names) for group, names in sorted(found.items())}


def _yaml_files(folder: Path) -> Iterator[Path]:
    return folder.rglob("*.yaml") if folder.is_dir() else iter(())
