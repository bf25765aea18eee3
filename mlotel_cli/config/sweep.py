"""How the jobs of a sweep ended: one small file per job, and the table at the end.

Files work with every launcher, also with one that runs jobs in other processes.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.text import Text

from mlotel_cli.errors import MlotelError
from mlotel_cli.screen import Column, print_table, stdout, text_column

JOB_FILE = "job.json"
"""A file in each job's directory; it also exists when the job ended before its run.json was written."""


@dataclass(slots=True)
class JobStatus:
    """How one job of a sweep ended; the content of job.json."""

    job: int
    overrides: list[str]
    status: Literal["complete", "failed", "refused", "interrupted"]
    exit_code: int
    seconds: float
    error: str = ""

    def write(self, directory: Path) -> None:
        """Write job.json into the job's directory."""
        (directory / JOB_FILE).write_text(json.dumps(asdict(self)))


class SweepWatch(Callback):
    """Keeps the directory of the sweep that this process started, because only Hydra can compute it."""

    directory: ClassVar[Path | None] = None
    started_s: ClassVar[float] = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keep the directory and the time; Hydra calls this once, before the first job."""
        SweepWatch.directory = Path(str(config.hydra.sweep.dir)).absolute()
        SweepWatch.started_s = time.time()


def finished_jobs() -> list[JobStatus]:
    """Return how the jobs of this process's sweep have ended so far, in order; none outside a sweep."""
    if SweepWatch.directory is None:
        return []
    # A sweep directory may be used again: skip the jobs of earlier sweeps.
    files = [f for f in SweepWatch.directory.rglob(JOB_FILE) if f.stat().st_mtime >= SweepWatch.started_s - 1]
    return sorted((JobStatus(**json.loads(file.read_text())) for file in files), key=lambda job: job.job)


def print_sweep() -> int:
    """Print how each job of the sweep ended; return the sweep's exit code."""
    jobs = finished_jobs()
    if not jobs:
        return 0
    columns = (Column("job"), text_column("status", fold_at=None), Column("seconds"), text_column("overrides"))
    rows = [
        (
            str(job.job),
            Text(job.status, style="green" if job.status == "complete" else "red"),
            f"{job.seconds:.1f}",
            "\n".join(filter(None, [" ".join(job.overrides), job.error])),
        )
        for job in jobs
    ]
    print_table(stdout(), columns, rows, title=f"sweep {SweepWatch.directory}", left_out=[("seconds",)])
    codes = {job.exit_code for job in jobs}
    return next(iter(codes)) if len(codes) == 1 else MlotelError.exit_code
