"""Scores are checked, samples are kept, and merged torchmetrics agree with a single process."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.regression import PearsonCorrCoef

from mlotel_cli.errors import StageError
from mlotel_cli.metrics import Metric, Scorer, TorchMetric
from mlotel_cli.records import Batch
from tests.support.parts import Distance, Right

NAN = float("nan")


def batch(targets: Any, *, ids: list[str] | None = None) -> Batch:
    names = ["a", "b"] if ids is None else ids
    return Batch(0, names, None, targets, len(names))


# -- the scorer ------------------------------------------------------------------------------------------------------


def test_every_metric_scores_the_batch_and_the_run() -> None:
    scorer = Scorer({"right": Right(), "distance": Distance()})
    scores, _ = scorer.score(batch(torch.tensor([2.0, 2.0])), torch.tensor([2.0, 3.0]), index=0)
    assert scores == {"right": 0.5, "distance": 0.5}
    scorer.score(batch(torch.tensor([2.0, 2.0])), torch.tensor([2.0, 2.0]), index=1)
    assert scorer.compute() == ({"right": 0.75, "distance": 0.25}, {})


def test_a_batch_without_a_score_has_none() -> None:
    class Sparse(Distance):
        def update(self, output: Any, targets: Any) -> None:  # type: ignore[override]
            super().update(output, targets)

    scores, _ = Scorer({"sparse": Sparse()}).score(batch(torch.ones(2)), torch.ones(2), index=0)
    assert scores == {}


@pytest.mark.parametrize("given", [torch.tensor(0.5), np.float32(0.5), 0.5, True])
def test_scores_are_plain_floats(given: Any) -> None:
    class Gives(Distance):
        def update(self, output: Any, targets: Any) -> Any:
            return given

    scores, _ = Scorer({"m": Gives()}).score(batch(torch.ones(2)), torch.ones(2), index=0)
    assert type(scores["m"]) is float
    assert scores["m"] == float(given)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (NAN, "batch 7: metric m failed: ValueError: update returned nan; return None for a batch without a score"),
        (
            float("inf"),
            "batch 7: metric m failed: ValueError: update returned inf; return None for a batch without a score",
        ),
        ("high", "batch 7: metric m failed: ValueError: could not convert string to float: 'high'"),
        ([1], "batch 7: metric m failed: TypeError: "),
    ],
)
def test_a_score_that_is_no_number_names_batch_and_metric(gives: Any, message: str) -> None:
    class Gives(Distance):
        def update(self, output: Any, targets: Any) -> Any:
            return gives

    with pytest.raises(StageError) as raised:
        Scorer({"m": Gives()}).score(batch(torch.ones(2)), torch.ones(2), index=7)
    assert str(raised.value).startswith(message)


def test_a_metric_that_raises_names_batch_and_metric() -> None:
    with pytest.raises(StageError, match=r"^batch 3: metric right failed: KeyError: 'no such label'$") as raised:
        Scorer({"right": Right(fails_on=0)}).score(batch(torch.tensor([2.0])), torch.tensor([2.0]), index=3)
    assert isinstance(raised.value.__cause__, KeyError)


def test_nan_is_refused_before_any_metric_counts_it() -> None:
    metric = Distance()
    with pytest.raises(StageError, match=r"^batch 3: the pipeline's output has 1 NaN value at \['boxes'\]; it cannot"):
        Scorer({"d": metric}).score(batch(None), {"boxes": torch.tensor([NAN])}, index=3)
    assert metric.taken == []


@pytest.mark.parametrize(
    ("computes", "reason"), [("nan", "it computed nan"), ("error", "ValueError: no item was scored")]
)
def test_a_metric_that_cannot_be_computed_says_why_and_leaves_the_others_alone(computes: str, reason: str) -> None:
    scorer = Scorer({"bad": Right(computes=computes), "good": Distance()})
    scorer.score(batch(torch.tensor([2.0, 2.0])), torch.tensor([2.0, 2.0]), index=0)
    assert scorer.compute() == ({"bad": None, "good": 0.0}, {"bad": reason})


# -- samples ---------------------------------------------------------------------------------------------------------


def samples_of(output: Any, targets: Any, *, ids: list[str], metrics: dict[str, Metric] | None = None) -> list[Any]:
    return Scorer(metrics or {}).score(batch(targets, ids=ids), output, index=0)[1]


def test_samples_have_their_scores_prediction_and_target() -> None:
    one, two = samples_of(torch.tensor([2.0, 1.0]), torch.tensor([2.0, 2.0]), ids=["x", "y"], metrics={"r": Right()})
    assert (one.id, one.scores, one.prediction, one.target) == ("x", {"r": 1.0}, "2.0", "2.0")
    assert (two.id, two.scores, two.prediction, two.target) == ("y", {"r": 0.0}, "1.0", "2.0")


def test_results_a_list_per_item_are_kept_as_json_when_small() -> None:
    output = [{"text": "AB12", "box": torch.tensor([1, 2])}, {"mask": torch.zeros(100, 100)}]
    one, two = samples_of(output, [{"text": "AB13", "ids": np.array([4])}, {"long": "x" * 600}], ids=["x", "y"])
    assert json.loads(one.prediction) == {"text": "AB12", "box": [1, 2]}
    assert json.loads(one.target) == {"text": "AB13", "ids": [4]}
    assert (two.prediction, two.target) == (None, None)


@pytest.mark.parametrize("output", [torch.ones(2, 3), [1], {"a": 1}, None, "ab", torch.tensor(1.0)])
def test_an_output_that_is_not_one_entry_an_item_is_left_out(output: Any) -> None:
    assert [sample.prediction for sample in samples_of(output, None, ids=["x", "y"])] == [None, None]


def test_sample_scores_may_be_missing_for_an_item() -> None:
    class Some(Distance):
        def sample_scores(self, output: Any, targets: Any) -> list[float | None]:
            return [None, NAN]

    samples = samples_of(torch.ones(2), torch.ones(2), ids=["x", "y"], metrics={"s": Some()})
    assert [sample.scores for sample in samples] == [{"s": None}, {"s": None}]


def test_sample_scores_must_be_one_an_item() -> None:
    class Few(Distance):
        def sample_scores(self, output: Any, targets: Any) -> list[float]:
            return [1.0]

    with pytest.raises(StageError, match="metric few failed: ValueError: sample_scores returned 1 scores for 2 items"):
        samples_of(torch.ones(2), torch.ones(2), ids=["x", "y"], metrics={"few": Few()})


# -- torchmetrics ----------------------------------------------------------------------------------------------------


def classes(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    every = torch.arange(count) % 3  # a class that a batch lacks makes torchmetrics warn
    return torch.rand(count, 3, generator=draw).softmax(dim=1), every[torch.randperm(count, generator=draw)]


def numbers(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(count, generator=draw)
    return x, x + 0.1 * torch.rand(count, generator=draw)


class Range(torchmetrics.Metric):
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("low", torch.tensor(torch.inf), dist_reduce_fx="min")
        self.add_state("high", torch.tensor(-torch.inf), dist_reduce_fx="max")

    def update(self, output: torch.Tensor, targets: torch.Tensor) -> None:
        self.low = torch.minimum(self.low, output.min())
        self.high = torch.maximum(self.high, output.max())

    def compute(self) -> torch.Tensor:
        return self.high - self.low


MERGED = {
    "Accuracy": (lambda: torchmetrics.Accuracy("multiclass", num_classes=3), classes),
    "F1": (lambda: torchmetrics.F1Score("multiclass", num_classes=3, average="macro"), classes),
    "AUROC": (lambda: torchmetrics.AUROC("multiclass", num_classes=3), classes),  # list states
    "AUROC binned": (lambda: torchmetrics.AUROC("multiclass", num_classes=3, thresholds=10), classes),
    "Calibration": (lambda: torchmetrics.CalibrationError("multiclass", num_classes=3), classes),
    "MAE": (torchmetrics.MeanAbsoluteError, numbers),
    "MSE root": (lambda: torchmetrics.MeanSquaredError(squared=False), numbers),
    "R2": (torchmetrics.R2Score, numbers),
    "Range": (lambda: Range(), numbers),  # min and max states
    "PSNR": (lambda: PeakSignalNoiseRatio(data_range=1.0), numbers),
}
SIZES = (6, 3, 4, 5)


@pytest.mark.parametrize("name", MERGED)
def test_parts_merged_equal_one_process(name: str) -> None:
    build, draw = MERGED[name]
    whole = TorchMetric(build())
    parts = [TorchMetric(build()), TorchMetric(build())]
    for seed, size in enumerate(SIZES):
        whole.update(*draw(seed, size))
        parts[seed > 0].update(*draw(seed, size))  # one batch, and three
    parts[0].compute()  # the cached result must not be returned again
    parts[0].merge(parts[1].state())
    assert parts[0].compute() == pytest.approx(whole.compute(), rel=1e-5)
    assert parts[0].compute() != pytest.approx(parts[1].compute(), rel=1e-5)


class MeanState(torchmetrics.Metric):
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("mean", torch.tensor(0.0), dist_reduce_fx="mean")

    def update(self, output: torch.Tensor, targets: Any) -> None:
        self.mean = output.mean()

    def compute(self) -> torch.Tensor:
        return self.mean


def test_means_are_weighed_by_their_number_of_updates() -> None:
    one, three = TorchMetric(MeanState()), TorchMetric(MeanState())
    one.update(torch.tensor([1.0]), None)
    for _ in range(3):
        three.update(torch.tensor([5.0]), None)
    one.merge(three.state())
    assert one.compute() == 4.0
    one.merge({**three.state()})
    assert one.compute() == pytest.approx((4 * 4 + 3 * 5) / 7)


def test_merging_nothing_changes_nothing() -> None:
    metric = TorchMetric(torchmetrics.MeanAbsoluteError())
    metric.update(*numbers(0, 4))
    before = metric.compute()
    metric.merge(TorchMetric(torchmetrics.MeanAbsoluteError()).state())
    assert metric.compute() == before


def test_merging_nothing_into_nothing_is_nothing() -> None:
    metric = TorchMetric(MeanState())
    metric.merge(TorchMetric(MeanState()).state())
    metric.update(torch.tensor([5.0]), None)
    assert metric.compute() == 5.0


def test_a_metric_without_reductions_is_refused_and_left_whole() -> None:
    one, two = TorchMetric(PearsonCorrCoef()), TorchMetric(PearsonCorrCoef())
    one.update(*numbers(0, 8))
    two.update(*numbers(1, 8))
    before = one.compute()
    with pytest.raises(ValueError, match=r"^PearsonCorrCoef cannot be merged: its state "):
        one.merge(two.state())
    assert one.compute() == before


def test_a_state_is_a_copy() -> None:
    auroc = torchmetrics.AUROC("multiclass", num_classes=3)
    metric = TorchMetric(auroc)
    metric.update(*classes(0, 6))
    state = metric.state()
    lengths = [len(part) for part in state["states"].values()]
    auroc.update(*classes(1, 6))  # appends to its lists
    assert [len(part) for part in state["states"].values()] == lengths
    assert state["num_updates"] == 1


def test_update_returns_the_batchs_own_score() -> None:
    metric = TorchMetric(torchmetrics.Accuracy("multiclass", num_classes=3))
    with pytest.raises(ValueError, match=r"^no batch was scored$"):
        metric.compute()
    assert metric.update(torch.tensor([0, 1]), torch.tensor([0, 1])) == 1.0
    assert metric.update(torch.tensor([0, 1]), torch.tensor([1, 1])) == 0.5
    assert metric.compute() == 0.75


@pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero")
def test_a_batch_that_alone_gives_nan_has_no_score_but_counts() -> None:
    metric = TorchMetric(PearsonCorrCoef())
    assert metric.update(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])) is None
    assert metric.update(torch.tensor([2.0, 3.0]), torch.tensor([2.0, 3.0])) == pytest.approx(1.0)
    assert 0 < metric.compute() < 1


def test_metric_and_targets_move_to_the_outputs_device() -> None:
    class Places:
        def __init__(self) -> None:
            self.at: list[str] = []

        def to(self, device: torch.device) -> None:
            self.at.append(device.type)

        def __call__(self, output: Any, targets: Any) -> float:
            self.at.append(targets[0].device.type)
            return 1.0

    places = Places()
    metric = TorchMetric(places)
    metric.update(torch.ones(2, device="meta"), [torch.ones(2)])
    metric.update(torch.ones(2, device="meta"), [torch.ones(2)])
    assert places.at == ["meta", "meta", "meta"]  # itself once, the targets of each batch


def test_only_samples_among_the_worst_are_drawn() -> None:
    class Drawing:
        def update(self, output, targets):
            return None

        def compute(self):
            return 0.0

        def sample_scores(self, output, targets):
            return output

        def sample_image(self, data, output, targets, index):
            if output[index] == 0.05:
                raise RuntimeError("no picture")
            return f"{data}{index}".encode()

    scorer = Scorer({"drawing": Drawing()})
    _, first = scorer.score(Batch(0, [str(n) for n in range(20)], "a", None, 20), [0.5] * 20, index=0)
    _, second = scorer.score(Batch(1, ["x", "y", "z"], "b", None, 3), [0.9, 0.1, 0.05], index=1)

    assert [sample.image for sample in first] == [f"a{n}".encode() for n in range(20)]
    assert [sample.image for sample in second] == [None, b"b1", None]
