"""A span around every call of a function: plain, coroutine, generator or asynchronous generator.

A generator's span lasts from its first step to its last, and is the current one only while the generator's own code
runs, never while its consumer does.
"""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

from opentelemetry import trace


def decorate(function: Callable[..., Any], tracer: trace.Tracer, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """Wrap `function` so that every call opens `tracer.start_as_current_span(*arguments)`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with tracer.start_as_current_span(*arguments):
            return function(*args, **kwargs)

    @functools.wraps(function)
    async def await_call(*args: Any, **kwargs: Any) -> Any:
        with tracer.start_as_current_span(*arguments):
            return await function(*args, **kwargs)

    @functools.wraps(function)
    def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with tracer.start_span(*arguments) as span:
            return (yield from _current_while_running(function(*args, **kwargs), span))

    @functools.wraps(function)
    async def generate_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        with tracer.start_span(*arguments) as span:
            iterator = function(*args, **kwargs)
            while True:
                try:
                    with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                        item = await anext(iterator)
                except StopAsyncIteration:
                    return
                yield item

    if inspect.iscoroutinefunction(function):
        return await_call
    if inspect.isasyncgenfunction(function):
        return generate_async
    if inspect.isgeneratorfunction(function):
        return generate
    return call


def _current_while_running(generator: Generator[Any, Any, Any], span: trace.Span) -> Generator[Any, Any, Any]:
    """Forward send, throw and close to `generator`, with `span` current during each step only."""
    step, value = generator.send, None
    while True:
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                item = step(value)
        except StopIteration as stop:
            return stop.value
        try:
            value = yield item
            step = generator.send
        except GeneratorExit:
            generator.close()
            raise
        except BaseException as error:
            step, value = generator.throw, error
