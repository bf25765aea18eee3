"""The recorder's ends of the two pipes: frames that come in, and answers that go back to the workload."""

import contextlib
import fcntl
import json
import marshal
import os
import select
import struct
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from mlotel_cli.errors import RecorderError


def read_frames(read_fd: int, *, tick_s: float) -> Iterator[list[tuple[Any, ...]] | None]:
    """Yield frames as they come, and None about every `tick_s` without one; ends when the pipe closes.

    Half a frame at the end is what a killed workload leaves; it is left out.

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
        while len(buffer) >= 4:
            (length,) = struct.unpack_from("<I", buffer)
            if len(buffer) < 4 + length:
                break
            try:
                frame = marshal.loads(buffer[4 : 4 + length])
            except (EOFError, TypeError, ValueError) as error:
                raise RecorderError(f"the workload sent what cannot be read: {error}") from error
            del buffer[: 4 + length]
            yield frame


class Answers:
    """The pipe back to the workload: one JSON object a line. Writing to a workload that is gone is fine."""

    def __init__(self, write_fd: int) -> None:
        """Own the file descriptor."""
        self._pipe = os.fdopen(write_fd, "w", encoding="utf-8")
        self._lock = threading.Lock()  # the W&B thread has things to say too

    def say(self, text: str) -> None:
        """One line for the user, also kept in recorder.log."""
        with contextlib.suppress(OSError):  # a full disk must not silence the other way
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - stderr is recorder.log
        self._send({"say": text})

    def live(self, snapshot: Mapping[str, Any]) -> None:
        """What happens now. Left out while the last one has not been read, or when it is too large: it never blocks."""
        line = json.dumps({"live": snapshot}, default=str) + "\n"
        with contextlib.suppress(OSError, ValueError):
            (unread,) = struct.unpack("i", fcntl.ioctl(self._pipe, termios.FIONREAD, b"\0" * 4))
            if not unread and len(line) <= fcntl.fcntl(self._pipe, fcntl.F_GETPIPE_SZ):
                self._write(line)

    def result(self, info: Mapping[str, Any]) -> None:
        """The last answer."""
        self._send({"result": info})

    def _send(self, message: Mapping[str, Any]) -> None:
        self._write(json.dumps(message, default=str) + "\n")

    def _write(self, line: str) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            self._pipe.write(line)
            self._pipe.flush()
