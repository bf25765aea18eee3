"""A CUDA stream per stage thread, and what makes it safe to hand tensors from one to the next without waiting.

A stage's thread returns before its kernels have run. Whoever takes the value puts three things right: its stream waits
(on the device) for the mark that the stage left behind its kernels, and each tensor's memory is kept from being used
anew before the taking stream is done with it (`record_stream`). The host waits for nothing.
"""

import contextlib
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mlotel_cli.tensors import tensors_in


class DeviceStream(Protocol):
    """One thread's place on the device."""

    def entered(self) -> AbstractContextManager[None]:
        """Make its stream the thread's current one."""
        ...

    def mark(self) -> Any:
        """A mark behind everything that the current stream was given so far."""
        ...

    def receive(self, value: Any, mark: Any) -> None:
        """Before `value` is used here: the current stream waits for `mark`. The host does not."""
        ...


class Streams(Protocol):
    """The streams of a pipeline."""

    def stream(self, name: str) -> DeviceStream:
        """A stream of its own, the same one whenever the name is: what memory it holds stays warm."""
        ...

    def current(self) -> DeviceStream:
        """The stream of a thread that keeps the stream it has."""
        ...


class HostStream:
    """The stream where there is no device: nothing to wait for. See `DeviceStream`."""

    def entered(self) -> AbstractContextManager[None]:
        """Nothing."""
        return contextlib.nullcontext()

    def mark(self) -> None:
        """Nothing."""

    def receive(self, value: Any, mark: Any) -> None:
        """Nothing."""


class HostStreams:
    """Without a device. See `Streams`."""

    def stream(self, name: str) -> DeviceStream:
        """The one there is."""
        return _HOST

    def current(self) -> DeviceStream:
        """The one there is."""
        return _HOST


_HOST = HostStream()


class CudaStream:
    """A stream of torch.cuda, or whichever is current. See `DeviceStream`."""

    def __init__(self, cuda: Any, stream: Any | None) -> None:
        """`cuda` is torch.cuda; `stream` None keeps the thread's own."""
        self._cuda = cuda
        self._stream = stream

    @contextlib.contextmanager
    def entered(self) -> Generator[None]:
        """Make the stream current, if there is one."""
        with self._cuda.stream(self._stream):  # None is no change
            yield

    def mark(self) -> Any:
        """A new event."""
        return self._cuda.current_stream().record_event()

    def receive(self, value: Any, mark: Any) -> None:
        """Wait on the device, and keep the memory; tensors are found as `tensors_in` finds them."""
        stream = self._cuda.current_stream()
        if mark is not None:
            stream.wait_event(mark)
        for tensor in tensors_in(value):
            if tensor.is_cuda:
                _keep(tensor, stream)


_PARTS = ("_indices", "_values", "values", "crow_indices", "col_indices", "ccol_indices", "row_indices", "offsets")


def _keep(tensor: Any, stream: Any) -> None:
    """Keep the memory of a tensor for `stream`; a sparse or nested one has it in the tensors it is made of."""
    try:
        tensor.record_stream(stream)
    except NotImplementedError:
        parts: list[Any] = []
        for name in _PARTS:
            with contextlib.suppress(AttributeError, RuntimeError):  # of another layout
                parts.append(getattr(tensor, name)())
        if not parts:
            raise
        for part in parts:
            part.record_stream(stream)


class CudaStreams:
    """Streams of one CUDA device. See `Streams`."""

    def __init__(self, device: str, *, cuda: Any = None) -> None:
        """`cuda` stands in for torch.cuda in tests."""
        if cuda is None:
            import torch

            cuda = torch.cuda
        self._cuda: Any = cuda
        self._device = device
        self._streams: dict[str, CudaStream] = {}

    def stream(self, name: str) -> DeviceStream:
        """The stream of that name; made when it is first asked for."""
        if name not in self._streams:
            self._streams[name] = CudaStream(self._cuda, self._cuda.Stream(device=self._device))
        return self._streams[name]

    def current(self) -> DeviceStream:
        """Whatever stream the thread has."""
        return CudaStream(self._cuda, None)
