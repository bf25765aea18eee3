"""Where mlotel's own files lie. Standard library only, so that shell completion stays fast."""

from pathlib import Path


def builtin_conf() -> Path:
    """Return the conf folder that mlotel ships: beside the package in a wheel, one folder up in a checkout."""
    package = Path(__file__).resolve().parents[1]
    beside = package / "conf"
    return beside if beside.is_dir() else package.parent / "conf"
