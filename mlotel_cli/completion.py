"""Shell completion of Hydra overrides, from the files of the conf folders alone: importing Hydra would be too slow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent


class _AfterEquals(str):
    """An option offered where bash has already split the word at `=`, which Typer would filter out."""

    __slots__ = ()

    def startswith(self, *_: Any) -> bool:  # type: ignore[override]
        return True


def complete_override(ctx: Any, incomplete: str) -> list[str]:
    """Return what may follow `incomplete`: `group=` names, or the options of a group once its name is there."""
    folders = [PACKAGE / "conf", PACKAGE.parent / "conf"]
    if config_dir := ctx.params.get("config_dir"):
        folders.insert(0, Path(config_dir))
    options = _options(folders)
    words = [*(ctx.params.get("overrides") or ()), incomplete]
    # bash hands over `pipeline=du` as three words: pipeline, =, du.
    if "=" in words[-2:] and len(words) > 1:
        position = len(words) - 1 - words[::-1].index("=")
        group, start = words[position - 1], "" if incomplete == "=" else incomplete
        return [_AfterEquals(name) for name in options.get(group, ()) if name.startswith(start)]
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
