"""Random pipelines yield every batch once and in order; however the run ends, all spans and threads end.

A stalled stage waits for the test: a thread waits until each stall is reached and then frees it, one by one. Full
queues and overtaking threads therefore happen on purpose and not by luck. A stage that hangs is freed after the run;
the test moves the clock of the time-out once the stage hangs.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlotel_cli.errors import StageError
from mlotel_cli.execute import Finished, Inference, Numbered, PipelinedExecutor, SequentialExecutor
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.tracer import Recording
from tests.support.gates import PATIENCE_S, numbered, until

NAMES = ("a", "b", "c", "d")
Cell = tuple[int, int]
"""A stage's position and a batch's index."""


@dataclass(frozen=True)
class Plan:
    """A pipeline, its batches, and the events of the run."""

    replicas: tuple[int, ...]
    queue_size: int
    num_batches: int
    failing: frozenset[Cell]
    stalled: frozenset[Cell]
    source_fails_at: int | None
    stop_after: int | None

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES[: len(self.replicas)]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    replicas = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    num_batches = draw(st.integers(0, 10))
    cells = st.tuples(st.integers(0, len(replicas) - 1), st.integers(0, max(0, num_batches - 1)))
    return Plan(
        replicas,
        draw(st.integers(1, 3)),
        num_batches,
        draw(st.frozensets(cells, max_size=3)),
        draw(st.frozensets(cells, max_size=4)),
        draw(st.none() | st.integers(0, num_batches)),
        draw(st.none() | st.integers(0, num_batches)),
    )


class StageBrokeError(Exception):
    """The error of a stage."""


@dataclass
class World:
    """The stages and the source of a plan, and a record of their calls."""

    plan: Plan
    calls: list[tuple[str, int]] = field(default_factory=list)
    reached: dict[Cell, threading.Event] = field(init=False)
    free: dict[Cell, threading.Event] = field(init=False)
    is_over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.reached = {cell: threading.Event() for cell in self.plan.stalled}
        self.free = {cell: threading.Event() for cell in self.plan.stalled}

    def stages(self) -> dict[str, Callable[[Any], Any]]:
        return {name: self._stage(position, name) for position, name in enumerate(self.plan.names)}

    def _stage(self, position: int, name: str) -> Callable[[Any], Any]:
        def run(value: tuple[int, ...]) -> tuple[int, ...]:
            cell = (position, value[0])
            self.calls.append((name, value[0]))
            if cell in self.reached:
                self.reached[cell].set()
                assert self.free[cell].wait(PATIENCE_S)
            if cell in self.plan.failing:
                raise StageBrokeError(name)
            return (*value, position)

        return run

    def source(self) -> Iterator[Numbered]:
        for one in numbered(*((index,) for index in range(self.plan.num_batches))):
            if one.index == self.plan.source_fails_at:
                raise OSError("gone")
            yield one
        if self.plan.source_fails_at == self.plan.num_batches:
            raise OSError("gone")

    def let_go(self) -> None:
        """Free every stall in an order in which all are reached, unless the run ends first."""
        for position, index in sorted(self.plan.stalled, key=lambda cell: (cell[1], cell[0])):
            if self.is_reachable(position, index):
                while not self.reached[position, index].wait(0.005):
                    if self.is_over.is_set():
                        return
            self.free[position, index].set()

    def free_all(self) -> None:
        self.is_over.set()
        for event in self.free.values():
            event.set()

    def is_reachable(self, position: int, index: int) -> bool:
        source_ends = self.plan.source_fails_at is not None and index >= self.plan.source_fails_at
        failed = any((before, index) in self.plan.failing for before in range(position))
        return not source_ends and not failed and index < self.plan.num_batches

    def expected(self) -> list[tuple[Any, str]]:
        """Return the expected output and failing stage of each batch of the source."""
        limit = self.plan.num_batches if self.plan.source_fails_at is None else self.plan.source_fails_at
        whole = tuple(range(len(self.plan.replicas)))
        return [
            ((index, *whole), "") if failed is None else (None, self.plan.names[failed])
            for index in range(limit)
            for failed in [next((stage for stage in whole if (stage, index) in self.plan.failing), None)]
        ]


def consume(world: World, running: Iterator[Finished]) -> tuple[list[Finished], str]:
    """Take as many batches as the plan says; return them and how the run ended."""
    taken: list[Finished] = []
    if world.plan.stop_after == 0:
        return taken, "stopped"
    try:
        for one in running:
            taken.append(one)
            if len(taken) == world.plan.stop_after:
                return taken, "stopped"
    except OSError:
        return taken, "source failed"
    return taken, "complete"


def executor_of(world: World, **limits: float) -> PipelinedExecutor:
    plan = world.plan
    replicas = dict(zip(plan.names, plan.replicas, strict=True))
    inference = Inference("cpu")
    return PipelinedExecutor(
        world.stages(), inference=inference, queue_size=plan.queue_size, replicas=replicas, **limits
    )


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_whatever_happens_to_a_pipelined_run(plan: Plan) -> None:
    world, spans = World(plan), []
    threads = set(threading.enumerate())
    before = api.PROVIDER.backend
    api.use(Recording(spans.append, faults=Faults(strict=True)))
    executor = executor_of(world, grace_s=PATIENCE_S)
    letting_go = threading.Thread(target=world.let_go)
    try:
        letting_go.start()
        with contextlib.closing(executor.run(world.source())) as running:
            taken, ending = consume(world, running)
            world.free_all()
    finally:
        world.free_all()
        letting_go.join(PATIENCE_S)
        api.use(before)

    expected = world.expected()
    if ending == "stopped":
        expected = expected[: plan.stop_after]
    else:
        assert ending == ("complete" if plan.source_fails_at is None else "source failed")
    assert [(one.output, one.stage) for one in taken] == expected
    assert [one.numbered.index for one in taken] == list(range(len(expected)))
    assert all(isinstance(one.error, StageBrokeError) == bool(one.stage) for one in taken)

    assert len(set(world.calls)) == len(world.calls)  # no stage ran twice on a batch, or after a failed stage
    for name, index in world.calls:
        earlier = plan.names[: plan.names.index(name)]
        assert all((stage, index) in world.calls for stage in earlier)
        assert not any((plan.names.index(stage), index) in plan.failing for stage in earlier)

    by_batch = check_spans(spans)
    assert set(by_batch) >= {one.numbered.index for one in taken}
    assert set(threading.enumerate()) <= threads
    assert all(depth == 0 for depth, _ in executor.depths().values()) or ending == "stopped"


def check_spans(spans: list[Any]) -> dict[int, list[Any]]:
    """Check that every opened span has ended, under one root per batch."""
    by_batch = {index: list(group) for index, group in itertools.groupby(sorted(spans, key=_batch), key=_batch)}
    for index, group in by_batch.items():
        (root,) = (span for span in group if span.name == "batch")
        assert root.count_opened() == len(group), f"batch {index}: a span was never ended"
    return by_batch


@st.composite
def hanging_plans(draw: st.DrawFn) -> tuple[Plan, Cell, int | None]:
    """Draw a plan in which one stage never returns from one batch, and when the caller leaves, if it does."""
    replicas = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    num_batches = draw(st.integers(1, 8))
    hangs = (draw(st.integers(0, len(replicas) - 1)), draw(st.integers(0, num_batches - 1)))
    cells = st.tuples(st.integers(0, len(replicas) - 1), st.integers(0, num_batches - 1))
    failing = draw(st.frozensets(cells.filter(lambda cell: cell[1] != hangs[1]), max_size=3))
    plan = Plan(replicas, draw(st.integers(1, 3)), num_batches, failing, frozenset({hangs}), None, None)
    leaves = st.none() | st.integers(max(0, hangs[1] - 2), hangs[1])
    return plan, hangs, draw(leaves)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hanging_plans())
def test_a_stage_that_hangs_anywhere_ends_the_run_or_is_left(drawn: tuple[Plan, Cell, int | None]) -> None:
    plan, hangs, leave_after = drawn
    world, spans, clock = World(plan), [], [0]
    threads = set(threading.enumerate())
    before = api.PROVIDER.backend
    api.use(Recording(spans.append, faults=Faults(strict=True)))
    executor = executor_of(world, stage_timeout_s=0.001, grace_s=0.001)

    def now() -> int:
        return clock[0]

    def let_time_pass() -> None:
        if leave_after is None and world.reached[hangs].wait(PATIENCE_S):
            clock[0] += 10_000_000
            if not world.is_over.wait(PATIENCE_S):
                world.free_all()  # so that a run that misses the time-out fails and does not hang

    passing = threading.Thread(target=let_time_pass)
    taken: list[Finished] = []
    try:
        with mock.patch("time.perf_counter_ns", now):
            passing.start()
            with contextlib.closing(executor.run(world.source())) as running:
                if leave_after is None:
                    with pytest.raises(StageError, match=r"executor.stage_timeout_s=0.001 allows"):
                        taken.extend(running)
                else:
                    taken.extend(itertools.islice(running, leave_after))
                    if taken and leave_after == hangs[1]:  # it is the next one, so that it is certainly reached
                        assert world.reached[hangs].wait(PATIENCE_S)
    finally:
        world.free_all()
        until(lambda: set(threading.enumerate()) <= threads)
        api.use(before)
    assert [(one.output, one.stage) for one in taken] == world.expected()[: len(taken)]
    assert len(taken) <= hangs[1]
    check_spans(spans)


def _batch(span: Any) -> int:
    return span.batch


@settings(max_examples=30, deadline=None)
@given(plans())
def test_both_executors_give_the_same(plan: Plan) -> None:
    def results(make: Callable[[dict[str, Callable[[Any], Any]]], Any]) -> tuple[list[Any], str]:
        world = World(plan)
        world.free_all()
        with contextlib.closing(make(world.stages()).run(world.source())) as running:
            taken, ending = consume(world, running)
        return [(one.numbered.index, one.output, one.stage, repr(one.error)) for one in taken], ending

    replicas = dict(zip(plan.names, plan.replicas, strict=True))
    settings_ = {"inference": Inference("cpu"), "queue_size": plan.queue_size, "replicas": replicas}
    assert results(lambda stages: PipelinedExecutor(stages, **settings_)) == results(SequentialExecutor)
