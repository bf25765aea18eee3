"""An ordered queue is bounded, keeps the order of tickets, and wakes all waiting threads when it is closed."""

import itertools
import threading
from queue import Empty

import pytest

from mlotel_cli.execute.ordered_queue import End, OrderedQueue
from tests.support.gates import PATIENCE_S, until


def put_beside(queue: OrderedQueue, ticket: int, entry: object) -> tuple[threading.Thread, list[bool]]:
    """Put on another thread; return the thread and a list that will hold the result of `put`."""
    returned: list[bool] = []
    thread = threading.Thread(target=lambda: returned.append(queue.put(ticket, entry)), daemon=True)
    thread.start()
    return thread, returned


def joined(thread: threading.Thread) -> bool:
    thread.join(PATIENCE_S)
    return not thread.is_alive()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_entries_leave_in_the_order_of_their_tickets(order: tuple[int, ...]) -> None:
    queue = OrderedQueue(4)
    for ticket in order:
        assert queue.put(ticket, f"entry {ticket}")
    assert [queue.get() for _ in range(4)] == [f"entry {ticket}" for ticket in range(4)]


def test_an_early_entry_waits_for_those_before_it() -> None:
    queue = OrderedQueue(3)
    queue.put(1, "second")
    with pytest.raises(Empty):
        queue.get(0.001)
    queue.put(0, "first")
    assert [queue.get(), queue.get()] == ["first", "second"]


def test_it_holds_so_many_and_no_more() -> None:
    queue = OrderedQueue(2)
    queue.put(0, "a")
    queue.put(1, "b")
    thread, returned = put_beside(queue, 2, "c")
    assert not returned
    assert (queue.depth, queue.capacity) == (2, 2)
    assert queue.get() == "a"
    assert joined(thread)
    assert returned == [True]
    assert queue.depth == 2
    assert [queue.get(), queue.get()] == ["b", "c"]
    assert queue.depth == 0


def test_the_one_that_is_due_never_waits_for_those_behind_it() -> None:
    queue = OrderedQueue(2)
    queue.put(1, "b")
    queue.put(2, "c")
    blocked, _ = put_beside(queue, 3, "d")
    thread, _ = put_beside(queue, 0, "a")
    assert joined(thread)
    assert [queue.get() for _ in range(4)] == ["a", "b", "c", "d"]
    assert joined(blocked)


def test_an_end_needs_no_room_comes_last_and_stays() -> None:
    queue = OrderedQueue(1)
    queue.put(0, "a")
    queue.put(1, End(1))
    queue.put(1, End(1))  # of another thread of the same stage
    assert queue.get() == "a"
    assert isinstance(queue.get(), End)
    assert isinstance(queue.get(), End)


def test_a_ticket_counts_once() -> None:
    queue = OrderedQueue(2)
    queue.put(0, "a")
    queue.put(0, "late")
    assert queue.depth == 1
    assert queue.get() == "a"
    assert queue.depth == 0
    assert queue.drain() == []


def test_an_early_end_waits_too() -> None:
    queue = OrderedQueue(1)
    queue.put(1, End(1))
    queue.put(0, "a")
    assert queue.get() == "a"
    assert isinstance(queue.get(), End)


def test_closing_wakes_who_puts_and_who_takes() -> None:
    full, empty = OrderedQueue(1), OrderedQueue(1)
    full.put(0, "a")
    putting, returned = put_beside(full, 1, "b")
    early, returned_early = put_beside(full, 2, "c")
    taken: list[object] = []
    takers = [threading.Thread(target=lambda: taken.append(empty.get()), daemon=True) for _ in range(2)]
    for taker in takers:
        taker.start()
    error = ValueError("why")
    full.close()
    empty.close(error)
    assert all(joined(thread) for thread in (putting, early, *takers))
    assert (returned, returned_early) == ([False], [False])
    assert [one.error for one in taken if isinstance(one, End)] == [error, error]
    assert not full.put(1, "b")


def test_what_is_left_can_be_had_after_closing() -> None:
    queue = OrderedQueue(3)
    queue.put(0, "a")
    queue.put(2, "c")
    queue.close()
    assert sorted(queue.drain()) == ["a", "c"]
    assert queue.drain() == []


def test_many_threads_on_both_sides_lose_nothing() -> None:
    queue, total = OrderedQueue(3), 600
    tickets = iter(range(total))
    lock = threading.Lock()
    taken: list[int] = []

    def put() -> None:
        while True:
            with lock:
                ticket = next(tickets, None)
            if ticket is None:
                return
            queue.put(ticket, ticket)

    threads = [threading.Thread(target=put, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    taken = [queue.get(PATIENCE_S) for _ in range(total)]
    assert all(joined(thread) for thread in threads)
    assert taken == list(range(total))
    until(lambda: queue.depth == 0)
