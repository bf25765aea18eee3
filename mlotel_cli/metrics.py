"""What scores a batch: the Metric contract, the adapter for torchmetrics, and the checks around both."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from mlotel_cli.errors import StageError
from mlotel_cli.records import Batch, Sample

_SMALL_CHARS = 500
"""Predictions and targets up to this length of JSON text are kept with their sample."""


@runtime_checkable
class Metric(Protocol):
    """Scores batches and, over all of them, the run.

    May also have `sample_scores(output, targets) -> Sequence[float | None]`, one score an item, higher being better: the
    worst samples are found by it. `state()` and `merge(state)` let a run be split and joined again.
    """

    def update(self, output: Any, targets: Any) -> float | None:
        """Take a batch; its own score, or None where one batch has none."""
        ...

    def compute(self) -> float:
        """The score over every batch taken so far. Raises ValueError when there is nothing to compute it from."""
        ...


class TorchMetric:
    """A torchmetrics metric as a Metric: `score: {_target_: mlotel_cli.metrics.TorchMetric, metric: {_target_: ...}}`.

    The metric must be a scalar one. Its state stays on the device that it was built for; reading a batch's score
    synchronises with that device, outside every root span.
    """

    def __init__(self, metric: Any) -> None:
        """Wrap a `torchmetrics.Metric`."""
        self._metric = metric

    def update(self, output: Any, targets: Any) -> float | None:
        """Score and accumulate a batch through the metric's forward."""
        return float(self._metric(output, targets))

    def compute(self) -> float:
        """The accumulated value."""
        return float(self._metric.compute())

    def reset(self) -> None:
        """Forget every batch."""
        self._metric.reset()

    def state(self) -> dict[str, Any]:
        """The accumulated state, as plain tensors."""
        return {name: getattr(self._metric, name) for name in self._metric._defaults}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add a state of another instance, by each state's own reduction."""
        for name, value in state.items():
            reduction = self._metric._reductions[name]
            mine = getattr(self._metric, name)
            if isinstance(mine, list):
                merged: Any = [*cast("list[Any]", mine), *value]
            elif reduction is None:
                raise ValueError(f"state {name} of {type(self._metric).__name__} has no reduction to merge by")
            else:
                import torch

                merged = reduction(torch.stack([mine, value]))
            setattr(self._metric, name, merged)


class Scorer:
    """All metrics of a run: scores a batch by each, and says plainly which one failed on what."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        """Take the metrics by name."""
        self._metrics = dict(metrics)

    def score(self, batch: Batch, output: Any, *, index: int) -> tuple[dict[str, float], list[Sample]]:
        """This batch's scores, and its samples.

        Raises:
            StageError: when the output holds NaN or infinity, or a metric fails on it.
        """
        place = find_not_finite(output)
        if place is not None:
            raise StageError(f"batch {index}: the pipeline's output has {place}; it cannot be scored")
        scores: dict[str, float] = {}
        of_samples: dict[str, Sequence[float | None]] = {}
        for name, metric in self._metrics.items():
            try:
                score = metric.update(output, batch.targets)
                per_sample = getattr(metric, "sample_scores", None)
                if per_sample is not None:
                    of_samples[name] = per_sample(output, batch.targets)
            except Exception as error:
                raise StageError(f"batch {index}: metric {name} failed: {type(error).__name__}: {error}") from error
            if score is None:
                continue
            if not math.isfinite(score):
                raise StageError(f"batch {index}: metric {name} scored {score}")
            scores[name] = float(score)
        return scores, _samples(batch, output, of_samples)

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


def find_not_finite(value: Any, place: str = "") -> str | None:
    """Where `value`, a tensor, number or nest of them, first is NaN or infinite; None when it is finite.

    Synchronises with the device of a tensor.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} at {place or 'its top'}"
    if isinstance(value, str | bytes | int | None):
        return None
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return next(filter(None, (find_not_finite(item, f"{place}[{key!r}]") for key, item in items)), None)
    if isinstance(value, tuple | list):
        numbered = enumerate(cast("list[Any]", value))
        return next(filter(None, (find_not_finite(item, f"{place}[{n}]") for n, item in numbered)), None)
    is_floating_point = getattr(value, "is_floating_point", None)
    if callable(is_floating_point) and is_floating_point():
        finite = value.isfinite()
        if not bool(finite.all()):
            return f"{int((~finite).sum())} NaN or infinite values at {place or 'its top'}"
    return None


def _samples(batch: Batch, output: Any, scores: Mapping[str, Sequence[float | None]]) -> list[Sample]:
    outputs, targets = _per_item(output, batch.size), _per_item(batch.targets, batch.size)
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
    if getattr(values, "ndim", None) == 1 and len(values) == size:
        return values.tolist()
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
    if getattr(value, "numel", lambda: _SMALL_CHARS)() < _SMALL_CHARS:
        return value.tolist()
    raise TypeError
