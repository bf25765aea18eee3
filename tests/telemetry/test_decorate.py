"""Functions of every kind get a span around each call, whether decorated before or during a run."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from mlotel_cli.telemetry.backends.off import OFF
from tests.support.telemetry import Telemetry, current_name


def test_every_call_of_a_function_gets_a_span(telemetry: Telemetry) -> None:
    @telemetry.span("stage", attributes={"a": 1})
    def stage(x: int, *, y: int) -> int:
        """Adds."""
        assert current_name() == "stage"
        return x + y

    assert [stage(1, y=2), stage(3, y=4)] == [3, 7]
    assert (stage.__name__, stage.__doc__) == ("stage", "Adds.")
    assert [(span.name, span.attributes) for span in telemetry.ended] == [("stage", {"a": 1})] * 2
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_recursion(telemetry: Telemetry) -> None:
    @telemetry.span("fold")
    def fold(depth: int) -> None:
        if depth:
            fold(depth - 1)

    fold(2)
    assert [span.parent and span.parent.span_id for span in telemetry.ended] == [2, 1, None]


@pytest.mark.parametrize(("record", "events"), [(True, 1), (False, 0)])
def test_an_exception_is_recorded_as_asked_for(telemetry: Telemetry, record: bool, events: int) -> None:
    @telemetry.span("stage", record_exception=record, set_status_on_exception=False)
    def stage() -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        stage()
    assert (len(telemetry.only().events), telemetry.only().status.status_code) == (events, StatusCode.UNSET)


def test_a_coroutine_s_span_lasts_until_it_returns(telemetry: Telemetry) -> None:
    @telemetry.span("fetch")
    async def fetch() -> str:
        await asyncio.sleep(0)
        with telemetry.span("parse"):
            return "done"

    assert inspect.iscoroutinefunction(fetch)
    assert asyncio.run(fetch()) == "done"
    assert telemetry.parents() == {"parse": "fetch", "fetch": None}


def test_a_generator_s_span_is_current_only_while_it_runs(telemetry: Telemetry) -> None:
    @telemetry.span("source")
    def source() -> Generator[int, str, str]:
        assert current_name() == "source"
        with telemetry.span("decode"):
            assert (yield 1) == "first"
            assert current_name() == "decode"
            with telemetry.span("inner"):
                pass
        assert (yield 2) == "second"
        assert current_name() == "source"
        return "result"

    assert inspect.isgeneratorfunction(source)
    with telemetry.span("batch"):
        generator = source()
        assert (next(generator), current_name()) == (1, "batch")
        with telemetry.span("stage"):
            assert (generator.send("first"), current_name()) == (2, "stage")
        with pytest.raises(StopIteration) as stop:
            generator.send("second")
        assert (stop.value.value, current_name()) == ("result", "batch")
    assert telemetry.parents() == {
        "inner": "decode",
        "decode": "source",
        "stage": "batch",
        "source": "batch",
        "batch": None,
    }


def test_a_generator_that_is_never_started_has_no_span(telemetry: Telemetry) -> None:
    @telemetry.span("source")
    def source() -> Generator[int]:
        yield 1

    source().close()
    assert telemetry.ended == []


def test_a_generator_that_is_closed_early_cleans_up_inside_its_span(telemetry: Telemetry) -> None:
    seen: list[str | None] = []

    @telemetry.span("source")
    def source() -> Generator[int]:
        try:
            yield 1
        finally:
            seen.append(current_name())

    generator = source()
    next(generator)
    generator.close()
    assert seen == ["source"]
    assert telemetry.only().status.status_code is StatusCode.UNSET


def test_what_is_thrown_into_a_generator_arrives(telemetry: Telemetry) -> None:
    @telemetry.span("source")
    def source() -> Generator[str]:
        with contextlib.suppress(KeyError):
            yield "before"
        assert current_name() == "source"
        yield "after"

    generator = source()
    next(generator)
    assert generator.throw(KeyError("x")) == "after"
    with pytest.raises(ValueError, match="y"):
        generator.throw(ValueError("y"))
    assert telemetry.only().status.description == "ValueError: y"


def test_two_generators_interleaved_keep_apart(telemetry: Telemetry) -> None:
    @telemetry.tracer.start_as_current_span("source")
    def source(name: str) -> Generator[None]:
        with telemetry.span(name):
            yield
            with telemetry.span(f"{name} inner"):
                yield

    generators = [source("a"), source("b")]
    for _ in range(3):
        for generator in generators:
            next(generator, None)
    assert telemetry.parents() | {"source": None} == {
        "a inner": "a",
        "a": "source",
        "b inner": "b",
        "b": "source",
        "source": None,
    }


def test_an_asynchronous_generator(telemetry: Telemetry) -> None:
    @telemetry.span("source")
    async def source() -> AsyncGenerator[int, str]:
        assert current_name() == "source"
        with telemetry.span("decode"):
            await asyncio.sleep(0)
            assert (yield 1) == "first"
            assert current_name() == "decode"
        with contextlib.suppress(KeyError):
            yield 2
        assert current_name() == "source"
        yield 3

    async def main() -> None:
        with telemetry.span("batch"):
            generator = source()
            assert (await anext(generator), current_name()) == (1, "batch")
            assert (await generator.asend("first"), current_name()) == (2, "batch")
            assert (await generator.athrow(KeyError("x")), current_name()) == (3, "batch")
            with pytest.raises(StopAsyncIteration):
                await anext(generator)
            assert current_name() == "batch"

    assert inspect.isasyncgenfunction(source)
    asyncio.run(main())
    assert telemetry.parents() == {"decode": "source", "source": "batch", "batch": None}
    assert telemetry.named("source").status.status_code is StatusCode.UNSET


def test_an_asynchronous_generator_that_is_closed_early(telemetry: Telemetry) -> None:
    seen: list[str | None] = []

    @telemetry.span("source")
    async def source() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            seen.append(current_name())

    async def main() -> None:
        generator = source()
        await anext(generator)
        await generator.aclose()

    asyncio.run(main())
    assert seen == ["source"]
    assert telemetry.only().status.status_code is StatusCode.UNSET


def test_an_asynchronous_generator_that_raises(telemetry: Telemetry) -> None:
    @telemetry.span("source")
    async def source() -> AsyncGenerator[int]:
        yield 1
        raise ValueError("x")

    async def main() -> None:
        with pytest.raises(ValueError, match="x"):
            _ = [item async for item in source()]

    asyncio.run(main())
    assert telemetry.only().status.description == "ValueError: x"


def kinds(decorator: Callable[[], Any]) -> list[Callable[[], Any]]:
    """Return one decorated function of each kind, callable from plain code."""

    @decorator()
    def plain() -> None:
        pass

    @decorator()
    async def coroutine() -> None:
        pass

    @decorator()
    def generator() -> Generator[int]:
        yield 1

    @decorator()
    async def async_generator() -> AsyncGenerator[int]:
        yield 1

    async def exhaust() -> None:
        async for _ in async_generator():
            pass

    return [plain, lambda: asyncio.run(coroutine()), lambda: list(generator()), lambda: asyncio.run(exhaust())]


def test_decorated_while_off_and_called_in_a_run(telemetry: Telemetry) -> None:
    telemetry.provider.backend = OFF
    functions = kinds(lambda: telemetry.span("stage", attributes={"a": 1}))
    for function in functions:
        function()
    assert telemetry.ended == []
    telemetry.provider.backend = telemetry.recording
    for function in functions:
        function()
    assert [(span.name, span.attributes) for span in telemetry.ended] == [("stage", {"a": 1})] * 4


def test_decorated_in_a_run_and_called_when_it_is_over(telemetry: Telemetry) -> None:
    functions = kinds(lambda: telemetry.span("stage"))
    telemetry.provider.backend = OFF
    for function in functions:
        function()
    assert telemetry.ended == []


def test_decorated_by_the_alias_before_anything_was_installed(use: Telemetry) -> None:
    from mlotel_cli.telemetry import api

    api.use(OFF)
    functions = kinds(lambda: api.span("stage"))
    api.use(use.recording)
    for function in functions:
        function()
    assert [span.name for span in use.ended] == ["stage"] * 4
