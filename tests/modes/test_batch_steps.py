"""What every loop over batches does before, between and after them."""

import random
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mlotel_cli.errors import StageError
from mlotel_cli.execute import Finished, Inference, Numbered, create_executor
from mlotel_cli.modes.batch_steps import check_finished, result_waiter, seed_everything, timed, warm_up
from mlotel_cli.records import Batch
from mlotel_cli.sources import Batches
from mlotel_cli.summary import Warmup
from mlotel_cli.telemetry import api
from mlotel_cli.wire import Closing
from tests.support.parts import Numbers, Raises, Stages


@pytest.fixture(params=["sequential", "pipelined"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def executor(kind: str, pipeline: Any = None) -> Any:
    return create_executor((pipeline or Stages()).stages, inference=Inference("cpu"), kind=kind)


def never() -> int:
    return 0


# -- warm-up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_by_one", [False, True])
def test_every_batch_is_run_and_timed(kind: str, one_by_one: bool) -> None:
    warmup, error = warm_up(executor(kind), iter(Batches(Numbers(num_batches=3))), never, one_by_one=one_by_one)
    assert (error, warmup.batches) == (None, 3)
    assert 0 < (warmup.first_batch_ms or 0) <= 1e3 * warmup.total_s


def test_without_batches_nothing_is_timed(kind: str) -> None:
    warmup, _ = warm_up(executor(kind), iter([]), never)
    assert warmup == Warmup()


def test_the_wait_for_the_device_counts() -> None:
    """Of two seconds that the device is said to take; more than the warm-up took, so that is the total."""
    warmup, _ = warm_up(executor("sequential"), iter(Batches(Numbers(num_batches=1))), lambda: 2_000_000_000)
    assert (warmup.first_batch_ms or 0) > 2000
    assert 0 < warmup.total_s < 2


@pytest.mark.parametrize("one_by_one", [False, True])
def test_it_stops_after_a_batch_that_fails(kind: str, one_by_one: bool) -> None:
    warmup, error = warm_up(executor(kind, Raises(at=1)), iter(Batches(Numbers())), never, one_by_one=one_by_one)
    assert (error, warmup.batches) == (None, 2)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_data_that_cannot_be_read_is_handed_back(kind: str, one_by_one: bool) -> None:
    warmup, error = warm_up(executor(kind), iter(Batches(Numbers(fails_at=2))), never, one_by_one=one_by_one)
    assert str(error) == "data: batch 2 cannot be read: OSError: disk gone [sda]"
    assert warmup.batches == 2


def test_one_by_one_a_failure_ends_it_before_the_source_is_asked_again(kind: str) -> None:
    """A camera may keep silent for ever, and a thread that asks it could not be ended."""
    asked: list[tuple[int, str]] = []

    def batches() -> Iterator[Batch]:
        for batch in Batches(Numbers()):
            asked.append((batch.index, threading.current_thread().name))
            yield batch

    warm_up(executor(kind, Raises(at=1)), batches(), never, one_by_one=True)
    assert asked == [(0, "MainThread"), (1, "MainThread")]


def test_what_else_goes_wrong_is_raised(kind: str) -> None:
    def batches() -> Iterator[Batch]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        warm_up(executor(kind), batches(), never)


# -- a batch ----------------------------------------------------------------------------------------------------------


def finished(*, size: int = 1, error: Exception | None = None, stage: str = "") -> Finished:
    numbered = Numbered(7, 0, Batch(3, ["a"] * size, None, None, size))
    return Finished(numbered, None, error, stage, api.trace.INVALID_SPAN, 0, 0)


def test_a_batch_that_went_well_passes() -> None:
    check_finished(finished())


def noted() -> Exception:
    error = RuntimeError("no such shape")
    error.add_note("in submodule 1")
    return error


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (finished(size=0), "batch 7: its size is 0; a batch has at least one item"),
        (finished(error=ValueError("no"), stage="reader"), "batch 7: stage reader raised ValueError: no"),
        (finished(error=ValueError("no")), "batch 7: the pipeline raised ValueError: no"),
        (finished(error=noted()), "batch 7: the pipeline raised RuntimeError: no such shape (in submodule 1)"),
    ],
)
def test_a_batch_that_cannot_be_scored_says_why(given: Finished, message: str) -> None:
    with pytest.raises(StageError) as raised:
        check_finished(given)
    assert (str(raised.value), raised.value.__cause__) == (message, given.error)


def test_on_cuda_a_result_is_waited_for_before_the_scoring_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    stream = SimpleNamespace(synchronize=lambda: waited.append("stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: waited.append(device) or stream)
    assert result_waiter("cpu")() == 0
    assert waited == []
    assert result_waiter("cuda:1")() > 0
    assert waited == ["cuda:1", "stream"]


# -- a run ------------------------------------------------------------------------------------------------------------


def test_times_are_noted_also_after_an_error() -> None:
    closing = Closing()
    with pytest.raises(ZeroDivisionError), timed(closing):
        raise ZeroDivisionError
    assert closing.wall_s is not None
    assert closing.cpu_s is not None
    assert closing.wall_s > 0
    assert closing.cores


def test_a_seed_decides_what_is_drawn() -> None:
    def drawn(seed: int) -> tuple[float, float, float]:
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    assert drawn(3) == drawn(3)
    assert all(one != other for one, other in zip(drawn(3), drawn(4), strict=True))
