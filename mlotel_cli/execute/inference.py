"""What torch keeps per thread, and every thread that runs a stage has to enter itself."""

import contextlib
from collections.abc import Generator


class Inference:
    """The state that torch keeps per thread: every thread that runs a stage enters it itself.

    Attributes:
        device: the torch device, as text.
    """

    def __init__(self, device: str, *, autocast: str | None = None) -> None:
        """`device` is a torch device; `autocast` the name of a dtype, such as bfloat16, or None."""
        self.device = device
        self._autocast = autocast

    @contextlib.contextmanager
    def __call__(self) -> Generator[None]:
        """Inference mode, the device, and autocast where asked for. Does not synchronise."""
        import torch

        device = torch.device(self.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if device.type == "cuda":
                stack.enter_context(torch.cuda.device(device))
            if self._autocast is not None:
                stack.enter_context(torch.autocast(device.type, dtype=getattr(torch, self._autocast)))
            yield
