"""The recorder as a child process: how it is started, by module name, and in words how it ended."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mlotel_cli.errors import RecorderError
from mlotel_cli.store.layout import RECORDER_LOG

PIPE_BYTES = 1 << 20


class Child(Protocol):
    """What is asked of a process: `subprocess.Popen`'s."""

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code."""
        ...


def start_recorder(
    run_dir: Path, imports: Sequence[str], *, listener: socket.socket | None = None
) -> tuple["subprocess.Popen[bytes]", int, int]:
    """Start `python -m mlotel_cli.recorder`; returns it, the pipe to it and the pipe from it.

    Its own session keeps a Ctrl-C in the terminal from reaching it: it ends when the pipe closes.
    """
    read_end, to_recorder = os.pipe()
    from_recorder, write_end = os.pipe()
    with contextlib.suppress(OSError, AttributeError):  # a smaller pipe only means more, smaller writes
        fcntl.fcntl(to_recorder, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    command = [sys.executable, "-P", "-m", "mlotel_cli.recorder", str(read_end), str(write_end), str(run_dir), *imports]
    try:
        with (run_dir / RECORDER_LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                pass_fds=(read_end, write_end, *(() if listener is None else (listener.fileno(),))),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except OSError as error:
        os.close(to_recorder)
        os.close(from_recorder)
        raise RecorderError(f"The recorder could not be started ({' '.join(command)}): {error}") from error
    finally:
        os.close(read_end)
        os.close(write_end)
    return process, to_recorder, from_recorder


def how_it_ended(process: Child, log: Path, *, after: int) -> str:
    """Exit code and cause. What it wrote to its log, from byte `after` on, is the cause only of an end of its own."""
    try:
        code = process.wait(2)
    except subprocess.TimeoutExpired:
        return "it closed its pipe, and still runs"
    if code is not None and code < 0:
        hint = ", as by a kernel that is short of memory" if code == -signal.SIGKILL else ""
        return f"exit code {code}: {_signal_name(-code)}{hint}"
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(after)
        if last := file.read().decode(errors="replace").strip().splitlines()[-3:]:
            return f"exit code {code}: {' | '.join(last)}"
    return f"exit code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"
