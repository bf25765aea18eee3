"""What waits to be handed to the recorder: ended spans and messages, in the order in which they came.

Any thread adds; one thread takes. A span leaves once its device time is known.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

from mlotel_cli.telemetry.span import Span
from mlotel_cli.wire import Closing, Message, PackedSpan, SpanMessage, encode

logger = logging.getLogger("mlotel.link")

FRAME_MESSAGES = 2_000
"""Messages in one frame, at most."""

Item = Span | Message
Admit = Callable[[Item], Item | None]
"""Sees an item before it leaves; returns it, a message to send instead of a message, or None to drop it."""


class Outbox:
    """A queue of spans and messages. `emit` and `len` are safe from any thread; the rest is for the hand-over thread.

    Attributes:
        emit: adds an ended span or a message.
        emitted: spans taken out so far, also those that could not be written: the summary counts these as lost.
    """

    def __init__(self, admit: Admit | None = None) -> None:
        """Start empty; with `admit`, every message passes it on its way out."""
        self._queue: deque[Item] = deque()
        self._unresolved: list[Span] = []
        self._admit = admit
        self.emit: Callable[[Item], None] = self._queue.append
        self.emitted = 0

    def __len__(self) -> int:
        """Items that wait, without spans whose device time is not known yet."""
        return len(self._queue)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, spans without device time included."""
        return not self._queue and not self._unresolved

    def put_first(self, *messages: Message) -> None:
        """Add messages before everything that waits."""
        self._queue.extendleft(reversed(messages))

    def take_all(self) -> list[Item]:
        """Take everything out; `put_back` returns what shall stay."""
        return [self._queue.popleft() for _ in range(len(self._queue))]

    def put_back(self, items: list[Item]) -> None:
        """Return items to the front."""
        self._queue.extendleft(reversed(items))

    def clear(self) -> None:
        """Drop what waits."""
        self._queue.clear()

    def frames(self) -> Iterator[bytes]:
        """Take what waits now, as frames. A span whose device time is not known stays, and the closing behind it."""
        queue = self._queue
        queue.extendleft(reversed(self._unresolved))
        self._unresolved.clear()
        pending = len(queue)
        while pending:
            items = [queue.popleft() for _ in range(min(pending, FRAME_MESSAGES))]
            pending -= len(items)
            messages = [message for item in items if (message := self._take(item)) is not None]
            yield encode(messages, lose=_log_loss)

    def _take(self, item: Item) -> Message | PackedSpan | None:
        """Return the message of an item; None for one that stays, that `admit` drops, or that cannot be packed."""
        if isinstance(item, Span):
            try:
                if not item.is_resolved():
                    self._unresolved.append(item)
                    return None
            except Exception as error:  # the device is broken: the span goes out without its device time
                logger.warning("a span's device time is lost: %r", error)
            self.emitted += 1
            if self._admit is not None and self._admit(item) is None:
                return None
            try:
                return item.pack()
            except Exception as error:  # the summary counts it as lost
                logger.warning("a span could not be packed and is lost: %r", error)
                return None
        if isinstance(item, Closing) and self._unresolved:
            self._queue.append(item)
            return None
        self.emitted += isinstance(item, SpanMessage)
        message = item if self._admit is None else cast("Message | None", self._admit(item))
        return replace(message, spans_emitted=self.emitted) if isinstance(message, Closing) else message


def _log_loss(message: Message, error: Exception) -> None:
    logger.warning("a %s could not be handed over and is lost: %r", type(message).__name__, error)
