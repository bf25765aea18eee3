"""Shows a monitor on the terminal as a picture that is kept up to date, or elsewhere as a line every ten seconds."""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from mlotel_cli.modes.monitor_picture import line, picture
from mlotel_cli.modes.monitor_status import Board
from mlotel_cli.screen import sayer

_LINE_EVERY_S = 10.0
_MAX_WAITING = 200


class View(Protocol):
    """Shows a board. `say` may be called from any thread. A terminal that is gone is no error."""

    def say(self, text: str) -> None:
        """Print a line."""
        ...

    def refresh(self) -> None:
        """Show what is new."""
        ...

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        ...


def create_view(console: Console, board: Board) -> View:
    """Return the view that suits the console."""
    can_draw = console.is_terminal and not console.is_dumb_terminal
    return PictureView(console, board) if can_draw else LineView(console, board)


class _Lines:
    """Lines to print, from any thread. While the view is up only the main thread prints them, in `flush`.

    A terminal that was stopped (Ctrl-S) would otherwise block every thread that prints.
    """

    def __init__(self, console: Console) -> None:
        self._print = sayer(console)
        self._waiting: deque[str] = deque(maxlen=_MAX_WAITING)
        self.is_held = False

    def say(self, text: str) -> None:
        self._waiting.append(f"{time.strftime('%H:%M:%S')} {text}")
        if not self.is_held:
            self.flush()

    def flush(self) -> None:
        with contextlib.suppress(OSError, IndexError):
            while True:
                self._print(self._waiting.popleft())


class LineView:
    """Prints one line every ten seconds."""

    def __init__(self, console: Console, board: Board, *, now: Callable[[], float] = time.monotonic) -> None:
        """Show `board` on `console`; `now` is in seconds."""
        self._board = board
        self._lines = _Lines(console)
        self._now = now
        self._said_s = now()
        self._saw_url = False

    def say(self, text: str) -> None:
        """Print a line with the time of day."""
        self._lines.say(text)

    def refresh(self) -> None:
        """Print lines that wait, the address once it is known, and every ten seconds a line about the run."""
        url = self._board.snapshot.http
        if url and not self._saw_url:
            self._saw_url = True
            self.say(f"status page and metrics: {url}")
        if self._now() - self._said_s >= _LINE_EVERY_S:
            self._said_s = self._now()
            self.say(line(self._board))
        self._lines.flush()

    def __enter__(self) -> Self:
        """Begin."""
        self._lines.is_held = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Print what is left."""
        self._lines.is_held = False
        self._lines.flush()


class PictureView:
    """Draws a picture of the run each time it is refreshed."""

    def __init__(self, console: Console, board: Board, *, now: Callable[[], float] = time.monotonic) -> None:
        """Show `board` on `console`; `now` is in seconds."""
        self._console = console
        self._board = board
        self._lines = _Lines(console)
        self._now = now
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def say(self, text: str) -> None:
        """Print a line above the picture."""
        self._lines.say(text)

    def refresh(self) -> None:
        """Print lines that wait, and draw the picture again."""
        self._lines.flush()
        with contextlib.suppress(OSError):
            width, height = self._console.size
            shown = picture(self._board, now=self._now(), width=width, height=height)
            self._live.update(shown, refresh=True)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._lines.is_held = True
        with contextlib.suppress(OSError):
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the picture away."""
        with contextlib.suppress(OSError):
            self._live.stop()
        self._lines.is_held = False
        self._lines.flush()
