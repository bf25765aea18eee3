"""A link for runs without end: it never holds the workload back, and it outlives its recorder.

What a recorder that is far behind, hung or gone cannot take is shed: whole batches, oldest first, and counted. A
recorder that died is replaced by another one in the same run directory, at a limited rate.
"""

import json
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlotel_cli.errors import RecorderError
from mlotel_cli.link.handoff import HUNG_S, Opening, RecorderLink
from mlotel_cli.store.run_json import rows_written
from mlotel_cli.telemetry.span import Span

logger = logging.getLogger("mlotel.telemetry")

HIGH_WATER = 10_000
"""Items waiting to be handed over above which whole batches are shed: some 5 MB."""
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0
STEADY_S = 120.0
"""A recorder that lived so long is replaced without delay again."""
_REMEMBERED = 10_000
"""Batches under way at most; spans that end after their batch was settled must not fill the memory."""


class PersistentLink(RecorderLink):
    """As RecorderLink, for `mlotel monitor`.

    Attributes:
        restarts: recorders started after the first one.
        batches_lost: batches shed, or handed to a recorder that died before it had written them; at most a second's
            worth too many, because a recorder notes what it wrote after writing it.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        imports: Sequence[str] = ("polars", "wandb"),
        say: Callable[[str], None] | None = None,
        on_live: Callable[[dict[str, Any]], None] | None = None,
        listener: socket.socket | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the recorder; see RecorderLink."""
        self.restarts = 0
        self.batches_lost = 0
        self._infos: list[str] = []
        self._under_way: dict[int, None] = {}
        self._shedding: dict[int, None] = {}
        self._delay_s = 0.0
        self._num_settled = self._num_died = 0
        self._replaced_for_closing = False
        super().__init__(run_dir, imports=imports, say=say, on_live=on_live, listener=listener, now=now)

    @property
    def gaps(self) -> dict[str, int]:
        """What is missing from the record so far."""
        return {"recorder_restarts": self.restarts, "batches_lost": self.batches_lost}

    def wait_for_room(self) -> None:
        """Never waits: a camera does not either."""

    def pause(self) -> None:
        """Never waits."""

    def open(self, opening: Opening, *, flush_ms: int = 50) -> None:
        """Begin the run; see RecorderLink."""
        self._born_s = self._now()
        os.set_blocking(self._to_recorder, False)
        super().open(opening, flush_ms=flush_ms)

    def close(self, closing: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Hand over the rest and wait for the summary; see RecorderLink.

        A recorder that died and was not replaced yet is replaced once more, at once.
        """
        deadline_s = self._now() + timeout_s
        self.send("close", json.dumps(closing))
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        return self._await_result(max(0.1, deadline_s - self._now()))

    # -- the hand-over thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                self._hand_over()
            except OSError:
                if self._replace():
                    continue
                self._dead = True
            break
        self._close_pipe()
        if self._dead:
            self._discard()

    def _replace(self) -> bool:
        """Start another recorder when its time has come; False when the run is closing and that failed as well."""
        self._close_pipe()
        self._listener.join(2)  # its last answer says what it had written
        reason = self._how_it_ended()
        self._count_gap()
        if self._now() - self._born_s >= STEADY_S:
            self._delay_s = 0.0
        while not self._replaced_for_closing:
            self._replaced_for_closing = self._closing
            self._say(f"{reason}. The pipeline goes on; another recorder starts in {self._delay_s:.1f} s.")
            self._wait_out(self._delay_s)
            self._delay_s = min(max(FIRST_DELAY_S, 2 * self._delay_s), LONGEST_DELAY_S)
            try:
                self._connect()
            except RecorderError as error:
                reason = str(error)
                continue
            os.set_blocking(self._to_recorder, False)
            self._born_s = self._now()
            self.restarts += 1
            self._reopen()
            return True
        return False

    def _wait_out(self, delay_s: float) -> None:
        until_s = self._now() + delay_s
        while not self._closing and (left_s := until_s - self._now()) > 0:
            self._wake.wait(min(left_s, 0.2))
            self._wake.clear()
            self._shed_excess()

    def _reopen(self) -> None:
        opening = asdict(self._opening)
        if opening["live"] is not None:
            opening["live"] = {**opening["live"], "restarts": self.restarts}
        messages = [("open", json.dumps(opening, default=str)), *(("info", text) for text in self._infos)]
        self._queue.extendleft(reversed(messages))

    def _count_gap(self) -> None:
        """What the dead recorder had half, or had not written, is lost."""
        died = self._num_settled - self._num_died - rows_written(self.run_dir)
        self._num_died += max(0, died)
        self.batches_lost += max(0, died) + len(self._under_way)
        self._shedding.update(self._under_way)
        self._under_way.clear()
        self.emitted = 0

    def _pack(self, item: Span | tuple[Any, ...]) -> tuple[Any, ...] | None:
        packed = super()._pack(item)
        if packed is None:
            return None
        if packed[0] == "span":
            batch: int | None = packed[5]
            if batch is not None:
                if batch in self._shedding:
                    return None
                self._under_way[batch] = None
                if len(self._under_way) > _REMEMBERED:
                    del self._under_way[next(iter(self._under_way))]
        elif packed[0] == "settle":
            if packed[1] in self._shedding:
                del self._shedding[packed[1]]
                return None
            self._under_way.pop(packed[1], None)
            self._num_settled += 1
        elif packed[0] == "close":
            return ("close", self._with_gaps(packed[1]), *packed[2:])
        elif packed[0] == "info" and packed[1] not in self._infos:
            self._infos.append(packed[1])
        return packed

    def _with_gaps(self, closing: str) -> str:
        """The last message, with what is missing: counted as it leaves, because a recorder may die until then."""
        told: dict[str, Any] = json.loads(closing)
        return json.dumps({**told, "telemetry": {**told.get("telemetry", {}), **self.gaps}})

    def _drain(self) -> None:
        self._shed_excess()
        super()._drain()

    def _write(self, data: bytes) -> None:
        view, moved_s = memoryview(data), self._now()
        while view:
            try:
                view = view[os.write(self._to_recorder, view) :]
                moved_s = self._now()
            except BlockingIOError:
                select.select([], [self._to_recorder], [], 0.1)
                self._shed_excess()
                if self._now() - moved_s > HUNG_S:
                    self._say(f"The recorder (process {self.pid}) has taken nothing for {HUNG_S:g} s and is killed.")
                    self._process.kill()
                    raise BrokenPipeError from None
                if self._process.poll() is not None:
                    raise BrokenPipeError from None

    def _shed_excess(self) -> None:
        """Drop whole batches, oldest first, once far more waits than the recorder takes."""
        queue = self._queue
        if len(queue) <= HIGH_WATER:
            return
        items = [queue.popleft() for _ in range(len(queue))]
        excess = len(items) - HIGH_WATER // 2
        kept: list[Span | tuple[Any, ...]] = []
        wanted: set[int] = set()
        for item in items:
            batch = _batch_of(item)
            if batch is None:
                is_message = type(item) is tuple and item[0] not in ("span", "live")
                if is_message or excess <= 0:
                    kept.append(item)
                else:
                    excess -= 1
                    self.emitted += type(item) is not tuple or item[0] == "span"
                continue
            if batch not in self._shedding and batch not in wanted:
                if excess > 0 and batch not in self._under_way:
                    self._shedding[batch] = None
                    self.batches_lost += 1
                else:
                    wanted.add(batch)
            if batch in wanted:
                kept.append(item)
                continue
            excess -= 1
            if type(item) is tuple and item[0] == "settle":
                del self._shedding[batch]
            else:
                self.emitted += 1  # and never recorded: the summary counts it as lost
        queue.extendleft(reversed(kept))


def _batch_of(item: Span | tuple[Any, ...]) -> int | None:
    if type(item) is tuple:
        return item[1] if item[0] == "settle" else item[5] if item[0] == "span" else None
    return item.batch  # type: ignore[union-attr]
