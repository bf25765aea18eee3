"""Inference mode, device and autocast apply to the calling thread, within the `with` block."""

import threading

import torch

from mlotel_cli.execute import Inference


def test_inference_mode_is_entered_on_the_thread_that_asks() -> None:
    seen: dict[str, bool] = {}

    def stage_thread() -> None:
        seen["before"] = torch.is_inference_mode_enabled()
        with inference():
            seen["inside"] = torch.is_inference_mode_enabled()
            assert not (torch.ones(1, requires_grad=True) * 2).requires_grad
        seen["after"] = torch.is_inference_mode_enabled()

    inference = Inference("cpu")
    with inference():
        assert torch.is_inference_mode_enabled()
        thread = threading.Thread(target=stage_thread)
        thread.start()
        thread.join()
    assert seen == {"before": False, "inside": True, "after": False}
    assert not torch.is_inference_mode_enabled()


def test_autocast_is_what_was_asked_for() -> None:
    a = torch.ones(2, 2)
    with Inference("cpu", autocast="bfloat16")():
        assert (a @ a).dtype == torch.bfloat16
    with Inference("cpu")():
        assert (a @ a).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")
