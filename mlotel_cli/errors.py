"""Every error that mlotel raises on purpose, each with the exit code of the command that it ends.

    MlotelError                1   the run failed
    ├── UsageError             2   wrong usage or configuration; nothing was started, nothing half-written
    │   └── MissingExtraError  2   an optional dependency is not installed; the message has the pip command
    ├── DataError              1   a source, an annotation or a weight file cannot be read
    ├── StageError             1   a stage or a metric raised, or its output cannot be scored
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
        """Name the missing `module` and the `extra` of mlotel that installs it."""
        super().__init__(f"{module} is not installed. Install it with: pip install 'mlotel[{extra}]'")


class DataError(MlotelError):
    """A data set, a video, an annotation or a weight file cannot be read."""


class StageError(MlotelError):
    """A stage or a metric failed on a batch."""


class RecorderError(MlotelError):
    """The recorder process has ended; the files that it has written stay readable."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; everything measured so far is on disk. Not an MlotelError: nothing failed."""

    def __init__(self, signum: int) -> None:
        """Set the exit code to 128 + `signum`, as shells do."""
        super().__init__(f"interrupted by signal {signum}")
        self.exit_code = 128 + signum
