"""What a traced function is called with: symbols, which take operators and NumPy's functions, and captured arrays."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

from cupy_flash._src.expressions.graph import Builder
from cupy_flash._src.expressions.operations import BOOL, FLOAT, INT, OPERATIONS

_MOST_FACTORS = 64  # a power of a constant exponent up to this is a product
_KINDS = {"b": BOOL, "i": INT, "u": INT, "f": FLOAT, "V": FLOAT}  # V: bfloat16
_CASTS = {"bool": BOOL, "int32": INT, "int64": INT, "float32": FLOAT, "float64": FLOAT}
_UFUNCS: dict[str, Callable[..., Any]] = {}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {}


class Symbol(np.lib.mixins.NDArrayOperatorsMixin):
    """A number that is not known yet. What is computed from it becomes part of a graph."""

    __array_priority__ = 1000

    def __init__(self, builder: Builder, node: int) -> None:
        self._builder, self._node = builder, node

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        # `x += y` names x as what to write to; it is the name that gets the new value.
        if options.pop("out", (inputs[0],))[0] is not inputs[0] or options or method != "__call__":
            raise TypeError(f"np.{ufunc.__name__} has options, or is reduced: expected the plain call")
        return _call(_UFUNCS.get(ufunc.__name__), f"np.{ufunc.__name__}", inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        name = f"np.{getattr(function, '__name__', function)}"
        return _call(_FUNCTIONS.get(function), name, args, options)

    def astype(self, dtype: Any) -> Symbol:
        """The number as a bool, an int or a float: a float is cut towards 0.

        How many bits it has is the kernel's choice, so that types of fewer than 32, which change numbers, are refused.
        """
        name = np.dtype(dtype).name
        if name not in _CASTS:
            raise TypeError(f"astype of {name}: expected bool, int or float")
        return Symbol(self._builder, self._builder.convert(self._node, _CASTS[name]))

    def __bool__(self) -> bool:
        raise TypeError(
            "the value is not known while the function is traced: `if`, `and`, `or`, `not`, chained comparisons, min "
            "and max ask for it; use np.where, &, |, ~, np.minimum and np.maximum"
        )

    def _unknown(self, *_: Any) -> Any:
        raise TypeError(
            "the value is not known while the function is traced: use NumPy's functions, .astype(int) to make an int, "
            "and pass arrays that it indexes as score_args or mask_args"
        )

    def __getitem__(self, index: Any) -> Symbol:
        if isinstance(index, tuple) and not index:  # of an array without axes, which is a symbol already
            return self
        raise TypeError("a number is indexed: expected one of the arrays that are score_args or mask_args")

    __int__ = __float__ = __complex__ = __index__ = __len__ = __iter__ = _unknown
    __array__ = __round__ = __trunc__ = __floor__ = __ceil__ = _unknown


class Captured(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that a function captures. Indexed along all its axes it is a symbol."""

    def __init__(self, builder: Builder, name: str, number: int, array: Any, indices: tuple[int, ...] = ()) -> None:
        self._builder, self._name, self._number, self._array, self._indices = builder, name, number, array, indices

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)[len(self._indices) :]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self._array.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) > self.ndim:
            raise IndexError(f"{self._name} has {self.ndim} axes of shape {self.shape}: {len(parts)} indices")
        nodes = tuple(self._index(part, size) for part, size in zip(parts, self.shape, strict=False))
        indexed = Captured(self._builder, self._name, self._number, self._array, self._indices + nodes)
        return indexed if indexed.ndim else indexed.element()

    def element(self) -> Symbol:
        node = self._builder.element(self._number, type_of(self.dtype), self._indices)
        self._builder.places.setdefault(node, _caller())
        return Symbol(self._builder, node)

    def _index(self, index: Any, size: int) -> int:
        if isinstance(index, Symbol):
            node = node_of(self._builder, index)
            kind = self._builder.type(node)
            if kind != INT:
                raise TypeError(f"an index of {self._name} is a {kind}: expected an int, of .astype(int) or //")
            return node
        try:
            number = operator.index(index)
        except TypeError:
            number = None
        if number is None or isinstance(index, bool):
            raise TypeError(f"an index of {self._name} is {index!r}: expected ints, one for each axis")
        if not -size <= number < size:
            raise IndexError(f"an index of {self._name} is {number}: the axis has {size} elements")
        return self._builder.constant(number % size)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self._name} has no {name!r} here: index it along all its axes")

    def _whole(self, *_: Any, **__: Any) -> Any:
        axes = f"{self.ndim} more" if self._indices else f"all {self.ndim}"
        raise TypeError(f"{self._name} is an array: index it along {axes} axes first")

    __array_ufunc__ = __array__ = __iter__ = __bool__ = __int__ = __float__ = __complex__ = __index__ = _whole


def type_of(dtype: np.dtype) -> str:
    """Of an element of an array of this dtype.

    Raises
    ------
    TypeError
        If it is no number, or one that 64 bits hold only without a sign.
    """
    is_held = dtype.isnative and dtype.itemsize <= 8 and dtype != np.uint64
    if dtype.kind not in _KINDS or not is_held or (dtype.kind == "V" and dtype.name != "bfloat16"):
        raise TypeError(
            f"dtype {dtype}: expected bool, an int of at most 64 bits with its sign, or a float of at most 64, in the "
            "machine's order of bytes"
        )
    return _KINDS[dtype.kind]


def _call(known: Callable[..., Any] | None, name: str, args: Any, options: Any = None) -> Any:
    if known is None:
        supported = sorted({*_UFUNCS, *(function.__name__ for function in _FUNCTIONS)})
        raise TypeError(f"{name} is not among the functions that can be traced: {', '.join(supported)}")
    return known(*args, **(options or {}))


def node_of(builder: Builder, x: Any) -> int:
    """The node of a symbol, or of a number, which may be NumPy's.

    Raises
    ------
    TypeError
        If it is something else.
    """
    if isinstance(x, Symbol):
        if x._builder is not builder:
            raise TypeError("a value of another trace: expected what is made of this call's arguments")
        return x._node
    if isinstance(x, Captured):
        return x._whole()
    if isinstance(x, (bool, int, float)):
        return builder.constant(x)
    if isinstance(x, np.generic) or (isinstance(x, np.ndarray) and x.ndim == 0):
        return builder.constant({BOOL: bool, INT: int, FLOAT: float}[type_of(x.dtype)](x))
    raise TypeError(f"a {type(x).__name__} meets a traced value: expected numbers; arrays are passed and indexed")


def is_callers(frame: FrameType) -> bool:
    """Whether it runs code of the caller, not of this package's own or NumPy's."""
    return not frame.f_globals.get("__name__", "").startswith(("cupy_flash._src.", "numpy."))


def place(filename: str, line: int) -> str:
    """How messages name a line."""
    return f" ({filename}, line {line})"


def _caller() -> str:
    """The line of the caller's code that runs."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_callers(frame):
        frame = frame.f_back
    return place(frame.f_code.co_filename, frame.f_lineno) if frame else ""


def _of(args: tuple[Any, ...]) -> tuple[Builder, list[int]]:
    """The arguments as nodes, of which at least one is a symbol."""
    builder = next(x._builder for x in args if isinstance(x, Symbol))
    return builder, [node_of(builder, x) for x in args]


def _operation(op: str) -> Callable[..., Symbol]:
    def call(*args: Any) -> Symbol:
        builder, nodes = _of(args)
        return Symbol(builder, builder.apply(op, *nodes))

    return call


def _power(x: Any, exponent: Any) -> Symbol:
    """A product where the exponent is a small constant."""
    builder, (base, power) = _of((x, exponent))
    n, are_ints = builder.value(power), builder.type(base) == builder.type(power) == INT
    is_product = n is not None and not isinstance(n, bool) and abs(n) <= _MOST_FACTORS and n == math.floor(n)
    if are_ints and (not is_product or n < 0):
        raise TypeError("a power of ints: expected a constant exponent from 0 to 64, or .astype(float)")
    if not is_product:
        return Symbol(builder, builder.apply("power", base, power))
    if isinstance(n, float) or builder.type(base) == FLOAT:
        base = builder.convert(base, FLOAT)
    product, factor, left = builder.convert(builder.constant(1), builder.type(base)), base, abs(int(n))
    while left:  # by squaring
        product = builder.apply("multiply", product, factor) if left % 2 else product
        left //= 2
        factor = builder.apply("multiply", factor, factor) if left else factor
    if n < 0:
        product = builder.apply("divide", builder.constant(1.0), product)
    return Symbol(builder, product)


def _shift(x: Any, by: Any, op: str) -> Symbol:
    builder, (number, bits) = _of((x, by))
    n = builder.value(bits)
    if builder.type(number) == FLOAT or not isinstance(n, int) or not 0 <= n < 63:
        raise TypeError("a shift of a float, or by what is not known: expected an int and a constant number of bits")
    return Symbol(builder, builder.apply(op, number, builder.constant(2**n)))


def _floor(x: Any) -> Symbol:
    builder, (number,) = _of((x,))
    return x if builder.type(number) == INT else Symbol(builder, builder.apply("floor", number))


def _swapped(op: str) -> Callable[..., Symbol]:
    known = _operation(op)
    return lambda x, y: known(y, x)


def _logical(op: str) -> Callable[..., Symbol]:
    def call(*args: Any) -> Symbol:
        builder, nodes = _of(args)
        return Symbol(builder, builder.apply(op, *(builder.convert(n, BOOL) for n in nodes)))

    return call


def _where(condition: Any, x: Any, y: Any) -> Symbol:
    return _operation("where")(condition, x, y)


def _clip(x: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Symbol:
    low, high = (a_min if min is None else min), (a_max if max is None else max)
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


_DIRECT = set(OPERATIONS) - {"power", "floor", "where", "int", "float"}
_UFUNCS |= {op: _operation(op) for op in _DIRECT}
_UFUNCS |= {
    "power": _power,
    "floor": _floor,
    "positive": lambda x: x,
    "square": lambda x: _power(x, 2),
    "greater": _swapped("less"),
    "greater_equal": _swapped("less_equal"),
    "left_shift": lambda x, by: _shift(x, by, "multiply"),
    "right_shift": lambda x, by: _shift(x, by, "floor_divide"),
    "divmod": lambda x, y: (_UFUNCS["floor_divide"](x, y), _UFUNCS["remainder"](x, y)),
    "clip": _clip,
    **{f"logical_{name}": _logical(f"bitwise_{name}") for name in ("and", "or", "xor")},
    "logical_not": _logical("invert"),
}
_FUNCTIONS |= {np.where: _where, np.clip: _clip}
