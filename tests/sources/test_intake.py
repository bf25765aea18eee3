"""The queue before a live pipeline: which items are dropped, when a batch is full, and when its latency starts."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mlotel_cli.config.policies import SourcePolicy, WhenFull
from mlotel_cli.errors import DataError, UsageError
from mlotel_cli.records import Batch
from mlotel_cli.snapshot import SourceReport
from mlotel_cli.sources import Arrival, Endless, Health, Intake
from mlotel_cli.sources import intake as intake_module
from mlotel_cli.sources.intake import CONNECTED, CONNECTING, ENDED
from tests.support.feeding import HandFed, until


class Clock:
    """Nanoseconds that only a test moves."""

    def __init__(self) -> None:
        self.ns = 1_000

    def __call__(self) -> int:
        return self.ns


@pytest.fixture(autouse=True)
def _short_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_JOIN_S", 0.02)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened() -> Iterator[list[Intake]]:
    intakes: list[Intake] = []
    yield intakes
    for intake in intakes:
        intake.close()


def started(intake: Intake, opened: list[Intake]) -> Intake:
    """Start the reading thread, as the first iteration does."""
    opened.append(intake)
    intake._reader.start()
    return intake


def received(intake: Intake, count: int) -> None:
    until(lambda: intake.report().received == count)


def values(batch: Batch) -> list[Any]:
    return list(batch.data)


@pytest.mark.parametrize(("when_full", "kept"), [("drop_oldest", ["c", "d", "e"]), ("drop_newest", ["a", "b", "c"])])
def test_what_finds_no_room_is_dropped_and_counted(when_full: str, kept: list[str], opened: list[Intake]) -> None:
    source = HandFed(*"abcde")
    intake = started(Intake(source, SourcePolicy(when_full, queue_size=3)), opened)
    received(intake, 5)
    assert intake.report().dropped == {"full": 2}
    assert intake.depth == (3, 3)
    batches = iter(intake)
    assert [values(next(batches)) for _ in range(3)] == [[item] for item in kept]


def test_a_source_that_may_wait_loses_nothing(opened: list[Intake]) -> None:
    source = HandFed(*range(50))
    source.end()
    intake = started(Intake(source, SourcePolicy(WhenFull.block, queue_size=2)), opened)
    until(lambda: intake.depth == (2, 2))
    assert [values(batch) for batch in intake] == [[n] for n in range(50)]
    assert (intake.report().received, intake.report().dropped) == (50, {})


def test_a_full_queue_drops_by_default_only_what_comes_by_itself() -> None:
    live, data = Intake(HandFed(), SourcePolicy()), Intake(Endless([1]), SourcePolicy())
    assert (live._when_full, live.is_live) == ("drop_oldest", True)
    assert (data._when_full, data.is_live) == ("block", False)


def test_a_batch_is_full_by_count(clock: Clock, opened: list[Intake]) -> None:
    source = HandFed(*"abcdefg")
    intake = started(Intake(source, SourcePolicy(batch_size=3), now=clock), opened)
    received(intake, 7)
    batches = iter(intake)
    first, second = next(batches), next(batches)
    assert [(b.index, values(b), b.ids, b.size) for b in (first, second)] == [
        (0, ["a", "b", "c"], ["0.0", "0.1", "0.2"], 3),
        (1, ["d", "e", "f"], ["1.0", "1.1", "1.2"], 3),
    ]


def test_a_batch_that_is_late_runs_as_it_is(clock: Clock, opened: list[Intake]) -> None:
    """The deadline counts from the arrival of the batch's first item, so time in the queue is part of the wait."""
    source = HandFed("a", "b")
    intake = started(Intake(source, SourcePolicy(batch_size=4, batch_wait_ms=20), now=clock), opened)
    received(intake, 2)
    clock.ns += 20_000_000
    batch = next(iter(intake))
    assert (values(batch), batch.source_time_ns) == (["a", "b"], 1_000)


def test_a_batch_waits_for_its_deadline(clock: Clock, opened: list[Intake]) -> None:
    source = HandFed("a")
    intake = started(Intake(source, SourcePolicy(batch_size=4, batch_wait_ms=20), now=clock), opened)
    received(intake, 1)
    taken: list[Batch] = []
    taker = threading.Thread(target=lambda: taken.append(next(iter(intake))))
    taker.start()
    clock.ns += 19_000_000
    taker.join(0.03)
    assert taker.is_alive()
    source.feed("b")
    received(intake, 2)
    clock.ns += 1_000_000
    taker.join(5)
    assert values(taken[0]) == ["a", "b"]


def test_a_source_that_waits_to_be_asked_fills_its_batches(clock: Clock) -> None:
    class Numbers:
        is_live = False

        def __iter__(self) -> Iterator[int]:
            for number in range(5):
                clock.ns += 10**9
                yield number

    batches = list(Intake(Numbers(), SourcePolicy(batch_size=2, batch_wait_ms=0), now=clock))
    assert [values(batch) for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch.source_time_ns for batch in batches] == [None] * 3


def test_frames_become_one_tensor(opened: list[Intake]) -> None:
    frames = [torch.full((3, 4, 5), n, dtype=torch.uint8) for n in range(2)]
    source = HandFed(*frames)
    source.end()
    (batch,) = Intake(source, SourcePolicy(batch_size=2, batch_wait_ms=10_000))
    assert (batch.data.shape, batch.data.dtype, batch.data[1, 0, 0, 0].item()) == ((2, 3, 4, 5), torch.uint8, 1)


def test_arrays_become_one_tensor() -> None:
    import numpy as np

    source = HandFed(np.zeros((2, 2)), np.ones((2, 2)))
    source.end()
    (batch,) = Intake(source, SourcePolicy(batch_size=2, batch_wait_ms=10_000))
    assert isinstance(batch.data, torch.Tensor)
    assert batch.data[1].tolist() == [[1, 1], [1, 1]]


def test_frames_of_another_size_begin_a_new_batch() -> None:
    source = HandFed(torch.zeros(3, 4, 4), torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
    source.end()
    batches = list(Intake(source, SourcePolicy(batch_size=4, batch_wait_ms=10_000)))
    assert [tuple(batch.data.shape) for batch in batches] == [(1, 3, 4, 4), (2, 3, 8, 8)]


def test_items_of_another_kind_begin_a_new_batch() -> None:
    """Items of different shape or type cannot be stacked; a monitor must not end because of them."""
    items = [torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.uint8), np.zeros(2, np.uint8), [0, 0]]
    batches = list(Intake(items, SourcePolicy(batch_size=4, batch_wait_ms=10_000)))
    assert [batch.size for batch in batches] == [2, 1, 1, 1]


def test_latency_starts_when_the_source_says_it_arrived() -> None:
    source = HandFed(Arrival("a", 17, "frame-1"), Arrival("b", 18))
    source.end()
    (batch,) = Intake(source, SourcePolicy(batch_size=2, batch_wait_ms=10_000), now=lambda: 20)
    assert (batch.source_time_ns, batch.ids) == (17, ["frame-1", "0.1"])


def test_batches_of_a_source_are_taken_as_they_are_but_numbered(clock: Clock) -> None:
    """A camera's own numbers may repeat; the run's must not."""
    given = [Batch(7, ["x"], "a"), Batch(7, ["y"], "b", source_time_ns=5)]
    source = HandFed(*given)
    source.end()
    batches = list(Intake(source, SourcePolicy(batch_size=4, batch_wait_ms=10_000), now=clock))
    assert [(b.index, b.ids, b.data, b.source_time_ns) for b in batches] == [
        (0, ["x"], "a", 1_000),
        (1, ["y"], "b", 5),
    ]


def test_a_batch_and_items_do_not_mix() -> None:
    source = HandFed("a", Batch(0, ["x"], "whole"), "b")
    source.end()
    batches = list(Intake(source, SourcePolicy(batch_size=4, batch_wait_ms=10_000)))
    assert [batch.data for batch in batches] == [["a"], "whole", ["b"]]


def test_a_source_that_fails_says_so_after_what_it_gave() -> None:
    source = HandFed("a")
    source.fail(OSError("cable pulled"))
    batches = iter(Intake(source, SourcePolicy(), key="source"))
    assert values(next(batches)) == ["a"]
    with pytest.raises(DataError, match="source: it failed after 1 items: OSError: cable pulled"):
        next(batches)


def test_a_source_that_ends_before_anything_came_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^source: it ended before its first item$"):
        list(Intake([], SourcePolicy()))


def test_an_error_that_explains_itself_is_passed_on() -> None:
    source = HandFed()
    source.fail(UsageError("source.uri: wrong"))
    with pytest.raises(UsageError, match=r"^source\.uri: wrong$"):
        next(iter(Intake(source, SourcePolicy())))


def test_stop_ends_a_taker_that_waits(opened: list[Intake]) -> None:
    intake = started(Intake(HandFed(), SourcePolicy()), opened)
    ended = threading.Thread(target=lambda: list(intake))
    ended.start()
    intake.stop()
    ended.join(5)
    assert not ended.is_alive()


def test_stop_drops_what_waits(opened: list[Intake]) -> None:
    intake = started(Intake(HandFed(*"abc"), SourcePolicy()), opened)
    received(intake, 3)
    intake.stop()
    assert list(intake) == []
    assert intake.report().dropped == {"stopped": 3}


def test_stop_ends_a_reader_that_waits_for_room(opened: list[Intake]) -> None:
    intake = started(Intake(HandFed(*"abc"), SourcePolicy(WhenFull.block, queue_size=1)), opened)
    until(lambda: intake.report().received == 2)
    intake.stop()
    intake._reader.join(5)
    assert not intake._reader.is_alive()
    assert intake.report().dropped == {"stopped": 2}


def test_close_closes_the_source_and_ends_its_thread() -> None:
    source = HandFed("a")
    intake = Intake(source, SourcePolicy())
    next(iter(intake))
    intake.close()
    assert (source.closed, intake._reader.is_alive()) == (1, False)


def test_close_of_a_generator_at_work_is_no_error() -> None:
    source = HandFed()
    intake = Intake((item for item in source), SourcePolicy())
    intake._reader.start()
    intake.close()
    source.end()
    intake._reader.join(5)
    assert not intake._reader.is_alive()


def test_what_came_during_the_warm_up_is_forgotten(opened: list[Intake]) -> None:
    intake = started(Intake(HandFed(*"abc"), SourcePolicy()), opened)
    received(intake, 3)
    intake.count_dropped("warmup", 2)
    intake.forget_waiting("warmup")
    assert (intake.report().dropped, intake.depth[0]) == ({"warmup": 5}, 0)


def test_the_report_of_a_plain_source(opened: list[Intake]) -> None:
    source = HandFed()
    intake = started(Intake(source, SourcePolicy()), opened)
    assert intake.report() == SourceReport("handfed", CONNECTING)
    source.feed("a")
    received(intake, 1)
    assert intake.report() == SourceReport("handfed", CONNECTED, received=1)
    source.end()
    until(lambda: intake.report().state == ENDED)


def test_the_report_of_a_source_that_keeps_its_health(opened: list[Intake]) -> None:
    source: Any = HandFed("a", "b")
    source.health, source.kind = Health(CONNECTED, reconnects=3), "camera"
    source.health.dropped["corrupt"] = 4
    intake = started(Intake(source, SourcePolicy(WhenFull.drop_newest, queue_size=1)), opened)
    received(intake, 2)
    assert intake.report() == SourceReport("camera", CONNECTED, 2, {"full": 1, "corrupt": 4}, reconnects=3)


def test_a_source_that_cannot_be_iterated_is_refused() -> None:
    with pytest.raises(UsageError, match="source: int cannot be iterated; it must yield items"):
        Intake(3, SourcePolicy())


def test_a_queue_that_could_never_fill_a_batch_is_refused() -> None:
    with pytest.raises(UsageError, match=r"source\.queue_size=8: allowed: at least source\.batch_size=16"):
        Intake(HandFed(), SourcePolicy(batch_size=16))
