"""The recorder's ends of the two pipes: frames that come in, and answers that go back to the workload."""

import contextlib
import fcntl
import os
import select
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from typing import Any

from mlotel_cli.errors import RecorderError
from mlotel_cli.snapshot import Snapshot
from mlotel_cli.wire import Answer, encode_answer, split_frames


def read_frames(read_fd: int, *, tick_s: float) -> Iterator[list[tuple[Any, ...]] | None]:
    """Yield frames of packed messages as they come, and None about every `tick_s` without one.

    Ends when the pipe closes. A killed workload may leave half a frame, which is left out.

    Raises:
        RecorderError: for bytes that are no frame.
    """
    buffer = bytearray()
    while True:
        readable, _, _ = select.select([read_fd], [], [], tick_s)
        if not readable:
            yield None
            continue
        chunk = os.read(read_fd, 1 << 20)
        if not chunk:
            return
        buffer += chunk
        try:
            yield from split_frames(buffer)
        except ValueError as error:
            raise RecorderError(str(error)) from error


class Answers:
    """The pipe back to the workload. Writing to a workload that is gone does nothing."""

    def __init__(self, write_fd: int) -> None:
        self._pipe = os.fdopen(write_fd, "w", encoding="utf-8")
        self._lock = threading.Lock()  # the threads of the sinks write too

    def say(self, text: str) -> None:
        """Send one line for the user, and keep it in recorder.log."""
        with contextlib.suppress(OSError):  # a full disk must not silence the other way
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - stderr is recorder.log
        self._write(encode_answer(Answer(say=text)))

    def snapshot(self, snapshot: Snapshot) -> None:
        """Send the live figures; leave them out while the last ones are unread, or when they are too large.

        It never blocks.
        """
        line = encode_answer(Answer(snapshot=snapshot))
        with contextlib.suppress(OSError, ValueError):
            (unread,) = struct.unpack("i", fcntl.ioctl(self._pipe, termios.FIONREAD, b"\0" * 4))
            if not unread and len(line) <= fcntl.fcntl(self._pipe, fcntl.F_GETPIPE_SZ):
                self._write(line)

    def result(self, info: dict[str, Any]) -> None:
        """Send run.json's content, the last answer."""
        self._write(encode_answer(Answer(result=info)))

    def _write(self, line: str) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            self._pipe.write(line)
            self._pipe.flush()
