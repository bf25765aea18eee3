"""Coordinated omission: the latencies of all batches that arrive during a stall include their wait.

Only the test moves the clock. Batches arrive on a schedule that the pipeline does not influence, and latencies come
from the rows that the recorder would write.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlotel_cli.execute import Inference, Numbered, create_executor
from mlotel_cli.recorder.assemble import Assembler
from mlotel_cli.records import Batch, BatchRecord
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.clock import CLOCK, Clock
from mlotel_cli.telemetry.faults import Faults
from mlotel_cli.telemetry.tracer import Recording
from mlotel_cli.wire import Settled
from tests.support.gates import PATIENCE_S, Gate, Pace, until
from tests.support.wire import received

PERIOD_MS = 10
NUM_BATCHES = 200
STALLS_AT = 120
STALL_MS = 95
KINDS = ["sequential", "pipelined"]


class World:
    """A clock, a paced source, a pipeline whose second stage stalls, and the resulting rows."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time_ns = 0
        monkeypatch.setattr("time.perf_counter_ns", lambda: self.time_ns)
        self.gate = Gate(lambda index: index == STALLS_AT)
        self.paced = Pace()
        self.finished: list[Any] = []
        self.spans: list[Any] = []
        clock = Clock(lambda: self.time_ns, epoch_offset_ns=CLOCK.epoch_offset_ns)
        api.use(Recording(self.spans.append, clock=clock, faults=Faults(strict=True)))
        stages = {"quick": lambda x: x, "stalls": self.gate}
        self._executor = create_executor(stages, inference=Inference("cpu"), kind=kind)
        self._thread = threading.Thread(target=self._consume)
        self._thread.start()

    def _consume(self) -> None:
        for one in self._executor.run(self.paced):
            self.finished.append(one)

    def arrive(self, index: int) -> None:
        """Let batch `index` arrive on schedule."""
        self.time_ns = index * PERIOD_MS * 1_000_000
        self.paced.give(Numbered(index, 0, Batch(index, ["a"], index, source_time_ns=self.time_ns)))

    def arrive_and_finish(self, index: int) -> None:
        self.arrive(index)
        until(lambda: len(self.finished) == index + 1)

    def rows(self) -> list[BatchRecord]:
        self.paced.end()
        self._thread.join(PATIENCE_S)
        assembler = Assembler(settle_s=5.0)
        for span in self.spans:
            assembler.add(received(span.pack()), now=0.0)
        offset = CLOCK.epoch_offset_ns
        for one in self.finished:
            arrived_ns = one.numbered.batch.source_time_ns
            assembler.settle(
                Settled(
                    one.numbered.index,
                    source_batch=one.numbered.index,
                    repeat=0,
                    size=1,
                    status="done",
                    opened=one.root.count_opened(),
                    start_ns=one.start_ns + offset,
                    source_time_ns=arrived_ns + offset,
                ),
                now=0.0,
            )
        return sorted(assembler.finished(now=0.0), key=lambda row: row.batch)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    before = api.PROVIDER.backend
    yield World(request.param, monkeypatch)
    api.use(before)


def play(world: World, *, stalled: bool) -> list[BatchRecord]:
    for index in range(STALLS_AT):
        world.arrive_and_finish(index)
    if not stalled:
        world.gate.open()
        for index in range(STALLS_AT, NUM_BATCHES):
            world.arrive_and_finish(index)
        return world.rows()
    world.arrive(STALLS_AT)
    world.gate.wait_until_reached()
    index = STALLS_AT
    while (index + 1 - STALLS_AT) * PERIOD_MS < STALL_MS:  # the schedule does not wait
        index += 1
        world.arrive(index)
    world.time_ns = (STALLS_AT * PERIOD_MS + STALL_MS) * 1_000_000
    world.gate.open()
    until(lambda: len(world.finished) == index + 1)
    for later in range(index + 1, NUM_BATCHES):
        world.arrive_and_finish(later)
    return world.rows()


def expected_ms(index: int) -> float:
    """Return the expected latency: the time from the arrival to the end of the stall; everything else takes no time."""
    arrived = index * PERIOD_MS
    free = STALLS_AT * PERIOD_MS + STALL_MS
    return max(0.0, free - arrived) if index >= STALLS_AT else 0.0


def test_every_batch_that_had_to_wait_is_slow_by_what_it_waited(world: World) -> None:
    rows = play(world, stalled=True)
    assert [row.batch for row in rows] == list(range(NUM_BATCHES))
    latencies = [row.latency_ms for row in rows]
    assert latencies == [pytest.approx(expected_ms(index)) for index in range(NUM_BATCHES)]
    assert sum(latency > 0 for latency in latencies if latency is not None) == 10
    # The stall is one of 200 batches: p99 of the busy times would miss it, and the nine batches that wait for it.
    assert np.percentile(latencies, 99) == pytest.approx(np.percentile([*range(5, 96, 10), *[0] * 190], 99))
    assert np.percentile(latencies, 96) > 0


def test_where_they_waited_is_told(world: World) -> None:
    rows = play(world, stalled=True)
    for row in rows[STALLS_AT : STALLS_AT + 10]:
        waited = sum(stage.queue_ms or 0.0 for stage in row.stages.values())
        worked = sum(stage.host_ms for stage in row.stages.values())
        assert waited + worked == pytest.approx(expected_ms(row.batch))
        assert (worked > 0) == (row.batch == STALLS_AT)


def test_without_a_stall_nothing_waits(world: World) -> None:
    rows = play(world, stalled=False)
    assert [row.latency_ms for row in rows] == [0.0] * NUM_BATCHES


def test_latency_from_pick_up_would_hide_it(world: World) -> None:
    """A measurement without arrival times misses the waits, so the tests above cannot pass by accident."""
    play(world, stalled=True)
    starts: Callable[[Any], int] = lambda one: one.start_ns - one.numbered.batch.source_time_ns  # noqa: E731
    assert max(map(starts, world.finished)) > 0
