"""`mlotel doctor` prints what this machine has, and the fix for what is missing.

Every check looks or tries, none needs the network, and none fails the command.
"""

import contextlib
import importlib.metadata
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.text import Text

from mlotel_cli.hardware import cpu_model, environment_variables, memory_bytes, usable_cores, version_of
from mlotel_cli.nsys import importer_fix, output, version
from mlotel_cli.screen import print_table, stdout, text_column

State = Literal["ok", "absent", "problem"]
"""absent: not installed, and optional; problem: installed, and does not work."""

EXTRAS = {"video": "av", "detection": "faster-coco-eval"}
PROBE_NAME = "mlotel-probe"
PROBE_RANGES = 3
_RECORD = "profile -t nvtx -s none --cpuctxsw=none --export=sqlite -f true"
_PROBE = f"""
import nvtx
for _ in range({PROBE_RANGES}):
    with nvtx.annotate({PROBE_NAME!r}):
        pass
"""


@dataclass(slots=True)
class Finding:
    """One row of the table; `fix` says what to do unless the state is ok."""

    name: str
    value: str
    state: State = "ok"
    fix: str = ""


def findings() -> Iterator[Finding]:
    """Yield one finding after the other. It takes a few seconds, most of them for imports and nsys."""
    for name, check in CHECKS.items():
        try:
            yield check()
        except Exception as error:  # a broken installation is a finding
            yield Finding(name, f"{type(error).__name__}: {error}", "problem", f"reinstall {name}")
    for extra, distribution in EXTRAS.items():
        yield find_extra(extra, distribution)


def print_findings() -> None:
    """Print all findings as one table."""
    colours = {"ok": "green", "absent": "yellow", "problem": "red"}
    console = stdout()
    with console.status("looking at this machine ..."):
        rows = [(Text(found.name, style=colours[found.state]), found.value, found.fix) for found in findings()]
    title = f"mlotel {version_of('mlotel') or '(not installed)'} on this machine"
    print_table(console, [text_column(each) for each in ("", "found", "fix")], rows, title=title)


def _find_python() -> Finding:
    return Finding("python", f"{platform.python_version()} ({sys.executable})")


def _find_torch() -> Finding:
    import torch

    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Finding("torch", f"{torch.__version__} ({build})")


def _find_cpu() -> Finding:
    memory = memory_bytes()
    size = f", {memory / 2**30:.0f} GiB memory" if memory else ""
    return Finding("cpu", f"{cpu_model()}, {usable_cores()} cores{size}")


def _find_gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("gpu", ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())))
    if shutil.which("nvidia-smi") is None:
        return Finding("gpu", "none: everything runs on the CPU", "absent", "a CUDA GPU with its driver")
    fix = "a torch built for CUDA" if torch.version.cuda is None else "check the driver with nvidia-smi"
    return Finding("gpu", "there is a driver, but torch sees no GPU", "problem", fix)


def find_wandb() -> Finding:
    """Find W&B, and whether a key is configured for its host, without asking the user or the network."""
    import wandb
    from wandb.sdk.lib import wbauth

    # wandb would otherwise write a log below the home folder.
    with tempfile.TemporaryDirectory(prefix="mlotel-") as cache, environment_variables(WANDB_CACHE_DIR=cache):
        host = wandb.setup(wandb.Settings(silent=True)).settings.base_url
        try:
            found = wbauth.authenticate_session(host=host, source="mlotel", prompt=False, update_session=False)
        except Exception as error:  # a malformed key
            reason = str(error).partition("\n")[0]
            return Finding("wandb", f"{wandb.__version__}, unusable key for {host}: {reason}", "problem", "wandb login")
        finally:
            wandb.teardown()
    if found is None:
        offline = f"{wandb.__version__}, no key for {host}: runs are recorded offline"
        return Finding("wandb", offline, "absent", "wandb login (or set WANDB_API_KEY)")
    return Finding("wandb", f"{wandb.__version__}, a key for {host} is configured")


def _find_nvtx() -> Finding:
    import nvtx

    if not nvtx.enabled():
        return Finding("nvtx", f"{version_of('nvtx')}, switched off", "problem", "unset NVTX_DISABLE")
    return Finding("nvtx", importlib.metadata.version("nvtx"))


def find_nsys() -> Finding:
    """Find Nsight Systems and try it on a few ranges: some versions record none of some versions of nvtx."""
    nsys = shutil.which("nsys")
    if nsys is None:
        fix = "install Nsight Systems (Debian non-free: nsight-systems); only `mlotel profile` needs it"
        return Finding("nsys", "not found on PATH", "absent", fix)
    found = f"{version(Path(nsys))} ({nsys})"
    with tempfile.TemporaryDirectory(prefix="mlotel-") as folder:
        report = Path(folder, "probe")
        said = output([nsys, *_RECORD.split(), "-o", str(report), sys.executable, "-c", _PROBE])
        if not report.with_suffix(".sqlite").exists():
            return Finding("nsys", f"{found}, writes no readable report", "problem", importer_fix(Path(nsys), said))
        ranges = count_ranges(report.with_suffix(".sqlite"), PROBE_NAME)
    if ranges < PROBE_RANGES:
        lost = f"{found}, records {ranges} of {PROBE_RANGES} ranges of nvtx {version_of('nvtx')}"
        return Finding("nsys", lost, "problem", "pip install 'nvtx<0.2.12' or a newer nsys")
    return Finding("nsys", f"{found}, records the ranges of nvtx {version_of('nvtx')}")


def count_ranges(database: Path, name: str) -> int:
    """Count the push/pop ranges called `name` in an SQLite file that nsys exported."""
    query = """
        SELECT COUNT(*) FROM NVTX_EVENTS LEFT JOIN StringIds ON StringIds.id = NVTX_EVENTS.textId
        WHERE NVTX_EVENTS.eventType = 59 AND ? IN (NVTX_EVENTS.text, StringIds.value)
    """
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            return int(connection.execute(query, (name,)).fetchone()[0])
        except sqlite3.OperationalError:  # nsys writes no table for events that never happened
            return 0


def find_extra(extra: str, distribution: str) -> Finding:
    """Find an extra of mlotel."""
    installed = version_of(distribution)
    if installed is None:
        return Finding(f"extra {extra}", f"{distribution} is not installed", "absent", f"pip install 'mlotel[{extra}]'")
    return Finding(f"extra {extra}", f"{distribution} {installed}")


CHECKS = {
    "python": _find_python,
    "torch": _find_torch,
    "cpu": _find_cpu,
    "gpu": _find_gpu,
    "wandb": find_wandb,
    "nvtx": _find_nvtx,
    "nsys": find_nsys,
}
