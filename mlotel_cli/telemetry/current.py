"""Where OpenTelemetry keeps the current context.

The API reaches it through two functions; taking the ContextVar itself saves both at every span.
"""

from contextvars import ContextVar, Token
from typing import Any, Protocol, cast

from opentelemetry import context as context_api
from opentelemetry.context.context import Context


class CurrentContext(Protocol):
    """The part of a ContextVar that spans need."""

    def get(self) -> Context:
        """The context of the running thread or task."""
        ...

    def set(self, value: Context, /) -> Any:
        """Make `value` the current context; returns a token for `reset`."""
        ...

    def reset(self, token: Any, /) -> None:
        """Go back to the context before the `set` that gave the token.

        Raises:
            ValueError: when that was in another thread or task (a ContextVar says so; the API logs it instead).
        """
        ...


class PublicContext:
    """The current context through the API's own functions, for a runtime context that is not a ContextVar."""

    def get(self) -> Context:
        """The context of the running thread or task."""
        return context_api.get_current()

    def set(self, value: Context, /) -> "Token[Context]":
        """Make `value` the current context."""
        return context_api.attach(value)

    def reset(self, token: "Token[Context]", /) -> None:
        """Go back to the context before."""
        context_api.detach(token)


def find_current() -> CurrentContext:
    """The ContextVar that OpenTelemetry uses, or the slower public way to it."""
    runtime: Any = context_api._RUNTIME_CONTEXT  # pyright: ignore[reportPrivateUsage]
    variable = getattr(runtime, "_current_context", None)
    return cast("CurrentContext", variable) if isinstance(variable, ContextVar) else PublicContext()


CURRENT = find_current()
