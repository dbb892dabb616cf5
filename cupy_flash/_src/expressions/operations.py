"""What expressions are made of: each operation once, by the name of NumPy's function that computes it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

BOOL, INT, FLOAT = TYPES = ("bool", "int", "float")  # each counts as the next where they meet


class Operation(NamedTuple):
    """An operation of nodes.

    Attributes
    ----------
    takes : str
        Types of its arguments: ``"float"`` converts ints, ``"number"`` takes both and makes them one, ``"any"`` leaves
        them as they are, ``"bits"`` takes bools or ints, ``"bool"`` takes nothing else.
    gives : str
        Type of the result, or ``"same"``, that of the arguments.
    text : str
        How it is written, ``{0}`` being the first argument; of one that is none of Python's operators the call of its
        function.
    exact : callable or None
        Computes it of Python's ints where NumPy's function would not be exact.
    commutes : bool
        Whether its arguments may change places.
    """

    takes: str
    gives: str
    text: str = ""
    exact: Callable[..., Any] | None = None
    commutes: bool = False


OPERATIONS: dict[str, Operation] = {
    "add": Operation("number", "same", "{0} + {1}", operator.add, True),
    "subtract": Operation("number", "same", "{0} - {1}", operator.sub),
    "multiply": Operation("number", "same", "{0} * {1}", operator.mul, True),
    "divide": Operation("float", FLOAT, "{0} / {1}"),
    "floor_divide": Operation("number", "same", "{0} // {1}"),
    "remainder": Operation("number", "same", "{0} % {1}"),
    "power": Operation("float", FLOAT, "{0} ** {1}"),
    "negative": Operation("number", "same", "-{0}", operator.neg),
    "absolute": Operation("number", "same", exact=abs),
    "sign": Operation("number", "same"),
    "minimum": Operation("number", "same"),
    "maximum": Operation("number", "same"),
    "floor": Operation("float", FLOAT),
    "exp": Operation("float", FLOAT),
    "exp2": Operation("float", FLOAT),
    "log": Operation("float", FLOAT),
    "log2": Operation("float", FLOAT),
    "log1p": Operation("float", FLOAT),
    "tanh": Operation("float", FLOAT),
    "sqrt": Operation("float", FLOAT),
    "sin": Operation("float", FLOAT),
    "cos": Operation("float", FLOAT),
    "isfinite": Operation("float", BOOL),
    "less": Operation("number", BOOL, "{0} < {1}"),
    "less_equal": Operation("number", BOOL, "{0} <= {1}"),
    "equal": Operation("number", BOOL, "{0} == {1}", commutes=True),
    "not_equal": Operation("number", BOOL, "{0} != {1}", commutes=True),
    "bitwise_and": Operation("bits", "same", "{0} & {1}", commutes=True),
    "bitwise_or": Operation("bits", "same", "{0} | {1}", commutes=True),
    "bitwise_xor": Operation("bits", "same", "{0} ^ {1}", commutes=True),
    "invert": Operation("bits", "same", "~{0}"),
    "where": Operation("any", "same"),
    "int": Operation("any", INT),
    "float": Operation("any", FLOAT),
}
LARGEST_INT = 2**31 - 1  # that a float becomes


def truncated(xp: Any, x: Any) -> Any:
    """A float as an int, towards 0: NaN is 0, and what lies beyond 32 bits the nearest."""
    held = xp.clip(xp.where(xp.isnan(x), 0, x), -(2.0**31), 2.0**31)  # which floats of 32 bits can be
    return xp.clip(held.astype(np.int64), -LARGEST_INT, LARGEST_INT)


def compute(op: str, xp: Any, dtype: np.dtype, *args: Any) -> Any:
    """The operation of arrays, whose floats are of `dtype` and whose ints of int64."""
    if op == "float":
        return xp.asarray(args[0]).astype(dtype)
    if op == "int":
        x = xp.asarray(args[0])
        return truncated(xp, x) if x.dtype.kind == "f" else x.astype(np.int64)
    if op in ("floor_divide", "remainder") and xp.asarray(args[1]).dtype.kind == "i":
        return xp.where(args[1] == 0, 0, getattr(xp, op)(args[0], xp.where(args[1] == 0, 1, args[1])))
    return getattr(xp, op)(*args)
