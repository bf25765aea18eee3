"""What waits for the recorder: order, frames, device times that are not known yet, and what cannot be written."""

import pytest

from mlotel_cli.link.outbox import FRAME_MESSAGES, Item, Outbox
from mlotel_cli.telemetry.device import Mark
from mlotel_cli.telemetry.span import Span
from mlotel_cli.telemetry.tracer import Provider, Recording
from mlotel_cli.wire import Closing, Info, Settled
from tests.support.played_recorder import spans
from tests.support.wire import read


def taken(outbox: Outbox) -> list[str]:
    """Names of the messages that go out now."""
    return [type(message).__name__ for data in outbox.frames() for message in read(data)]


def test_a_backlog_goes_out_in_frames() -> None:
    outbox = Outbox()
    for span in spans(2 * FRAME_MESSAGES + 500):
        outbox.emit(span)
    outbox.emit(Closing())
    assert [len(read(data)) for data in outbox.frames()] == [FRAME_MESSAGES, FRAME_MESSAGES, 501]
    assert (outbox.is_empty, outbox.emitted) == (True, 2 * FRAME_MESSAGES + 500)


def test_what_comes_while_it_is_taken_goes_out_the_next_time() -> None:
    outbox = Outbox()
    outbox.emit(Info("first"))
    frames = outbox.frames()
    first = next(frames)
    outbox.emit(Info("second"))
    assert [message.text for message in read(first)] == ["first"]
    assert list(frames) == []
    assert taken(outbox) == ["Info"]


def test_what_is_put_first_goes_out_first_and_in_its_order() -> None:
    outbox = Outbox()
    outbox.emit(Info("third"))
    outbox.put_first(Info("first"), Info("second"))
    assert [message.text for data in outbox.frames() for message in read(data)] == ["first", "second", "third"]


def test_what_cannot_be_packed_is_lost_alone_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    good, bad, worse = spans(3)
    bad._kind = "no kind"  # type: ignore[assignment]
    worse._attributes = {"x": object()}
    outbox = Outbox()
    for item in (bad, worse, good, Settled(0, 0, 0, 1, "scored", 1, 0, accuracy={"hit": object()})):  # type: ignore[dict-item]
        outbox.emit(item)
    outbox.emit(Closing())
    messages = [message for data in outbox.frames() for message in read(data)]
    assert [type(message).__name__ for message in messages] == ["Stamp", "Closing"]
    assert (messages[0].span.span_id, messages[1].spans_emitted) == (1, 3)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "a span could not be packed and is lost",
        "a SpanMessage could not be handed over and is lost",
        "a Settled could not be handed over and is lost",
    ]


def test_every_message_passes_the_gate() -> None:
    def admit(item: Item) -> Item | None:
        return None if isinstance(item, Span) else item

    outbox = Outbox(admit)
    for item in (*spans(2), Closing()):
        outbox.emit(item)
    (closing,) = [message for data in outbox.frames() for message in read(data)]
    assert closing == Closing(spans_emitted=2), "what is kept back counts as emitted, and so as lost"


class Slow:
    """A device timer whose marks the test resolves."""

    def __init__(self) -> None:
        self.released = False

    def begin(self) -> Mark:
        return Mark(None)

    def finish(self, mark: Mark) -> None:
        pass

    def resolve(self, mark: Mark) -> bool:
        return self.released


def test_a_span_waits_for_its_device_time_and_so_does_the_end() -> None:
    slow, outbox = Slow(), Outbox()
    recording = Recording(outbox.emit, device=slow)  # type: ignore[arg-type]
    with Provider(recording).get_tracer("test").start_as_current_span("stage"):
        pass
    outbox.emit(Settled(0, 0, 0, 1, "scored", 1, 0))
    outbox.emit(Closing())

    assert taken(outbox) == ["Settled"]
    assert taken(outbox) == []
    assert not outbox.is_empty
    slow.released = True
    assert taken(outbox) == ["Stamp", "Closing"]
    assert outbox.is_empty


def test_a_broken_device_costs_the_device_time_only(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Slow):
        def resolve(self, mark: Mark) -> bool:
            raise RuntimeError("lost")

    outbox = Outbox()
    recording = Recording(outbox.emit, device=Broken())  # type: ignore[arg-type]
    with Provider(recording).get_tracer("test").start_as_current_span("stage"):
        pass
    (stamp,) = [message for data in outbox.frames() for message in read(data)]
    assert (stamp.span.name, stamp.span.device_ns) == ("stage", None)
    assert "a span's device time is lost" in caplog.text
