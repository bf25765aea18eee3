"""A line: bounded, in the order of tickets whatever the order of arrival, closed without leaving anyone waiting."""

import itertools
import threading
from queue import Empty

import pytest

from mlotel_cli.execute.ordered_queue import End, Line
from tests.support.gates import PATIENCE_S, until


def put_beside(line: Line, ticket: int, entry: object) -> tuple[threading.Thread, list[bool]]:
    """Put on another thread; returns it, and what `put` returned once it has."""
    returned: list[bool] = []
    thread = threading.Thread(target=lambda: returned.append(line.put(ticket, entry)), daemon=True)
    thread.start()
    return thread, returned


def joined(thread: threading.Thread) -> bool:
    thread.join(PATIENCE_S)
    return not thread.is_alive()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_entries_leave_in_the_order_of_their_tickets(order: tuple[int, ...]) -> None:
    line = Line(4)
    for ticket in order:
        assert line.put(ticket, f"entry {ticket}")
    assert [line.get() for _ in range(4)] == [f"entry {ticket}" for ticket in range(4)]


def test_an_early_entry_waits_for_those_before_it() -> None:
    line = Line(3)
    line.put(1, "second")
    with pytest.raises(Empty):
        line.get(0.001)
    line.put(0, "first")
    assert [line.get(), line.get()] == ["first", "second"]


def test_it_holds_so_many_and_no_more() -> None:
    line = Line(2)
    line.put(0, "a")
    line.put(1, "b")
    thread, returned = put_beside(line, 2, "c")
    assert not returned
    assert (line.depth, line.capacity) == (2, 2)
    assert line.get() == "a"
    assert joined(thread)
    assert returned == [True]
    assert line.depth == 2
    assert [line.get(), line.get()] == ["b", "c"]
    assert line.depth == 0


def test_the_one_that_is_due_never_waits_for_those_behind_it() -> None:
    line = Line(2)
    line.put(1, "b")
    line.put(2, "c")
    blocked, _ = put_beside(line, 3, "d")
    thread, _ = put_beside(line, 0, "a")
    assert joined(thread)
    assert [line.get() for _ in range(4)] == ["a", "b", "c", "d"]
    assert joined(blocked)


def test_an_end_needs_no_room_comes_last_and_stays() -> None:
    line = Line(1)
    line.put(0, "a")
    line.put(1, End(1))
    line.put(1, End(1))  # of another thread of the same stage
    assert line.get() == "a"
    assert isinstance(line.get(), End)
    assert isinstance(line.get(), End)


def test_a_ticket_counts_once() -> None:
    line = Line(2)
    line.put(0, "a")
    line.put(0, "late")
    assert line.depth == 1
    assert line.get() == "a"
    assert line.depth == 0
    assert line.drain() == []


def test_an_early_end_waits_too() -> None:
    line = Line(1)
    line.put(1, End(1))
    line.put(0, "a")
    assert line.get() == "a"
    assert isinstance(line.get(), End)


def test_closing_wakes_who_puts_and_who_takes() -> None:
    full, empty = Line(1), Line(1)
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
    line = Line(3)
    line.put(0, "a")
    line.put(2, "c")
    line.close()
    assert sorted(line.drain()) == ["a", "c"]
    assert line.drain() == []


def test_many_threads_on_both_sides_lose_nothing() -> None:
    line, total = Line(3), 600
    tickets = iter(range(total))
    lock = threading.Lock()
    taken: list[int] = []

    def put() -> None:
        while True:
            with lock:
                ticket = next(tickets, None)
            if ticket is None:
                return
            line.put(ticket, ticket)

    threads = [threading.Thread(target=put, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    taken = [line.get(PATIENCE_S) for _ in range(total)]
    assert all(joined(thread) for thread in threads)
    assert taken == list(range(total))
    until(lambda: line.depth == 0)
