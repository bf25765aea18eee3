"""What Hydra saves of a configuration (.hydra/*.yaml, multirun.yaml), without the keys and passwords in it.

Hydra writes these files itself, right before a job starts; a callback of its own then puts *** where a secret was.
"""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mlotel_cli.config.credentials import hide_in, hide_override

# Where a next override begins in a line of them; what merely looks like one, in a key's own text, is none.
_NEXT = re.compile(r"\s(?=[+~]*(?:telemetry[\w.@]*=|[A-Za-z_][\w./@]*=[^='\"}\s]))")
_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


class SavedConfig(Callback):
    """Called by Hydra, in the process of the job or of the sweep."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """The job's files are written, and the sweep's."""
        if not _has_secrets(config):
            return
        hydra = config.hydra
        folder = Path(str(hydra.runtime.output_dir)) / str(hydra.output_subdir)
        for path in (*(folder / name for name in _FILES), _of_sweep(config)):
            _rewrite(path)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Every job may have failed before it began."""
        if _has_secrets(config):
            _rewrite(_of_sweep(config))


class HideOverrides(logging.Filter):
    """Of a sweep, Hydra prints every job's overrides in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let it pass, without secrets."""
        record.msg = " ".join(hide_override(part) for part in _NEXT.split(record.getMessage()))
        record.args = ()
        return True


def secret_keys(overrides: Sequence[str]) -> list[str]:
    """Keys of those `overrides` that hold a secret: such a value must not become the name of a folder."""
    keys: list[str] = []
    for text in overrides:
        if hide_override(text) != text:
            try:
                keys.append(OverridesParser.create().parse_override(text).key_or_group)
            except HydraException:  # it is about to be refused
                continue
    return keys


def _has_secrets(config: DictConfig) -> bool:
    told: Any = OmegaConf.to_container(config, resolve=False)
    return _hidden(told) != told


def _hidden(told: Any) -> Any:
    """The content of one of these files; overrides are hidden by what they set."""
    if isinstance(told, list):
        return [hide_override(str(each)) for each in cast("list[Any]", told)]
    known = cast("dict[str, Any]", told)
    hidden = hide_in(known)
    hydra: dict[str, Any] = known.get("hydra") or {}
    if overrides := hydra.get("overrides"):
        hidden["hydra"]["overrides"] = {name: _hidden(listed) for name, listed in overrides.items()}
    return hidden


def _of_sweep(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir)) / "multirun.yaml"


def _rewrite(path: Path) -> None:
    if not path.is_file():
        return
    hidden = _hidden(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # jobs of one sweep may run at the same time
    unfinished.write_text(OmegaConf.to_yaml(OmegaConf.create(hidden)), encoding="utf-8")
    os.replace(unfinished, path)
