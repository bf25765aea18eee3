"""The current context is read and set through the ContextVar or through the API."""

from contextvars import ContextVar
from typing import Any

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context.context import Context

from mlotel_cli.telemetry.current import CURRENT, PublicContext, find_current
from tests.support.telemetry import Telemetry, current_name


def test_the_context_var_of_opentelemetry_is_found() -> None:
    assert isinstance(CURRENT, ContextVar)
    token = context_api.attach(Context({"key": "value"}))
    assert CURRENT.get() == {"key": "value"}
    context_api.detach(token)


def test_a_runtime_context_of_another_kind_is_reached_through_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    class Another:
        _current_context = Context({"what": "no ContextVar"})

        def get_current(self) -> Context:
            return Context({"from": "another"})

    monkeypatch.setattr(context_api, "_RUNTIME_CONTEXT", Another())
    found = find_current()
    assert isinstance(found, PublicContext)
    assert found.get() == {"from": "another"}


def test_spans_nest_through_the_public_way_too(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlotel_cli.telemetry.span as module

    public: Any = PublicContext()
    monkeypatch.setattr(module, "CURRENT", public)
    with telemetry.span("outer"):
        with telemetry.span("inner"):
            assert current_name() == "inner"
        assert current_name() == "outer"
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert telemetry.parents() == {"inner": "outer", "outer": None}
