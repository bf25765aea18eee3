"""Connects live input to a pipeline: one reading thread, a bounded queue, and batches by count and deadline.

A camera does not wait: items that find the queue full are dropped and counted. A source is any iterable; this module
does not know its type or its connection.

A source may have these optional members:
    is_live   False when items come only on request; the default is True.
    kind      its name on the status page.
    health    a `Health` that it keeps up to date.
    close()   called once, from another thread, maybe while its iterator waits for the next item; the iterator must end.
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
from mlotel_cli.snapshot import SourceReport

CONNECTING, CONNECTED, ENDED = "connecting", "connected", "ended"
_JOIN_S = 0.3


@dataclass(slots=True)
class Arrival:
    """An item with its arrival time, from a source that knows the time better than the reading thread.

    Attributes:
        data: the item.
        arrived_ns: `perf_counter_ns` of the arrival; None: latency starts at the pick-up.
        id: name of the item; empty: `<batch>.<item>`.
    """

    data: Any
    arrived_ns: int | None
    id: str = ""


@dataclass(slots=True)
class Health:
    """The state of a source. Its reading thread writes it, any thread reads it.

    Attributes:
        state: connecting | connected | ended.
        detail: why the source is not connected, or what is wrong with it; empty otherwise.
        reconnects: connections made after the first one.
        dropped: items that the source itself dropped, by reason.
    """

    state: str = CONNECTING
    detail: str = ""
    reconnects: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])


class Intake:
    """Batches from live input. Only one thread may iterate it; any thread may call `stop`, `report` and `close`.

    Attributes:
        health: the source's own Health, or one that this object maintains for it.
    """

    def __init__(
        self, source: Any, policy: SourcePolicy, *, key: str = "source", now: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        """Prepare; the reading thread starts with the first iteration.

        Args:
            source: an iterable of items or Batch objects. Tensors and arrays of one shape are stacked, other items
                are listed; a Batch is taken as it is.
            policy: how items are queued and batched.
            key: the source's path in the configuration, for messages.
            now: the monotonic clock, ns.

        Raises:
            UsageError: when the source cannot be iterated, or the queue is smaller than a batch.
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
        """Whether items arrive without a request, as from a camera."""
        return self._is_live

    def report(self) -> SourceReport:
        """Return the source's kind, state, items received, items dropped by reason, and reconnects."""
        health = self.health
        with self._changed:
            dropped = self._dropped + health.dropped
        return SourceReport(
            kind=self._kind,
            state=health.state,
            received=self._received,
            dropped=dict(dropped),
            reconnects=health.reconnects,
        )

    @property
    def depth(self) -> tuple[int, int]:
        """Items that wait, and how many may."""
        return len(self._items), self._policy.queue_size

    def count_dropped(self, reason: str, count: int) -> None:
        """Count items that the pipeline took and did not use."""
        if count:
            with self._changed:
                self._dropped[reason] += count

    def forget_waiting(self, reason: str) -> None:
        """Drop all waiting items and count them under `reason`."""
        with self._changed:
            if self._items:
                self._dropped[reason] += len(self._items)
                self._items.clear()
            self._changed.notify_all()

    def stop(self) -> None:
        """End the iteration at once; waiting items are dropped and counted, further ones are refused."""
        with self._changed:
            self._stopped = True
        self.forget_waiting("stopped")

    def close(self) -> None:
        """Stop, close the source, and wait briefly for the reading thread, which is a daemon."""
        self.stop()
        if self._reader.is_alive():
            self._reader.join(_JOIN_S)
        close = getattr(self._source, "close", None)
        if callable(close):
            with contextlib.suppress(ValueError):  # a generator that runs in its thread cannot be closed
                close()
        if self._reader.is_alive():
            self._reader.join(_JOIN_S)

    # -- the pipeline's side --------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches as items come, until the source ends or `stop` is called.

        Raises:
            DataError: when the source failed, or ended before its first item.
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
            raise DataError(f"{self._key}: it ended before its first item")

    def _fill(self, items: list[tuple[Any, int | None, str]]) -> list[tuple[Any, int | None, str]]:
        """Add to the first item until the batch is full, its deadline passes, or an item does not fit."""
        arrived = items[0][1]
        deadline = None if arrived is None else arrived + int(self._policy.batch_wait_ms * 1e6)
        while len(items) < self._policy.batch_size:
            item = self._take(deadline, like=items[0][0])
            if item is None:
                break
            items.append(item)
        return items

    def _take(self, deadline_ns: int | None, *, like: Any) -> tuple[Any, int | None, str] | None:
        """Take the next item; None at the end, after the deadline, or when the item does not fit `like`."""
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
        if self._is_live:  # the source's own indexes may repeat
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
        except BaseException as error:  # raised again in the thread that iterates
            self._error = error
        finally:
            health.state = ENDED
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: tuple[Any, int | None, str]) -> bool:
        """Queue an item by the policy; return False after `stop`."""
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
    """Return whether both can be in one batch."""
    if isinstance(item, Batch):
        return False
    return all(getattr(item, name, None) == getattr(like, name, None) for name in ("shape", "dtype", "device"))


def _stacked(items: list[Any]) -> Any:
    """Return tensors or arrays as one tensor with a leading batch axis, anything else as a list."""
    import torch

    first = items[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(items)
    if hasattr(first, "__array__") and hasattr(first, "shape"):
        import numpy as np

        return torch.from_numpy(np.stack(items))  # pyright: ignore[reportUnknownMemberType]
    return items
