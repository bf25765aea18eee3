import threading
from collections.abc import Iterator

import pytest
from lpr.prefetch import Prefetched


def test_items_come_in_order_from_another_thread() -> None:
    threads = set[str]()

    def make() -> Iterator[int]:
        for i in range(20):
            threads.add(threading.current_thread().name)
            yield i

    with Prefetched(make, ahead=3) as items:
        assert list(items) == list(range(20))
    assert threads == {"decode"}


def test_it_works_ahead_but_not_without_bound() -> None:
    made = list[int]()
    third = threading.Event()

    def make() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            if i == 2:
                third.set()
            yield i

    with Prefetched(make, ahead=2) as items:
        assert third.wait(5)  # two wait in the queue, the third to get in
        assert len(made) == 3
        assert next(iter(items)) == 0
    assert len(made) <= 4


def test_an_error_comes_where_its_item_would_have() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise OSError("torn")

    seen = list[int]()
    with Prefetched(make, ahead=2) as items, pytest.raises(OSError, match="torn"):
        seen.extend(items)
    assert seen == [1]


def test_leaving_early_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def make() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with Prefetched(make, ahead=1) as items:
        next(iter(items))
    assert closed.wait(5)
    assert not any(thread.name == "decode" for thread in threading.enumerate())
