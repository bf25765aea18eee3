"""The books of a monitor's link: whole batches go, and every one that is missing is counted once."""

import pytest

from mlotel_cli.link import ledger
from mlotel_cli.link.ledger import Ledger
from mlotel_cli.link.outbox import Outbox
from mlotel_cli.snapshot import Gaps
from mlotel_cli.summary import Telemetry
from mlotel_cli.wire import Closing, Info, Report, Settled, SpanMessage, Stamp
from tests.support.wire import read


def span(batch: int | None) -> SpanMessage:
    return SpanMessage(1, 2, 0, None, batch, "stage", "INTERNAL", "", "", 10, 20)


def settled(batch: int) -> Settled:
    return Settled(batch, batch, 0, 1, "done", 1, 0)


def test_what_dies_with_a_recorder_is_what_it_had_not_written() -> None:
    books = Ledger()
    for batch in range(10):
        assert books.admit(span(batch)) is not None
        assert books.admit(settled(batch)) is not None
    books.count_death(rows_written=7)
    assert books.gaps == Gaps(recorder_restarts=0, batches_lost=3)
    books.count_death(rows_written=7)
    assert books.gaps.batches_lost == 3, "they are counted once"


def test_the_rest_of_a_batch_that_died_in_the_middle_is_kept_back() -> None:
    books = Ledger()
    books.admit(span(5))
    books.count_death(rows_written=0)
    assert (books.gaps.batches_lost, len(books._under_way), len(books._shedding)) == (1, 0, 1)
    assert books.admit(span(5)) is None
    assert books.admit(settled(5)) is None
    assert not books._shedding
    assert books.admit(span(6)) == span(6)


def test_infos_are_remembered_once_and_gaps_leave_with_the_closing() -> None:
    books = Ledger()
    for text in ("a", "b", "a"):
        books.admit(Info(text))
    assert books.infos == [Info("a"), Info("b")]
    books.restarts = 2
    closing = books.admit(Closing(telemetry=Telemetry(faults={})))
    assert closing == Closing(telemetry=Telemetry(faults={}, recorder_restarts=2, batches_lost=0))


def test_spans_and_reports_without_a_batch_pass() -> None:
    books = Ledger()
    for message in (span(None), Report()):
        assert books.admit(message) == message
    assert not books._under_way


@pytest.fixture
def high_water(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(ledger, "HIGH_WATER", 10)
    return 10


def test_the_oldest_batches_go_whole_and_messages_stay(high_water: int) -> None:
    books = Ledger()
    outbox = Outbox(books.admit)
    outbox.emit(Info("stays"))
    outbox.emit(Report())
    for batch in range(4):
        for _ in range(2):
            outbox.emit(span(batch))
        outbox.emit(settled(batch))
    books.shed_excess(outbox)
    messages = [message for data in outbox.frames() for message in read(data)]
    assert messages[0] == Info("stays")
    assert [each.span.batch for each in messages if isinstance(each, Stamp)] == [3, 3]
    assert [each.batch for each in messages if isinstance(each, Settled)] == [3]
    assert not [each for each in messages if isinstance(each, Report)], "an old report says nothing"
    assert books.gaps.batches_lost == 3
    assert outbox.emitted == 8, "shed spans count as emitted, and so as lost"
    assert not books._shedding


def test_a_batch_that_was_handed_over_in_part_is_kept(high_water: int) -> None:
    books = Ledger()
    books.admit(span(0))
    outbox = Outbox(books.admit)
    for batch in (0, 1, 2, 3):
        for _ in range(3):
            outbox.emit(span(batch))
    books.shed_excess(outbox)
    left = [stamp.span.batch for data in outbox.frames() for stamp in read(data)]
    assert left == [0, 0, 0], "the others go, to leave half of what may wait"


def test_nothing_goes_below_the_high_water(high_water: int) -> None:
    books, outbox = Ledger(), Outbox()
    for _ in range(high_water):
        outbox.emit(span(1))
    books.shed_excess(outbox)
    assert len(outbox) == high_water
