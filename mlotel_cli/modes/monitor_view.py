"""Shows a monitor on the terminal as a picture that is kept up to date, or elsewhere as a line every ten seconds."""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from mlotel_cli.modes.monitor_picture import line, picture
from mlotel_cli.modes.monitor_status import Board
from mlotel_cli.screen import sayer

_LINE_EVERY_S = 10.0
_MAX_WAITING = 200


class View:
    """Shows a board. `say` may be called from any thread; a terminal that is gone is no error.

    While the view is entered, only the main thread prints, in `refresh`: a terminal that was stopped (Ctrl-S) would
    otherwise block every thread that prints.
    """

    def __init__(self, console: Console, board: Board, *, now: Callable[[], float] = time.monotonic) -> None:
        """Show `board` on `console`; `now` is in seconds."""
        self._board = board
        self._now = now
        self._print = sayer(console)
        self._waiting: deque[str] = deque(maxlen=_MAX_WAITING)
        self._is_held = False

    def say(self, text: str) -> None:
        """Print a line with the time of day."""
        self._waiting.append(f"{time.strftime('%H:%M:%S')} {text}")
        if not self._is_held:
            self._flush()

    def refresh(self) -> None:
        """Print the lines that wait, and show what is new."""
        self._flush()

    def __enter__(self) -> Self:
        self._is_held = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Print what is left."""
        self._is_held = False
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(OSError, IndexError):
            while True:
                self._print(self._waiting.popleft())


class LineView(View):
    """Prints the address once it is known, and one line about the run every ten seconds."""

    def __init__(self, console: Console, board: Board, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, board, now=now)
        self._said_s = now()
        self._saw_url = False

    def refresh(self) -> None:
        """Print the lines that wait, and what is due."""
        url = self._board.snapshot.http
        if url and not self._saw_url:
            self._saw_url = True
            self.say(f"status page and metrics: {url}")
        if self._now() - self._said_s >= _LINE_EVERY_S:
            self._said_s = self._now()
            self.say(line(self._board))
        super().refresh()


class PictureView(View):
    """Draws a picture of the run each time it is refreshed; lines are printed above it."""

    def __init__(self, console: Console, board: Board, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, board, now=now)
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def refresh(self) -> None:
        """Print the lines that wait, and draw the picture again."""
        super().refresh()
        with contextlib.suppress(OSError):
            width, height = self._console.size
            shown = picture(self._board, now=self._now(), width=width, height=height)
            self._live.update(shown, refresh=True)

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.suppress(OSError):
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the picture away, and print what is left."""
        with contextlib.suppress(OSError):
            self._live.stop()
        super().__exit__(kind, error, traceback)


def create_view(console: Console, board: Board) -> View:
    """Return the view that suits the console."""
    can_draw = console.is_terminal and not console.is_dumb_terminal
    return PictureView(console, board) if can_draw else LineView(console, board)
