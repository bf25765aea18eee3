"""The link of a run without end: it never pauses the workload, and it outlives its recorder.

While the recorder is far behind, hung or gone, the link drops whole batches and counts them (`ledger`). It replaces a
recorder that died by another one in the same run directory, at a limited rate.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlotel_cli.errors import RecorderError
from mlotel_cli.link.child import RecorderProcess
from mlotel_cli.link.handoff import (
    HUNG_S,
    HandOver,
    Say,
    await_result,
    end_unopened,
    forget_in_children,
)
from mlotel_cli.link.ledger import Ledger
from mlotel_cli.link.outbox import Outbox
from mlotel_cli.snapshot import Gaps, Snapshot
from mlotel_cli.store.run_json import rows_written
from mlotel_cli.wire import Answer, Closing, Message, Opening

logger = logging.getLogger("mlotel.link")

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0
STEADY_S = 120.0
"""A recorder that lived so long is replaced without delay again."""


class PersistentLink:
    """The `RecorderLink` of `mlotel monitor`. `emit` and `send` may be called from any thread.

    Attributes:
        run_dir: the run directory.
        emit: takes an ended span.
        paused_s: always 0, because it never pauses the source.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        imports: Sequence[str] = ("polars", "wandb"),
        say: Say | None = None,
        on_snapshot: Callable[[Snapshot], None] | None = None,
        listener: socket.socket | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the recorder process for `run_dir`. It writes nothing before `open`.

        Args:
            run_dir: an existing folder.
            imports: what the recorder imports at once.
            say: takes the recorder's messages to the user, one line each, on a thread of its own.
            on_snapshot: takes the live figures that the recorder answers once a second, on the same thread as `say`.
            listener: the socket that the recorder serves HTTP on, inherited; its number is in the opening.
            now: seconds, monotonic.

        Raises:
            RecorderError: when the process cannot be started.
        """
        self.run_dir = run_dir
        self.paused_s = 0.0
        self._imports = imports
        self._say = say or logger.warning
        self._on_snapshot = on_snapshot
        self._listener = listener
        self._now = now
        self._ledger = Ledger()
        self._outbox = Outbox(self._ledger.admit)
        self.emit = self._outbox.emit
        self._handover = HandOver(self._outbox, now=now)
        self._is_dead = False
        self._delay_s = 0.0
        self._is_replaced_for_closing = False
        self._born_s = self._moved_s = now()
        self._bytes_seen = 0
        self._recorder = self._start()
        self._thread = threading.Thread(target=self._run, name="mlotel-handoff", daemon=True)
        forget_in_children(self)

    @property
    def pid(self) -> int:
        """Process id of the recorder."""
        return self._recorder.pid

    @property
    def emitted(self) -> int:
        """Spans handed over to this recorder, or shed since it started."""
        return self._outbox.emitted

    @property
    def gaps(self) -> Gaps:
        """What is missing from the record so far."""
        return self._ledger.gaps

    @property
    def is_open(self) -> bool:
        """Whether a recorder may still take spans: False after the end, and in a forked child."""
        return self._recorder.has_pipe and not self._is_dead and not self._handover.is_closing

    def open(self, opening: Opening, *, flush_ms: int = 50) -> None:
        """Begin the run; see `RecorderLink.open`."""
        self._opening = opening
        self._handover.flush_s = flush_ms / 1000
        self._born_s = self._now()
        self._outbox.put_first(opening)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Queue a message behind everything emitted so far."""
        self._outbox.emit(message)

    def wait_for_room(self) -> None:
        """Return at once, because a live source does not wait."""

    def pause(self) -> None:
        """Return at once."""

    def close(self, closing: Closing, *, timeout_s: float) -> dict[str, Any]:
        """Hand over the rest and wait for the summary; see `RecorderLink.close`.

        A recorder that died and was not replaced yet is replaced once more, at once.
        """
        deadline_s = self._now() + timeout_s
        self.send(closing)
        self._handover.finish()
        self._thread.join(timeout_s)
        return await_result(self._recorder, self.run_dir, say=self._say, timeout_s=max(0.1, deadline_s - self._now()))

    def abandon(self) -> None:
        """Leave without closing; see `RecorderLink.abandon`."""
        if self._thread.is_alive():
            self._handover.finish()
            self._thread.join(1)
            return
        end_unopened(self._recorder)

    def forget_in_child(self) -> None:
        """Close pipe and port in a forked child, which would keep both open."""
        if self._listener is not None:
            self._listener.close()
        self._recorder.close_pipe()
        self._outbox.clear()

    def _start(self) -> RecorderProcess:
        return RecorderProcess(
            self.run_dir, imports=self._imports, hear=self._hear, listener=self._listener, on_full=self._on_full
        )

    def _hear(self, answer: Answer) -> None:
        if answer.say is not None:
            self._say(answer.say)
        elif answer.snapshot is not None and self._on_snapshot is not None:
            self._on_snapshot(answer.snapshot)

    # -- on the hand-over thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                self._moved_s = self._now()
                self._handover.run(self._recorder, before=self._shed_excess)
            except OSError:
                if self._replace():
                    continue
                self._is_dead = True
            break
        self._recorder.close_pipe()
        if self._is_dead:
            self._handover.discard()

    def _replace(self) -> bool:
        """Start another recorder after the delay; return False when the run is closing and that failed too."""
        self._recorder.close_pipe()
        self._recorder.wait_for_answers(2)  # its last answer says what it had written
        reason = f"The recorder process ended ({self._recorder.how_it_ended()})"
        self._ledger.count_death(rows_written=rows_written(self.run_dir))
        self._outbox.emitted = 0
        if self._now() - self._born_s >= STEADY_S:
            self._delay_s = 0.0
        while not self._is_replaced_for_closing:
            self._is_replaced_for_closing = self._handover.is_closing
            self._say(f"{reason}. The pipeline goes on; another recorder starts in {self._delay_s:.1f} s.")
            self._wait_out(self._delay_s)
            self._delay_s = min(max(FIRST_DELAY_S, 2 * self._delay_s), LONGEST_DELAY_S)
            try:
                self._recorder = self._start()
            except RecorderError as error:
                reason = str(error)
                continue
            self._born_s = self._now()
            self._ledger.restarts += 1
            self._reopen()
            return True
        return False

    def _wait_out(self, delay_s: float) -> None:
        until_s = self._now() + delay_s
        while not self._handover.is_closing and (left_s := until_s - self._now()) > 0:
            self._handover.wait(min(left_s, 0.2))
            self._shed_excess()

    def _reopen(self) -> None:
        opening = self._opening
        if opening.monitor is not None:
            opening = replace(opening, monitor=replace(opening.monitor, restarts=self._ledger.restarts))
        self._outbox.put_first(opening, *self._ledger.infos)

    def _shed_excess(self) -> None:
        self._ledger.shed_excess(self._outbox)

    def _on_full(self) -> None:
        """Drop batches while the pipe is full, and kill a recorder that takes nothing for too long."""
        self._shed_excess()
        now_s, written = self._now(), self._recorder.bytes_written
        if written != self._bytes_seen:
            self._bytes_seen, self._moved_s = written, now_s
        elif now_s - max(self._moved_s, self._handover.moved_s) > HUNG_S:
            self._say(f"The recorder (process {self.pid}) has taken nothing for {HUNG_S:g} s and is killed.")
            self._recorder.kill()
            raise BrokenPipeError
