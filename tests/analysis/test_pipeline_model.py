"""The replay of a pipeline against cases worked out by hand, and against an event-driven simulation."""

import heapq
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlotel_cli.analysis.pipeline_model import PipelineModel, Station, pipelined_s, sequential_s


def stations(*service: Sequence[float], replicas: Sequence[int] = ()) -> list[Station]:
    counts = [*replicas, *[1] * len(service)]
    return [Station(f"s{n}", times, counts[n]) for n, times in enumerate(service)]


def by_events(given: Sequence[Station], queue_size: int) -> float:
    """The same pipeline, simulated event by event, with one replica a station: a second opinion.

    Queues are counted, batches pushed as far as they go after every event; no recurrence.
    """
    num_batches, last = len(given[0].service_s), len(given) - 1
    queues: list[list[int]] = [list(range(num_batches)), *([] for _ in given[1:])]
    working: list[int | None] = [None] * len(given)
    blocked: list[int | None] = [None] * len(given)
    events: list[tuple[float, int]] = []
    now = 0.0

    def settle() -> None:
        moved = True
        while moved:
            moved = False
            for at in range(last, -1, -1):
                done = blocked[at]
                if done is not None and (at == last or len(queues[at + 1]) < queue_size):
                    if at < last:
                        queues[at + 1].append(done)
                    blocked[at], moved = None, True
                if working[at] is None and blocked[at] is None and queues[at]:
                    batch = queues[at].pop(0)
                    working[at], moved = batch, True
                    heapq.heappush(events, (now + given[at].service_s[batch], at))

    settle()
    while events:
        now, at = heapq.heappop(events)
        blocked[at], working[at] = working[at], None
        settle()
    return now


def test_one_batch_takes_the_sum() -> None:
    assert pipelined_s(stations([1.0], [2.0], [4.0]), queue_size=1) == 7.0
    assert sequential_s(stations([1.0], [2.0], [4.0])) == 7.0


def test_equal_times_are_bound_by_the_slowest() -> None:
    line = stations([1.0] * 10, [3.0] * 10, [2.0] * 10)
    assert pipelined_s(line, queue_size=1) == 1 + 10 * 3 + 2
    assert sequential_s(line) == 60.0


def test_a_full_queue_blocks_the_station_before_it() -> None:
    # the source is done with batch 2 at 3, but may put it down only when batch 1 is taken, at 11
    line = stations([1.0, 1.0, 1.0, 1.0], [10.0, 1.0, 1.0, 1.0])
    assert pipelined_s(line, queue_size=1) == 14.0
    blocked = stations([1.0, 1.0, 1.0, 20.0], [10.0, 1.0, 1.0, 1.0])
    assert pipelined_s(blocked, queue_size=1) == 11 + 20 + 1  # so batch 3 begins at 11
    assert pipelined_s(blocked, queue_size=2) == 3 + 20 + 1  # with more room at 3


def test_replicas_share_the_work_and_order_is_restored() -> None:
    assert pipelined_s(stations([0.0] * 8, [4.0] * 8, replicas=[1, 2]), queue_size=4) == 16.0
    # batch 1 is through at 1 and waits for batch 0, which takes 5; its replica goes on with batch 2
    line = stations([0.0] * 3, [5.0, 1.0, 1.0], [1.0] * 3, replicas=[1, 2, 1])
    assert pipelined_s(line, queue_size=3) == 5 + 3


def test_nothing_takes_no_time() -> None:
    assert pipelined_s([], queue_size=1) == 0.0
    assert pipelined_s(stations([], []), queue_size=1) == 0.0


@given(
    st.lists(
        st.lists(st.integers(0, 9), min_size=6, max_size=6).map(lambda times: [float(time) for time in times]),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 4),
)
def test_the_replay_equals_the_event_driven_simulation(service: list[list[float]], queue_size: int) -> None:
    line = stations(*service)
    assert pipelined_s(line, queue_size=queue_size) == by_events(line, queue_size)


@given(st.data())
def test_more_room_or_less_work_never_takes_longer(data: st.DataObject) -> None:
    draw = random.Random(data.draw(st.integers(0, 10**6)))
    line = stations(*[[draw.random() for _ in range(30)] for _ in range(4)])
    size = data.draw(st.integers(1, 5))
    took_s = pipelined_s(line, queue_size=size)
    assert pipelined_s(line, queue_size=size + 1) <= took_s
    assert PipelineModel(line, size, True, took_s).gain(faster={"s2": 3.0}) >= 1.0
    assert max(station.busy_s for station in line) <= took_s <= sequential_s(line)


def model(*, is_pipelined: bool = True, measured_s: float | None = None) -> PipelineModel:
    line = stations([0.0] * 100, [1.0] * 100, [4.0] * 100, [0.0] * 100)
    return PipelineModel(line, 2, is_pipelined, measured_s or (401.0 if is_pipelined else 500.0))


def test_gains() -> None:
    assert model().error == 0.0
    assert model().gain() == 1.0
    assert model().gain(faster={"s2": 2.0}) == pytest.approx(401 / 201)
    assert model().gain(faster={"s2": 100.0}) == pytest.approx(401 / 100.04)  # then s1 bounds
    assert model().gain(replicas={"s2": 2}) == pytest.approx(401 / 202, rel=0.01)
    assert model().gain(faster={"s1": 2.0}) == pytest.approx(401 / 400.5)


def test_what_the_model_does_not_know_of_cancels() -> None:
    slower = model(measured_s=441.1)
    assert slower.error == pytest.approx(401 / 441.1 - 1)
    assert slower.gain(faster={"s2": 2.0}) == model().gain(faster={"s2": 2.0})


def test_overlap_of_a_sequential_run() -> None:
    assert model(is_pipelined=False).error == 0.0
    assert model(is_pipelined=False).gain_of_overlap() == pytest.approx(500 / 401)


def test_times_that_vary_make_small_queues_slower_than_the_slowest_stage() -> None:
    bursts = ([9.0] * 10 + [1.0] * 10) * 10
    line = stations(bursts, bursts[10:] + bursts[:10])
    assert line[0].busy_s == line[1].busy_s == 1000.0
    assert pipelined_s(line, queue_size=1) > 1600.0
    assert pipelined_s(line, queue_size=50) < 1150.0
