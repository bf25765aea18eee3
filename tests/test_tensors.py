"""NaN is found and counted, and tensors are moved, wherever they are in a value."""

from collections import deque, namedtuple
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from mlotel_cli.tensors import find_nan, first_device, move, tensors_in

NAN = float("nan")


@dataclass
class Boxes:
    scores: Any
    label: str = "car"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (NAN, "1 NaN value"),
        (torch.tensor([1.0, NAN, NAN]), "2 NaN values"),
        (torch.tensor([NAN], dtype=torch.bfloat16), "1 NaN value"),
        (torch.tensor([complex(0, NAN)]), "1 NaN value"),
        (np.array([[NAN, 1.0]]), "1 NaN value"),
        (np.float32(NAN), "1 NaN value"),
        ([{"scores": torch.ones(2)}, {"scores": torch.tensor(NAN)}], "1 NaN value at [1]['scores']"),
        ((1.0, (2.0, [NAN])), "1 NaN value at [1][1][0]"),
        (Boxes(torch.tensor([NAN])), "1 NaN value at .scores"),
        ([torch.tensor([NAN]), torch.tensor([NAN, NAN])], "1 NaN value at [0]"),
    ],
)
def test_nan_is_counted_and_placed(value: Any, found: str) -> None:
    assert find_nan(value) == found


@pytest.mark.parametrize(
    "value",
    [
        None,
        "nan",
        b"nan",
        3,
        1.5,
        float("inf"),
        torch.tensor([1, 2]),
        torch.tensor([float("-inf")]),
        torch.tensor([True]),
        torch.zeros(0),
        np.array([1, 2]),
        np.array(["nan"]),
        {},
        [],
        Boxes(torch.ones(2)),
        Boxes,
        object(),
        torch.eye(2).to_sparse(),
    ],
)
def test_everything_else_has_none(value: Any) -> None:
    assert find_nan(value) is None


def test_move_reaches_every_tensor_and_keeps_the_rest() -> None:
    pair = namedtuple("pair", "image name")
    value = {"a": [torch.ones(2), "text"], "b": (torch.zeros(1), pair(torch.ones(3), 7)), "c": None}
    moved = move(value, "meta")
    assert moved["a"][0].device.type == moved["b"][0].device.type == moved["b"][1].image.device.type == "meta"
    assert (moved["a"][1], moved["b"][1].name, moved["c"]) == ("text", 7, None)
    assert isinstance(moved["b"], tuple)
    assert value["a"][0].device.type == "cpu"


def test_what_is_there_already_is_not_copied() -> None:
    tensor = torch.ones(2)
    assert move([tensor], torch.device("cpu"))[0] is tensor


def test_first_device() -> None:
    assert first_device([None, {"a": torch.ones(1, device="meta")}, torch.ones(1)]) == torch.device("meta")
    assert first_device([1, "two", np.ones(3)]) is None


class Slotted:
    __slots__ = ("image", "name")

    def __init__(self, image: Any) -> None:
        self.image = image  # `name` is never set


class Holder:
    def __init__(self, inside: Any) -> None:
        self.inside = inside
        self.itself = self


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: [1, "text", x],
        lambda x: {"a": {"b": (x, None)}},
        lambda x: {x},
        lambda x: deque([x]),
        Boxes,
        Slotted,
        lambda x: Holder([Slotted(Boxes(x))]),
    ],
)
def test_tensors_are_found_in_whatever_holds_them(wrap: Any) -> None:
    tensor = torch.ones(2)
    assert [found is tensor for found in tensors_in(wrap(tensor))] == [True]


def test_modules_functions_and_arrays_hold_no_tensors_of_a_batch() -> None:
    imported = ModuleType("imported")
    imported.weights = torch.ones(2)  # type: ignore[attr-defined]
    assert list(tensors_in([torch.nn.Linear(2, 2), Holder(imported), len, np.ones(2), b"1", None, 1.5])) == []
