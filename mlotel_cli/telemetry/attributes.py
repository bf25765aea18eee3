"""What an attribute value may be, and a private copy of it.

The values of OpenTelemetry: str, bool, int, float, bytes, None, and sequences or mappings of them. A copy is taken when
the value is set, so that a list that changes afterwards does not change history.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, cast

from mlotel_cli.telemetry.faults import Faults

PLAIN = frozenset({str, bool, int, float, bytes, type(None)})
"""Types whose values need neither check nor copy."""
_NUMPY_BOOL = ("bool_", "bool")  # its name before and since numpy 2; no number type, unlike numpy's other scalars


def clean(value: Any) -> Any:
    """A copy of `value` that holds only plain Python objects; sequences become tuples, as in the OpenTelemetry SDK.

    Number types such as numpy's scalars become bool, int or float.

    Raises:
        TypeError: for a tensor (reading one would wait for the device, and keeping one would keep its memory), an
            array, and every other type that OpenTelemetry does not allow.
    """
    kind = cast("type[object]", type(value))
    if kind in PLAIN:
        return value
    if isinstance(value, str):
        return str.__str__(value)  # the text itself: a str Enum's own str() is its name
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
            "a tensor is no attribute value: reading it would make the host wait for the device. "
            "Pass a Python number that you already have, such as tensor.shape[0]"
        )
    raise TypeError(
        f"{kind.__module__}.{kind.__qualname__} is no attribute value; "
        "allowed are str, bool, int, float, bytes, None and sequences or mappings of them"
    )


def clean_all(given: Mapping[str, Any] | None, faults: Faults, *, call: str, span: str) -> dict[str, Any]:
    """Clean copies of all attributes that can be kept; the others are left out, counted and said once.

    `call` and `span` say in the message where they were given.

    Raises:
        TelemetryError: for one that cannot be kept, when `faults` is strict.
    """
    cleaned: dict[str, Any] = {}
    for key, value in (given or {}).items():
        if type(key) is str and key and type(value) in PLAIN:
            cleaned[key] = value
            continue
        where = f"{call} of span {span!r}: attribute"
        if not isinstance(cast("Any", key), str) or not key:
            faults.add("attribute", f"{where} name {key!r} is no text; it is left out")
            continue
        try:
            cleaned[str.__str__(key)] = clean(value)
        except Exception as error:  # what a caller's own sequence raises must not break the workload either
            faults.add("attribute", f"{where} {key!r}: {error}")
    return cleaned


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor or of a subclass, without importing torch."""
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(value).__mro__)


def text(value: object) -> str:
    """`value` as text that UTF-8 can hold."""
    string = value if type(value) is str else str(value)
    return string if string.isascii() else string.encode("utf-8", "replace").decode()
