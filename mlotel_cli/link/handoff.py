"""The workload's end of the pipe: collects ended spans and messages, and hands them over every 50 ms.

One background thread drains one queue, so what the recorder reads has one order. The recorder is started by module
name; this side never imports it. Frames are a 4-byte little-endian length and a marshal'ed list: both ends run the same
Python, and marshal is the fastest way to write plain objects.
"""

import contextlib
import json
import logging
import marshal
import os
import socket
import struct
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlotel_cli.errors import RecorderError
from mlotel_cli.link.child import how_it_ended, start_recorder
from mlotel_cli.store.layout import RECORDER_LOG
from mlotel_cli.telemetry.span import Span

logger = logging.getLogger("mlotel.telemetry")

HIGH_WATER = 20_000
"""Items waiting to be handed over above which the source is paused; a second or so of the fastest pipelines."""
HUNG_S = 120.0
"""A recorder that takes nothing for so long, while much waits for it, is given up."""
_PATIENT_S = 10.0
"""Whoever waits longer for the recorder is told."""
_CHUNK = 2_000


@dataclass(slots=True, kw_only=True)
class Opening:
    """The first message: what the recorder must know of a run.

    Attributes:
        mode: eval | profile | monitor | loop (the user's own loop or SDK).
        name: the run's name.
        run_id: `mlotel.run.id`.
        started_ns: start, ns since the epoch.
        overrides: the command line's Hydra overrides.
        config: the resolved configuration.
        identity: service.name, service.instance.id, mlotel.run.id, git commit, config hash.
        tracker: fields of the recorder's TrackerSettings, without name, job_type and dir.
        settle_s: how long a settled batch waits for spans that have not ended.
        part_s: seconds between Parquet parts.
        max_names: distinct stage names kept apart.
        settle_roots: a root span's end settles its batch, because no mode does.
        otlp: fields of `OtlpConfig`; the OTEL_EXPORTER_OTLP_* variables are read by the recorder.
        live: what a monitor's recorder does beyond an evaluation's: http {host, port, fd}, window_s, slow_ms,
            background_rate, retention {max_gb, max_age_h, compact_s}; None for every other mode.
    """

    mode: str
    name: str
    run_id: str
    started_ns: int
    overrides: list[str] = field(default_factory=list[str])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    identity: dict[str, Any] = field(default_factory=dict[str, Any])
    tracker: dict[str, Any] = field(default_factory=dict[str, Any])
    settle_s: float = 5.0
    part_s: float = 1.0
    max_names: int = 200
    settle_roots: bool = False
    otlp: dict[str, Any] = field(default_factory=dict[str, Any])
    live: dict[str, Any] | None = None


class RecorderLink:
    """Starts the recorder and talks to it. `emit` and `send` may be called from any thread.

    Attributes:
        paused_s: how long `wait_for_room` held the source back, seconds.
        emitted: spans handed over so far.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        imports: Sequence[str] = ("polars", "wandb"),
        say: Callable[[str], None] | None = None,
        on_death: Callable[[RecorderError], None] | None = None,
        on_live: Callable[[dict[str, Any]], None] | None = None,
        listener: socket.socket | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the recorder process for `run_dir`. It writes nothing before `open`.

        Args:
            run_dir: an existing folder.
            imports: what the recorder imports at once, while the workload imports torch.
            say: takes the recorder's messages to the user, one line each, on a thread of its own.
            on_death: told at once when the recorder dies, for a program that never asks; on the hand-over thread.
            on_live: takes the snapshot that a monitor's recorder answers once a second, on the same thread as `say`.
            listener: what a monitor's recorder serves HTTP on, inherited; its number is in the opening.
            now: seconds, monotonic.

        Raises:
            RecorderError: when the process cannot be started.
        """
        self.run_dir = run_dir
        self.paused_s = 0.0
        self.emitted = 0
        self._queue: deque[Span | tuple[Any, ...]] = deque()
        self._waiting: list[Span] = []
        self.emit = self._queue.append
        self._wake = threading.Event()
        self._closing = False
        self._dead = self._hung = False
        self._say = say or logger.warning
        self._on_death = on_death
        self._on_live = on_live
        self._result: dict[str, Any] | None = None
        self._imports = imports
        self._http_listener = listener
        self._now = now
        self._connect()
        self._thread = threading.Thread(target=self._run, name="mlotel-handoff", daemon=True)
        _links.add(self)

    def _connect(self) -> None:
        self._log = self.run_dir / RECORDER_LOG
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        self._process, self._to_recorder, from_recorder = start_recorder(
            self.run_dir, self._imports, listener=self._http_listener
        )
        self._listener = threading.Thread(target=self._listen, args=(from_recorder,), name="mlotel-says", daemon=True)
        self._listener.start()

    def open(self, opening: Opening, *, flush_ms: int = 50) -> None:
        """Begin the run: the recorder writes run.json and starts its sinks; from now on the queue is handed over."""
        self._flush_s = flush_ms / 1000
        self._opening = opening
        self._moved_s = self._now()
        self._queue.appendleft(("open", json.dumps(asdict(opening), default=str)))
        self._thread.start()

    @property
    def pid(self) -> int:
        """Process id of the recorder."""
        return self._process.pid

    @property
    def is_open(self) -> bool:
        """Whether what is emitted now still arrives: not after the end, not in a forked child."""
        return self._to_recorder >= 0 and not self._dead and not self._closing

    def send(self, kind: str, *values: Any) -> None:
        """Queue a message behind everything emitted so far; values are plain objects."""
        self._queue.append((kind, *values))

    def wait_for_room(self) -> None:
        """Between batches: wait while the recorder is far behind. Counts the time.

        Raises:
            RecorderError: when the recorder has died, or took nothing for `HUNG_S`.
        """
        self.pause()
        if self._dead:
            raise self._died()

    def pause(self) -> None:
        """As `wait_for_room`, for a program that a dead recorder must not end."""
        if len(self._queue) <= HIGH_WATER:
            return
        start, began_s = time.perf_counter(), self._now()
        is_told = False
        while len(self._queue) > HIGH_WATER // 2 and self.is_open:
            self._wake.set()
            time.sleep(0.002)
            silent_s = self._now() - max(self._moved_s, began_s)
            if silent_s > _PATIENT_S and not is_told:
                is_told = True
                self._say(
                    f"The recorder (process {self.pid}) has taken nothing for {silent_s:.0f} s; the run waits for it, "
                    f"at most {HUNG_S:.0f} s."
                )
            if silent_s > HUNG_S:
                self._give_up()
        self.paused_s += time.perf_counter() - start

    def _give_up(self) -> None:
        """The hand-over thread is stuck and will not notice; the recorder may still finish what it has, one day."""
        self._dead = self._hung = True
        if self._on_death is not None:
            self._on_death(self._died())

    def close(self, closing: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Hand over the rest, tell the recorder how the run ended and wait for its summary.

        Args:
            closing: status, error, accuracy and counters; JSON-able.
            timeout_s: how long to wait; the recorder's own sinks are bounded below it.

        Returns:
            The run's information as written to run.json.

        Raises:
            RecorderError: when the recorder died or did not answer in time.
        """
        self.send("close", json.dumps(closing))
        self._closing = True
        self._wake.set()
        return self._await_result(timeout_s)

    def _await_result(self, timeout_s: float) -> dict[str, Any]:
        if self._hung:
            raise self._died()
        self._listener.join(min(_PATIENT_S, timeout_s))
        if self._listener.is_alive() and timeout_s > _PATIENT_S:
            left_s = timeout_s - _PATIENT_S
            self._say(
                f"The recorder is still finishing files and sinks; it is waited for, at most {left_s:.0f} s more."
            )
            self._listener.join(left_s)
        if self._result is None:
            if self._process.poll() is None and self._listener.is_alive():
                raise RecorderError(
                    f"The recorder did not finish within {timeout_s:.0f} s; it goes on in the background "
                    f"(process {self.pid}). Rows written so far are in {self.run_dir}."
                )
            raise self._died()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the result is there; its exit is nobody's wait
            self._process.wait(5)
        return self._result

    def abandon(self) -> None:
        """Give up without a word: an opened run is finished as interrupted, an unopened one leaves nothing."""
        if self._thread.is_alive():
            self._closing = True
            self._wake.set()
            self._thread.join(1)
            return
        self._close_pipe()
        self._process.kill()  # it may still be importing, and has nothing to finish
        self._process.wait()
        self._listener.join()

    # -- the hand-over thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._hand_over()
        except OSError:
            self._dead = True
        finally:
            self._close_pipe()
        if self._dead:
            self._discard()

    def _hand_over(self) -> None:
        """Until the run is closed and all is handed over.

        Raises:
            OSError: when the recorder is gone.
        """
        while True:
            self._wake.wait(self._flush_s)
            closing = self._closing
            self._wake.clear()
            self._drain()
            if closing and not self._queue and not self._waiting:
                return
            if self._process.poll() is not None:
                raise BrokenPipeError

    def _drain(self) -> None:
        queue = self._queue
        queue.extendleft(reversed(self._waiting))
        self._waiting.clear()
        pending = len(queue)
        while pending:
            items = [queue.popleft() for _ in range(min(pending, _CHUNK))]
            pending -= len(items)
            items = [item for item in items if self._is_ready(item)]
            payload = self._dump([packed for item in items if (packed := self._pack(item)) is not None])
            self._write(struct.pack("<I", len(payload)) + payload)
            self._moved_s = self._now()

    def _is_ready(self, item: Span | tuple[Any, ...]) -> bool:
        """False, and kept for later, for a span whose device time is not known yet, and for the end until it is."""
        if type(item) is tuple:
            if item[0] == "close" and self._waiting:
                self._queue.append(item)
                return False
            return True
        try:
            ready = bool(item.is_resolved())  # type: ignore[union-attr]
        except Exception as error:  # the device is broken: its time is lost, the span is not
            logger.warning("a span's device time is lost: %r", error)
            return True
        if not ready:
            self._waiting.append(item)  # type: ignore[arg-type]
        return ready

    def _pack(self, item: Span | tuple[Any, ...]) -> tuple[Any, ...] | None:
        if type(item) is tuple:
            self.emitted += item[0] == "span"
            return (*item, self.emitted) if item[0] == "close" else item
        self.emitted += 1
        try:
            return item.pack()  # type: ignore[union-attr]
        except Exception as error:  # counted as emitted, so the summary shows it as lost
            logger.warning("a span could not be packed and is lost: %r", error)
            return None

    def _dump(self, items: list[tuple[Any, ...]]) -> bytes:
        try:
            return marshal.dumps(items)
        except ValueError:  # one item holds what is no plain object: the others must not be lost with it
            kept: list[tuple[Any, ...]] = []
            for item in items:
                try:
                    marshal.dumps(item)
                    kept.append(item)
                except ValueError as error:
                    logger.warning("a %s could not be handed over and is lost: %r", item[0], error)
            return marshal.dumps(kept)

    def _discard(self) -> None:
        """Nobody reads any more: say so, and keep what the program still emits from filling its memory."""
        if self._on_death is not None and not self._closing:
            self._on_death(self._died())
        while not self._closing:
            self._queue.clear()
            self._wake.wait(self._flush_s)
            self._wake.clear()
        self._queue.clear()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._to_recorder, view) :]

    def _close_pipe(self) -> None:
        if self._to_recorder >= 0:
            os.close(self._to_recorder)
            self._to_recorder = -1

    # -- answers --------------------------------------------------------------------------------------------------

    def _listen(self, from_recorder: int) -> None:
        """One JSON object a line until the recorder ends: what it has to say, and at last its result."""
        with os.fdopen(from_recorder, "r", encoding="utf-8", errors="replace") as pipe:
            for line in pipe:
                try:
                    message = json.loads(line)
                except ValueError:  # the last words of a recorder that was killed
                    continue
                if "result" in message:
                    self._result = message["result"]
                    continue
                try:
                    self._hear(message)
                except Exception:  # a closed terminal must not cost the result
                    logger.exception("cannot say: %s", message)

    def _hear(self, message: dict[str, Any]) -> None:
        if "say" in message:
            self._say(message["say"])
        elif "live" in message and self._on_live is not None:
            self._on_live(message["live"])

    def _died(self) -> RecorderError:
        recorded = f"What it had recorded is readable in {self.run_dir}; start the run again for the rest."
        return RecorderError(f"{self._how_it_ended()}. {recorded}")

    def _how_it_ended(self) -> str:
        if self._hung:
            return f"The recorder (process {self.pid}) has taken nothing for {HUNG_S:.0f} s and is given up"
        return f"The recorder process ended ({how_it_ended(self._process, self._log, after=self._log_begins)})"

    def forget_in_child(self) -> None:
        """A forked child must not hold the pipe open, for which the recorder would wait, nor the port."""
        if self._http_listener is not None:
            self._http_listener.close()
        self._close_pipe()
        self._queue.clear()


_links: "weakref.WeakSet[RecorderLink]" = weakref.WeakSet()


def _forget_in_child() -> None:
    for link in list(_links):
        link.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
