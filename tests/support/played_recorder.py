"""A recorder played by the test: the other end of both pipes, in this process."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from mlotel_cli.config.policies import TrackerOptions
from mlotel_cli.recorder.pipe import read_frames
from mlotel_cli.telemetry.span import Span
from mlotel_cli.telemetry.tracer import Provider, Recording
from mlotel_cli.wire import Opening, unpack


def opening(**options: Any) -> Opening:
    tracker = TrackerOptions(project="test", mode="disabled")
    return Opening(mode="loop", name="test", run_id="f00", started_ns=1, tracker=tracker, **options)


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` says as soon as it holds."""
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it never held")


class PlayedRecorder:
    """The other end of both pipes, in this process."""

    pid = 4711

    def __init__(self) -> None:
        self.read_fd, self.to_recorder = os.pipe()
        self.from_recorder, self.write_fd = os.pipe()
        self.returncode: int | None = None
        self.lingers = False
        self.killed = False

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        if self.lingers:
            raise subprocess.TimeoutExpired("recorder", timeout or 0)
        return self.returncode

    def kill(self) -> None:
        self.killed = True
        self.stop_answering()

    def frames(self) -> list[list[tuple[Any, ...]]]:
        """Everything up to the end of the pipe."""
        return [frame for frame in read_frames(self.read_fd, tick_s=10) if frame is not None]

    def messages(self) -> list[Any]:
        return [unpack(packed) for frame in self.frames() for packed in frame]

    def result(self, info: dict[str, Any]) -> None:
        self.answer(json.dumps({"result": info}))

    def answer(self, *lines: str) -> None:
        os.write(self.write_fd, "".join(f"{line}\n" for line in lines).encode())

    def stop_answering(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def die(self, code: int = -9) -> None:
        """As after a kill -9: both ends are closed."""
        self.returncode = code
        os.close(self.read_fd)
        self.read_fd = -1
        self.stop_answering()


def spans(count: int, **attributes: Any) -> list[Span]:
    ended: list[Span] = []
    tracer = Provider(Recording(ended.append, first_id=1)).get_tracer("test")
    for _ in range(count):
        tracer.start_span("stage", attributes=attributes or None).end()
    return ended
