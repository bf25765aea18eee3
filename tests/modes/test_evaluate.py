"""The evaluation loop against a session that only notes; whole runs are in tests/system/test_eval.py."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from mlotel_cli.errors import DataError, StageError
from mlotel_cli.execute import Inference, SequentialExecutor, create_executor
from mlotel_cli.metrics import Scorer
from mlotel_cli.modes import evaluate
from mlotel_cli.modes.build import Built, Parts
from mlotel_cli.modes.evaluate import Evaluation
from mlotel_cli.modes.run import Closing
from mlotel_cli.pipeline import ModulePipeline, stages_of
from mlotel_cli.records import Batch
from mlotel_cli.sources import Batches
from mlotel_cli.summary import Warmup
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.clock import CLOCK
from mlotel_cli.wire import Settled
from tests.support.parts import Distance, Draws, GivesNaN, Numbers, Raises, Right, Sizes, Stages, once
from tests.support.spans import Recorded, recording


@dataclass
class Noting:
    """A session that notes what it is told. `record` turns the spans on, as a real one does."""

    closing: Closing = field(default_factory=Closing)
    rows: list[Settled] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)
    spans: Recorded | None = None
    on_room: Callable[[], None] = lambda: None

    def wait_for_room(self) -> None:
        self.on_room()

    def record(self) -> None:
        if self.spans is not None:
            api.use(self._backend)

    def tell(self, info: Any) -> None:
        self.told.append(info)

    def settle(self, settled: Settled) -> None:
        self.rows.append(settled)

    def column(self, name: str) -> list[Any]:
        return [getattr(row, name) for row in self.rows]

    def recorded_by(self, spans: Recorded) -> "Noting":
        """Start with the spans off; `record` turns on what `recording()` had turned on."""
        self.spans, self._backend = spans, api.PROVIDER.backend
        api.use(OFF)
        return self


def settings(**changed: Any) -> Any:
    given = {"warmup_batches": 0, "max_batches": None, "repeats": 1, "on_error": "fail"} | changed
    given.setdefault("control", False)
    return SimpleNamespace(seed=given.pop("seed", 0), device="cpu", eval=SimpleNamespace(**given))


def evaluation(
    data: Any,
    pipeline: Any = None,
    metrics: dict[str, Any] | None = None,
    session: Noting | None = None,
    executor: dict[str, Any] | None = None,
    **changed: Any,
) -> tuple[Evaluation, Noting]:
    session = session or Noting()
    scorer = Scorer({"right": Right()} if metrics is None else metrics)
    stages = stages_of(pipeline or Stages())
    inference = Inference("cpu")
    made = create_executor(stages, inference=inference, **executor) if executor else SequentialExecutor(stages)
    parts = Parts(Built(pipeline, stages, made, inference), Batches(data), scorer)
    console = Console(file=io.StringIO())
    return Evaluation(settings(**changed), session, parts, console), session  # type: ignore[arg-type]


def run(data: Any, pipeline: Any = None, metrics: dict[str, Any] | None = None, **changed: Any) -> Noting:
    evaluated, session = evaluation(data, pipeline, metrics, **changed)
    evaluated.run()
    return session


def fails(kind: type[Exception], *arguments: Any, **changed: Any) -> tuple[str, Noting]:
    evaluated, session = evaluation(*arguments, **changed)
    with pytest.raises(kind) as raised:
        evaluated.run()
    return str(raised.value), session


# -- what a good run tells -------------------------------------------------------------------------------------------


def test_every_batch_is_scored_and_settled_once_in_order() -> None:
    session = run(Numbers(num_batches=3))
    assert session.column("batch") == session.column("source_batch") == [0, 1, 2]
    assert session.column("status") == ["scored"] * 3
    assert session.column("size") == [2, 2, 2]
    assert session.column("accuracy") == [{"right": 1.0}] * 3
    assert session.column("error") == [""] * 3
    assert [[sample.id for sample in samples] for samples in session.column("samples")] == [
        ["0/0", "0/1"],
        ["1/0", "1/1"],
        ["2/0", "2/1"],
    ]
    assert session.closing.accuracy == {"right": 1.0}
    assert session.closing.wall_s > session.closing.scoring_s > 0  # type: ignore[operator]
    assert session.told == []


def test_scores_are_taken_outside_the_root_span() -> None:
    current: list[Any] = []

    class Looks(Distance):
        def update(self, output: Any, targets: Any) -> float:
            current.append(api.trace.get_current_span())
            return super().update(output, targets)

    with recording() as spans:
        run(Numbers(num_batches=2), metrics={"looks": Looks()}, session=Noting().recorded_by(spans))
    assert current == [api.trace.INVALID_SPAN] * 2
    assert spans.names() == ["add", "double", "batch"] * 2


def test_scoring_time_is_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(evaluate.time, "perf_counter_ns", lambda: int(clock[0] * 1e9))

    class Costs(Distance):
        def update(self, output: Any, targets: Any) -> float:
            clock[0] += 3
            return super().update(output, targets)

    def takes_time(x: Any) -> Any:
        clock[0] += 5
        return x

    session = run(Numbers(num_batches=2), Stages(add=takes_time), metrics={"costs": Costs()})
    assert (session.closing.wall_s, session.closing.scoring_s) == (16, 6)
    assert session.column("source_wait_ms") == [0, 0]


def test_repeats_number_the_batches_on() -> None:
    session = run(Numbers(num_batches=2), repeats=3)
    assert session.column("batch") == [0, 1, 2, 3, 4, 5]
    assert session.column("source_batch") == [0, 1, 0, 1, 0, 1]
    assert session.column("repeat") == [0, 0, 1, 1, 2, 2]


def test_max_batches_ends_each_pass() -> None:
    source = Numbers(num_batches=9)
    session = run(source, max_batches=2, repeats=2)
    assert session.column("source_batch") == [0, 1, 0, 1]
    assert source.yielded == 4  # and reads no further


def test_live_batches_keep_their_arrival() -> None:
    arrived = [Batch(0, ["a"], torch.zeros(1), torch.full((1,), 2.0), 1, source_time_ns=77)]
    assert run(arrived).column("source_time_ns") == [77 + CLOCK.epoch_offset_ns]


@pytest.mark.parametrize(
    ("num_batches", "limit", "repeats", "total"), [(5, None, 1, 5), (5, 3, 2, 6), (5, 9, 1, 5), (None, 3, 1, None)]
)
def test_progress_knows_how_many_are_to_come(num_batches: int | None, limit: int, repeats: int, total: int) -> None:
    data = once() if num_batches is None else Numbers(num_batches=num_batches)
    evaluated, _ = evaluation(data, max_batches=limit, repeats=repeats)
    assert evaluated._count_batches() == total


# -- warm-up ---------------------------------------------------------------------------------------------------------


def test_warm_up_batches_are_unrecorded_and_scored_in_the_run_only() -> None:
    source, metric = Numbers(num_batches=4), Right()
    with recording() as spans:
        session = run(source, metrics={"m": metric}, session=Noting().recorded_by(spans), warmup_batches=2)
    assert metric.firsts == [0, 1, 2, 3]
    assert session.column("batch") == [0, 1, 2, 3]
    assert spans.names() == ["add", "double", "batch"] * 4
    assert source.passes == 2
    assert session.closing.warmup.batches == 2  # type: ignore[union-attr]
    assert session.closing.warmup.total_s * 1e3 >= session.closing.warmup.first_batch_ms > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("warmup_batches", [0, 1, 3, 9])
def test_a_one_shot_source_loses_no_batch_and_repeats_none(warmup_batches: int) -> None:
    metric = Right()
    session = run(once(num_batches=5), metrics={"m": metric}, warmup_batches=warmup_batches)
    assert session.column("source_batch") == metric.firsts == [0, 1, 2, 3, 4]
    assert session.closing.warmup.batches == min(5, warmup_batches)  # type: ignore[union-attr]


def test_a_one_shot_source_is_cut_by_max_batches() -> None:
    assert run(once(num_batches=5), warmup_batches=3, max_batches=2).column("source_batch") == [0, 1]


def test_without_warm_up_nothing_is_timed() -> None:
    assert run(Numbers()).closing.warmup == Warmup()


def test_warm_up_stops_at_a_stage_that_raises_and_the_run_tells() -> None:
    message, session = fails(StageError, Numbers(), Raises(at=1), warmup_batches=4)
    assert session.closing.warmup.batches == 2  # type: ignore[union-attr]
    assert message == "batch 1: stage double raised RuntimeError: no double of 2 [see manual]"
    assert session.column("status") == ["scored", "failed"]


def test_draws_do_not_depend_on_the_warm_up() -> None:
    def distances(warmup_batches: int, seed: int) -> list[Any]:
        run_ = run(Numbers(), Draws(), {"d": Distance()}, warmup_batches=warmup_batches, seed=seed)
        return run_.column("accuracy")

    assert distances(0, 1) == distances(3, 1)
    assert distances(0, 1) != distances(0, 2)


# -- what goes wrong -------------------------------------------------------------------------------------------------


def nan_module() -> ModulePipeline:
    class NaNs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float("nan")

    return ModulePipeline(nn.Sequential(nn.Identity(), NaNs(), nn.Identity()), ["0", "1", "2"])


def broken_module() -> ModulePipeline:
    return ModulePipeline(nn.Sequential(nn.Identity(), nn.Linear(3, 3)), ["0", "1"])


def nan_data() -> list[Any]:
    return [(torch.tensor([float("nan"), 1.0]), torch.zeros(2))]


class Blind(Distance):
    """Fails on one batch, and has no message."""

    def update(self, output: Any, targets: Any) -> float:
        if int(targets[0]) == 4:
            raise ValueError
        return super().update(output, targets)


def failing_inside(x: Any) -> Any:
    raise LookupError("lost the track")


BAD = {
    "a stage raises": (
        lambda: (Numbers(), Raises(at=1)),
        1,
        "batch 1: stage double raised RuntimeError: no double of 2 [see manual]",
    ),
    "a callable raises": (lambda: (Numbers(), failing_inside), 0, "batch 0: the pipeline raised LookupError: lost the"),
    "a submodule raises": (
        lambda: (Numbers(), broken_module()),
        0,
        "batch 0: the pipeline raised RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x2 and 3x3) "
        "(in submodule 1)",
    ),
    "NaN from a stage": (
        lambda: (Numbers(), GivesNaN(at=1)),
        1,
        "batch 1: stage divide returned 2 NaN values; it cannot be scored",
    ),
    "NaN from a submodule": (
        lambda: (Numbers(), nan_module()),
        0,
        "batch 0: stage 1 returned 2 NaN values; it cannot be scored",
    ),
    "NaN from a callable": (
        lambda: (Numbers(), lambda x: x * float("nan")),
        0,
        "batch 0: the pipeline's output has 2 NaN values; it cannot be scored",
    ),
    "NaN in the data": (
        lambda: (nan_data(),),
        0,
        "batch 0: stage add returned 1 NaN value; it cannot be scored (the batch's data had 1 NaN value already)",
    ),
    "a metric raises": (
        lambda: (Numbers(), None, {"m": Right(fails_on=1)}),
        1,
        "batch 1: metric m failed: KeyError: 'no such label'",
    ),
    "a metric raises without a message": (
        lambda: (Numbers(), None, {"m": Blind()}),
        1,
        "batch 1: metric m failed: ValueError: ",
    ),
    "a metric scores NaN": (
        lambda: (Numbers(), None, {"m": Right(nan_on=1)}),
        1,
        "batch 1: metric m failed: ValueError: update returned nan; return None for a batch without a score",
    ),
    "no items": (lambda: (Sizes([2, 0, 2]),), 1, "batch 1: its size is 0; a batch has at least one item"),
}


@pytest.mark.parametrize("case", BAD)
def test_fail_ends_the_run_at_the_bad_batch_and_names_it(case: str) -> None:
    arguments, index, expected = BAD[case]
    message, session = fails(StageError, *arguments())
    assert message.startswith(expected)
    assert session.column("batch") == list(range(index + 1))
    assert session.column("status") == ["scored"] * index + ["failed"]
    assert session.column("error") == [""] * index + [message]
    assert session.column("accuracy")[-1] == {}
    assert session.closing.wall_s is not None  # what there is, is summed up
    if index:
        assert len(session.closing.accuracy) == 1


@pytest.mark.parametrize("case", [case for case, (_, index, _) in BAD.items() if index == 1])
def test_skip_goes_on_and_keeps_the_reason(case: str) -> None:
    arguments, index, expected = BAD[case]
    session = run(*arguments(), on_error="skip")
    others = ["scored"] * (len(session.rows) - index - 1)
    assert len(others) >= 1
    assert session.column("status") == ["scored"] * index + ["skipped", *others]
    assert session.column("error")[index].startswith(expected)
    assert session.column("error")[index + 1 :] == [""] * len(others)
    assert session.column("accuracy")[index] == {}


def test_the_cause_is_kept_for_debugging() -> None:
    evaluated, _ = evaluation(Numbers(), Raises(at=0))
    with pytest.raises(StageError) as raised:
        evaluated.run()
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_naming_the_stage_of_nan_records_nothing() -> None:
    pipeline = GivesNaN(at=1)
    with recording() as spans:
        message, _ = fails(StageError, Numbers(), pipeline, session=Noting().recorded_by(spans))
    assert "stage divide" in message
    assert spans.names() == ["divide", "pass_on", "batch"] * 2
    assert pipeline.calls == 2  # found at divide: it did not run on
    with recording() as spans:  # hooks open spans of their own
        message, _ = fails(StageError, Numbers(), nan_module(), session=Noting().recorded_by(spans))
    assert "stage 1" in message
    assert spans.names() == ["0", "1", "2", "batch"]


def test_a_stage_that_cannot_run_twice_leaves_the_plain_message() -> None:
    def eats(x: torch.Tensor, seen: set[int] = set()) -> torch.Tensor:  # noqa: B006 - it remembers
        if seen:
            raise RuntimeError("eaten already")
        seen.add(1)
        return x * float("nan")

    message, session = fails(StageError, Numbers(), Stages(add=eats))
    assert message == "batch 0: the pipeline's output has 2 NaN values; it cannot be scored"
    assert session.column("status") == ["failed"]


def test_infinity_is_an_output_like_any_other() -> None:
    class Takes(Distance):
        def update(self, output: Any, targets: Any) -> float:
            return 1.0

        def compute(self) -> float:
            return 1.0

    session = run([(torch.tensor([float("-inf")]), 0)], Stages(), {"t": Takes()})
    assert session.column("status") == ["scored"]


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("warmup_batches", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("source", [Numbers, once])
def test_a_source_that_raises_ends_the_run_with_what_came_before(
    source: Callable[..., Any], warmup_batches: int, on_error: str
) -> None:
    data = source(num_batches=5, fails_at=2)
    message, session = fails(DataError, data, warmup_batches=warmup_batches, on_error=on_error)
    assert message == "data: batch 2 cannot be read: OSError: disk gone [sda]"
    assert session.column("source_batch") == [0, 1]
    assert session.column("status") == ["scored", "scored"]
    assert session.closing.accuracy == {"right": 1.0}


@pytest.mark.parametrize("warmup_batches", [0, 3])
@pytest.mark.parametrize("data", [[], Numbers(num_batches=0), iter(())])
def test_an_empty_data_set_says_so(data: Any, warmup_batches: int) -> None:
    message, session = fails(DataError, data, warmup_batches=warmup_batches)
    assert message == "data: the data set is empty: it yielded no batch"
    assert (session.rows, session.closing.accuracy) == ([], {})


@pytest.mark.parametrize(("computes", "why"), [("nan", "it computed nan"), ("error", "ValueError: no item was scored")])
def test_a_metric_that_cannot_be_computed_fails_the_run_after_it(computes: str, why: str) -> None:
    metrics = {"bad": Right(computes=computes), "good": Distance()}
    message, session = fails(StageError, Numbers(), None, metrics)
    assert message == f"5 batches ran, but metric bad could not be computed: {why}"
    assert session.column("status") == ["scored"] * 5
    assert session.closing.accuracy == {"bad": None, "good": 0.0}
    assert session.told == [{"notes": [f"metric bad could not be computed: {why}"]}]


def test_an_interrupt_keeps_what_was_measured() -> None:
    def stops(x: torch.Tensor) -> torch.Tensor:
        if int(x[0]) == 2:
            raise KeyboardInterrupt
        return x

    evaluated, session = evaluation(Numbers(), Stages(add=stops), {"d": Distance()})
    with pytest.raises(KeyboardInterrupt):
        evaluated.run()
    assert session.column("status") == ["scored", "scored"]
    assert set(session.closing.accuracy) == {"d"}


def test_a_dead_recorder_ends_the_run_after_the_batch() -> None:
    rooms: Iterator[Any] = iter([None, OSError("died")])

    def room() -> None:
        error = next(rooms)
        if error:
            raise error

    evaluated, session = evaluation(Numbers(), session=Noting(on_room=room))
    with pytest.raises(OSError, match="died"):
        evaluated.run()
    assert session.column("batch") == [0, 1]


# -- the device ------------------------------------------------------------------------------------------------------


def test_the_result_is_there_before_it_is_scored() -> None:
    metric = Right()
    evaluated, _ = evaluation(Numbers(num_batches=2), metrics={"right": metric})
    scored_when_waiting: list[int] = []
    evaluated._wait_for_result = lambda: scored_when_waiting.append(len(metric.taken)) or 0
    evaluated.run()
    assert scored_when_waiting == [0, 1]
