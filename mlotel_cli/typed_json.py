"""Dataclasses to JSON's types and back, for what is written to run.json and stages.json and told once a second."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, cast

import msgspec
from msgspec import UNSET

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
OPTIONAL: Final[Mapping[str, bool]] = {"optional": True}
"""Metadata of a field that is left out while it is None; any other field is then null."""
Kind = TypeVar("Kind")


def to_json(value: "DataclassInstance") -> dict[str, Json]:
    """Fields by name, in their order, dataclasses in them likewise. UNSET is left out; NaN stays a number."""
    return {
        each.name: _plain(part)
        for each in fields(value)
        if (part := getattr(value, each.name)) is not UNSET and (part is not None or "optional" not in each.metadata)
    }


def from_json(kind: type[Kind], told: object) -> Kind:
    """Read what `to_json` wrote: a key that is missing takes its default, one that is not known is ignored.

    Raises:
        ValueError: a value has the wrong type; the message says where.
    """
    return msgspec.convert(told, kind)


def _plain(value: object) -> Json:
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in cast("list[object]", value)]
    return cast("Json", value)
