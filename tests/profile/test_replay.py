"""Ranges of a recording become spans: ids, parents, times, and the figures of a batch's root. Times are ns."""

from dataclasses import dataclass, field
from typing import Any

from mlotel_cli.profile.attribution import Attributed, attribute
from mlotel_cli.profile.replay import replay
from mlotel_cli.profile.timeline import Activity, Call, Range, Timeline
from mlotel_cli.records import KIND
from mlotel_cli.wire import SpanMessage


@dataclass
class FakeLink:
    """Keeps what is sent; `rooms` says behind how many messages there was a wait for room."""

    sent: list[SpanMessage] = field(default_factory=list)
    rooms: list[int] = field(default_factory=list)

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def wait_for_room(self) -> None:
        self.rooms.append(len(self.sent))

    def named(self, name: str, batch: int = 0) -> SpanMessage:
        (found,) = (message for message in self.sent if (message.name, message.batch) == (name, batch))
        return found


def range_(name: str, start: int, end: int, *, category: str = "internal", batch: int | None = 0) -> Range:
    return Range(name, category, start, end, (7 << 24) + 3, 7, batch)


def two_batches(**more: Any) -> Timeline:
    ranges = [
        each
        for batch, at in ((0, 100), (1, 200))
        for each in (
            range_("batch", at, at + 50, category="batch", batch=batch),
            range_("reader", at + 10, at + 40, batch=batch),
            range_("GET", at + 20, at + 30, category="client", batch=batch),
            range_("queue reader", at + 5, at + 9, category="queue", batch=batch),
        )
    ]
    return Timeline(ranges, **more)


def sent(attributed: Attributed, **options: Any) -> tuple[FakeLink, dict[int, int]]:
    link = FakeLink()
    return link, replay(attributed, link, **({"started_ns": None} | options))


def test_every_range_of_a_batch_is_a_span_below_the_range_around_it() -> None:
    link, opened = sent(attribute(two_batches(epoch_offset_ns=1_000)))
    assert opened == {0: 4, 1: 4}
    root, reader, client, queue = (link.named(name) for name in ("batch", "reader", "GET", "queue reader"))
    assert (root.parent_id, reader.parent_id, client.parent_id) == (0, root.span_id, reader.span_id)
    assert queue.parent_id == root.span_id
    assert [(span.start_ns, span.end_ns) for span in (root, reader)] == [(1_100, 1_150), (1_110, 1_140)]
    assert {span.thread for span in link.sent} == {"3"}
    assert {span.scope for span in link.sent} == {"profiler"}


def test_a_batch_is_one_trace_and_ids_are_not_used_twice() -> None:
    link, _ = sent(attribute(two_batches()))
    traces = {batch: {span.trace_id for span in link.sent if span.batch == batch} for batch in (0, 1)}
    assert [len(found) for found in traces.values()] == [1, 1]
    assert traces[0] != traces[1]
    assert len({span.span_id for span in link.sent}) == len(link.sent) == 8


def test_kinds_and_the_mark_of_a_wait() -> None:
    link, _ = sent(attribute(two_batches()))
    found = {span.name: (span.kind, span.attributes) for span in link.sent if span.batch == 0}
    assert found == {
        "batch": ("INTERNAL", None),
        "reader": ("INTERNAL", None),
        "GET": ("CLIENT", None),
        "queue reader": ("INTERNAL", {KIND: "queue"}),
    }


def test_only_the_root_says_how_many_spans_its_batch_has_and_it_comes_last() -> None:
    link, _ = sent(attribute(two_batches()))
    assert [span.opened for span in link.sent] == [None, None, None, 4] * 2
    assert [span.name for span in link.sent[:4]] == ["queue reader", "GET", "reader", "batch"]
    assert link.rooms == [4, 8]  # behind each batch


def test_without_a_date_the_recording_began_when_the_command_says() -> None:
    link, _ = sent(attribute(two_batches()), started_ns=5_000)
    assert link.named("batch").start_ns == 5_000
    assert link.named("batch", 1).start_ns == 5_100


def test_a_span_ends_when_its_device_work_is_done() -> None:
    calls = [Call("launch", 115, 116, (7 << 24) + 3, 7, 1)]
    timeline = two_batches(epoch_offset_ns=0, calls=calls, activities=[Activity("kernel", "k", 120, 170, 0, 7, 1)])
    link, _ = sent(attribute(timeline))
    reader, root, other = link.named("reader"), link.named("batch"), link.named("reader", 1)
    assert (reader.end_ns, reader.device_ns, reader.lag_ns) == (170, 50, 30)
    assert (root.end_ns, root.device_ns, root.lag_ns) == (170, 50, 20)
    assert (other.end_ns, other.device_ns, other.lag_ns) == (240, None, None)


def test_device_work_that_ends_before_the_host_delays_nothing() -> None:
    calls = [Call("launch", 115, 116, (7 << 24) + 3, 7, 1)]
    timeline = two_batches(epoch_offset_ns=0, calls=calls, activities=[Activity("kernel", "k", 120, 130, 0, 7, 1)])
    reader = sent(attribute(timeline))[0].named("reader")
    assert (reader.end_ns, reader.device_ns, reader.lag_ns) == (140, 10, 0)


def test_the_root_carries_recorded_values_and_then_the_devices_figures() -> None:
    calls = [Call("launch", 115, 116, (7 << 24) + 3, 7, 1)]
    timeline = two_batches(calls=calls, activities=[Activity("kernel", "k", 120, 1_000_120, 0, 7, 1)])
    link, _ = sent(attribute(timeline), recorded={0: [["boxes", 3, "{box}"]]})
    assert list(link.named("batch").recorded or ()) == [
        ("boxes", 3.0, "{box}"),
        ("reader.kernels", 1.0, "{kernel}"),
        ("reader.kernel_ms", 1.0, "ms"),
        ("reader.idle_ms", 0.0, "ms"),
        ("reader.copy_ms", 0.0, "ms"),
        ("reader.copy_bytes", 0.0, "By"),
        ("reader.syncs", 0.0, "{call}"),
    ]
    assert list(link.named("batch", 1).recorded or ()) == []
    assert link.named("reader").recorded is None


def test_ranges_outside_batches_and_of_batches_without_a_root_are_left_out() -> None:
    ranges = [range_("import", 0, 5, batch=None), range_("reader", 10, 20, batch=4)]
    link, opened = sent(attribute(Timeline(ranges)))
    assert (link.sent, link.rooms, opened) == ([], [], {})
