"""Runs every stage in threads of its own, with bounded queues between them, so that several batches run at once.

    source thread -> queue -> stage's thread(s) -> queue -> ... -> queue -> the caller, who iterates over `run`

The queues restore the order after a stage with several threads. A failed batch passes the remaining queues too, so that
it keeps its place. All threads begin and end with `run`.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty
from typing import Any

from mlotel_cli.errors import StageError
from mlotel_cli.execute.batches import Finished, Numbered, WaitForRoom, never
from mlotel_cli.execute.in_flight import InFlight
from mlotel_cli.execute.inference import Inference
from mlotel_cli.execute.ordered_queue import End, OrderedQueue
from mlotel_cli.execute.streams import DeviceStream, HostStreams, Streams
from mlotel_cli.telemetry.api import PROVIDER, SCOPE

logger = logging.getLogger("mlotel.execute")

GRACE_S = 5.0
"""How long a run that ends early waits for a stage that works on a batch, and for a source that blocks."""
UNFINISHED = "the run ended before this batch was finished"

StageCall = Callable[[Any], Any]


@dataclass(slots=True)
class Station:
    """A stage and its place in the pipeline.

    Attributes:
        name: name of the stage.
        threads: number of threads that run it.
        turn: lock held while the stage runs; None for a stage with several threads.
    """

    name: str
    threads: int
    turn: "threading.Lock | None"


@dataclass(slots=True)
class Held:
    """A batch that a stage has been working on since `began_ns`."""

    stage: str
    in_flight: InFlight
    began_ns: int

    def too_long(self, timeout_s: float | None) -> StageError | None:
        """Abandon the batch and return the error when the stage exceeds `timeout_s`; None sets no limit."""
        held_s = (time.perf_counter_ns() - self.began_ns) / 1e9
        if timeout_s is None or held_s <= timeout_s:
            return None
        error = StageError(
            f"batch {self.in_flight.numbered.index}: stage {self.stage} ran for {held_s:.2f} s, longer than "
            f"executor.stage_timeout_s={timeout_s:g} allows"
        )
        self.in_flight.abandon(str(error))
        return error


class PipelinedExecutor:
    """Runs every stage in threads of its own. See `Executor`. Only one `run` at a time is allowed."""

    is_concurrent = True

    def __init__(
        self,
        stages: Mapping[str, StageCall],
        *,
        inference: Inference,
        queue_size: int = 2,
        replicas: Mapping[str, int] | None = None,
        stage_timeout_s: float | None = None,
        streams: Streams | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        """Prepare; see `create_executor`.

        `streams` are the device's streams, None without a device. A run that ends early waits up to `grace_s` for its
        threads.
        """
        counts = replicas or {}
        self.inference = inference
        self.stage_timeout_s = stage_timeout_s
        self.streams = streams or HostStreams()
        self.grace_s = grace_s
        self.stages = stages  # looked up at every call, because an `optimize` option may replace a stage
        self.stations = [
            Station(name, counts.get(name, 1), None if counts.get(name, 1) > 1 else threading.Lock()) for name in stages
        ]
        self._queue_size = queue_size
        self._queues = self._new_queues()

    def run(self, batches: Iterator[Numbered], *, wait_for_room: WaitForRoom = never) -> Generator[Finished]:
        """Yield every batch as it finishes, in order. A stage's Exception is in `Finished.error` and is not raised.

        `batches` is iterated on a thread of its own: a source that blocks does not delay finished batches. To end
        early, close the source first, so that its iterator ends, and then the generator. If the iterator still blocks,
        closing waits up to `grace_s`, then logs a warning and leaves the thread running.

        Raises:
            StageError: when a stage works on a batch longer than `stage_timeout_s`.
        """
        self._queues = self._new_queues()
        return StageThreads(self, self._queues).results(batches, wait_for_room)

    def outputs(self, data: Any) -> Iterator[tuple[str, Any]]:
        """Run the stages on the calling thread, each while its own thread is idle; yield each name and output.

        Raises:
            StageError: when a stage's own thread is busy for longer than `grace_s`.
        """
        for station in self.stations:
            with _turn(station, timeout_s=self.grace_s):
                data = self.stages[station.name](data)
            yield station.name, data

    def depths(self) -> dict[str, tuple[int, int]]:
        """Return by stage how many batches wait before it, and how many may."""
        queues = zip(self.stations, self._queues, strict=False)  # the caller takes from the last queue
        return {station.name: (queue.depth, queue.capacity) for station, queue in queues}

    def _new_queues(self) -> list[OrderedQueue]:
        return [OrderedQueue(self._queue_size) for _ in range(len(self.stations) + 1)]


@contextmanager
def _turn(station: Station, *, timeout_s: float = -1) -> Generator[None]:
    """Hold the stage, so that no other thread runs it."""
    if station.turn is None:
        yield
        return
    if not station.turn.acquire(timeout=timeout_s):
        raise StageError(f"stage {station.name} has been busy for more than {timeout_s:g} s")
    try:
        yield
    finally:
        station.turn.release()


class StageThreads:
    """The threads of one run."""

    def __init__(self, executor: PipelinedExecutor, queues: list[OrderedQueue]) -> None:
        """Prepare; `results` starts the threads."""
        self._executor = executor
        self._queues = queues
        self._is_stopping = False
        self._threads: list[threading.Thread] = []
        self._held: dict[threading.Thread, Held | None] = {}
        self._hung: set[threading.Thread] = set()
        self._tracer = PROVIDER.get_tracer(SCOPE)
        self._before: Any = None

    def results(self, batches: Iterator[Numbered], wait_for_room: WaitForRoom) -> Generator[Finished]:
        """Start the threads, yield the batches on the caller's thread, and stop the threads at the end."""
        stream = self._executor.streams.current()
        self._before = stream.mark()
        try:
            self._start(batches, wait_for_room)
            while True:
                entry = self._next()
                if isinstance(entry, End):
                    if entry.error is not None:
                        raise entry.error
                    return
                stream.receive(entry.value, entry.mark)
                yield entry.finished()
        finally:
            self._stop()

    def _start(self, batches: Iterator[Numbered], wait_for_room: WaitForRoom) -> None:
        for position, station in enumerate(self._executor.stations):
            for number in range(station.threads):
                name = f"{station.name}-{number}" if number else station.name
                thread = threading.Thread(target=self._work, args=(station, position), name=name, daemon=True)
                self._held[thread] = None
                self._threads.append(thread)
        self._threads.append(
            threading.Thread(target=self._feed, args=(batches, wait_for_room), name="source", daemon=True)
        )
        for thread in self._threads:
            thread.start()

    # -- on the source's thread ---------------------------------------------------------------------------------

    def _feed(self, batches: Iterator[Numbered], wait_for_room: WaitForRoom) -> None:
        now = time.perf_counter_ns
        ticket, error = 0, None
        try:
            with self._on_device(self._executor.streams.current()) as stream:
                while True:
                    asked_ns = now()
                    numbered = next(batches, None)
                    if numbered is None or self._is_stopping:
                        break
                    start_ns = now()
                    in_flight = InFlight(
                        numbered, ticket=ticket, tracer=self._tracer, start_ns=start_ns, wait_ns=start_ns - asked_ns
                    )
                    in_flight.mark = stream.mark()
                    self._pass_on(in_flight, 0)
                    ticket += 1
                    wait_for_room()
        except BaseException as raised:  # raised in the caller after the batches before it
            error = raised
        self._queues[0].put(ticket, End(ticket, error))

    @contextmanager
    def _on_device(self, stream: DeviceStream) -> Generator[DeviceStream]:
        """Enter a thread's torch state and stream; the stream waits for the caller's work from before the run."""
        with self._executor.inference(), stream.entered():
            stream.receive(None, self._before)
            yield stream

    # -- on a stage's thread ------------------------------------------------------------------------------------

    def _work(self, station: Station, position: int) -> None:
        inbox, outbox = self._queues[position], self._queues[position + 1]
        in_flight: InFlight | None = None
        try:
            with self._on_device(self._executor.streams.stream(threading.current_thread().name)) as stream:
                while not isinstance(entry := inbox.get(), End):
                    in_flight = entry
                    self._process(station, entry, position, stream)
                    in_flight = None
                outbox.put(entry.ticket, entry)
        except BaseException as error:  # not from a stage: this thread or its device is broken
            if in_flight is not None:
                in_flight.abandon(UNFINISHED)
            self._queues[-1].close(error)

    def _process(self, station: Station, in_flight: InFlight, position: int, stream: DeviceStream) -> None:
        if self._is_stopping:
            in_flight.abandon(UNFINISHED)
            return
        if not in_flight.is_over:
            with _turn(station):
                in_flight.take()
                stream.receive(in_flight.value, in_flight.mark)
                error = self._hold_and_run(station.name, in_flight)
                in_flight.mark = stream.mark()
            if error is not None:
                self._queues[position + 1].put(in_flight.ticket, End(in_flight.ticket, error))
                return
            if position + 2 == len(self._queues):
                in_flight.end()
        self._pass_on(in_flight, position + 1)

    def _hold_and_run(self, name: str, in_flight: InFlight) -> BaseException | None:
        """Run the stage; return the error that ends the whole run, if any."""
        thread = threading.current_thread()
        held = self._held[thread] = Held(name, in_flight, time.perf_counter_ns())
        try:
            in_flight.run(name, self._executor.stages[name])
        except BaseException as error:  # a stage's KeyboardInterrupt or SystemExit is raised in the caller
            return error
        finally:
            self._held[thread] = None
        return held.too_long(self._executor.stage_timeout_s)

    def _pass_on(self, in_flight: InFlight, position: int) -> None:
        if position < len(self._executor.stations):
            in_flight.offer(self._executor.stations[position].name)
        if not self._queues[position].put(in_flight.ticket, in_flight):
            in_flight.abandon(UNFINISHED)

    # -- on the caller's thread ---------------------------------------------------------------------------------

    def _next(self) -> InFlight | End:
        output = self._queues[-1]
        if self._executor.stage_timeout_s is None:
            return output.get()
        while True:
            with suppress(Empty):
                return output.get(self._patience_s(self._executor.stage_timeout_s))
            self._check_held(self._executor.stage_timeout_s)

    def _patience_s(self, timeout_s: float) -> float:
        """Return the seconds until a stage can exceed `timeout_s`."""
        began_ns = [held.began_ns for held in list(self._held.values()) if held is not None]
        if not began_ns:
            return timeout_s
        return max(0.001, timeout_s - (time.perf_counter_ns() - min(began_ns)) / 1e9)

    def _check_held(self, timeout_s: float) -> None:
        for thread, held in list(self._held.items()):
            error = None if held is None else held.too_long(timeout_s)
            if error is not None:
                self._hung.add(thread)
                raise error

    def _stop(self) -> None:
        """Wake every thread and wait for it, up to `grace_s`; batches in flight end as unfinished."""
        self._is_stopping = True
        for queue in self._queues:
            queue.close()
        deadline = time.monotonic() + self._executor.grace_s
        for thread in self._threads:
            if thread.is_alive() and thread not in self._hung:
                thread.join(max(0.0, deadline - time.monotonic()))
        for queue in self._queues:
            for in_flight in queue.drain():
                in_flight.abandon(UNFINISHED)
        left = [thread for thread in self._threads if thread.is_alive()]
        for thread in left:
            held = self._held.get(thread)
            if held is not None:
                held.in_flight.abandon(UNFINISHED)
        waited = [thread.name for thread in left if thread not in self._hung]
        if waited:
            logger.warning("threads still running after %g s: %s", self._executor.grace_s, ", ".join(waited))
