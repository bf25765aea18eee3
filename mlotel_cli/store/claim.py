"""Before a run: check that its directory can be written, and keep other processes out of it."""

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from mlotel_cli.errors import UsageError
from mlotel_cli.store.layout import HYDRA, RECORDER_LOG, RUN_JSON, WORKLOAD_LOG

_OF_THE_START = (
    *(f"{HYDRA}/{name}.yaml" for name in ("config", "hydra", "overrides")),
    WORKLOAD_LOG,
    RECORDER_LOG,
)
"""Files that are written before run.json; after a usage error the directory holds nothing else."""


def holds_run(directory: Path) -> bool:
    """Return True when `directory` holds a run, in whatever state."""
    return (directory / RUN_JSON).exists()


def refuse_used(directory: Path) -> None:
    """Raise UsageError when `directory` holds a run."""
    if holds_run(directory):
        raise UsageError(f"run.dir={directory}: holds a run already; name another directory or leave run.dir out")


def check_run_dir(directory: Path) -> None:
    """Raise UsageError when `directory` holds a run or cannot be written."""
    refuse_used(directory)
    existing = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is not writable" if existing.is_dir() else "is not a folder"
        raise UsageError(f"run.dir={directory}: cannot be written: {existing} {reason}")


class Claim:
    """Holds the run directory of a single run: two runs that start in the same second would share its name."""

    directory: Path | None = None
    _lock: int | None = None
    _made: bool = False

    @classmethod
    def take(cls, directory: Path) -> None:
        """Make the directory and lock it, until `releasing` ends.

        Raises:
            UsageError: when another process holds it.
        """
        made = not directory.exists()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(directory, os.O_RDONLY)
        except OSError:  # the first write into it reports the reason
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise UsageError(
                f"run.dir={directory}: another run that began at the same moment has it; start again, or give run.dir"
            ) from error
        except OSError:  # a file system without locks
            os.close(lock)
            return
        cls.directory, cls._lock, cls._made = directory, lock, made

    @classmethod
    @contextlib.contextmanager
    def releasing(cls) -> Generator[None]:
        """Release the directory at the end of the block; after a UsageError, remove what the start wrote there."""
        try:
            yield
        except UsageError:
            cls._clean()
            raise
        finally:
            if cls._lock is not None:
                os.close(cls._lock)
            cls.directory = cls._lock = None

    @classmethod
    def _clean(cls) -> None:
        directory = cls.directory
        if directory is None or not cls._made or holds_run(directory):
            return
        for name in _OF_THE_START:
            (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds other files
            for folder in (directory / HYDRA, directory):
                if folder.exists():
                    folder.rmdir()
