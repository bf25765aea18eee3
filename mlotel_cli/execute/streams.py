"""A CUDA stream per stage thread. Tensors pass safely from one stream to the next, and the host never waits.

A stage's thread returns before its kernels have run. `receive` therefore makes the next stage's stream wait, on the
device, for the mark after those kernels, and keeps each tensor's memory from reuse until that stream has finished with
it (`record_stream`).
"""

import contextlib
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mlotel_cli.tensors import tensors_in


class DeviceStream(Protocol):
    """The stream that one thread puts its device work on."""

    def entered(self) -> AbstractContextManager[None]:
        """Make this the thread's current stream within a `with` block."""
        ...

    def mark(self) -> Any:
        """Return a mark after all work on the current stream so far."""
        ...

    def receive(self, value: Any, mark: Any) -> None:
        """Make the current stream wait for `mark` before it uses `value`. The host does not wait."""
        ...


class Streams(Protocol):
    """The streams of a pipeline."""

    def stream(self, name: str) -> DeviceStream:
        """Return the stream of that name, always the same one: its cached memory is reused."""
        ...

    def current(self) -> DeviceStream:
        """Return a DeviceStream that leaves the calling thread on its current stream."""
        ...


class HostStream:
    """A stream without a device; its methods do nothing. See `DeviceStream`."""

    def entered(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return contextlib.nullcontext()

    def mark(self) -> None:
        """Return None: there is nothing to wait for."""

    def receive(self, value: Any, mark: Any) -> None:
        """Do nothing."""


class HostStreams:
    """The streams of a pipeline without a device. See `Streams`."""

    def stream(self, name: str) -> DeviceStream:
        """Return the stream that all threads share."""
        return _HOST

    def current(self) -> DeviceStream:
        """Return the stream that all threads share."""
        return _HOST


_HOST = HostStream()


class CudaStream:
    """A torch.cuda stream. See `DeviceStream`."""

    def __init__(self, cuda: Any, stream: Any | None) -> None:
        """Use `stream` of `cuda` (torch.cuda); None leaves the thread on its current stream."""
        self._cuda = cuda
        self._stream = stream

    @contextlib.contextmanager
    def entered(self) -> Generator[None]:
        """Make the stream current within a `with` block."""
        with self._cuda.stream(self._stream):  # None changes nothing
            yield

    def mark(self) -> Any:
        """Return a new event, recorded on the current stream."""
        return self._cuda.current_stream().record_event()

    def receive(self, value: Any, mark: Any) -> None:
        """Wait for the event on the device, and keep the memory of the tensors that `tensors_in` finds."""
        stream = self._cuda.current_stream()
        if mark is not None:
            stream.wait_event(mark)
        for tensor in tensors_in(value):
            if tensor.is_cuda:
                _keep(tensor, stream)


_PARTS = ("_indices", "_values", "values", "crow_indices", "col_indices", "ccol_indices", "row_indices", "offsets")


def _keep(tensor: Any, stream: Any) -> None:
    """Keep a tensor's memory for `stream`; that of a sparse or nested tensor belongs to its component tensors."""
    try:
        tensor.record_stream(stream)
    except NotImplementedError:
        parts: list[Any] = []
        for name in _PARTS:
            with contextlib.suppress(AttributeError, RuntimeError):  # this layout lacks the part
                parts.append(getattr(tensor, name)())
        if not parts:
            raise
        for part in parts:
            part.record_stream(stream)


class CudaStreams:
    """Streams of one CUDA device. See `Streams`."""

    def __init__(self, device: str, *, cuda: Any = None) -> None:
        """Use the CUDA `device`; tests pass a fake `cuda` instead of torch.cuda."""
        if cuda is None:
            import torch

            cuda = torch.cuda
        self._cuda: Any = cuda
        self._device = device
        self._streams: dict[str, CudaStream] = {}

    def stream(self, name: str) -> DeviceStream:
        """Return the stream of that name, created on first use."""
        if name not in self._streams:
            self._streams[name] = CudaStream(self._cuda, self._cuda.Stream(device=self._device))
        return self._streams[name]

    def current(self) -> DeviceStream:
        """Return a DeviceStream that leaves the thread on its current stream."""
        return CudaStream(self._cuda, None)
