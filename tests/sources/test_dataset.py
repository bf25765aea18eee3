"""Any iterable is seen as Batches; anything else is refused."""

import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from mlotel_cli.errors import DataError, UsageError
from mlotel_cli.records import Batch
from mlotel_cli.sources import Batches, Endless
from tests.support.parts import Numbers, once


def test_batches_pass_through_and_may_be_iterated_again() -> None:
    source = Numbers(num_batches=3)
    batches = Batches(source)
    first, second = list(batches), list(batches)
    assert [batch.index for batch in first] == [batch.index for batch in second] == [0, 1, 2]
    assert (len(batches), batches.is_one_shot, source.passes) == (3, False, 2)


def test_a_data_loader_works_as_it_is() -> None:
    loader = DataLoader(TensorDataset(torch.arange(5.0), torch.arange(5)), batch_size=2)
    batches = list(Batches(loader))
    assert [(b.index, b.size, list(b.ids)) for b in batches] == [
        (0, 2, ["0.0", "0.1"]),
        (1, 2, ["1.0", "1.1"]),
        (2, 1, ["2.0"]),
    ]
    assert [b.targets.tolist() for b in batches] == [[0, 1], [2, 3], [4]]
    assert len(Batches(loader)) == 3


def test_a_loader_over_an_endless_data_set_has_no_length() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([(1.0, 2.0)])

    batches = Batches(DataLoader(Stream()))
    assert len(batches) == 0
    assert [batch.size for batch in batches] == [1]


def test_a_generator_is_one_shot_and_has_no_length() -> None:
    batches = Batches(once(num_batches=2))
    assert (batches.is_one_shot, len(batches)) == (True, 0)
    assert len(list(batches)) == 2


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (torch.zeros(3, 2), 3),
        (torch.tensor(1.0), 1),
        (np.zeros((4, 2)), 4),
        ([1, 2, 3], 3),
        ({"image": torch.zeros(5, 1), "mask": torch.zeros(5, 1)}, 5),
        ({}, 0),
        ("a text", 1),
        (7, 1),
        (None, 1),
        (torch.zeros(0, 2), 0),
    ],
)
def test_a_pairs_size_is_that_of_its_data(data: Any, size: int) -> None:
    (batch,) = Batches([(data, "targets")])
    assert (batch.size, len(batch.ids), batch.targets) == (size, size, "targets")


def test_a_source_that_raises_names_the_batch_and_gives_what_came_before() -> None:
    seen: list[int] = []
    with pytest.raises(DataError) as raised:
        seen.extend(batch.index for batch in Batches(Numbers(fails_at=2)))
    assert str(raised.value) == "data: batch 2 cannot be read: OSError: disk gone [sda]"
    assert isinstance(raised.value.__cause__, OSError)
    batches = iter(Batches(Numbers(fails_at=1), key="source"))
    assert next(batches).index == 0
    with pytest.raises(DataError, match=r"^source: batch 1 cannot be read"):
        next(batches)


def test_a_data_sets_own_message_is_kept() -> None:
    class Video:
        def __iter__(self) -> Iterator[Any]:
            raise DataError("a.mp4: frame 3 cannot be decoded")

    with pytest.raises(DataError) as raised:
        list(Batches(Video()))
    assert str(raised.value) == "data: batch 0 cannot be read: a.mp4: frame 3 cannot be decoded"


def test_wrong_usage_stays_wrong_usage() -> None:
    def source() -> Iterator[Any]:
        raise UsageError("data.path=x: no such file")
        yield

    with pytest.raises(UsageError, match=r"^data\.path=x: no such file$"):
        list(Batches(source()))


def test_an_interrupt_is_no_data_error() -> None:
    def source() -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        list(Batches(source()))


@pytest.mark.parametrize("item", [{"image": 1}, (1,), (1, 2, 3), torch.zeros(2, 2), 5])
def test_an_item_that_is_no_batch_is_refused(item: Any) -> None:
    with pytest.raises(DataError, match=rf"^data: batch 1 is a {type(item).__name__}; it must be a mlotel_cli.Batch"):
        list(Batches([(0, 0), item]))


def test_ids_and_size_must_agree() -> None:
    with pytest.raises(DataError, match=r"^data: batch 0 has 1 ids and size 2$"):
        list(Batches([Batch(0, ["a"], None, None, 2)]))


def test_what_cannot_be_iterated_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^source: int cannot be iterated"):
        Batches(3, key="source")


def test_closing_closes_what_can_be_closed() -> None:
    source = Numbers()
    Batches(source).close()
    assert source.closed
    Batches([(1, 2)]).close()
    generator = once()
    Batches(generator).close()
    assert list(generator) == []


# -- over and over again ----------------------------------------------------------------------------------------------


def test_an_endless_data_set_goes_round_and_its_numbers_rise() -> None:
    data = Numbers(num_batches=2)
    batches = list(islice(Endless(data), 5))
    assert [batch.index for batch in batches] == [0, 1, 2, 3, 4]
    assert [float(batch.data[0]) for batch in batches] == [0, 1, 0, 1, 0]
    assert data.passes == 3


def test_data_that_can_be_iterated_once_ends_with_its_only_pass() -> None:
    assert len(list(Endless(once(num_batches=3)))) == 3


def test_an_empty_data_set_does_not_go_round_for_ever() -> None:
    with pytest.raises(DataError, match="data: the data set is empty"):
        list(Endless(Numbers(num_batches=0)))


def test_closing_an_endless_data_set_closes_the_data() -> None:
    data = Numbers()
    Endless(data).close()
    assert data.closed


def test_a_generator_that_a_thread_was_left_behind_in_is_not_closed() -> None:
    entered, leave = threading.Event(), threading.Event()

    def blocks() -> Iterator[Any]:
        entered.set()
        leave.wait(10)
        yield torch.zeros(1), torch.zeros(1)

    source = blocks()
    data = Batches(source)
    thread = threading.Thread(target=lambda: next(iter(data), None))
    thread.start()
    assert entered.wait(10)
    data.close()
    leave.set()
    thread.join(10)
    data.close()
    assert list(source) == []
