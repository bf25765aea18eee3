"""Attribute values are checked and copied."""

import enum
import fractions
import marshal
from typing import Any

import numpy as np
import pytest
import torch

from mlotel_cli.telemetry.attributes import clean, clean_all, is_tensor
from mlotel_cli.telemetry.faults import Faults, TelemetryError


class Colour(str, enum.Enum):  # noqa: UP042 - its str() is not its value, unlike that of a StrEnum
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("text", "text"),
        (True, True),
        (7, 7),
        (0.5, 0.5),
        (b"bytes", b"bytes"),
        (None, None),
        ([1, 2], (1, 2)),
        (("a", None), ("a", None)),
        ({"a": [True], "b": {"c": 1}}, {"a": (True,), "b": {"c": 1}}),
        (np.float32(0.5), 0.5),
        (np.float64(0.25), 0.25),
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (np.bytes_(b"bytes"), b"bytes"),
        ([np.int64(1), np.float64(2.0)], (1, 2.0)),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (fractions.Fraction(1, 4), 0.25),
        (torch.Size([1, 3, 640]), (1, 3, 640)),
    ],
)
def test_values_become_plain_objects_that_travel(given: Any, kept: Any) -> None:
    cleaned = clean(given)
    assert cleaned == kept
    assert type(cleaned) is type(kept)
    assert marshal.loads(marshal.dumps(cleaned)) == kept


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2), torch.tensor(1.0), torch.nn.Parameter(torch.zeros(1)), [1, torch.tensor(1)]]
)
def test_a_tensor_is_refused_without_being_read(tensor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("item", "__float__", "__int__", "tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the tensor was read"))
    with pytest.raises(
        TypeError, match=r"a tensor cannot be an attribute value: .* wait for the device.*tensor\.shape\[0\]"
    ):
        clean(tensor)


@pytest.mark.parametrize("value", [np.zeros(2), object(), {1, 2}, 1j, torch.float32])
def test_other_types_are_refused_by_name(value: Any) -> None:
    kind = type(value)
    with pytest.raises(
        TypeError, match=f"{kind.__module__}.{kind.__qualname__} cannot be an attribute value; allowed are"
    ):
        clean(value)


def test_a_subclass_of_a_tensor_is_one() -> None:
    class Boxes(torch.Tensor):
        pass

    assert is_tensor(torch.zeros(1).as_subclass(Boxes))
    assert not is_tensor(torch.nn.Linear(1, 1))


def test_what_cannot_be_kept_is_left_out_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults()
    endless: list[Any] = []
    endless.append(endless)
    given = {"good": 1, "tensor": torch.zeros(1), "": 2, 5: 3, "endless": endless, Colour.RED: 4}
    assert clean_all(given, faults, call="set_attributes", span="stage") == {"good": 1, "red": 4}  # type: ignore[arg-type]
    assert faults.counts() == {"attribute": 4}
    (record,) = caplog.records
    assert record.message.startswith("set_attributes of span 'stage': attribute 'tensor': a tensor cannot be")


def test_strict_raises() -> None:
    with pytest.raises(TelemetryError, match=r"attribute .x.: builtins\.object cannot be an attribute value"):
        clean_all({"x": object()}, Faults(strict=True), call="start", span="stage")


def test_nothing_given_is_nothing() -> None:
    assert clean_all(None, Faults(), call="start", span="stage") == {}
