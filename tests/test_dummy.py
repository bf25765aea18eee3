"""The dummy pipeline: durations and accuracy follow sine waves, and the same seed gives the same guesses."""

import math

import pytest
import torch

from mlotel_cli import dummy
from mlotel_cli.dummy import DummyData, DummyPipeline, Score, SineModel
from mlotel_cli.errors import UsageError
from mlotel_cli.execute import Numbered, SequentialExecutor
from mlotel_cli.records import Batch
from tests.support.spans import recording


class Time:
    """A clock that advances only by sleeping, at first by a little less than requested."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        monkeypatch.setattr(dummy.time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(dummy.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds * 0.9 if seconds > 1e-4 else seconds


def items(index: int, *, label: int = 1, size: int = 1) -> torch.Tensor:
    return torch.tensor([[index, label]] * size, dtype=torch.float64)


@pytest.mark.parametrize("time_scale", [1.0, 0.01])
@pytest.mark.parametrize(("stage", "period"), [("model_1", 250), ("model_2", 500), ("model_3", 1000)])
def test_durations_are_50_plus_minus_25_ms_on_a_sine(
    monkeypatch: pytest.MonkeyPatch, stage: str, period: int, time_scale: float
) -> None:
    time = Time(monkeypatch)
    run = DummyPipeline(time_scale=time_scale).stages[stage]
    for index, expected_ms in (
        (0, 50.0),
        (period // 4, 75.0 if period % 4 == 0 else 50 + 25 * math.sin(2 * math.pi * (period // 4) / period)),
        (period // 2, 50.0),
        (3 * period // 4, 50 + 25 * math.sin(2 * math.pi * (3 * period // 4) / period)),
        (period + 7, 50 + 25 * math.sin(2 * math.pi * 7 / period)),
    ):
        before = time.now_s
        run(items(index))
        assert (time.now_s - before) * 1e3 == pytest.approx(expected_ms * time_scale, abs=1e-6)


def test_extremes_and_period_are_those_of_the_talk() -> None:
    for period in (250, 500, 1000):
        durations = [SineModel(period, time_scale=1.0).duration_s(index) for index in range(period)]
        assert max(durations) == pytest.approx(0.075, abs=2e-5)
        assert min(durations) == pytest.approx(0.025, abs=2e-5)
        assert sum(durations) / period == pytest.approx(0.050)
        assert durations[3] == pytest.approx(SineModel(period, time_scale=1.0).duration_s(period + 3))


def test_num_detections_is_recorded_once_a_batch() -> None:
    executor = SequentialExecutor(DummyPipeline(time_scale=0.0).stages)
    batches = [Numbered(n, 0, Batch(index, ["0"], items(index))) for n, index in enumerate((0, 125, 375))]
    with recording() as recorded:
        assert [finished.error for finished in executor.run(iter(batches))] == [None] * 3
    assert recorded.values == [("num_detections", pytest.approx(value), "{detection}") for value in (10, 15, 5)]
    assert recorded.names() == ["model_1", "model_2", "model_3", "batch"] * 3


def test_guesses_are_as_good_as_their_sine_says() -> None:
    pipeline = DummyPipeline(time_scale=0.0)

    def share(index: int) -> float:
        return pipeline.stages["model_3"](items(index, size=4000)).double().mean().item()

    assert share(0) == pytest.approx(0.75, abs=0.03)
    assert share(250) == pytest.approx(0.95, abs=0.03)
    assert share(750) == pytest.approx(0.55, abs=0.03)


def test_guesses_depend_on_the_seed_alone() -> None:
    one, same, other = (DummyPipeline(time_scale=0.0, seed=seed).stages["model_3"] for seed in (1, 1, 2))
    torch.manual_seed(99)
    a, b, c = (stage(items(3, size=64)) for stage in (one, same, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert set(a.tolist()) <= {0, 1}


@pytest.mark.parametrize("time_scale", [-1.0, float("nan")])
def test_time_does_not_run_backwards(time_scale: float) -> None:
    with pytest.raises(UsageError, match=r"^pipeline\.time_scale=(-1\.0|nan): allowed: at least 0$"):
        DummyPipeline(time_scale=time_scale)


def test_models_pass_their_items_on() -> None:
    given = items(3, size=2)
    assert DummyPipeline(time_scale=0.0).stages["model_1"](given) is given


def test_data_are_the_same_every_time() -> None:
    data = DummyData(num_batches=3, batch_size=2, seed=5)
    first, second = list(data), list(data)
    assert len(data) == len(first) == 3
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.data, b.data)
    assert [(b.index, b.ids, b.size) for b in first] == [
        (0, ["0.0", "0.1"], 2),
        (1, ["1.0", "1.1"], 2),
        (2, ["2.0", "2.1"], 2),
    ]
    assert [b.data[:, 0].tolist() for b in first] == [[0, 0], [1, 1], [2, 2]]
    assert all(torch.equal(b.data[:, 1].long(), b.targets) for b in first)
    labels = torch.cat([b.targets for b in DummyData(num_batches=200)])
    assert 60 < int(labels.sum()) < 140


def test_other_seeds_give_other_labels() -> None:
    def labels(seed: int) -> list[Batch]:
        return torch.cat([b.targets for b in DummyData(num_batches=64, seed=seed)]).tolist()

    assert labels(0) != labels(1)


def test_score_is_the_share_of_right_labels() -> None:
    score = Score()
    with pytest.raises(ValueError, match="no item was scored"):
        score.compute()
    assert score.update(torch.tensor([1, 0]), torch.tensor([1, 1])) == 0.5
    assert score.update(torch.tensor([1]), torch.tensor([1])) == 1.0
    assert score.compute() == pytest.approx(2 / 3)  # of items, not of batches
    assert score.sample_scores(torch.tensor([1, 0]), torch.tensor([1, 1])) == [1.0, 0.0]
    other = Score()
    other.update(torch.tensor([0]), torch.tensor([1]))
    score.merge(other.state())
    assert score.compute() == 0.5
