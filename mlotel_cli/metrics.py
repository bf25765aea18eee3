"""Scores batches: the Metric contract, the adapter for torchmetrics, and the checks of their results."""

import heapq
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from mlotel_cli.errors import StageError
from mlotel_cli.records import Batch, Sample
from mlotel_cli.tensors import find_nan, first_device, move

_NUM_WORST = 20
"""A sample gets an image if it is among this many worst samples at the time of its score."""
_SMALL_CHARS = 500
"""Predictions and targets up to this length of JSON text are stored with their sample."""
_SMALL_BYTES = 8 * _SMALL_CHARS
"""A larger tensor is not converted to text."""

logger = logging.getLogger(__name__)


@runtime_checkable
class Metric(Protocol):
    """Scores batches, and the run over all batches.

    These methods are optional:
        sample_scores(output, targets) -> Sequence[float | None]: one score per item, higher is better; it finds the
            worst samples.
        sample_image(data, output, targets, index) -> bytes | None: draws one of the worst items as a small PNG.
        ci95() -> tuple[float, float] | None: 95 % interval of the run's score.
        state() and merge(state): allow to score parts of a run separately and join them.
    """

    def update(self, output: Any, targets: Any) -> float | None:
        """Add a batch; return its score, or None when a single batch has no score."""
        ...

    def compute(self) -> float:
        """Return the score over all batches so far.

        Raises:
            ValueError: when no batch was scored.
        """
        ...


class TorchMetric:
    """A torchmetrics metric as a Metric: `score: {_target_: mlotel_cli.metrics.TorchMetric, metric: {_target_: ...}}`.

    The metric must return a scalar. At the first batch it moves to the device of the output. Reading a batch's score
    synchronises with that device, outside every root span.
    """

    def __init__(self, metric: Any) -> None:
        self._metric = metric
        self._device: Any = None

    def update(self, output: Any, targets: Any) -> float | None:
        """Score and accumulate a batch by the metric's forward; None when it returns NaN for the single batch."""
        if self._device is None:
            self._device = first_device(output)
            if self._device is not None:
                self._metric.to(self._device)
        if self._device is not None:
            targets = move(targets, self._device)
        score = float(self._metric(output, targets))
        return None if math.isnan(score) else score

    def compute(self) -> float:
        """Return the accumulated value.

        Raises:
            ValueError: before the first batch.
        """
        if not self._metric.update_called:
            raise ValueError("no batch was scored")
        return float(self._metric.compute())

    def state(self) -> dict[str, Any]:
        """Return a copy of the accumulated state, on the CPU, and its number of updates."""
        states = {name: _copy(getattr(self._metric, name)) for name in self._metric._defaults}
        return {"num_updates": self._metric.update_count, "states": states}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the state of another instance, by the reduction of each part.

        It replaces torchmetrics' `merge_state`, which refuses many metrics and weights means as for a single batch.

        Raises:
            ValueError: for a metric with a state that has no reduction.
        """
        metric, added = self._metric, int(state["num_updates"])
        if not added:
            return
        merged: dict[str, Any] = {}
        for name, theirs in state["states"].items():
            mine, reduction = getattr(metric, name), metric._reductions[name]
            if reduction is None and not isinstance(mine, list):
                raise ValueError(f"{type(metric).__name__} cannot be merged: its state {name} has no reduction")
            merged[name] = _merge(mine, move(theirs, metric.device), reduction, weights=(metric.update_count, added))
        for name, value in merged.items():
            setattr(metric, name, value)
        metric._update_count += added
        metric._computed = None  # otherwise compute() would return its cached value


def _copy(state: Any) -> Any:
    if isinstance(state, list):
        return [_copy(part) for part in cast("list[Any]", state)]
    return state.detach().cpu().clone()


def _merge(mine: Any, theirs: Any, reduction: Any, *, weights: tuple[int, int]) -> Any:
    import torch
    from torchmetrics.utilities.data import dim_zero_cat, dim_zero_mean

    if isinstance(mine, list):
        return [*cast("list[Any]", mine), *theirs]
    if reduction is dim_zero_cat:
        return torch.cat([mine, theirs])
    if reduction is dim_zero_mean:
        return (mine * weights[0] + theirs * weights[1]) / sum(weights)
    return reduction(torch.stack([mine, theirs]))


class Scorer:
    """Scores batches by all metrics of a run; an error names the metric and the batch."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self._metrics = dict(metrics)
        self._worst: list[float] = []

    def score(self, batch: Batch, output: Any, *, index: int) -> tuple[dict[str, float], list[Sample]]:
        """Return the batch's scores and its samples.

        Raises:
            StageError: when the output contains NaN, a metric fails, or a score is NaN or infinite.
        """
        nan = find_nan(output)
        if nan is not None:
            raise StageError(f"batch {index}: the pipeline's output has {nan}; it cannot be scored")
        scores: dict[str, float] = {}
        of_samples: dict[str, list[float | None]] = {}
        for name, metric in self._metrics.items():
            try:
                score = metric.update(output, batch.targets)
                if score is not None:
                    scores[name] = _finite(float(score))
                per_item = getattr(metric, "sample_scores", None)
                if per_item is not None:
                    of_samples[name] = _check_sample_scores(per_item(output, batch.targets), len(batch.ids))
            except Exception as error:
                raise StageError(f"batch {index}: metric {name} failed: {type(error).__name__}: {error}") from error
        samples = _samples(batch, output, of_samples)
        self._draw(batch, output, samples)
        return scores, samples

    def _draw(self, batch: Batch, output: Any, samples: Sequence[Sample]) -> None:
        """Draw the samples that are among the worst so far, with the first metric that has `sample_image`."""
        draw = next(filter(None, (getattr(metric, "sample_image", None) for metric in self._metrics.values())), None)
        if draw is None:
            return
        for place, sample in enumerate(samples):
            given = [score for score in sample.scores.values() if score is not None]
            if not given or not self._is_among_the_worst(sum(given) / len(given)):
                continue
            try:
                sample.image = draw(batch.data, output, batch.targets, place)
            except Exception as error:  # the score stays valid without an image
                logger.warning("no image of sample %s: %s: %s", sample.id, type(error).__name__, error)

    def _is_among_the_worst(self, mean: float) -> bool:
        if len(self._worst) < _NUM_WORST:
            heapq.heappush(self._worst, -mean)
            return True
        return -mean > heapq.heappushpop(self._worst, -mean)

    def compute(self) -> tuple[dict[str, float | None], dict[str, str]]:
        """Return every metric's value over the run, and the reasons for those that are None."""
        values: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for name, metric in self._metrics.items():
            try:
                value = float(metric.compute())
            except Exception as error:
                values[name], reasons[name] = None, f"{type(error).__name__}: {error}"
                continue
            values[name] = value if math.isfinite(value) else None
            if not math.isfinite(value):
                reasons[name] = f"it computed {value}"
        return values, reasons

    def intervals(self) -> dict[str, list[float]]:
        """Return 95 % intervals, [low, high], of the metrics with `ci95()`, unless it fails or returns None.

        `analysis.summarise` computes those of other metrics whose value is the mean of their batches' scores.
        """
        found: dict[str, list[float]] = {}
        for name, metric in self._metrics.items():
            try:
                interval = getattr(metric, "ci95", lambda: None)()
            except Exception as error:  # the value stays valid without an interval
                logger.warning("metric %s has no interval: %s: %s", name, type(error).__name__, error)
                continue
            if interval is not None and all(map(math.isfinite, interval)):
                found[name] = [float(bound) for bound in interval]
        return found


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise ValueError(f"update returned {score}; return None for a batch without a score")
    return score


def _check_sample_scores(scores: Iterable[float | None], num_items: int) -> list[float | None]:
    listed = [None if score is None or math.isnan(score) else float(score) for score in scores]
    if len(listed) != num_items:
        raise ValueError(f"sample_scores returned {len(listed)} scores for {num_items} items")
    return listed


def _samples(batch: Batch, output: Any, scores: Mapping[str, Sequence[float | None]]) -> list[Sample]:
    outputs, targets = _per_item(output, len(batch.ids)), _per_item(batch.targets, len(batch.ids))
    return [
        Sample(
            id=str(identity),
            scores={name: per_item[n] for name, per_item in scores.items()},
            prediction=_small(outputs[n]),
            target=_small(targets[n]),
        )
        for n, identity in enumerate(batch.ids)
    ]


def _per_item(values: Any, size: int) -> Sequence[Any]:
    """Return one value per item from a list with one entry per item or a tensor of numbers; otherwise Nones."""
    if isinstance(values, list | tuple) and len(cast("list[Any]", values)) == size:
        return cast("list[Any]", values)
    tensor = cast("Any", values)
    if getattr(tensor, "ndim", None) == 1 and len(tensor) == size:
        return tensor.tolist()
    return [None] * size


def _small(value: Any) -> str | None:
    if value is None:
        return None
    try:
        text = json.dumps(value, default=_to_list)
    except (TypeError, ValueError):
        return None
    return text if len(text) <= _SMALL_CHARS else None


def _to_list(value: Any) -> Any:
    """Return a small tensor or array as a list; raise TypeError for anything else."""
    if getattr(value, "nbytes", _SMALL_BYTES) < _SMALL_BYTES:
        return value.tolist()
    raise TypeError
