"""Describes this machine: the device of a run, and the environment that run.json records.

Nothing runs at import. torch is imported only by the functions that need it.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlotel_cli.errors import UsageError

PACKAGES = (
    "mlotel",
    "torch",
    "hydra-core",
    "opentelemetry-sdk",
    "nvtx",
    "wandb",
    "polars",
    "torchmetrics",
    "typer",
    "numpy",
    "av",
    "faster-coco-eval",
)
"""Distributions whose versions a run records."""


def check_device(device: str) -> None:
    """Refuse a `device` that is misspelt or not in this machine.

    Imports torch only for a cuda device.

    Raises:
        UsageError: naming the value and what is allowed.
    """
    if device in ("auto", "cpu"):
        return
    if not (found := re.fullmatch(r"cuda(?::(\d+))?", device)):
        raise UsageError(f"device={device}: allowed: auto, cpu, cuda, cuda:N")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(found.group(1) or 0) >= count:
        build = "this torch has no CUDA" if torch.version.cuda is None else f"torch sees {count} CUDA devices"
        raise UsageError(f"device={device}: not on this machine: {build}; allowed here: auto, cpu")


def find_device() -> str:
    """Return the torch device that `auto` means here: cuda:0 where CUDA works, else cpu. Imports torch."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None, without importing it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(*, with_torch: bool = False) -> dict[str, Any]:
    """Describe machine, software and working copy for run.json; see `accelerator` for `with_torch`."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "usable_cores": usable_cores()},
        "memory_bytes": memory_bytes(),
        **accelerator(with_torch=with_torch),
        "git": git_state(Path()),
        "packages": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
    }


@contextmanager
def environment_variables(**values: str) -> Generator[None]:
    """Set environment variables of this process within a `with` block, then restore the old ones."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, or its architecture where the name is unknown."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Return the machine's physical memory; None where it is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def rss_bytes(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Return the resident memory of this process; None where it is unknown."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return `{commit, dirty}` of the working copy that contains `folder`; None outside a working copy or without git.

    Only changes to tracked files make it dirty: untracked files are mostly outputs.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def accelerator(*, with_torch: bool = False) -> dict[str, Any]:
    """Return the versions of torch and CUDA, and the names of the GPUs.

    Args:
        with_torch: import torch and begin to use CUDA where that has not happened yet. Without it a program's forked
            children can still use CUDA; `cuda` is None until torch is imported, `gpu` until the program uses CUDA.
    """
    if not with_torch and "torch" not in sys.modules:
        return {"torch": version_of("torch"), "cuda": None, "gpu": None}
    import torch

    if not with_torch and not torch.cuda.is_initialized():
        return {"torch": str(torch.__version__), "cuda": torch.version.cuda, "gpu": None}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(n) for n in range(count)]
    return {"torch": str(torch.__version__), "cuda": torch.version.cuda, "gpu": gpus or None}
