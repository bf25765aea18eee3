"""Runs Nsight Systems: finds the program, builds its command, and explains a missing report.

It does not know runs or the workload. profile/nsys_export.py reads the reports.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.hardware import version_of

INSTALL = "Install Nsight Systems (Debian non-free: nsight-systems)"
_OTHERWISE = "or profile without it: mlotel profile profiler=torch"
_LEAST_FREE_BYTES = 16 << 20
_PROBE_TIMEOUT_S = 60


def find(command: str) -> Path:
    """Return the path of the program `command`, which is on PATH or is a path itself.

    Raises:
        UsageError: when it does not exist or is not executable.
    """
    found = shutil.which(command)
    if found is not None:
        return Path(found)
    at = shutil.which(command, mode=os.F_OK)
    if at is not None:
        raise UsageError(f"profiler.command={command}: no permission to execute {at}. Run: chmod +x {at}")
    where = "at that path" if os.sep in command else "on PATH"
    raise UsageError(f"profiler.command={command}: nsys is not {where}. {INSTALL}, {_OTHERWISE}")


def version(nsys: Path) -> str:
    """Return the version that nsys prints; empty when it prints none."""
    return output([str(nsys), "--version"]).strip().rpartition(" ")[2]


def profile_command(
    nsys: Path, *, report: Path, trace: str, capture: str, graph_trace: str, args: Sequence[str]
) -> list[str]:
    """Return the command `nsys profile` without the program that it runs.

    `report` has no suffix. `capture` is the NAME@DOMAIN of the range during which nsys records. `graph_trace`, node or
    graph, is only used when CUDA is traced.
    """
    return [
        str(nsys),
        "profile",
        f"--trace={trace}",
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=nvtx",
        f"--nvtx-capture={capture}",
        "--capture-range-end=stop",  # the default would end the program with the range
        *([f"--cuda-graph-trace={graph_trace}"] if "cuda" in trace.split(",") else []),
        "--export=sqlite",
        "--force-overwrite=true",
        f"--output={report}",
        *args,
    ]


def why_no_report(nsys: Path, *, report: Path, printed: str) -> MlotelError:
    """Return the error that explains why nsys wrote no SQLite file for `report`; `printed` is all output of nsys."""
    raw, packed = report.with_suffix(".qdstrm"), report.with_suffix(".nsys-rep")
    kept = next((path for path in (packed, raw) if path.exists()), None)
    left = f" The recording is kept: {kept}." if kept else ""
    if reason := why_full(report.parent, printed=printed):
        return MlotelError(f"nsys could not write its report: {reason}.{left} {free_space(report.parent)}")
    if reason := why_refused(report.parent, printed=printed):
        return MlotelError(
            f"nsys has no permission: {reason}.{left} "
            f"Check the rights on {report.parent} and TMPDIR; a driver may restrict profiling to administrators"
        )
    if raw.exists() and not packed.exists():
        fix = importer_fix(nsys, printed)
        return MlotelError(
            f"nsys wrote only its raw file {raw}: it could not import it. Fix: {fix}. "
            f"Then: QdstrmImporter -i {raw} && nsys export --type=sqlite {packed}"
        )
    if packed.exists():
        return MlotelError(
            f"nsys wrote {packed} but no SQLite file. Run: nsys export --type=sqlite {packed}. "
            f"It printed: {last_line(printed)}"
        )
    return no_ranges(nsys)


def why_full(folder: Path, *, printed: str) -> str:
    """Return how a full disk shows, in the output `printed` or in the free space; empty when no disk is full."""
    if line := _line_with(printed, "no space left", "disk full", "not enough space"):
        return f"the disk is full: {line}"
    full = next((each for each in (folder, _temporary()) if _is_full(each)), None)
    return f"the disk is full: {full} has no {_LEAST_FREE_BYTES >> 20} MB left" if full else ""


def why_refused(folder: Path, *, printed: str) -> str:
    """Return the missing permission, from the output `printed` or the folders' rights; empty when none is known."""
    if line := _line_with(printed, "permission denied", "not permitted", "insufficient privilege", "err_nvgpuctrperm"):
        return line
    closed = next((each for each in (folder, _temporary()) if not os.access(each, os.W_OK)), None)
    if closed is None:
        return ""
    return f"{closed} is not writable" if closed.exists() else f"TMPDIR={closed} does not exist"


def lost_start(printed: str) -> bool:
    """Return whether nsys ended at its start because another nsys started or ended meanwhile; a second try works."""
    return _line_with(printed, "sem_open") != ""


def free_space(folder: Path) -> str:
    """Return the next step when a disk is full."""
    return f"Free space below {folder} and for temporary files (TMPDIR), or record less: profile.batches=20"


def no_ranges(nsys: Path) -> MlotelError:
    """Return the error for a workload whose ranges nsys did not record."""
    return MlotelError(
        f"nsys {version(nsys)} recorded no range of nvtx {version_of('nvtx')}: these versions do not work together "
        "(nsys before 2024 does not see nvtx 0.2.12 and later), or profiler.args excluded the ranges. "
        f"Use: pip install 'nvtx<0.2.12', or a newer nsys, {_OTHERWISE}"
    )


def importer_fix(nsys: Path, printed: str) -> str:
    """Return why nsys could not convert its raw file to a report, and the fix; `printed` is its output."""
    target = nsys.resolve().parent
    host = target.parent / target.name.replace("target", "host")
    if not host.exists():
        installed = sorted(nsys.absolute().parents[1].glob(f"lib/nsight-systems/{host.name}"))
        source = installed[0] if installed else f"PATH/TO/{host.name}"
        return f"its importer is not beside it: ln -s {source} {host}"
    if missing := _missing_libraries(host / "QdstrmImporter"):
        return f"its importer lacks {', '.join(missing)}: install them (Debian: libssh-4)"
    return last_line(printed) or "reinstall Nsight Systems"


def last_line(text: str) -> str:
    """Return the last line that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def output(command: list[str]) -> str:
    """Run a command; return what it printed, or why it did not run."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr


def _missing_libraries(binary: Path) -> list[str]:
    listing = output(["ldd", str(binary)])
    return sorted({line.split()[0] for line in listing.splitlines() if line.endswith("not found")})


def _line_with(text: str, *parts: str) -> str:
    found = (line.strip() for line in text.splitlines() if any(part in line.lower() for part in parts))
    return next(found, "").rstrip(".")


def _temporary() -> Path:
    return Path(os.environ.get("TMPDIR") or "/tmp")


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _LEAST_FREE_BYTES
    except OSError:
        return False
