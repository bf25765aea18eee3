"""Pipelines, data sets and metrics for tests of `mlotel eval`, each good at one thing or at one way to fail."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from mlotel_cli.records import Batch

HERE = __name__
torch.set_num_threads(1)  # tests share their cores


class Stages:
    """Adds one, then doubles: stages `add` and `double`."""

    def __init__(self, **replaced: Callable[[Any], Any]) -> None:
        self.stages: dict[str, Any] = {"add": lambda x: x + 1, "double": lambda x: x * 2} | replaced


class Raises:
    """Stage `double` raises on the batch whose first item is `at`."""

    def __init__(self, *, at: int) -> None:
        self.stages = {"add": lambda x: x + 1, "double": self._double}
        self._at = at

    def _double(self, x: torch.Tensor) -> torch.Tensor:
        if int(x[0]) == self._at + 1:
            raise RuntimeError(f"no double of {int(x[0])} [see manual]")
        return x * 2


class GivesNaN:
    """Stage `divide` gives NaN on the batch whose first item is `at`; `pass_on` passes it on."""

    def __init__(self, *, at: int) -> None:
        self.calls = 0
        self.stages = {"divide": lambda x: (x - at) / (x - at), "pass_on": self._pass_on}

    def _pass_on(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


class Draws:
    """Adds what torch, numpy and random draw."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        import numpy as np

        return x + torch.rand(len(x)) + float(np.random.rand()) + random.random()


class Numbers:
    """`num_batches` batches of `size` equal numbers, 0, 1, 2, ...; the targets are 2 * (number + 1)."""

    def __init__(self, *, num_batches: int = 5, size: int = 2, fails_at: int | None = None) -> None:
        self.num_batches, self.size, self.fails_at = num_batches, size, fails_at
        self.passes = self.yielded = 0
        self.closed = False

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        for index in range(self.num_batches):
            if index == self.fails_at:
                raise OSError("disk gone [sda]")
            self.yielded += 1
            data = torch.full((self.size,), float(index))
            yield Batch(index, [f"{index}/{n}" for n in range(self.size)], data, 2 * (data + 1), self.size)

    def close(self) -> None:
        self.closed = True


class Sizes:
    """Batches of the given sizes."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __iter__(self) -> Iterator[Batch]:
        for index, size in enumerate(self.sizes):
            data = torch.full((size,), float(index))
            yield Batch(index, [str(n) for n in range(size)], data, 2 * (data + 1), size)


def loader(*, num_items: int, batch_size: int) -> DataLoader[Any]:
    """A DataLoader over 0, 1, 2, ... and the targets that `Stages` gives."""
    numbers = torch.arange(float(num_items))
    return DataLoader(TensorDataset(numbers, 2 * (numbers + 1)), batch_size=batch_size)


def once(*, num_batches: int = 5, fails_at: int | None = None) -> Iterator[Batch]:
    """A generator: it can be iterated once only."""
    yield from Numbers(num_batches=num_batches, fails_at=fails_at)


def missing_file(path: str) -> Iterator[Batch]:
    """A generator that opens its file when it is asked for the first batch."""
    with open(path) as file:
        yield Batch(0, ["0"], file.read())


class OpensFile:
    """A data set that opens its file at once."""

    def __init__(self, path: str) -> None:
        self.file = open(path)  # noqa: SIM115 - it is not there


class Right:
    """Share of exact outputs; can be told to fail in many ways."""

    def __init__(self, *, fails_on: int | None = None, nan_on: int | None = None, computes: str = "value") -> None:
        self.fails_on, self.nan_on, self.computes = fails_on, nan_on, computes
        self.taken: list[float] = []
        self.firsts: list[int] = []

    def update(self, output: torch.Tensor, targets: torch.Tensor) -> float | None:
        number = round(float(targets[0])) // 2 - 1
        if number == self.fails_on:
            raise KeyError("no such label")
        if number == self.nan_on:
            return float("nan")
        self.firsts.append(number)
        self.taken.append(float((output == targets).float().mean()))
        return self.taken[-1]

    def compute(self) -> float:
        if self.computes == "nan":
            return float("nan")
        if self.computes == "error" or not self.taken:
            raise ValueError("no item was scored")
        return sum(self.taken) / len(self.taken)

    def sample_scores(self, output: torch.Tensor, targets: torch.Tensor) -> list[float]:
        return (output == targets).float().tolist()


class Distance:
    """Mean distance to the targets."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def update(self, output: torch.Tensor, targets: torch.Tensor) -> float:
        self.taken.append(float((output - targets).abs().mean()))
        return self.taken[-1]

    def compute(self) -> float:
        return sum(self.taken) / len(self.taken)


class Slow:
    """A pipeline whose one stage takes `seconds`; on the batch `fails_on` it raises."""

    def __init__(self, *, seconds: float = 0.0, fails_on: int | None = None) -> None:
        self.stages = {"wait": self._wait}
        self._seconds, self._fails_on = seconds, fails_on

    def _wait(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self._seconds)
        if int(x[0]) == self._fails_on:
            raise RuntimeError("told to")
        return 2 * (x + 1)
