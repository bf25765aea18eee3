"""The link of a run that loses nothing: it pauses the source while the recorder is behind, and ends with the recorder.

Every 50 ms one background thread writes what the outbox holds to the pipe, so that the order is kept.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mlotel_cli.errors import RecorderError
from mlotel_cli.link.child import RecorderProcess
from mlotel_cli.link.outbox import Outbox
from mlotel_cli.wire import Answer, Closing, Message, Opening

logger = logging.getLogger("mlotel.link")

HIGH_WATER = 20_000
"""Items waiting to be handed over above which the source is paused; a second or so of the fastest pipelines."""
HUNG_S = 120.0
"""The link gives up a recorder that takes nothing for so long while much waits for it."""
PATIENT_S = 10.0
"""From this wait on, the user is told what the run waits for."""

Say = Callable[[str], None]


class HandOver:
    """The loop that moves an outbox into a recorder's pipe; it runs on a thread of its own.

    Attributes:
        is_closing: True once the run is over; the loop then ends as soon as everything is handed over.
        moved_s: when the pipe last took a frame, by `now`.
    """

    def __init__(self, outbox: Outbox, *, now: Callable[[], float] = time.monotonic) -> None:
        """`now` tells seconds, monotonic."""
        self._outbox = outbox
        self._now = now
        self._wake = threading.Event()
        self.flush_s = 0.05
        self.is_closing = False
        self.moved_s = now()

    def finish(self) -> None:
        """Hand over the rest, then end the loop."""
        self.is_closing = True
        self._wake.set()

    def wake(self) -> None:
        """Start the next turn at once."""
        self._wake.set()

    def wait(self, timeout_s: float) -> None:
        """Wait until it is woken, `timeout_s` at most."""
        self._wake.wait(timeout_s)
        self._wake.clear()

    def run(self, recorder: RecorderProcess, *, before: Callable[[], None] | None = None) -> None:
        """Hand over until the run is closed; `before` is called before every turn.

        Raises:
            OSError: when the recorder is gone.
        """
        while True:
            self._wake.wait(self.flush_s)
            is_closing = self.is_closing
            self._wake.clear()
            if before is not None:
                before()
            for frame in self._outbox.frames():
                recorder.write(frame)
                self.moved_s = self._now()
            if is_closing and self._outbox.is_empty:
                return
            if not recorder.is_running:
                raise BrokenPipeError

    def discard(self) -> None:
        """Drop everything until the run is over, because the recorder is gone."""
        while not self.is_closing:
            self._outbox.clear()
            self.wait(self.flush_s)
        self._outbox.clear()


class RecorderLink:
    """Starts the recorder and talks to it. `emit` and `send` may be called from any thread.

    Attributes:
        run_dir: the run directory.
        emit: takes an ended span.
        paused_s: seconds for which `wait_for_room` paused the source.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        imports: Sequence[str] = ("polars", "wandb"),
        say: Say | None = None,
        on_death: Callable[[RecorderError], None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the recorder process for `run_dir`. It writes nothing before `open`.

        Args:
            run_dir: an existing folder.
            imports: what the recorder imports at once, while the workload imports torch.
            say: takes the recorder's messages to the user, one line each, on a thread of its own.
            on_death: called as soon as the recorder dies, for a program that never asks; on the hand-over thread.
            now: seconds, monotonic.

        Raises:
            RecorderError: when the process cannot be started.
        """
        self.run_dir = run_dir
        self.paused_s = 0.0
        self._say = say or logger.warning
        self._on_death = on_death
        self._now = now
        self._is_dead = self._is_hung = False
        self._outbox = Outbox()
        self.emit = self._outbox.emit
        self._handover = HandOver(self._outbox, now=now)
        self._recorder = RecorderProcess(run_dir, imports=imports, hear=self._hear)
        self._thread = threading.Thread(target=self._run, name="mlotel-handoff", daemon=True)
        forget_in_children(self)

    @property
    def pid(self) -> int:
        """Process id of the recorder."""
        return self._recorder.pid

    @property
    def emitted(self) -> int:
        """Spans handed over so far."""
        return self._outbox.emitted

    @property
    def is_open(self) -> bool:
        """Whether the recorder still takes spans: False after the end, and in a forked child."""
        return self._recorder.has_pipe and not self._is_dead and not self._handover.is_closing

    def open(self, opening: Opening, *, flush_ms: int = 50) -> None:
        """Begin the run: the recorder writes run.json and starts its sinks, and the hand-over thread starts."""
        self._handover.flush_s = flush_ms / 1000
        self._handover.moved_s = self._now()
        self._outbox.put_first(opening)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Queue a message behind everything emitted so far."""
        self._outbox.emit(message)

    def wait_for_room(self) -> None:
        """Wait while the recorder is far behind, and count the time; call it between batches.

        Raises:
            RecorderError: when the recorder has died, or took nothing for `HUNG_S`.
        """
        self.pause()
        if self._is_dead:
            raise self._died()

    def pause(self) -> None:
        """Wait as `wait_for_room` does, but return when the recorder has died."""
        if len(self._outbox) <= HIGH_WATER:
            return
        start, began_s = time.perf_counter(), self._now()
        is_told = False
        while len(self._outbox) > HIGH_WATER // 2 and self.is_open:
            self._handover.wake()
            time.sleep(0.002)
            silent_s = self._now() - max(self._handover.moved_s, began_s)
            if silent_s > PATIENT_S and not is_told:
                is_told = True
                self._say(
                    f"The recorder (process {self.pid}) has taken nothing for {silent_s:.0f} s; the run waits for it, "
                    f"at most {HUNG_S:.0f} s."
                )
            if silent_s > HUNG_S:
                self._give_up()
        self.paused_s += time.perf_counter() - start

    def close(self, closing: Closing, *, timeout_s: float) -> dict[str, Any]:
        """Hand over the rest, tell the recorder how the run ended, and wait for its summary.

        Args:
            closing: how the run ended.
            timeout_s: how long to wait; the recorder's own sinks are bounded below it.

        Returns:
            The run's information as written to run.json.

        Raises:
            RecorderError: when the recorder died or did not answer in time.
        """
        self.send(closing)
        self._handover.finish()
        if self._is_hung:
            raise self._died()
        return await_result(self._recorder, self.run_dir, say=self._say, timeout_s=timeout_s)

    def abandon(self) -> None:
        """Leave without closing: the recorder finishes an opened run as interrupted; an unopened one leaves nothing."""
        if self._thread.is_alive():
            self._handover.finish()
            self._thread.join(1)
            return
        end_unopened(self._recorder)

    def forget_in_child(self) -> None:
        """Let go of the pipe in a forked child: the recorder would wait for it."""
        self._recorder.close_pipe()
        self._outbox.clear()

    def _give_up(self) -> None:
        """The hand-over thread is stuck and does not notice; the recorder may still finish what it has."""
        self._is_dead = self._is_hung = True
        if self._on_death is not None:
            self._on_death(self._died())

    def _hear(self, answer: Answer) -> None:
        if answer.say is not None:
            self._say(answer.say)

    def _died(self) -> RecorderError:
        if self._is_hung:
            how = f"The recorder (process {self.pid}) has taken nothing for {HUNG_S:.0f} s and is given up"
            return RecorderError(f"{how}. {readable_in(self.run_dir)}")
        return died(self._recorder, self.run_dir)

    # -- on the hand-over thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._handover.run(self._recorder)
        except OSError:
            self._is_dead = True
        finally:
            self._recorder.close_pipe()
        if self._is_dead:
            if self._on_death is not None and not self._handover.is_closing:
                self._on_death(self._died())
            self._handover.discard()


def await_result(recorder: RecorderProcess, run_dir: Path, *, say: Say, timeout_s: float) -> dict[str, Any]:
    """Wait for a recorder's result; a user who waits long is told.

    Raises:
        RecorderError: when it died or did not answer in time.
    """
    if not recorder.wait_for_answers(min(PATIENT_S, timeout_s)) and timeout_s > PATIENT_S:
        left_s = timeout_s - PATIENT_S
        say(f"The recorder is still finishing files and sinks; the run waits for it, at most {left_s:.0f} s more.")
        recorder.wait_for_answers(left_s)
    if recorder.result is None:
        if recorder.is_running and not recorder.wait_for_answers(0):
            raise RecorderError(
                f"The recorder did not finish within {timeout_s:.0f} s; it goes on in the background "
                f"(process {recorder.pid}). Rows written so far are in {run_dir}."
            )
        raise died(recorder, run_dir)
    recorder.wait(5)  # the result is there: a process that lingers is no error
    return recorder.result


def end_unopened(recorder: RecorderProcess) -> None:
    """End a recorder that no run was opened with; it may still be importing, and has nothing to finish."""
    recorder.close_pipe()
    recorder.kill()
    recorder.wait(5)
    recorder.wait_for_answers()


def died(recorder: RecorderProcess, run_dir: Path) -> RecorderError:
    """Return the error for a recorder that ended by itself."""
    return RecorderError(f"The recorder process ended ({recorder.how_it_ended()}). {readable_in(run_dir)}")


def readable_in(run_dir: Path) -> str:
    """Return what a user can do when the recorder is gone."""
    return f"What it had recorded is readable in {run_dir}; start the run again for the rest."


class Forgetful(Protocol):
    """A link that a forked child must let go of."""

    def forget_in_child(self) -> None:
        """Close what the child inherited."""
        ...


_links: "weakref.WeakSet[Forgetful]" = weakref.WeakSet()


def forget_in_children(link: Forgetful) -> None:
    """Have every process that is forked from now on let go of `link`."""
    _links.add(link)


def _forget_in_child() -> None:
    for link in list(_links):
        link.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
