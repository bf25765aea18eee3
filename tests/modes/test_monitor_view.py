"""A monitor on a terminal, or without one."""

import io
from typing import Any

import pytest
from rich.console import Console

from mlotel_cli.modes.monitor_status import Board
from mlotel_cli.modes.monitor_view import LineView, PictureView, create_view
from mlotel_cli.snapshot import Snapshot
from tests.modes.test_monitor_picture import board


def views(shown: Board, *, terminal: bool) -> tuple[Any, Console]:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=terminal)
    return create_view(console, shown), console


def printed(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_terminal_a_line_every_ten_seconds() -> None:
    clock = [0.0]
    console = Console(file=io.StringIO(), width=80)
    view = LineView(console, board(), now=lambda: clock[0])
    with view:
        for second in range(0, 31, 2):
            clock[0] = second
            view.refresh()
    lines = printed(console).splitlines()
    assert lines[0].endswith("status page and metrics: http://127.0.0.1:9464")
    assert len(lines) == 4


def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(views(board(), terminal=True)[0], LineView)


def test_with_a_terminal_a_picture() -> None:
    view, console = views(board(), terminal=True)
    assert isinstance(view, PictureView)
    with view:
        view.say("the source [lost] something")
        view.refresh()
    text = printed(console)
    assert "Ctrl-C ends the run in order" in text
    assert "the source [lost] something" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_only_the_refreshing_thread_prints(terminal: bool) -> None:
    """A thread that prints must not hang in a terminal that was stopped."""
    view, console = views(board(snapshot=Snapshot()), terminal=terminal)
    view.say("before")
    assert "before" in printed(console)
    with view:
        for number in range(300):
            view.say(f"line {number}")
        assert "line" not in printed(console)
        view.refresh()
        assert "line 299" in printed(console)
        assert "line 99\n" not in printed(console), "the oldest go"
        view.say("last words")
    assert "last words" in printed(console)
    view.say("after")
    assert "after" in printed(console)


def test_a_terminal_that_is_gone_is_no_error() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    for terminal in (True, False):
        console = Console(file=Gone(), width=80, force_terminal=terminal)
        view = create_view(console, board())
        with view:
            view.refresh()
            view.say("hello")
