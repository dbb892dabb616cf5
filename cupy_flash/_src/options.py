"""Options of a call as plain Python values.

`problem` looks a call up by its options. An array or a tensor would be found by its identity there, with the value that
it had the first time, and be kept alive.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np


def boolean(name: str, value: Any) -> bool:
    """`value` as a bool.

    Raises
    ------
    TypeError
        If it is neither Python's nor NumPy's.
    """
    if type(value) is bool:
        return value
    if not isinstance(value, np.bool_):
        raise TypeError(f"{name} is {value!r}: expected True or False")
    return bool(value)


def real(name: str, value: Any) -> float:
    """`value` as a finite float.

    Raises
    ------
    TypeError
        If it is no real number, nor a NumPy scalar, 0-d array or 0-d tensor with one.
    ValueError
        If it is not finite in float64.
    """
    if type(value) is not float:
        number = _element(value)
        if not any(hasattr(type(number), method) for method in ("__float__", "__index__")):
            raise TypeError(f"{name} is {value!r}: expected a real number")
        try:
            value = float(number)
        except (OverflowError, ValueError) as error:  # 10**400, Decimal("sNaN")
            kind = type(number).__name__
            raise ValueError(f"{name} is of type {kind} ({error}): expected a finite number") from None
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}: expected a finite number")
    return value


def integer(name: str, value: Any) -> int:
    """`value` as an int.

    Raises
    ------
    TypeError
        If it is no integer, nor a NumPy scalar, 0-d array or 0-d tensor with one.
    """
    if type(value) is int:
        return value
    number = _element(value)
    if not hasattr(type(number), "__index__"):
        raise TypeError(f"{name} is {value!r}: expected an int")
    return operator.index(number)


def _element(value: Any) -> Any:
    """The number that `value` is or, without an axis, has; None if that is a bool, complex, masked or a time.

    ``float`` would take all of these, arrays of one element and text; it also warns of a tensor with a gradient.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, np.ma.MaskedArray) or getattr(value, "ndim", 0) != 0 or kind in ("m", "M"):
        return None
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, (bool, np.bool_, complex, np.complexfloating)) else number
