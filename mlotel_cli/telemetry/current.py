"""Direct access to the ContextVar that holds OpenTelemetry's current context.

It saves two function calls of the API at every span.
"""

from contextvars import ContextVar, Token
from typing import Any, Protocol, cast

from opentelemetry import context as context_api
from opentelemetry.context.context import Context


class CurrentContext(Protocol):
    """The methods of a ContextVar that spans use."""

    def get(self) -> Context:
        """Return the context of the running thread or task."""
        ...

    def set(self, value: Context, /) -> Any:
        """Make `value` the current context; return a token for `reset`."""
        ...

    def reset(self, token: Any, /) -> None:
        """Restore the context before the `set` that returned the token.

        Raises:
            ValueError: when that `set` ran in another thread or task. (The API logs an error instead.)
        """
        ...


class PublicContext:
    """The current context through the API's own functions, for a runtime context that is not a ContextVar."""

    def get(self) -> Context:
        """Return the context of the running thread or task."""
        return context_api.get_current()

    def set(self, value: Context, /) -> "Token[Context]":
        """Make `value` the current context; return a token for `reset`."""
        return context_api.attach(value)

    def reset(self, token: "Token[Context]", /) -> None:
        """Restore the previous context."""
        context_api.detach(token)


def find_current() -> CurrentContext:
    """Return the ContextVar that OpenTelemetry uses, or a PublicContext where it uses none."""
    runtime: Any = context_api._RUNTIME_CONTEXT  # pyright: ignore[reportPrivateUsage]
    variable = getattr(runtime, "_current_context", None)
    return cast("CurrentContext", variable) if isinstance(variable, ContextVar) else PublicContext()


CURRENT = find_current()
