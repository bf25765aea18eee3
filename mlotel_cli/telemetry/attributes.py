"""What an attribute value may be, and a private copy of it.

The values of OpenTelemetry: str, bool, int, float, bytes, and sequences or mappings of them. A copy is taken when the
value is set, so that a list that changes afterwards does not change history.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, cast

_EXACT = frozenset({str, bool, int, float, bytes})


def clean(value: Any) -> Any:
    """A copy of `value` that holds only plain Python objects.

    Number types such as numpy's scalars become int or float.

    Raises:
        TypeError: for a tensor (reading one would wait for the device, and keeping one would keep its memory), an
            array, None and every other type that OpenTelemetry does not allow.
    """
    kind = type(value)
    if kind in _EXACT:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if kind.__module__.partition(".")[0] == "torch":
        raise TypeError(
            "a tensor is no attribute value: reading it would make the host wait for the device. "
            "Pass a Python number that you already have, such as tensor.shape[0]"
        )
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, Sequence):
        return [clean(item) for item in cast("Sequence[Any]", value)]
    raise TypeError(
        f"{kind.__module__}.{kind.__qualname__} is no attribute value; "
        "allowed are str, bool, int, float, bytes and sequences or mappings of them"
    )
