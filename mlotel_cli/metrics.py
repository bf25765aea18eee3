"""What scores a batch: the Metric contract, the adapter for torchmetrics, and the checks around both."""

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
"""Samples that get an image are those that were among so many worst when they were scored."""
_SMALL_CHARS = 500
"""Predictions and targets up to this length of JSON text are kept with their sample."""
_SMALL_BYTES = 8 * _SMALL_CHARS
"""A tensor above this is not even turned into text."""

logger = logging.getLogger(__name__)


@runtime_checkable
class Metric(Protocol):
    """Scores batches and, over all of them, the run.

    May also have `sample_scores(output, targets) -> Sequence[float | None]`, one score an item, higher being better:
    the worst samples are found by it. `sample_image(data, output, targets, index) -> bytes | None` draws one item as a
    small PNG, for those among the worst. `state()` and `merge(state)` let a run be split and joined again.
    """

    def update(self, output: Any, targets: Any) -> float | None:
        """Take a batch; its own score, or None where one batch has none."""
        ...

    def compute(self) -> float:
        """The score over every batch taken so far. Raises ValueError when there is nothing to compute it from."""
        ...


class TorchMetric:
    """A torchmetrics metric as a Metric: `score: {_target_: mlotel_cli.metrics.TorchMetric, metric: {_target_: ...}}`.

    The metric must be a scalar one. It moves to the device of the output at the first batch; reading a batch's score
    synchronises with that device, outside every root span.
    """

    def __init__(self, metric: Any) -> None:
        """Wrap a `torchmetrics.Metric`."""
        self._metric = metric
        self._device: Any = None

    def update(self, output: Any, targets: Any) -> float | None:
        """Score and accumulate a batch through the metric's forward; None where that gives NaN for one batch alone."""
        if self._device is None:
            self._device = first_device(output)
            if self._device is not None:
                self._metric.to(self._device)
        if self._device is not None:
            targets = move(targets, self._device)
        score = float(self._metric(output, targets))
        return None if math.isnan(score) else score

    def compute(self) -> float:
        """The accumulated value. Raises ValueError before the first batch."""
        if not self._metric.update_called:
            raise ValueError("no batch was scored")
        return float(self._metric.compute())

    def reset(self) -> None:
        """Forget every batch."""
        self._metric.reset()

    def state(self) -> dict[str, Any]:
        """A copy of the accumulated state, on the CPU, and the number of updates behind it."""
        states = {name: _copy(getattr(self._metric, name)) for name in self._metric._defaults}
        return {"num_updates": self._metric.update_count, "states": states}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the state of another instance, by each part's own reduction.

        torchmetrics' own `merge_state` refuses many metrics, and weighs means as if one batch came in.

        Raises:
            ValueError: for a metric whose states have no reduction.
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
        metric._computed = None  # or compute() would answer from before


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
    """All metrics of a run: scores a batch by each, and says plainly which one failed on what."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        """Take the metrics by name."""
        self._metrics = dict(metrics)
        self._worst: list[float] = []

    def score(self, batch: Batch, output: Any, *, index: int) -> tuple[dict[str, float], list[Sample]]:
        """This batch's scores, and its samples.

        Raises:
            StageError: when the output holds NaN, or a metric fails on it or scores it NaN or infinite.
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
                    of_samples[name] = _one_an_item(per_item(output, batch.targets), len(batch.ids))
            except Exception as error:
                raise StageError(f"batch {index}: metric {name} failed: {type(error).__name__}: {error}") from error
        samples = _samples(batch, output, of_samples)
        self._draw(batch, output, samples)
        return scores, samples

    def _draw(self, batch: Batch, output: Any, samples: Sequence[Sample]) -> None:
        """Give the samples that are among the worst so far an image, by the first metric with `sample_image`."""
        draw = next(filter(None, (getattr(metric, "sample_image", None) for metric in self._metrics.values())), None)
        if draw is None:
            return
        for place, sample in enumerate(samples):
            given = [score for score in sample.scores.values() if score is not None]
            if not given or not self._is_among_the_worst(sum(given) / len(given)):
                continue
            try:
                sample.image = draw(batch.data, output, batch.targets, place)
            except Exception as error:  # a picture must not cost the score
                logger.warning("no image of sample %s: %s: %s", sample.id, type(error).__name__, error)

    def _is_among_the_worst(self, mean: float) -> bool:
        if len(self._worst) < _NUM_WORST:
            heapq.heappush(self._worst, -mean)
            return True
        return -mean > heapq.heappushpop(self._worst, -mean)

    def compute(self) -> tuple[dict[str, float | None], dict[str, str]]:
        """Every metric over the run; None, with the reason beside it, where one cannot be computed."""
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
        """95 % intervals, [low, high], of the metrics that have `ci95()`; absent where it fails or returns None.

        Others get theirs from their batches' scores, if their value is the mean of those (`analysis.summarise`).
        """
        found: dict[str, list[float]] = {}
        for name, metric in self._metrics.items():
            try:
                interval = getattr(metric, "ci95", _no_interval)()
            except Exception as error:  # an interval that cannot be had must not cost the value
                logger.warning("metric %s has no interval: %s: %s", name, type(error).__name__, error)
                continue
            if interval is not None and all(map(math.isfinite, interval)):
                found[name] = [float(bound) for bound in interval]
        return found


def _no_interval() -> None:
    return None


def _finite(score: float) -> float:
    if not math.isfinite(score):
        raise ValueError(f"it scored {score}; a batch that has no score is None")
    return score


def _one_an_item(scores: Iterable[float | None], num_items: int) -> list[float | None]:
    listed = [None if score is None or math.isnan(score) else float(score) for score in scores]
    if len(listed) != num_items:
        raise ValueError(f"sample_scores gave {len(listed)} scores for {num_items} items")
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
    """`values` by item where it is a list with one entry an item, or a tensor whose items are numbers."""
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
    """A small tensor or array as a list."""
    if getattr(value, "nbytes", _SMALL_BYTES) < _SMALL_BYTES:
        return value.tolist()
    raise TypeError
