"""Spans have the right times, parents and current span: nesting, exceptions, generators, asynchronous code, threads."""

import asyncio
import gc
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from mlotel_cli.telemetry.span import CurrentSpan, Span
from mlotel_cli.telemetry.tracer import Provider, Recording
from tests.support.telemetry import EPOCH_NS, Telemetry, current_name
from tests.support.wire import message_of


def on_a_thread(work: Callable[[], Any], name: str = "worker") -> Any:
    """Run `work` on a new thread, which has no current span; return its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), name=name)
    thread.start()
    thread.join()
    return results[0]


# -- nesting ----------------------------------------------------------------------------------------------------------


def test_nested_spans_exactly(telemetry: Telemetry) -> None:
    with telemetry.span("batch", attributes={"batch.index": 4, "batch.size": 2}) as batch:
        assert trace.get_current_span() is batch
        with telemetry.span("detector", kind=SpanKind.CLIENT):
            assert current_name() == "detector"
        with telemetry.span("reader"):
            pass
        assert trace.get_current_span() is batch
    assert [message_of(span) for span in telemetry.ended] == [
        (
            *(1, 2, 1, None, 4, "detector", "CLIENT", "test", "MainThread", EPOCH_NS + 20, EPOCH_NS + 30),
            *(None, None, "UNSET", "", None, None, None, None),
        ),
        (
            *(1, 3, 1, None, 4, "reader", "INTERNAL", "test", "MainThread", EPOCH_NS + 40, EPOCH_NS + 50),
            *(None, None, "UNSET", "", None, None, None, None),
        ),
        (
            *(1, 1, 0, 3, 4, "batch", "INTERNAL", "test", "MainThread", EPOCH_NS + 10, EPOCH_NS + 60),
            *(None, None, "UNSET", "", {"batch.index": 4, "batch.size": 2}, None, None, None),
        ),
    ]


def test_roots_begin_traces_of_their_own(telemetry: Telemetry) -> None:
    for name in ("first", "second"):
        with telemetry.span(name):
            pass
    assert [(span.get_span_context().trace_id, span.parent) for span in telemetry.ended] == [(1, None), (2, None)]


@pytest.mark.parametrize("index", ["3", -1, 1 << 63, None, 2.5, True])
def test_a_batch_index_that_is_no_whole_number_makes_no_batch(telemetry: Telemetry, index: Any) -> None:
    with telemetry.span("batch", attributes={"batch.index": index}) as span:
        pass
    assert span.batch is None
    assert telemetry.faults.counts() == {"batch": 1}


def test_what_a_program_put_into_the_context_stays_there(telemetry: Telemetry) -> None:
    token = context_api.attach(context_api.set_value("tenant", "a"))
    with telemetry.span("root", context=Context()):
        assert context_api.get_value("tenant") == "a"
    assert context_api.get_value("tenant") == "a"
    context_api.detach(token)


def test_a_context_attached_inside_and_forgotten_goes_with_the_span(telemetry: Telemetry) -> None:
    remote = NonRecordingSpan(SpanContext(9, 9, is_remote=True))
    with telemetry.span("stage"):
        context_api.attach(trace.set_span_in_context(remote))
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_span_that_was_ended_by_hand_stays_current_until_its_block_is_left(telemetry: Telemetry) -> None:
    with telemetry.span("outer") as outer:
        outer.end()
        with telemetry.span("first"):
            pass
        assert trace.get_current_span() is outer
        with telemetry.span("second"):
            pass
    assert telemetry.parents() == {"outer": None, "first": "outer", "second": "outer"}
    assert telemetry.faults.counts() == {}


def test_a_block_needs_a_span_of_its_own(telemetry: Telemetry) -> None:
    manager = telemetry.span("stage")
    with manager:
        pass
    with pytest.raises(RuntimeError, match="span 'stage' was entered before; open a new one"), manager:
        pytest.fail("entered twice")
    assert message_of(telemetry.only())[9:11] == (EPOCH_NS + 10, EPOCH_NS + 20)


def test_a_run_that_ends_between_opening_and_entering_takes_the_span_along(telemetry: Telemetry) -> None:
    manager = telemetry.span("stage")
    telemetry.provider.backend = telemetry.new_recording()
    with manager:
        pass
    assert telemetry.only().stamping is telemetry.recording


# -- exceptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "description", "events"),
    [
        ({}, StatusCode.ERROR, "ValueError: bad frame", 1),
        ({"record_exception": False}, StatusCode.ERROR, "ValueError: bad frame", 0),
        ({"set_status_on_exception": False}, StatusCode.UNSET, None, 1),
        ({"record_exception": False, "set_status_on_exception": False}, StatusCode.UNSET, None, 0),
    ],
)
@pytest.mark.parametrize("method", ["start_as_current_span", "start_span"])
def test_an_exception_is_recorded_and_goes_on(
    telemetry: Telemetry, method: str, options: Any, code: StatusCode, description: str | None, events: int
) -> None:
    with pytest.raises(ValueError, match="bad frame"), getattr(telemetry.tracer, method)("stage", **options):
        raise ValueError("bad frame")
    span = telemetry.only()
    assert (span.status.status_code, span.status.description) == (code, description)
    escaped = "True" if method == "start_span" else "False"  # as in the SDK
    assert [(name, given["exception.type"], given["exception.escaped"]) for _, name, given in span.events] == [
        ("exception", "ValueError", escaped)
    ] * events


@pytest.mark.parametrize("method", ["start_as_current_span", "start_span"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_what_is_no_exception_is_not_recorded(telemetry: Telemetry, error: type[BaseException], method: str) -> None:
    with pytest.raises(error), getattr(telemetry.tracer, method)("stage"):
        raise error
    span = telemetry.only()
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())


def test_an_exception_marks_every_span_that_it_leaves(telemetry: Telemetry) -> None:
    with pytest.raises(ValueError, match="x"), telemetry.span("outer"), telemetry.span("inner"):
        raise ValueError("x")
    assert [(span.name, span.status.description) for span in telemetry.ended] == [
        ("inner", "ValueError: x"),
        ("outer", "ValueError: x"),
    ]


def test_an_exception_after_the_end_is_not_recorded(telemetry: Telemetry) -> None:
    def end_and_raise(span: Span) -> None:
        span.end()
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), telemetry.span("stage") as span:
        end_and_raise(span)
    assert (span.status.status_code, span.events, telemetry.faults.counts()) == (StatusCode.UNSET, (), {})


def test_end_on_exit_false_leaves_the_span_running(telemetry: Telemetry) -> None:
    with telemetry.span("stage", end_on_exit=False) as span:
        pass
    assert (span.is_recording(), current_name(), telemetry.ended) == (True, None, [])
    span.set_attribute("a", 1)
    span.end()
    assert telemetry.only().attributes == {"a": 1}


# -- the device -------------------------------------------------------------------------------------------------------


def test_an_error_of_the_device_belongs_to_the_span_and_goes_on(telemetry: Telemetry) -> None:
    class Broken:
        def begin(self) -> object:
            return object()

        def finish(self, mark: object) -> None:
            raise RuntimeError("illegal memory access")

    telemetry.recording.device = Broken()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="illegal memory access"), telemetry.span("stage"):
        pass
    span = telemetry.only()
    assert (span.is_recording(), span.status.description) == (False, "RuntimeError: illegal memory access")


# -- start_span, end and explicit times -------------------------------------------------------------------------------


def test_start_span_is_not_current_and_ends_once(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    span = telemetry.tracer.start_span("stage")
    assert (trace.get_current_span(), span.is_recording()) == (trace.INVALID_SPAN, True)
    span.end()
    span.end()
    assert (len(telemetry.ended), span.is_recording()) == (1, False)
    assert telemetry.faults.counts() == {"ended": 1}
    assert "span 'stage' was ended twice; the second call is ignored" in caplog.text


def test_explicit_times(telemetry: Telemetry) -> None:
    span = telemetry.tracer.start_span("explicit", start_time=123)
    span.end(end_time=456)
    with telemetry.span("since", start_time=EPOCH_NS + 5):
        pass
    assert [(one.name, one.start_time, one.end_time) for one in telemetry.ended] == [
        ("explicit", 123, 456),
        ("since", EPOCH_NS + 5, EPOCH_NS + 10),
    ]


def test_times_of_other_number_types_are_taken_and_others_said(telemetry: Telemetry) -> None:
    import numpy as np

    good = telemetry.tracer.start_span("good", start_time=np.int64(100))  # type: ignore[arg-type]
    good.end(end_time=200.0)  # type: ignore[arg-type]
    bad = telemetry.tracer.start_span("bad", start_time="now")  # type: ignore[arg-type]
    bad.end(end_time=float("nan"))  # type: ignore[arg-type]
    assert [message_of(span)[9:11] for span in telemetry.ended] == [(100, 200), (EPOCH_NS + 10, EPOCH_NS + 20)]
    assert type(message_of(good).start_ns) is int  # type: ignore[attr-defined]
    assert telemetry.faults.counts() == {"time": 2}


def test_use_span_of_the_api_makes_a_started_span_current(telemetry: Telemetry) -> None:
    span = telemetry.tracer.start_span("started")
    with pytest.raises(ValueError, match="x"), trace.use_span(span, end_on_exit=True), telemetry.span("child"):
        raise ValueError("x")
    assert telemetry.parents() == {"child": "started", "started": None}
    assert telemetry.named("started").status.description == "ValueError: x"


# -- generators -------------------------------------------------------------------------------------------------------


def holding(telemetry: Telemetry, name: str) -> Iterator[int]:
    """Holds a span open around every yield."""
    with telemetry.span(name):
        yield 1
        yield 2


def test_a_generator_that_runs_to_its_end_gives_the_span_before_back(telemetry: Telemetry) -> None:
    with telemetry.span("batch"):
        for _ in holding(telemetry, "source"):
            with telemetry.span("stage"):
                pass
        assert current_name() == "batch"
    assert [(span.name, span.parent and span.parent.span_id) for span in telemetry.ended] == [
        ("stage", 2),
        ("stage", 2),
        ("source", 1),
        ("batch", None),
    ]


def test_a_generator_that_is_closed_early(telemetry: Telemetry) -> None:
    with telemetry.span("batch"):
        generator = holding(telemetry, "source")
        next(generator)
        generator.close()
        assert current_name() == "batch"
    assert telemetry.named("source").events == ()
    assert telemetry.named("source").status.status_code is StatusCode.UNSET


def test_a_generator_that_is_closed_inside_a_later_span(telemetry: Telemetry) -> None:
    with telemetry.span("batch"):
        generator = holding(telemetry, "source")
        next(generator)
        with telemetry.span("stage"):
            generator.close()
            assert current_name() == "stage"
            with telemetry.span("inner"):
                pass
        assert current_name() == "batch"
        with telemetry.span("next"):
            pass
    assert telemetry.parents() == {
        "source": "batch",
        "inner": "stage",
        "stage": "source",
        "next": "batch",
        "batch": None,
    }


def test_interleaved_generators_that_end_out_of_order(telemetry: Telemetry) -> None:
    with telemetry.span("batch"):
        first, second, third = (holding(telemetry, name) for name in ("first", "second", "third"))
        for generator in (first, second, third):
            next(generator)
        for generator, current in ((first, "third"), (second, "third"), (third, "batch")):
            generator.close()
            assert current_name() == current
        with telemetry.span("next"):
            pass
    assert telemetry.parents()["next"] == "batch"
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_generator_that_is_garbage_collected(telemetry: Telemetry) -> None:
    with telemetry.span("batch"):
        generator = holding(telemetry, "source")
        next(generator)
        del generator
        gc.collect()
        assert current_name() == "batch"
    assert [span.name for span in telemetry.ended] == ["source", "batch"]


def test_a_generator_that_another_thread_closes_gets_no_more_children(telemetry: Telemetry) -> None:
    with telemetry.span("batch"):
        generator = holding(telemetry, "source")
        next(generator)

        def close() -> str | None:
            generator.close()
            return current_name()

        assert on_a_thread(close) is None
        with telemetry.span("next"):
            pass
    assert telemetry.parents() == {"source": "batch", "next": "batch", "batch": None}
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_leapfrogging_generators_keep_no_chain_of_ended_spans(telemetry: Telemetry) -> None:
    generator = holding(telemetry, "source")
    next(generator)
    for _ in range(200):
        following = holding(telemetry, "source")
        next(following)
        generator.close()
        generator = following
        telemetry.ended.clear()
    assert live_spans() < 10
    generator.close()
    assert trace.get_current_span() is trace.INVALID_SPAN


# -- asynchronous code ------------------------------------------------------------------------------------------------


async def work(telemetry: Telemetry, name: str, go: asyncio.Event) -> None:
    with telemetry.span(name):
        await go.wait()
        with telemetry.span(f"{name} inner"):
            await asyncio.sleep(0)


async def open_agen(telemetry: Telemetry, name: str) -> AsyncIterator[int]:
    with telemetry.span(name):
        yield 1
        yield 2


def test_gathered_tasks_keep_apart(telemetry: Telemetry) -> None:
    async def main() -> None:
        go = asyncio.Event()
        with telemetry.span("batch"):
            tasks = [asyncio.create_task(work(telemetry, name, go)) for name in ("a", "b")]
            await asyncio.sleep(0)
            assert current_name() == "batch"
            go.set()
            await asyncio.gather(*tasks)
            assert current_name() == "batch"

    asyncio.run(main())
    assert telemetry.parents() == {"a inner": "a", "b inner": "b", "a": "batch", "b": "batch", "batch": None}


def test_a_task_may_outlive_its_parent(telemetry: Telemetry) -> None:
    async def main() -> None:
        go = asyncio.Event()
        with telemetry.span("batch"):
            task = asyncio.create_task(work(telemetry, "late", go))
        go.set()
        await task

    asyncio.run(main())
    assert [span.name for span in telemetry.ended] == ["batch", "late inner", "late"]
    assert telemetry.parents() == {"late inner": "late", "late": "batch", "batch": None}


def test_a_cancelled_task_ends_its_span_without_an_error(telemetry: Telemetry) -> None:
    async def main() -> None:
        task = asyncio.create_task(work(telemetry, "stage", asyncio.Event()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert telemetry.only().status.status_code is StatusCode.UNSET


def test_an_async_generator_that_runs_to_its_end(telemetry: Telemetry) -> None:
    async def main() -> None:
        with telemetry.span("batch"):
            async for _ in open_agen(telemetry, "source"):
                pass
            assert current_name() == "batch"

    asyncio.run(main())
    assert telemetry.parents() == {"source": "batch", "batch": None}


def test_an_async_generator_that_another_task_closes(telemetry: Telemetry) -> None:
    async def main() -> None:
        with telemetry.span("batch"):
            generator: Any = open_agen(telemetry, "source")
            await anext(generator)

            async def close() -> str | None:
                await generator.aclose()
                return current_name()

            assert await asyncio.create_task(close()) == "batch"
            with telemetry.span("next"):
                pass

    asyncio.run(main())
    assert telemetry.parents() == {"source": "batch", "next": "batch", "batch": None}


def test_an_async_generator_that_is_left_early_gets_no_more_children(telemetry: Telemetry) -> None:
    """The generator ends in another task, so its span is still in the consumer's context."""

    async def nested() -> AsyncIterator[int]:
        with telemetry.span("outer source"), telemetry.span("source"):
            yield 1

    async def main() -> None:
        with telemetry.span("batch"):
            async for _ in nested():
                break
            gc.collect()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert [span.name for span in telemetry.ended] == ["source", "outer source"]
            with telemetry.span("next"):
                pass
        assert current_name() is None

    asyncio.run(main())
    assert telemetry.parents() == {"outer source": "batch", "source": "outer source", "next": "batch", "batch": None}


# -- threads and other processes --------------------------------------------------------------------------------------


def test_a_thread_has_no_parent_unless_it_is_given_one(telemetry: Telemetry) -> None:
    def child() -> None:
        with telemetry.span("alone"):
            pass

    with telemetry.span("batch"):
        on_a_thread(child)
    assert telemetry.parents() == {"alone": None, "batch": None}
    assert message_of(telemetry.named("alone")).thread == "worker"


@pytest.mark.parametrize("how", ["context", "set_span_in_context", "attach"])
def test_hand_over_to_a_thread(telemetry: Telemetry, how: str) -> None:
    def child(context: Context) -> None:
        if how == "attach":
            token = context_api.attach(context)
            with telemetry.span("child"), telemetry.span("inner"):
                pass
            context_api.detach(token)
        else:
            with telemetry.span("child", context=context), telemetry.span("inner"):
                pass
        assert trace.get_current_span() is trace.INVALID_SPAN

    with telemetry.span("batch", attributes={"batch.index": 0}) as batch:
        context = trace.set_span_in_context(batch) if how == "set_span_in_context" else context_api.get_current()
        on_a_thread(lambda: child(context))
    assert telemetry.parents() == {"inner": "child", "child": "batch", "batch": None}
    assert {span.batch for span in telemetry.ended} == {0}
    assert batch.count_opened() == 3


def test_a_parent_that_was_only_started(telemetry: Telemetry) -> None:
    parent = telemetry.tracer.start_span("parent", attributes={"batch.index": 5})
    with telemetry.span("child", context=trace.set_span_in_context(parent)):
        pass
    parent.end()
    assert telemetry.parents() == {"child": "parent", "parent": None}
    assert telemetry.named("child").batch == 5


def test_a_span_may_end_on_another_thread(telemetry: Telemetry) -> None:
    span = telemetry.tracer.start_span("stage")
    on_a_thread(span.end)
    assert (message_of(telemetry.only()).thread, telemetry.only().end_time) == ("MainThread", EPOCH_NS + 20)


def test_a_remote_parent(telemetry: Telemetry) -> None:
    state = TraceState([("vendor", "x")])
    remote = SpanContext(0xAB, 0xCD, is_remote=True, trace_flags=TraceFlags(0), trace_state=state)
    context = trace.set_span_in_context(NonRecordingSpan(remote))
    with telemetry.span("served", context=context), telemetry.span("parse") as parse:
        pass
    assert parse.parent == telemetry.named("served").get_span_context()
    telemetry = Telemetry()
    with (
        telemetry.span("served", context=context) as served,
        telemetry.span("batch", attributes={"batch.index": 1}) as batch,
        telemetry.span("stage") as stage,
    ):
        pass
    assert served.parent == remote
    assert served.parent.is_remote
    assert (batch.parent, stage.parent) == (served.get_span_context(), batch.get_span_context())
    assert [message_of(span)[:4] for span in (served, batch, stage)] == [
        (0xAB, 1, 0xCD, 1),
        (0xAB, 2, 1, 2),
        (0xAB, 3, 2, None),
    ]
    for span in (served, batch, stage):
        assert span.get_span_context().trace_flags.sampled
        assert span.get_span_context().trace_state is state


def test_an_invalid_parent_is_none(telemetry: Telemetry) -> None:
    with telemetry.span("root", context=trace.set_span_in_context(trace.INVALID_SPAN)):
        pass
    assert (telemetry.only().parent, telemetry.only().get_span_context().trace_id) == (None, 1)


def test_what_processors_and_instrumentation_read(telemetry: Telemetry) -> None:
    with telemetry.span("outer"), telemetry.span("stage", kind=SpanKind.SERVER) as span:
        assert span.context == span.get_span_context() == SpanContext(1, 2, False, TraceFlags(1))
        assert (span.name, span.kind, span.batch, span.start_time, span.end_time) == (
            *("stage", SpanKind.SERVER, None, EPOCH_NS + 20),
            None,
        )
        assert span.parent == SpanContext(1, 1, False, TraceFlags(1))
        assert (span.tracer, span.stamping) == (telemetry.tracer, telemetry.recording)


# -- memory -----------------------------------------------------------------------------------------------------------


def live_spans() -> int:
    gc.collect()
    return sum(type(one) in (Span, CurrentSpan) for one in gc.get_objects())


@pytest.mark.slow
def test_two_hundred_thousand_spans_leave_none_behind() -> None:
    last: deque[Span] = deque(maxlen=1)
    open_span = Provider(Recording(last.append)).get_tracer("test").start_as_current_span
    before = live_spans()
    for _ in range(20_000):
        with open_span("batch", attributes={"batch.index": 1}):
            for _ in range(9):
                with open_span("stage"):
                    pass
    last.clear()
    assert live_spans() == before
