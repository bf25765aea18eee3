"""The state that torch keeps per thread: inference mode, device, autocast."""

import contextlib
from collections.abc import Generator


class Inference:
    """Sets torch's state of the calling thread; every thread that runs a stage enters it.

    Attributes:
        device: the torch device, as text.
    """

    def __init__(self, device: str, *, autocast: str | None = None) -> None:
        """Use a torch `device` and, unless None, autocast to the dtype of that name, such as bfloat16."""
        self.device = device
        self._autocast = autocast

    @contextlib.contextmanager
    def __call__(self) -> Generator[None]:
        """Enter inference mode, the device, and autocast when configured. Does not synchronise."""
        import torch

        device = torch.device(self.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if device.type == "cuda":
                stack.enter_context(torch.cuda.device(device))
            if self._autocast is not None:
                stack.enter_context(torch.autocast(device.type, dtype=getattr(torch, self._autocast)))
            yield
