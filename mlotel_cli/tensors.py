"""Finds tensors inside values, checks them for NaN, and moves them to a device."""

import dataclasses
import math
from collections import deque
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, cast


def find_nan(value: Any) -> str | None:
    """Find the first tensor, array or number with NaN; return the number of NaN and the place, or None.

    It searches mappings, lists, tuples and dataclasses. Infinity is allowed, because masks use it. It synchronises with
    the device of each tensor.
    """
    for place, leaf in _leaves(value, ""):
        count = _count_nan(leaf)
        if count:
            return f"{count} NaN value{'s' if count > 1 else ''}{f' at {place}' if place else ''}"
    return None


def first_device(value: Any) -> Any:
    """Return the `torch.device` of the first tensor in `value`; None without a tensor."""
    devices = (leaf.device for _, leaf in _leaves(value, "") if hasattr(leaf, "is_cuda"))
    return next(devices, None)


def tensors_in(value: Any) -> Iterator[Any]:
    """Yield every torch tensor in `value`: in mappings, lists, tuples, dataclasses, and attributes of plain objects.

    Each object is searched once, so that values may refer to each other. Modules and functions are not searched.
    """
    seen: set[int] = set()
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if hasattr(item, "is_cuda") and hasattr(item, "record_stream"):
            yield item
        elif id(item) not in seen and not isinstance(item, _NOTHING_INSIDE) and not callable(item):
            seen.add(id(item))
            waiting.extend(_inside(item))


def _inside(item: Any) -> Iterator[Any]:
    """Yield the items and attributes of an object."""
    if isinstance(item, Mapping):
        yield from cast("Mapping[Any, Any]", item).values()
    elif isinstance(item, list | tuple | set | frozenset | deque):
        yield from cast("list[Any]", item)
    whole: Any = cast("Any", item)
    for kind in type(whole).__mro__:
        slots: Any = getattr(kind, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(whole, name, None)
    yield from getattr(whole, "__dict__", {}).values()


_NOTHING_INSIDE = (str, bytes, int, float, type(None), ModuleType)


def move(value: Any, device: Any) -> Any:
    """Return `value` with all tensors in its mappings, lists and tuples on `device`; those already there are reused."""
    if hasattr(value, "is_cuda"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: move(item, device) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        sequence = cast("list[Any]", value)
        kind: Any = type(sequence)
        items = [move(item, device) for item in sequence]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    return value


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[Any, Any]", value).items():
            yield from _leaves(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(cast("list[Any]", value)):
            yield from _leaves(item, f"{place}[{position}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name), f"{place}.{field.name}")
    else:
        yield place, value


def _count_nan(leaf: Any) -> int:
    if isinstance(leaf, float):
        return int(math.isnan(leaf))
    is_float_tensor = hasattr(leaf, "is_cuda") and (leaf.is_floating_point() or leaf.is_complex())
    if not is_float_tensor and getattr(getattr(leaf, "dtype", None), "kind", "") not in ("f", "c"):
        return 0
    try:
        return int((leaf != leaf).sum())  # only NaN differs from itself, in torch and in numpy
    except (RuntimeError, NotImplementedError):  # a sparse or quantised layout without comparison
        return 0
