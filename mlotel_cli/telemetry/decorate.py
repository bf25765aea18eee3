"""Opens a span around every call of a function: plain, coroutine, generator or asynchronous generator.

A generator's span lasts from its first step to its last. It is current only while the generator's own code runs, not
while its consumer's code runs.
"""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from types import TracebackType
from typing import Any

from opentelemetry import trace

from mlotel_cli.telemetry.current import CURRENT


def decorate(function: Callable[..., Any], tracer: trace.Tracer, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """Wrap `function` so that every call opens `tracer.start_as_current_span(*arguments)`.

    The tracer looks up its backend at every call, so that functions may be decorated before a run begins.
    """
    if inspect.iscoroutinefunction(function):
        around = _around_coroutine
    elif inspect.isasyncgenfunction(function):
        around = _around_async_generator
    elif inspect.isgeneratorfunction(function):
        around = _around_generator
    else:
        around = _around_call
    return functools.wraps(function)(around(function, tracer, arguments))


def _around_call(function: Callable[..., Any], tracer: trace.Tracer, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with tracer.start_as_current_span(*arguments):
            return function(*args, **kwargs)

    return call


def _around_coroutine(
    function: Callable[..., Any], tracer: trace.Tracer, arguments: tuple[Any, ...]
) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with tracer.start_as_current_span(*arguments):
            return await function(*args, **kwargs)

    return call


def _around_generator(
    function: Callable[..., Any], tracer: trace.Tracer, arguments: tuple[Any, ...]
) -> Callable[..., Any]:
    def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with tracer.start_span(*arguments) as span:
            return (yield from _step_inside(function(*args, **kwargs), span))

    return generate


def _around_async_generator(
    function: Callable[..., Any], tracer: trace.Tracer, arguments: tuple[Any, ...]
) -> Callable[..., Any]:
    async def generate(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with tracer.start_span(*arguments) as span:
            inside, generator = _Inside(span), function(*args, **kwargs)
            step = generator.asend(None)
            while True:
                try:
                    with inside:
                        item = await step
                except StopAsyncIteration:
                    return
                try:
                    step = generator.asend((yield item))
                except GeneratorExit:
                    with inside:
                        await generator.aclose()
                    raise
                except BaseException as error:
                    step = generator.athrow(error)

    return generate


def _step_inside(generator: Generator[Any, Any, Any], span: trace.Span) -> Generator[Any, Any, Any]:
    """Forward send, throw and close to `generator`, with `span` current only during each step."""
    inside = _Inside(span)
    step = functools.partial(generator.send, None)
    while True:
        try:
            with inside:
                item: Any = step()
        except StopIteration as stop:
            return stop.value
        try:
            step = functools.partial(generator.send, (yield item))
        except GeneratorExit:
            with inside:
                generator.close()
            raise
        except BaseException as error:
            step = functools.partial(generator.throw, error)


class _Inside:
    """The context of a generator's own code, kept from step to step: spans may stay open over a yield."""

    def __init__(self, span: trace.Span) -> None:
        self._context = CURRENT.get() if span is trace.INVALID_SPAN else trace.set_span_in_context(span)

    def __enter__(self) -> None:
        self._token = CURRENT.set(self._context)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self._context = CURRENT.get()
        CURRENT.reset(self._token)
