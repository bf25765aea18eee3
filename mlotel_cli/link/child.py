"""One recorder process: its start, the two pipes to and from it, and its end as text for the user.

This module starts `python -m mlotel_cli.recorder` by name and never imports it.
"""

import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlotel_cli.errors import RecorderError
from mlotel_cli.store.layout import RECORDER_LOG
from mlotel_cli.wire import Answer, decode_answer

logger = logging.getLogger("mlotel.link")

PIPE_BYTES = 1 << 20
_FULL_S = 0.1
"""How long a write waits for room in a full pipe before it calls `on_full`."""


class RecorderProcess:
    """A running recorder. `write` is called by one thread; `hear` is called on a thread of its own.

    Attributes:
        result: the recorder's last answer, run.json's content; None before it came.
        bytes_written: bytes that the pipe has taken so far.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        imports: Sequence[str],
        hear: Callable[[Answer], None],
        listener: socket.socket | None = None,
        on_full: Callable[[], None] | None = None,
    ) -> None:
        """Start the process for `run_dir`. It writes nothing before the opening message.

        Args:
            run_dir: an existing folder.
            imports: what the recorder imports at once.
            hear: takes every answer but the result.
            listener: a socket that the process inherits.
            on_full: called about ten times a second while a write waits for room; without it a write just waits.

        Raises:
            RecorderError: when the process cannot be started.
        """
        self._log = run_dir / RECORDER_LOG
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        self._hear = hear
        self._on_full = on_full
        self.result: dict[str, Any] | None = None
        self.bytes_written = 0
        self._process, self._pipe, answers = start_recorder(run_dir, imports, listener=listener)
        if on_full is not None:
            os.set_blocking(self._pipe, False)
        self._listening = threading.Thread(target=self._listen, args=(answers,), name="mlotel-answers", daemon=True)
        self._listening.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    @property
    def has_pipe(self) -> bool:
        """Whether the pipe to it is open on this side."""
        return self._pipe >= 0

    def write(self, data: bytes) -> None:
        """Write all of `data`; waits while the pipe is full.

        Raises:
            OSError: when the process is gone, or `on_full` raised.
        """
        view = memoryview(data)
        while view:
            try:
                written = os.write(self._pipe, view)
                self.bytes_written += written
                view = view[written:]
            except BlockingIOError:
                select.select([], [self._pipe], [], _FULL_S)
                if self._on_full is not None:
                    self._on_full()
                if not self.is_running:
                    raise BrokenPipeError from None

    def close_pipe(self) -> None:
        """Close this side of the pipe: the recorder then finishes. A second call does nothing."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def wait_for_answers(self, timeout_s: float | None = None) -> bool:
        """Wait for the last answer; return False when that took longer than `timeout_s`."""
        self._listening.join(timeout_s)
        return not self._listening.is_alive()

    def wait(self, timeout_s: float) -> None:
        """Wait for the end of the process, `timeout_s` at most."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def how_it_ended(self) -> str:
        """Exit code and cause."""
        return how_it_ended(self._process, self._log, after=self._log_begins)

    def _listen(self, answers: int) -> None:
        with os.fdopen(answers, "r", encoding="utf-8", errors="replace") as pipe:
            for line in pipe:
                answer = decode_answer(line)
                if answer is None:
                    continue
                if answer.result is not None:
                    self.result = answer.result
                    continue
                try:
                    self._hear(answer)
                except Exception:  # a closed terminal must not cost the result
                    logger.exception("an answer of the recorder could not be shown: %s", answer)


def start_recorder(
    run_dir: Path, imports: Sequence[str], *, listener: socket.socket | None = None
) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start `python -m mlotel_cli.recorder`; return the process, the pipe to it and the pipe from it.

    The process has a session of its own, so that a Ctrl-C in the terminal does not reach it.

    Raises:
        RecorderError: when it cannot be started.
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


def how_it_ended(process: subprocess.Popen[bytes], log: Path, *, after: int) -> str:
    """Exit code and cause. Unless a signal ended it, the last lines of the log after byte `after` are the cause."""
    try:
        code = process.wait(2)
    except subprocess.TimeoutExpired:
        return "it closed its pipe, and still runs"
    if code < 0:
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
