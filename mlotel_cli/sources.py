"""Where batches come from: anything that can be iterated, seen as Batches."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

from mlotel_cli.errors import UsageError
from mlotel_cli.records import Batch


class Batches:
    """A data set as Batches, as often as it is iterated.

    Items may be `Batch` objects or `(data, targets)` pairs, so that a `torch.utils.data.DataLoader` works as it is; a
    pair's size is the length of its data (or 1), its ids are `<batch>.<item>`.
    """

    def __init__(self, source: Any, *, key: str = "data") -> None:
        """Wrap `source`; `key` is its place in the configuration, for messages.

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
        """Number of batches; 0 when the source does not say."""
        if not isinstance(self._source, Sized):
            return 0
        try:
            return len(self._source)
        except TypeError:  # a DataLoader over an iterable data set has __len__ and raises
            return 0

    @property
    def is_one_shot(self) -> bool:
        """True for a generator and its like, which end after one pass."""
        return isinstance(self._source, Iterator)

    def __iter__(self) -> Iterator[Batch]:
        """Start a pass."""
        for index, item in enumerate(self._source):
            yield self._as_batch(index, item)

    def close(self) -> None:
        """Close the source, if it can be closed."""
        close = getattr(self._source, "close", None)
        if callable(close):
            close()

    def _as_batch(self, index: int, item: Any) -> Batch:
        if isinstance(item, Batch):
            return item
        if isinstance(item, tuple | list) and len(cast("list[Any]", item)) == 2:
            data, targets = cast("list[Any]", item)
            size = len(data) if isinstance(data, Sized) else 1
            return Batch(index, [f"{index}.{n}" for n in range(size)], data, targets, size)
        raise UsageError(
            f"{self._key}: item {index} is a {type(item).__name__}; "
            "it must be a mlotel_cli.Batch or a (data, targets) pair"
        )
