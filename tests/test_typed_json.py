"""Dataclasses to JSON and back: what is left out, what is null, and what is refused."""

import json
import math
from dataclasses import dataclass, field

import pytest
from msgspec import UNSET, UnsetType

from mlotel_cli.typed_json import OPTIONAL, from_json, to_json


@dataclass
class Inner:
    mean: float | None = None
    name: str = "x"


@dataclass
class Outer:
    count: int
    inner: Inner = field(default_factory=Inner)
    by_name: dict[str, Inner] = field(default_factory=dict[str, Inner])
    bounds: tuple[float, float] | None = None
    note: str | None = field(default=None, metadata=OPTIONAL)
    later: int | UnsetType = UNSET
    rows: list[Inner] = field(default_factory=list[Inner])


def test_fields_keep_their_order_and_none_is_null() -> None:
    assert list(to_json(Outer(3)).items()) == [
        ("count", 3),
        ("inner", {"mean": None, "name": "x"}),
        ("by_name", {}),
        ("bounds", None),
        ("rows", []),
    ]


def test_what_is_optional_or_unset_is_written_once_it_has_a_value() -> None:
    told = to_json(Outer(3, note="few", later=0))
    assert (told["note"], told["later"]) == ("few", 0)


def test_dataclasses_are_plain_wherever_they_stand() -> None:
    told = to_json(Outer(1, by_name={"a": Inner(1.5)}, bounds=(1.0, 2.0), rows=[Inner(name="y")]))
    assert told["by_name"] == {"a": {"mean": 1.5, "name": "x"}}
    assert told["bounds"] == [1.0, 2.0]
    assert told["rows"] == [{"mean": None, "name": "y"}]
    assert json.loads(json.dumps(told)) == told


def test_not_a_number_stays_a_number() -> None:
    mean = to_json(Inner(math.nan))["mean"]
    assert isinstance(mean, float)
    assert math.isnan(mean)


def test_what_was_written_is_read_again() -> None:
    value = Outer(1, Inner(0.5), {"a": Inner(2.0)}, (1.0, 2.0), "few", 7, [Inner()])
    assert from_json(Outer, json.loads(json.dumps(to_json(value)))) == value


def test_a_missing_key_takes_its_default_and_an_unknown_one_is_ignored() -> None:
    assert from_json(Outer, {"count": 2, "of_a_newer_version": [1]}) == Outer(2)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"count": "2"}, r"Expected `int`, got `str` - at `\$\.count`"),
        ({}, "missing required field `count`"),
        ({"count": 1, "by_name": {"a": {"mean": "high"}}}, r"at `\$\.by_name\[\.\.\.\]\.mean`"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_a_wrong_type_is_refused_with_its_place(told: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Outer, told)
