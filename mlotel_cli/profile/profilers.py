"""The profilers of `mlotel profile`: how each is started, and how its recording is read."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli import nsys
from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.hardware import version_of
from mlotel_cli.profile import nsys_export, torch_trace
from mlotel_cli.profile.timeline import Timeline
from mlotel_cli.store.layout import PROFILE

if TYPE_CHECKING:
    from omegaconf import DictConfig

CAPTURE = "mlotel capture@mlotel"


class NsysProfiler:
    """Nsight Systems, around the process.

    Attributes:
        backend: of spans, in the process that is profiled.
    """

    backend = "nvtx"

    def __init__(self, cfg: "DictConfig", run_dir: Path) -> None:
        """Find the program.

        Raises:
            UsageError: when it is not installed.
        """
        settings = cfg.profiler
        self._nsys = nsys.find(settings.command)
        self._report = run_dir.absolute() / PROFILE
        self._trace = settings.trace or ("cuda,nvtx" if str(cfg.device).startswith("cuda") else "nvtx")
        self._graph_trace = settings.cuda_graph_trace
        self._args: Sequence[str] = list(settings.args)

    def command(self, spec: Path) -> list[str]:
        """Return the command line that runs the workload described in `spec`: `nsys profile` with this Python."""
        profile = nsys.profile_command(
            self._nsys,
            report=self._report,
            trace=self._trace,
            capture=CAPTURE,
            graph_trace=self._graph_trace,
            args=self._args,
        )
        return [*profile, *_workload(spec)]

    def read(self, said: str) -> Timeline:
        """Read the SQLite file that nsys exported; `said` is what the process printed.

        Raises:
            MlotelError: when there is none, with the reason.
        """
        database = self._report.with_suffix(".sqlite")
        if not database.exists():
            raise nsys.why_no_report(self._nsys, report=self._report, printed=said)
        timeline = nsys_export.read_timeline(database)
        if not timeline.ranges and not timeline.num_cut:
            raise nsys.no_ranges(self._nsys)
        return timeline

    def describe(self) -> dict[str, Any]:
        """Return kind, path, version and what is traced, for run.json."""
        return {"kind": "nsys", "path": str(self._nsys), "version": nsys.version(self._nsys), "trace": self._trace}

    def files(self) -> list[Path]:
        """Return what the tracker keeps: the report that the nsys GUI opens."""
        return [path for path in (self._report.with_suffix(".nsys-rep"),) if path.exists()]


class TorchProfiler:
    """torch.profiler, in the process itself. It has what NsysProfiler has."""

    backend = "torch"

    def __init__(self, run_dir: Path) -> None:
        self.trace = run_dir.absolute() / f"{PROFILE}.trace.json"

    def command(self, spec: Path) -> list[str]:
        """Return this Python with the workload."""
        return _workload(spec)

    def read(self, said: str) -> Timeline:
        """Read the Chrome trace."""
        if not self.trace.exists():
            raise MlotelError(f"torch.profiler wrote no {self.trace}. The process said last: {nsys.last_line(said)}")
        timeline = torch_trace.read_timeline(self.trace)
        if not timeline.ranges:
            raise MlotelError(f"torch.profiler recorded no span in {self.trace}")
        return timeline

    def describe(self) -> dict[str, Any]:
        """Return kind and version."""
        return {"kind": "torch", "version": version_of("torch")}

    def files(self) -> list[Path]:
        """Return the Chrome trace."""
        return [path for path in (self.trace,) if path.exists()]


Profiler = NsysProfiler | TorchProfiler


def make_profiler(cfg: "DictConfig", run_dir: Path) -> Profiler:
    """Create the profiler that `profiler.kind` names.

    Raises:
        UsageError: when it is not installed, or cannot show what the executor does.
    """
    if str(cfg.profiler.kind) != "torch":
        return NsysProfiler(cfg, run_dir)
    if str(cfg.executor.kind) != "sequential":
        raise UsageError(
            "profiler=torch with executor=pipelined: its annotations begin and end on one thread, and a batch's do not "
            "here; use profiler=nsys or executor=sequential"
        )
    return TorchProfiler(run_dir)


def _workload(spec: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "mlotel_cli.profile.profiled", str(spec)]
