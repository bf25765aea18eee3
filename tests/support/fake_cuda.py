"""The part of torch.cuda that streams need, without a device: it knows what is ordered before what.

Every stream counts its operations and knows how many of each other stream's it comes after; events carry that. Reading
a tensor on a stream that is not ordered behind its writing, or whose memory was not kept for that stream, is an error.
"""

import contextlib
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Stream:
    """A queue of the device."""

    name: str = "default"
    after: dict[Any, int] = field(default_factory=dict)
    """By stream: how many of its operations are over when the next one here begins."""

    def do(self) -> None:
        self.after[self] = self.after.get(self, 0) + 1

    def record_event(self) -> dict[Any, int]:
        return dict(self.after)

    def wait_event(self, event: dict[Any, int]) -> None:
        for stream, count in event.items():
            self.after[stream] = max(count, self.after.get(stream, 0))


@dataclass
class Tensor:
    """Written when it is made, on the current stream."""

    cuda: "FakeCuda"
    is_cuda: bool = True

    def __post_init__(self) -> None:
        self.stream = self.cuda.current_stream()
        self.stream.do()
        self.written = self.stream.after[self.stream]
        self.kept_for = {self.stream}

    def record_stream(self, stream: Stream) -> None:
        self.kept_for.add(stream)

    def read(self) -> None:
        stream = self.cuda.current_stream()
        assert stream.after.get(self.stream, 0) >= self.written, f"{stream.name} reads before {self.stream.name} wrote"
        assert stream in self.kept_for, f"its memory may be used anew while {stream.name} reads"
        stream.do()


class FakeCuda:
    """Stands in for the module torch.cuda."""

    def __init__(self) -> None:
        self._default = Stream()
        self._local = threading.local()
        self.made: list[Stream] = []

    def Stream(self, *, device: str) -> Any:  # noqa: N802 - its name in torch.cuda
        self.made.append(Stream(f"{device} stream {len(self.made)}"))
        return self.made[-1]

    def current_stream(self) -> Any:
        return getattr(self._local, "stream", self._default)

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Generator[None]:
        before = self.current_stream()
        self._local.stream = stream or before
        try:
            yield
        finally:
            self._local.stream = before
