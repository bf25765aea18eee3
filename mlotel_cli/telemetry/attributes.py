"""Checks and copies attribute values.

OpenTelemetry allows str, bool, int, float, bytes, None, and sequences or mappings of them. The copy is made when the
value is set: a list that changes later does not change the span.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, cast

from mlotel_cli.telemetry.faults import Faults

PLAIN = frozenset({str, bool, int, float, bytes, type(None)})
"""Types whose values need neither check nor copy."""
_NUMPY_BOOL = ("bool_", "bool")
"""Its name before and since numpy 2. It is not registered as a number, unlike numpy's other scalars."""


def clean(value: Any) -> Any:
    """Return a copy of `value` of plain Python objects; sequences become tuples, as in the OpenTelemetry SDK.

    Number types such as numpy's scalars become bool, int or float.

    Raises:
        TypeError: for a tensor (reading it would wait for the device, storing it would hold its memory), an array, and
            every other type that OpenTelemetry does not allow.
    """
    kind = cast("type[object]", type(value))
    if kind in PLAIN:
        return value
    if isinstance(value, str):
        return str.__str__(value)  # the text; str() of a str Enum may return its name
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, Sequence):
        return tuple([clean(item) for item in cast("Sequence[Any]", value)])
    if kind.__module__ == "numpy" and kind.__name__ in _NUMPY_BOOL:
        return bool(value)
    if is_tensor(value):
        raise TypeError(
            "a tensor cannot be an attribute value: reading it would make the host wait for the device. "
            "Pass a Python number that you already have, such as tensor.shape[0]"
        )
    raise TypeError(
        f"{kind.__module__}.{kind.__qualname__} cannot be an attribute value; "
        "allowed are str, bool, int, float, bytes, None and sequences or mappings of them"
    )


def clean_all(given: Mapping[str, Any] | None, faults: Faults, *, call: str, span: str) -> dict[str, Any]:
    """Return clean copies of all allowed attributes; the others are left out and reported to `faults`.

    The message names `call` and `span`.

    Raises:
        TelemetryError: for an attribute that is not allowed, when `faults` is strict.
    """
    cleaned: dict[str, Any] = {}
    for key, value in (given or {}).items():
        if type(key) is str and key and type(value) in PLAIN:
            cleaned[key] = value
            continue
        where = f"{call} of span {span!r}: attribute"
        if not isinstance(cast("Any", key), str) or not key:
            faults.add("attribute", f"{where} name {key!r} must be text; it is left out")
            continue
        try:
            cleaned[str.__str__(key)] = clean(value)
        except Exception as error:  # also what the user's own sequence or mapping raises
            faults.add("attribute", f"{where} {key!r}: {error}")
    return cleaned


def is_tensor(value: object) -> bool:
    """Return whether `value` is a torch tensor or of a subclass, without importing torch."""
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(value).__mro__)


def text(value: object) -> str:
    """Return `value` as text that UTF-8 can encode."""
    string = value if type(value) is str else str(value)
    return string if string.isascii() else string.encode("utf-8", "replace").decode()
