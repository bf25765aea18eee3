"""The backend on a fake NVTX that notes pushed and started ranges; tests/system makes real recordings."""

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import nvtx
import pytest
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind

from mlotel_cli import record, span
from mlotel_cli.errors import UsageError
from mlotel_cli.records import BATCH_INDEX, KIND
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends import nvtx as backend_module
from mlotel_cli.telemetry.backends.nvtx import OTHER, Nvtx, capture, colour_of
from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.tracer import Provider


@dataclass
class Notes:
    """Ranges in the order in which they began: [name, category, payload, thread, ended on thread].

    `endings` are the names of ranges in the order in which they ended.
    """

    endings: list[str] = field(default_factory=list)
    ranges: list[list[Any]] = field(default_factory=list)
    open: dict[int, list[list[Any]]] = field(default_factory=dict)

    def push(self, attributes: Any, _domain: Any) -> None:
        self.open.setdefault(threading.get_ident(), []).append(self.begin(attributes))

    def pop(self, _domain: Any) -> None:
        self.end(self.open[threading.get_ident()].pop())

    def begin(self, attributes: Any, _domain: Any = None) -> list[Any]:
        categories = {number: name for name, number in nvtx.nvtx.get_domain("mlotel").categories.items()}
        name, category = attributes.message.string, categories.get(attributes.category)
        self.ranges.append([name, category, attributes.payload, threading.get_ident(), None])
        return self.ranges[-1]

    def end(self, began: list[Any]) -> None:
        began[4] = threading.get_ident()
        self.endings.append(began[0])

    def seen(self) -> list[tuple[Any, ...]]:
        return [tuple(each[:3]) for each in self.ranges]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    noted = Notes()
    monkeypatch.setattr(nvtx.nvtx, "libnvtx_push_range", noted.push)
    monkeypatch.setattr(nvtx.nvtx, "libnvtx_pop_range", noted.pop)
    monkeypatch.setattr(nvtx.nvtx, "libnvtx_start_range", noted.begin)
    monkeypatch.setattr(nvtx.nvtx, "libnvtx_end_range", noted.end)
    monkeypatch.setattr(backend_module, "libnvtx_start_range", noted.begin)
    return noted


@pytest.fixture
def tracer() -> trace.Tracer:
    return Provider(Nvtx()).get_tracer("test")


@pytest.fixture
def as_the_processes_backend() -> Iterator[None]:
    api.install()
    api.use(Nvtx())
    yield
    api.use(OFF)


def in_thread(function: Any) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def batch(index: int) -> dict[str, Any]:
    return {"attributes": {BATCH_INDEX: index}}


def test_only_the_root_carries_the_batch(tracer: trace.Tracer, notes: Notes):
    for index in (7, 8):
        with tracer.start_as_current_span("batch", **batch(index)), tracer.start_as_current_span("stage"):
            pass

    assert notes.seen() == [
        ("batch", "batch", 7),
        ("stage", "internal", None),
        ("batch", "batch", 8),
        ("stage", "internal", None),
    ]
    assert notes.open == {threading.get_ident(): []}


def test_a_stage_that_is_called_batch_has_no_stale_payload(tracer: trace.Tracer, notes: Notes):
    with tracer.start_as_current_span("batch", **batch(7)), tracer.start_as_current_span("batch"):
        pass
    assert notes.seen()[1] == ("batch", "internal", None)


def test_categories(tracer: trace.Tracer, notes: Notes):
    for kind in SpanKind:
        with tracer.start_as_current_span("x", kind=kind):
            pass
    with tracer.start_as_current_span("queue x", attributes={KIND: "queue"}):
        pass
    with tracer.start_as_current_span("x", attributes={"height": 3}):
        pass

    expected = ["internal", "server", "client", "producer", "consumer", "queue", "internal"]
    assert [category for _, category, _ in notes.seen()] == expected


def test_ranges_on_other_threads_carry_the_batch_too(tracer: trace.Tracer, notes: Notes):
    with tracer.start_as_current_span("batch", **batch(3)):
        current = context.get_current()

        def given() -> None:
            with tracer.start_as_current_span("given", context=current), tracer.start_as_current_span("inner"):
                pass

        def attached() -> None:
            token = context.attach(current)
            with tracer.start_as_current_span("attached"):
                pass
            context.detach(token)

        def alone() -> None:
            with tracer.start_as_current_span("alone"):
                pass

        for function in (given, attached, alone):
            in_thread(function)

    payloads = {name: payload for name, _, payload in notes.seen()}
    assert payloads == {"batch": 3, "given": 3, "inner": None, "attached": 3, "alone": None}


def test_a_started_span_may_end_on_another_thread_once(tracer: trace.Tracer, notes: Notes):
    with tracer.start_as_current_span("batch", **batch(3)):
        started = tracer.start_span("started")
    in_thread(started.end)
    started.end()

    (_, noted) = notes.ranges
    assert noted[:3] == ["started", "internal", 3]
    assert noted[3] == threading.get_ident()
    assert noted[4] not in (None, threading.get_ident())


def test_a_span_that_outlives_its_block_is_started_too(tracer: trace.Tracer, notes: Notes):
    with tracer.start_as_current_span("kept", end_on_exit=False) as kept:
        assert trace.get_current_span() is kept
    assert notes.ranges[0][4] is None
    kept.end()
    assert notes.ranges[0][4] is not None


def test_the_span_accepts_everything_and_keeps_nothing(tracer: trace.Tracer, notes: Notes):
    with tracer.start_as_current_span("stage") as bare, tracer.start_as_current_span("batch", **batch(1)) as root:
        for each in (bare, root, tracer.start_span("started")):
            assert isinstance(each, trace.Span)
            assert not each.is_recording()
            each.set_attribute("a", 1)
            each.set_attributes({"a": 1})
            each.add_event("e")
            each.set_status(trace.StatusCode.ERROR)
            each.record_exception(ValueError("x"))
            each.update_name("y")
            each.end()


def test_an_exception_ends_the_ranges_and_goes_on(tracer: trace.Tracer, notes: Notes):
    before = context.get_current()
    with (
        pytest.raises(ValueError, match="boom"),
        tracer.start_as_current_span("batch", **batch(1)),
        tracer.start_as_current_span("stage"),
    ):
        raise ValueError("boom")
    assert all(each[4] is not None for each in notes.ranges)
    assert context.get_current() == before


def test_decorators_open_a_range_at_every_call(tracer: trace.Tracer, notes: Notes):
    @tracer.start_as_current_span("plain")
    def plain() -> int:
        return 1

    @tracer.start_as_current_span("root", **batch(5))
    def root() -> int:
        return plain()

    assert (plain(), root()) == (1, 1)
    assert notes.seen() == [("plain", "internal", None), ("root", "batch", 5), ("plain", "internal", None)]


def test_names_beyond_the_limit_share_one(notes: Notes):
    backend = Nvtx(max_names=2)
    tracer = Provider(backend).get_tracer("test")
    for number in range(5):
        with tracer.start_as_current_span(f"request {number}"):
            pass
        tracer.start_span(f"request {number}").end()

    names = [name for name, _, _ in notes.seen()]
    assert names == ["request 0"] * 2 + ["request 1"] * 2 + [OTHER] * 6
    assert backend.faults.counts() == {"names": 6}


def test_the_capture_is_one_range_of_the_domain(notes: Notes):
    with capture():
        assert notes.ranges[0][0] == "mlotel capture"
        assert notes.ranges[0][4] is None
    assert notes.ranges[0][4] is not None


def test_colours_are_opaque_and_belong_to_the_name():
    assert colour_of("detector") == colour_of("detector")
    assert len({colour_of(f"stage {number}") for number in range(50)}) > 10
    assert all(colour_of(name) >> 24 == 0xFF for name in ("a", "b"))


@pytest.mark.usefixtures("as_the_processes_backend")
def test_the_alias_and_values_work_and_make_no_noise(notes: Notes, caplog: pytest.LogCaptureFixture):
    with span("stage"):
        record("num_detections", 3)
    record("num_detections", 3)
    assert notes.seen() == [("stage", "internal", None)]
    assert not caplog.records


@pytest.mark.usefixtures("as_the_processes_backend")
def test_values_of_a_batch_are_kept_for_who_asks():
    with api.batch(7), span("stage"):
        record("num_detections", 3, unit="{detection}")
        record("num_detections", float("nan"))
    values = api.PROVIDER.backend.values  # type: ignore[attr-defined]
    assert values.take(7) == [("num_detections", 3.0, "{detection}")]
    assert values.take(7) == []


def test_nvtx_that_is_switched_off_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NVTX_DISABLE", "1")
    monkeypatch.setattr(nvtx, "enabled", lambda: False)
    with pytest.raises(UsageError, match="NVTX_DISABLE=1: this variable switches NVTX off"):
        Nvtx()


def test_memory_stays_flat(tracer: trace.Tracer):
    """The memory stays constant over 20,000 batches. (The benchmark measures 1,000,000 ranges.)"""

    def batches(first: int, count: int) -> None:
        for index in range(first, first + count):
            with tracer.start_as_current_span("batch", **batch(index)), tracer.start_as_current_span("stage"):
                tracer.start_span("started").end()

    batches(0, 100)
    gc.collect()
    tracemalloc.start()
    batches(1_000, 2_000)
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 20_000  # ten bytes a batch


def test_a_batch_whose_spans_are_on_several_threads(tracer: trace.Tracer, notes: Notes):
    root = tracer.start_span("batch", trace.set_span_in_context(trace.INVALID_SPAN), **batch(7))
    inside = trace.set_span_in_context(root)
    waiting = tracer.start_span("queue reader", inside, attributes={KIND: "queue"})

    def stage() -> None:
        waiting.end()
        with tracer.start_as_current_span("reader", inside), tracer.start_as_current_span("own"):
            pass
        root.end()

    in_thread(stage)
    assert notes.seen() == [
        ("batch", "batch", 7),
        ("queue reader", "queue", 7),
        ("reader", "internal", 7),
        ("own", "internal", None),
    ]
    here = threading.get_ident()
    assert [began == here for _, _, _, began, _ in notes.ranges] == [True, True, False, False]
    assert [ended == here for *_, ended in notes.ranges[:2]] == [False, False]


def test_a_child_on_the_thread_of_a_batch_that_may_end_elsewhere_says_which_batch(tracer: trace.Tracer, notes: Notes):
    root = tracer.start_span("batch", **batch(7))
    with trace.use_span(root), tracer.start_as_current_span("own"), tracer.start_as_current_span("inner"):
        pass
    in_thread(root.end)
    assert notes.seen() == [("batch", "batch", 7), ("own", "internal", 7), ("inner", "internal", None)]


def test_waiting_that_began_before_it_could_be_told_is_left_out(tracer: trace.Tracer, notes: Notes):
    tracer.start_span("queue source", attributes={KIND: "queue"}, start_time=1).end(2)
    tracer.start_span("stage", start_time=1).end()
    assert notes.seen() == [("stage", "internal", None)]


def test_tasks_that_take_turns_end_their_own_ranges_and_know_their_batch(tracer: trace.Tracer, notes: Notes):
    async def stage(name: str, turns: int) -> None:
        with tracer.start_as_current_span(name):
            for _ in range(turns):
                await asyncio.sleep(0)
            with tracer.start_as_current_span(f"{name} inside"):
                pass

    async def batch_of(index: int, *turns: int) -> None:
        with tracer.start_as_current_span("batch", **batch(index)) as root:
            await asyncio.gather(*(stage(f"{index}.{number}", each) for number, each in enumerate(turns)))
            assert trace.get_current_span() is root

    async def run() -> None:
        await asyncio.gather(batch_of(7, 4, 2), batch_of(8, 1))

    asyncio.run(run())

    whole = {name: (category, payload) for name, category, payload in notes.seen() if "inside" not in name}
    assert whole == {
        "batch": ("batch", 8),  # the last one of that name
        "7.0": ("internal", 7),
        "7.1": ("internal", 7),
        "8.0": ("internal", 8),
    }
    assert [name for name in notes.endings if name[-2:] in (".0", ".1")] == ["8.0", "7.1", "7.0"]
    assert [payload for name, _, payload in notes.seen() if name == "7.1 inside"] == [7]
    assert notes.open == {}  # nothing was pushed


def test_a_stage_that_runs_a_loop_stays_a_pushed_range(tracer: trace.Tracer, notes: Notes):
    @tracer.start_as_current_span("decorated")
    async def inside() -> None:
        with tracer.start_as_current_span("queue x", attributes={KIND: "queue"}):
            await asyncio.sleep(0)

    with tracer.start_as_current_span("batch", **batch(7)), tracer.start_as_current_span("stage"):
        asyncio.run(inside())
        with tracer.start_as_current_span("after"):
            pass

    assert notes.seen() == [
        ("batch", "batch", 7),
        ("stage", "internal", None),
        ("decorated", "internal", 7),
        ("queue x", "queue", 7),
        ("after", "internal", None),
    ]
    assert notes.open == {threading.get_ident(): []}
    assert notes.endings == ["queue x", "decorated", "after", "stage", "batch"]


def test_a_task_that_is_no_batchs_has_a_range_without_one(tracer: trace.Tracer, notes: Notes):
    async def alone() -> None:
        with pytest.raises(KeyError), tracer.start_as_current_span("alone"):
            raise KeyError

    asyncio.run(alone())
    assert notes.seen() == [("alone", "internal", None)]
    assert notes.endings == ["alone"]


def test_a_generator_that_another_task_closes_ends_its_range(tracer: trace.Tracer, notes: Notes):
    async def frames() -> AsyncIterator[int]:
        with tracer.start_as_current_span("frames"):
            yield 1
            yield 2

    async def run() -> None:
        generator = frames()
        await asyncio.create_task(anext(generator))  # type: ignore[arg-type]
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]

    asyncio.run(run())
    assert notes.endings == ["frames"]
