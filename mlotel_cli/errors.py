"""Every error that mlotel raises on purpose; each one owns the exit code of the command it ends.

    MlotelError                1   the run failed
    ├── UsageError             2   wrong usage or configuration; nothing was started, nothing half-written
    │   └── MissingExtraError  2   an optional dependency is not installed; the message says the pip command
    ├── DataError              1   a source, an annotation or a weight file cannot be read
    ├── StageError             1   a stage or a metric raised, or returned what cannot be scored
    └── RecorderError          1   the recorder process died or could not start

A message names what was wrong (the config path, the file, the batch), its value, what is allowed, and the next step.
"""

from typing import ClassVar


class MlotelError(Exception):
    """The run failed for a reason that mlotel can explain."""

    exit_code: ClassVar[int] = 1


class UsageError(MlotelError):
    """The command line or the configuration is wrong."""

    exit_code: ClassVar[int] = 2


class MissingExtraError(UsageError):
    """An optional dependency is needed and not installed."""

    def __init__(self, module: str, *, extra: str) -> None:
        """Say which `module` is missing and which `extra` of mlotel brings it."""
        super().__init__(f"{module} is not installed. Install it with: pip install 'mlotel[{extra}]'")


class DataError(MlotelError):
    """A data set, a video, an annotation or a weight file cannot be read as what it claims to be."""


class StageError(MlotelError):
    """A stage or a metric failed on a batch."""


class RecorderError(MlotelError):
    """The recorder process is gone; what it had written is still readable."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; everything measured so far is on disk. Not an MlotelError: nothing failed."""

    def __init__(self, signum: int) -> None:
        """Remember which signal; the exit code is the shell's 128 + signum."""
        super().__init__(f"interrupted by signal {signum}")
        self.exit_code = 128 + signum
