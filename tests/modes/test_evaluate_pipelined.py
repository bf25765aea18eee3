"""The evaluation loop with a pipelined executor: everything that it promises sequentially, with batches under way."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlotel_cli.errors import DataError, StageError
from mlotel_cli.telemetry import api
from tests.modes.test_evaluate import BAD, Noting, evaluation
from tests.support.gates import PATIENCE_S, Gate, until
from tests.support.parts import Distance, Numbers, Right, Stages, once
from tests.support.spans import recording

PIPELINED = {"kind": "pipelined", "queue_size": 1}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until(lambda: set(threading.enumerate()) <= before)


def run(*arguments: Any, executor: dict[str, Any] = PIPELINED, **changed: Any) -> Noting:
    evaluated, session = evaluation(*arguments, executor=executor, **changed)
    evaluated.run()
    return session


def fails(kind: type[Exception], *arguments: Any, **changed: Any) -> tuple[str, Noting]:
    evaluated, session = evaluation(*arguments, executor=PIPELINED, **changed)
    with pytest.raises(kind) as raised:
        evaluated.run()
    return str(raised.value), session


def test_every_batch_is_scored_and_settled_once_in_order() -> None:
    session = run(Numbers(num_batches=20), executor=PIPELINED | {"replicas": {"add": 3}})
    assert session.column("batch") == session.column("source_batch") == list(range(20))
    assert session.column("status") == ["scored"] * 20
    assert session.column("accuracy") == [{"right": 1.0}] * 20
    assert session.closing.accuracy == {"right": 1.0}


def test_scoring_beside_the_stages_is_not_subtracted_from_the_time() -> None:
    session = run(Numbers(num_batches=3))
    assert session.closing.scoring_s == 0.0
    assert session.closing.wall_s > 0  # type: ignore[operator]


def test_repeats_and_max_batches() -> None:
    source = Numbers(num_batches=9)
    session = run(source, max_batches=2, repeats=3)
    assert session.column("batch") == [0, 1, 2, 3, 4, 5]
    assert session.column("source_batch") == [0, 1, 0, 1, 0, 1]
    assert source.yielded == 6


@pytest.mark.parametrize("case", [case for case in BAD if "callable" not in case and "submodule" not in case])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_bad_batch_ends_the_run_or_is_skipped(case: str, on_error: str) -> None:
    make, index, expected = BAD[case]
    evaluated, session = evaluation(*make(), executor=PIPELINED, on_error=on_error)
    if on_error == "fail":
        with pytest.raises(StageError) as raised:
            evaluated.run()
        assert str(raised.value).startswith(expected)
        assert session.column("status") == ["scored"] * index + ["failed"]
    else:
        if index == 0:
            with pytest.raises(StageError, match="could not be computed"):  # nothing was scored
                evaluated.run()
        else:
            evaluated.run()
        assert session.column("status")[: index + 1] == ["scored"] * index + ["skipped"]
        assert set(session.column("status")[index + 1 :]) <= {"scored"}
    assert session.column("error")[index].startswith(expected)


def test_naming_the_stage_of_nan_leaves_the_spans_of_the_others_alone() -> None:
    explaining, went_on = threading.Event(), threading.Event()

    def first(x: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is threading.main_thread():
            explaining.set()
            assert went_on.wait(PATIENCE_S)
        return x + 1

    def second(x: torch.Tensor) -> torch.Tensor:
        if int(x[0]) == 1 + 2:  # batch 2 is in the middle of it
            assert explaining.wait(PATIENCE_S)
            with api.span("inner"):
                api.record("seen", 1.0)
            went_on.set()
        return x * 2 / (0.0 if int(x[0]) == 1 + 1 else 1.0) * (0.0 if int(x[0]) == 1 + 1 else 1.0)

    stages = SimpleNamespace(stages={"first": first, "second": second})
    executor = PIPELINED | {"replicas": {"first": 2}}
    with recording() as spans:
        session = run(Numbers(), stages, session=Noting().recorded_by(spans), on_error="skip", executor=executor)
    assert session.column("status") == ["scored", "skipped", "scored", "scored", "scored"]
    assert "stage second returned 2 NaN values" in session.column("error")[1]
    usual = ["batch", "first", "queue first", "queue second", "second"]
    for index in range(5):
        expected = sorted([*usual, "inner"] if index == 2 else usual)
        assert sorted(span.name for span in spans.spans if span.batch == index) == expected
    assert [span for span in spans.spans if span.batch is None] == []
    assert spans.values == [("seen", 1.0, "")]


@pytest.mark.parametrize("warmup_batches", [0, 1, 3, 9])
@pytest.mark.parametrize("source", [Numbers, once])
def test_warm_up_loses_no_batch_and_repeats_none(source: Callable[..., Any], warmup_batches: int) -> None:
    metric = Right()
    with recording() as spans:
        session = run(
            source(num_batches=5),
            None,
            {"m": metric},
            session=Noting().recorded_by(spans),
            warmup_batches=warmup_batches,
        )
    assert metric.firsts == session.column("source_batch") == [0, 1, 2, 3, 4]
    assert sum(span.name == "batch" for span in spans.spans) == 5
    warmup = session.closing.warmup
    assert warmup is not None
    assert warmup.batches == min(5, warmup_batches)
    assert (warmup.total_s > 0) == (warmup_batches > 0)


@pytest.mark.parametrize("warmup_batches", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("source", [Numbers, once])
def test_a_source_that_raises_ends_the_run_with_what_came_before(source: Any, warmup_batches: int) -> None:
    message, session = fails(DataError, source(num_batches=5, fails_at=2), warmup_batches=warmup_batches)
    assert message == "data: batch 2 cannot be read: OSError: disk gone [sda]"
    assert session.column("status") == ["scored", "scored"]
    assert session.closing.accuracy == {"right": 1.0}


@pytest.mark.parametrize("warmup_batches", [2, 4])
def test_warm_up_stops_at_a_stage_that_raises_and_the_run_tells(warmup_batches: int) -> None:
    def breaks(x: torch.Tensor) -> torch.Tensor:
        if int(x[0]) == 1:
            raise RuntimeError("no")
        return x

    message, session = fails(StageError, once(), Stages(double=lambda x: x, add=breaks), warmup_batches=warmup_batches)
    assert message == "batch 1: stage add raised RuntimeError: no"
    assert session.column("source_batch") == [0, 1]


def test_an_empty_data_set_says_so() -> None:
    assert fails(DataError, [], warmup_batches=2)[0] == "data: the data set is empty: it yielded no batch"


def test_a_stage_that_hangs_ends_the_run_with_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: clock[0])
    gate = Gate(lambda x: int(x[0]) == 3 + 1)  # of the last batch, in the last stage: all else is idle then
    evaluated, session = evaluation(
        Numbers(num_batches=4), Stages(double=lambda x: gate(x) * 2), executor=PIPELINED | {"stage_timeout_s": 0.01}
    )

    def let_time_pass() -> None:
        gate.wait_until_reached()
        clock[0] += 20_000_000

    passing = threading.Thread(target=let_time_pass)
    passing.start()
    with pytest.raises(StageError, match=r"batch 3: stage double ran for 0\.02 s"):
        evaluated.run()
    passing.join(PATIENCE_S)
    assert session.column("status") == ["scored"] * 3
    assert session.closing.accuracy == {"right": 1.0}
    gate.open()


def test_a_dead_recorder_ends_the_run() -> None:
    def room() -> None:
        raise OSError("died")

    evaluated, session = evaluation(Numbers(), session=Noting(on_room=room), executor=PIPELINED)
    with pytest.raises(OSError, match="died"):
        evaluated.run()
    assert session.column("batch") == [0]


def test_an_interrupt_keeps_what_was_measured() -> None:
    def stops(x: torch.Tensor) -> torch.Tensor:
        if int(x[0]) == 2:
            raise KeyboardInterrupt
        return x

    evaluated, session = evaluation(Numbers(), Stages(add=stops), {"d": Distance()}, executor=PIPELINED)
    with pytest.raises(KeyboardInterrupt):
        evaluated.run()
    assert session.column("status") == ["scored", "scored"]
    assert set(session.closing.accuracy) == {"d"}


def test_scores_are_taken_outside_every_span() -> None:
    current: list[Any] = []

    class Looks(Distance):
        def update(self, output: Any, targets: Any) -> float:
            current.append(api.trace.get_current_span())
            return super().update(output, targets)

    with recording() as spans:
        run(Numbers(num_batches=2), metrics={"looks": Looks()}, session=Noting().recorded_by(spans))
    assert current == [api.trace.INVALID_SPAN] * 2


@pytest.mark.parametrize("kind", ["sequential", "pipelined"])
def test_a_stage_that_an_option_replaced_is_the_one_that_runs(kind: str) -> None:
    class Negative(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -x

    pipeline = Stages(add=torch.nn.Identity())
    evaluated, session = evaluation(Numbers(), pipeline, {"d": Distance()}, executor={"kind": kind})
    pipeline.stages["add"] = Negative()  # as optimize does, after the executor was made
    evaluated.run()
    expected = [float(4 * number + 2) for number in range(5)]  # |2 * -n - 2 * (n + 1)|
    assert session.column("accuracy") == [{"d": distance} for distance in expected]
