"""Hides keys and passwords in the files that Hydra saves of a configuration (.hydra/*.yaml, multirun.yaml).

Hydra writes these files right before a job starts; a Hydra callback then replaces each secret with ***.
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

# Matches the space before the next override in a line of overrides, but not text that only looks like an override.
_NEXT = re.compile(r"\s(?=[+~]*(?:telemetry[\w.@]*=|[A-Za-z_][\w./@]*=[^='\"}\s]))")
_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")


class SavedConfig(Callback):
    """A callback that Hydra calls in the process of the job or of the sweep."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Rewrite the files of the job and of its sweep."""
        if not _has_secrets(config):
            return
        hydra = config.hydra
        folder = Path(str(hydra.runtime.output_dir)) / str(hydra.output_subdir)
        for path in (*(folder / name for name in _FILES), _of_sweep(config)):
            _rewrite(path)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Rewrite the file of the sweep: all its jobs may have failed before `on_job_start`."""
        if _has_secrets(config):
            _rewrite(_of_sweep(config))


class HideOverrides(logging.Filter):
    """Hides secrets in the line of overrides that Hydra logs for every job of a sweep."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Hide the secrets of the record and let it pass."""
        record.msg = " ".join(hide_override(part) for part in _NEXT.split(record.getMessage()))
        record.args = ()
        return True


def secret_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys of `overrides` with a secret value, which must not become part of a folder's name."""
    keys: list[str] = []
    for text in overrides:
        if hide_override(text) != text:
            try:
                keys.append(OverridesParser.create().parse_override(text).key_or_group)
            except HydraException:  # Hydra refuses this override later
                continue
    return keys


def _has_secrets(config: DictConfig) -> bool:
    content: Any = OmegaConf.to_container(config, resolve=False)
    return _hidden(content) != content


def _hidden(content: Any) -> Any:
    """Return the content of one of these files with hidden secrets, also those in overrides."""
    if isinstance(content, list):
        return [hide_override(str(each)) for each in cast("list[Any]", content)]
    known = cast("dict[str, Any]", content)
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
