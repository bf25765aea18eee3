"""Run directories, read back: live, killed and finished ones alike, through one function."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlotel_cli.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

_PART = re.compile(r"part-(\d+)(?:-(\d+))?\.parquet")


@dataclass(slots=True)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        info: run.json, with `status` put right when its process died without a word.
    """

    path: Path
    info: Mapping[str, Any]

    @property
    def status(self) -> str:
        """running | complete | failed | interrupted."""
        return self.info["status"]

    @property
    def summary(self) -> Mapping[str, Any]:
        """The summary of run.json; empty while the run goes on."""
        return self.info.get("summary") or {}

    @property
    def batches(self) -> "pl.DataFrame":
        """One row a batch, in batch order."""
        frame = read_table(self.path / "batches.parquet")
        return frame.sort("batch") if frame.width else frame

    @property
    def spans(self) -> "pl.DataFrame":
        """One row a span, in the order in which they ended."""
        return read_table(self.path / "spans.parquet")

    @property
    def samples(self) -> "pl.DataFrame":
        """One row a sample."""
        return read_table(self.path / "samples.parquet")


def read_run(path: str | Path) -> Run:
    """Open a run directory, whatever state it is in. Tables are read anew at every access.

    Raises:
        UsageError: when `path` is no run directory.
    """
    folder = Path(path)
    try:
        info: dict[str, Any] = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} is no run directory: its run.json cannot be read ({error}). "
            "Give the folder that the run printed, such as outputs/eval/<date>_<time>"
        ) from error
    if info.get("status") == "running" and not _is_alive(info.get("recorder_pid"), folder):
        info["status"] = "interrupted"
    return Run(folder, info)


def _is_alive(pid: int | None, folder: Path) -> bool:
    """True while the recorder that writes `folder` runs; a pid that now is another program's does not count."""
    if not pid:
        return False
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    except OSError:
        return True
    return b"mlotel_cli.recorder" in command


def read_table(folder: Path) -> "pl.DataFrame":
    """All rows of a table folder, in order, with the union of the parts' columns; empty when there is none yet."""
    import polars as pl

    for attempt in range(5):
        try:
            frames = [pl.read_parquet(part) for part in _current_parts(folder)]
            break
        except FileNotFoundError:  # merged away between listing and reading
            if attempt == 4:
                raise
    return pl.concat(frames, how="diagonal") if frames else pl.DataFrame()  # pyright: ignore[reportPossiblyUnbound]


def _current_parts(folder: Path) -> list[Path]:
    """The parts that are not covered by a merged one, in order."""
    numbered: list[tuple[int, int, Path]] = []
    for part in folder.glob("part-*.parquet"):
        match = _PART.fullmatch(part.name)
        if match:
            first = int(match[1])
            numbered.append((first, int(match[2] or first), part))
    merged = [(first, last) for first, last, _ in numbered if last > first]
    return [
        part
        for first, last, part in sorted(numbered)
        if not any(start <= first and last <= end and (start, end) != (first, last) for start, end in merged)
    ]
