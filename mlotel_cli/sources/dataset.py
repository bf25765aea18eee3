"""A data set as Batches, once or endlessly; any iterable is a data set."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any, cast

from mlotel_cli.errors import DataError, MlotelError, UsageError
from mlotel_cli.records import Batch


class Batches:
    """A data set as Batches; every iteration is a new pass.

    Items may be `Batch` objects or `(data, targets)` pairs, as a `torch.utils.data.DataLoader` yields them. A pair's
    size is the length of its data, or of the first value of a mapping, else 1; its ids are `<batch>.<item>`.
    """

    def __init__(self, source: Any, *, key: str = "data") -> None:
        """Wrap `source`; messages name `key`, its path in the configuration.

        Raises:
            UsageError: when it cannot be iterated.
        """
        if not isinstance(source, Iterable):
            raise UsageError(
                f"{key}: {type(source).__name__} cannot be iterated; it must yield mlotel_cli.Batch objects or "
                "(data, targets) pairs"
            )
        self._source = cast("Iterable[Any]", source)
        self._key = key

    def __len__(self) -> int:
        """Return the number of batches; 0 when it is unknown."""
        if not isinstance(self._source, Sized):
            return 0
        try:
            return len(self._source)
        except TypeError:  # a DataLoader over an iterable data set has __len__ and raises
            return 0

    @property
    def is_one_shot(self) -> bool:
        """True for an iterator, such as a generator, which ends after one pass."""
        return isinstance(self._source, Iterator)

    def __iter__(self) -> Iterator[Batch]:
        """Start a pass.

        Raises:
            DataError: naming the batch, when the source fails or yields something else than a batch. The pass then
                ends, because the next item of a source that raised is undefined.
        """
        items: Iterator[Any] | None = None
        for index in itertools.count():
            try:
                items = iter(self._source) if items is None else items
                item = next(items)
            except StopIteration:
                return
            except UsageError:
                raise
            except Exception as error:
                what = str(error) if isinstance(error, MlotelError) else f"{type(error).__name__}: {error}"
                raise DataError(f"{self._key}: batch {index} cannot be read: {what}") from error
            yield self._as_batch(index, item)

    def close(self) -> None:
        """Close the source if it has `close`, unless it is a generator that another thread still runs."""
        close = getattr(self._source, "close", None)
        if callable(close) and not getattr(self._source, "gi_running", False):
            close()

    def _as_batch(self, index: int, item: Any) -> Batch:
        if isinstance(item, Batch):
            if len(item.ids) != item.size:
                raise DataError(f"{self._key}: batch {index} has {len(item.ids)} ids and size {item.size}")
            return item
        if _is_pair(item):
            data, targets = item
            size = _size(data)
            return Batch(index, [f"{index}.{n}" for n in range(size)], data, targets, size)
        raise DataError(
            f"{self._key}: batch {index} is a {type(item).__name__}; "
            "it must be a mlotel_cli.Batch or a (data, targets) pair"
        )


class Endless:
    """Repeats a data set endlessly: `source=data`. Batch indexes rise over all passes.

    The batches have no arrival time, so the latency of a batch starts at its pick-up.
    """

    is_live = False
    kind = "data"

    def __init__(self, data: Any) -> None:
        """Repeat `data`, an iterable as for `Batches`.

        Raises:
            UsageError: when it cannot be iterated.
        """
        self._batches = Batches(data)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end; an iterator, which allows only one pass, ends after it.

        Raises:
            DataError: when the data is empty, or cannot be read.
        """
        count = 0
        for number in itertools.count():
            before = count
            for batch in self._batches:
                yield batch if not number else replace(batch, index=count)
                count += 1
            if not count:
                raise DataError("data: the data set is empty: it yielded no batch")
            if count == before or self._batches.is_one_shot:
                return

    def close(self) -> None:
        """Close the data if it has `close`."""
        self._batches.close()


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(cast("list[Any]", item)) == 2


def _size(data: Any) -> int:
    """Return the number of items in a pair's data."""
    if isinstance(data, Mapping):
        values = list(cast("Mapping[Any, Any]", data).values())
        return _size(values[0]) if values else 0
    if isinstance(data, str | bytes) or not isinstance(data, Sized) or getattr(data, "ndim", 1) == 0:
        return 1
    return len(data)
