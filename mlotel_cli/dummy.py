"""A demonstration pipeline without data or weights: three models whose durations follow sine waves."""

import math
import random
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mlotel_cli.errors import UsageError
from mlotel_cli.records import Batch
from mlotel_cli.telemetry.api import record

PERIODS = (250, 500, 1000)
"""Periods of the durations of models 1, 2 and 3, in batches."""
MEAN_S = 0.050
AMPLITUDE_S = 0.025
_DETECTIONS_PERIOD = 500
_ACCURACY_PERIOD = 1000


class SineModel(nn.Module):
    """Waits 50 +- 25 ms times `time_scale`, by a sine over the batch index."""

    def __init__(self, period: int, *, time_scale: float) -> None:
        super().__init__()
        self._period = period
        self._time_scale = time_scale

    def duration_s(self, index: float) -> float:
        """Return the duration of batch `index`, seconds."""
        return self._time_scale * (MEAN_S + AMPLITUDE_S * math.sin(2 * math.pi * index / self._period))

    def forward(self, items_B2: Tensor) -> Tensor:
        """Wait, and return `items_B2`: number of the batch and label of the item, float64."""
        deadline = time.perf_counter() + self.duration_s(float(items_B2[0, 0]))
        while (left := deadline - time.perf_counter()) > 0:
            time.sleep(left)
        return items_B2


class DummyPipeline:
    """Three stages: model_1, model_2, model_3. The last one guesses labels; its accuracy follows another sine."""

    def __init__(self, *, time_scale: float = 1.0, device: str = "cpu", seed: int = 0) -> None:
        """Build the models.

        Args:
            time_scale: multiplies every duration.
            device: torch device of the models.
            seed: seed of the guesses.

        Raises:
            UsageError: for a negative `time_scale`.
        """
        if not time_scale >= 0:
            raise UsageError(f"pipeline.time_scale={time_scale}: allowed: at least 0")
        one, two, three = (SineModel(period, time_scale=time_scale).to(device) for period in PERIODS)
        self._three = three
        self._seed = seed
        self.stages = {"model_1": one, "model_2": two, "model_3": self._detect}

    def _detect(self, items_B2: Tensor) -> Tensor:
        """Return guessed labels, shape (B,), int64; record num_detections."""
        self._three(items_B2)
        index = float(items_B2[0, 0])
        record("num_detections", 10 + 5 * math.sin(2 * math.pi * index / _DETECTIONS_PERIOD), unit="{detection}")
        labels_B = items_B2[:, 1].long()
        accuracy = 0.75 + 0.2 * math.sin(2 * math.pi * index / _ACCURACY_PERIOD)
        draw = random.Random(f"{self._seed}:{index}")
        right_B = torch.tensor([draw.random() < accuracy for _ in range(len(labels_B))])
        return torch.where(right_B.to(labels_B.device), labels_B, 1 - labels_B)


class DummyData:
    """Numbered batches with labels of 0 and 1."""

    def __init__(self, *, num_batches: int = 1000, batch_size: int = 1, seed: int = 0) -> None:
        self._num_batches = num_batches
        self._batch_size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        draw = random.Random(self._seed)
        for index in range(self._num_batches):
            labels_B = torch.tensor([draw.randrange(2) for _ in range(self._batch_size)])
            items_B2 = torch.stack([torch.full((self._batch_size,), index), labels_B], dim=1).double()
            ids = [f"{index}.{n}" for n in range(self._batch_size)]
            yield Batch(index, ids, items_B2, labels_B, self._batch_size)

    def close(self) -> None:
        """Close nothing."""


class Score:
    """Share of right labels: the accuracy of the dummy pipeline."""

    def __init__(self) -> None:
        self._num_right = 0
        self._num_items = 0

    def update(self, output: Tensor, targets: Tensor) -> float:
        """Add a batch and return its share; `output` and `targets` are labels, shape (B,), int64."""
        num_right = int((output == targets).sum())
        self._num_right += num_right
        self._num_items += len(targets)
        return num_right / len(targets)

    def compute(self) -> float:
        """Return the share over all batches.

        Raises:
            ValueError: before the first batch.
        """
        if not self._num_items:
            raise ValueError("no item was scored")
        return self._num_right / self._num_items

    def sample_scores(self, output: Tensor, targets: Tensor) -> list[float | None]:
        """Return 1 for each right label, 0 for each wrong one."""
        return [float(right) for right in output == targets]

    def state(self) -> dict[str, Any]:
        """Return the counts so far."""
        return {"num_right": self._num_right, "num_items": self._num_items}

    def merge(self, state: dict[str, Any]) -> None:
        """Add the counts of another instance."""
        self._num_right += state["num_right"]
        self._num_items += state["num_items"]
