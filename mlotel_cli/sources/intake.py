"""Between live input and a pipeline: one reading thread, a bounded queue, and batches by count and deadline.

A camera never waits: what finds no room is dropped and counted. What a source is, and how it is reached, is not known
here; it is anything that can be iterated.

A source may say more of itself: `is_live` (False: nothing arrives by itself, it waits to be asked), `kind` (a word for
the status page), `health` (a `Health` that it keeps up to date), `close()` (called once, from another thread, maybe
while its iterator waits for the next item: let it end).
"""

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from mlotel_cli.config.policies import SourcePolicy, WhenFull
from mlotel_cli.errors import DataError, MlotelError, UsageError
from mlotel_cli.records import Batch

CONNECTING, CONNECTED, ENDED = "connecting", "connected", "ended"
_JOIN_S = 0.3


@dataclass(slots=True)
class Arrival:
    """An item and when it arrived, `perf_counter_ns`, for a source that knows better than its reader.

    None: it did not arrive by itself; its latency starts when it is picked up.
    """

    data: Any
    arrived_ns: int | None
    id: str = ""


@dataclass(slots=True)
class Health:
    """How a source is doing. Written by its reading thread, read by any.

    Attributes:
        state: connecting | connected | ended.
        detail: why it is not connected; empty otherwise.
        reconnects: connections made after the first one.
        dropped: items lost before they came here, by reason.
    """

    state: str = CONNECTING
    detail: str = ""
    reconnects: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])


class Intake:
    """Batches from live input. Iterate it in one thread only; `stop`, `report` and `close` may be called from any.

    Attributes:
        health: the source's own, or one that is kept for it.
    """

    def __init__(
        self, source: Any, policy: SourcePolicy, *, key: str = "source", now: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        """Prepare; the reading thread starts with the first iteration.

        Args:
            source: anything that can be iterated over items or Batch objects. Items are stacked when they are
                tensors of one shape, listed otherwise; a Batch is taken as it is.
            policy: how they are queued and batched.
            key: the source's place in the configuration, for messages.
            now: the monotonic clock, ns.

        Raises:
            UsageError: when the source cannot be iterated, or no batch could ever become full.
        """
        if not isinstance(source, Iterable):
            raise UsageError(
                f"{key}: {type(source).__name__} cannot be iterated; it must yield items or mlotel_cli.Batch objects"
            )
        if policy.queue_size < policy.batch_size:
            raise UsageError(
                f"{key}.queue_size={policy.queue_size}: allowed: at least {key}.batch_size={policy.batch_size}"
            )
        self._source = source = cast("Any", source)
        self._is_live = bool(getattr(source, "is_live", True))
        self._when_full = policy.when_full or (WhenFull.drop_oldest if self._is_live else WhenFull.block)
        self._policy = policy
        self._key = key
        self._now = now
        self.health = health if isinstance(health := getattr(source, "health", None), Health) else Health()
        self._kind = str(getattr(source, "kind", type(source).__name__.lower()))
        self._items: deque[tuple[Any, int | None, str]] = deque()
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="mlotel-source", daemon=True)
        self._received = 0
        self._dropped: Counter[str] = Counter()
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._num_batches = 0

    @property
    def is_live(self) -> bool:
        """Whether items arrive by themselves."""
        return self._is_live

    def report(self) -> dict[str, Any]:
        """What the recorder hears of the source: kind, state, received, dropped by reason, reconnects."""
        health = self.health
        with self._changed:
            dropped = self._dropped + health.dropped
        return {
            "kind": self._kind,
            "state": health.state,
            "received": self._received,
            "dropped": dict(dropped),
            "reconnects": health.reconnects,
        }

    @property
    def depth(self) -> tuple[int, int]:
        """Items waiting, and how many may."""
        return len(self._items), self._policy.queue_size

    @property
    def has_ended(self) -> bool:
        """Whether the source has no more."""
        return self._ended

    def count_dropped(self, reason: str, count: int) -> None:
        """Count items that were taken and not used."""
        if count:
            with self._changed:
                self._dropped[reason] += count

    def forget_waiting(self, reason: str) -> None:
        """Drop what waits, counted under `reason`: what came while nobody could take it."""
        with self._changed:
            if self._items:
                self._dropped[reason] += len(self._items)
                self._items.clear()
            self._changed.notify_all()

    def stop(self) -> None:
        """Take no more; what waits is dropped and counted, and the iteration ends at once."""
        with self._changed:
            self._stopped = True
        self.forget_waiting("stopped")

    def close(self) -> None:
        """Stop, close the source, and wait a moment for its thread, which is a daemon."""
        self.stop()
        if self._reader.is_alive():
            self._reader.join(_JOIN_S)
        close = getattr(self._source, "close", None)
        if callable(close):
            with contextlib.suppress(ValueError):  # a generator that is at work in its thread cannot be closed
                close()
        if self._reader.is_alive():
            self._reader.join(_JOIN_S)

    # -- the pipeline's side --------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches as items come; ends when the source does, or after `stop`.

        Raises:
            DataError: when the source failed, or ended before anything came.
        """
        if not self._reader.ident:
            self._reader.start()
        while (first := self._take(None, like=None)) is not None:
            if isinstance(first[0], Batch):
                yield self._renumbered(first[0], first[1])
            else:
                yield self._batch(self._fill([first]))
        if self._stopped:
            return
        if self._error is not None:
            raise self._failure(self._error)
        if not self._received:
            raise DataError(f"{self._key}: it ended before anything came")

    def _fill(self, items: list[tuple[Any, int | None, str]]) -> list[tuple[Any, int | None, str]]:
        """Add to the first item until the batch is full, late, or another kind of item comes."""
        arrived = items[0][1]
        deadline = None if arrived is None else arrived + int(self._policy.batch_wait_ms * 1e6)
        while len(items) < self._policy.batch_size:
            item = self._take(deadline, like=items[0][0])
            if item is None:
                break
            items.append(item)
        return items

    def _take(self, deadline_ns: int | None, *, like: Any) -> tuple[Any, int | None, str] | None:
        """The next item; None at the end, past the deadline, or when it does not fit to `like`."""
        with self._changed:
            while not self._items:
                if self._ended or self._stopped:
                    return None
                left_s = None if deadline_ns is None else (deadline_ns - self._now()) / 1e9
                if left_s is not None and left_s <= 0:
                    return None
                self._changed.wait(left_s)
            if like is not None and not _fits(self._items[0][0], like):
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def _renumbered(self, batch: Batch, arrived_ns: int | None) -> Batch:
        index, self._num_batches = self._num_batches, self._num_batches + 1
        if self._is_live:  # what it calls itself may repeat
            return replace(batch, index=index, source_time_ns=batch.source_time_ns or arrived_ns)
        return batch

    def _batch(self, items: list[tuple[Any, int | None, str]]) -> Batch:
        index, self._num_batches = self._num_batches, self._num_batches + 1
        ids = [name or f"{index}.{number}" for number, (_, _, name) in enumerate(items)]
        return Batch(index, ids, _stacked([data for data, _, _ in items]), None, len(items), items[0][1])

    def _failure(self, error: BaseException) -> Exception:
        if isinstance(error, MlotelError):
            return error
        return DataError(f"{self._key}: it failed after {self._received} items: {type(error).__name__}: {error}")

    # -- the reading thread ---------------------------------------------------------------------------------------

    def _read(self) -> None:
        health, own = self.health, not isinstance(getattr(self._source, "health", None), Health)
        try:
            for item in self._source:
                if own:
                    health.state = CONNECTED
                arrived_ns = self._now() if self._is_live else None
                known = isinstance(item, Arrival)
                if not self._put((item.data, item.arrived_ns, item.id) if known else (item, arrived_ns, "")):
                    return
        except BaseException as error:  # raised again where the batches are taken
            self._error = error
        finally:
            health.state = ENDED
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: tuple[Any, int | None, str]) -> bool:
        """Queue an item as the policy has it; False once nobody takes any more."""
        items, capacity = self._items, self._policy.queue_size
        with self._changed:
            if self._stopped:
                return False
            self._received += 1
            if len(items) >= capacity:
                if self._when_full == WhenFull.drop_newest:
                    self._dropped["full"] += 1
                    return True
                if self._when_full == WhenFull.drop_oldest:
                    items.popleft()
                    self._dropped["full"] += 1
                else:
                    while len(items) >= capacity and not self._stopped:
                        self._changed.wait()
                    if self._stopped:
                        self._dropped["stopped"] += 1
                        return False
            items.append(item)
            self._changed.notify_all()
        return True


def _fits(item: Any, like: Any) -> bool:
    """Whether both can be in one batch."""
    if isinstance(item, Batch):
        return False
    return all(getattr(item, name, None) == getattr(like, name, None) for name in ("shape", "dtype", "device"))


def _stacked(items: list[Any]) -> Any:
    """Tensors and arrays as one tensor with a leading batch axis, anything else as a list."""
    import torch

    first = items[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(items)
    if hasattr(first, "__array__") and hasattr(first, "shape"):
        import numpy as np

        return torch.from_numpy(np.stack(items))  # pyright: ignore[reportUnknownMemberType]
    return items
