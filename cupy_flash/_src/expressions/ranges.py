"""Intervals: between which numbers the values of a graph lie where those of symbols lie between others.

Moore, "Interval Analysis", 1966. Bounds are numbers or arrays of float64; those of a bool are 0 and 1: (0, 1) is not
known, (1, 1) true. Where floats are computed bounds move outward by more than a kernel errs, whose floats have 32 bits
or 64. A float that may be NaN has infinite bounds on both sides, and so has what is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cupy_flash._src.expressions.graph import Graph, Node
from cupy_flash._src.expressions.operations import BOOL, FLOAT, INT, LARGEST_INT

Bound = Any  # a number, or an array of float64
_EXACT = 2.0**53  # ints below are told apart
_ERROR, _TINY = 2.0**-20, 1e-37  # of a kernel's float, relative to it and where it is next to 0
_EXACT_FLOAT = 2.0**24  # whole floats up to this are exact
_LARGEST = float(np.finfo(np.float32).max)


class Range(NamedTuple):
    """Values from `low` to `high`."""

    low: Bound
    high: Bound


ANYTHING = Range(-np.inf, np.inf)
UNKNOWN = Range(0.0, 1.0)
Element = Callable[[Node, list[Range]], Range]


def ranges(
    graph: Graph, xp: Any, symbols: Mapping[str, Range], scalars: Mapping[Any, Range], of: Element
) -> list[Range]:
    """That of each node.

    Parameters
    ----------
    graph : Graph
        The expression.
    xp : module
        numpy or cupy.
    symbols : mapping
        Their ranges; of those that are missing nothing is known.
    scalars : mapping
        Ranges of captured scalars, by the arguments' numbers, and of sizes that are known, by those and the axes.
    of : callable
        Tells the range of an element of an array from the ranges of its indices.
    """
    found: list[Range] = []
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            args = [found[n] for n in node.args]
            if node.op == "constant":
                made = Range(float(node.number), float(node.number))
            elif node.op == "symbol":
                made = symbols.get(node.value, ANYTHING)
            elif node.op == "scalar":
                made = scalars[node.value]
            elif node.op == "size":
                made = scalars.get(node.value, Range(0.0, 2.0**31))
            elif node.op == "element":
                made = of(node, args)
            else:
                rule = _square if node.op == "multiply" and node.args[0] == node.args[1] else _RULES[node.op]
                made = Range(*rule(xp, node.type, [graph.nodes[n].type for n in node.args], *args))
            found.append(Range(*map(xp.asarray, made)) if node.type == BOOL else _widened(xp, node, made, args))
    return found


def _widened(xp: Any, node: Node, made: Range, args: list[Range]) -> Range:
    low, high = (xp.asarray(bound, np.float64) for bound in made)
    if node.type == INT:
        beyond_low, beyond_high = low <= -_EXACT, high >= _EXACT
        if node.op in _MAY_OVERFLOW:
            beyond_low = beyond_high = beyond_low | beyond_high
        low, high = xp.minimum(low, _EXACT), xp.maximum(high, -_EXACT)
        return Range(xp.where(beyond_low, -np.inf, low), xp.where(beyond_high, np.inf, high))
    if node.op in ("constant", "scalar"):
        low, high = xp.minimum(low, low.astype(np.float32)), xp.maximum(high, high.astype(np.float32))
    elif node.op not in _AS_THEY_ARE:
        # Rounding does not change the order: results are no less than the bound as the kernel would have rounded it.
        exact = _EXACT_FLOAT if node.op in ("float", "floor") else 0.0
        low = xp.where(abs(low) <= exact, low, low - _ERROR * abs(low) - _TINY)
        high = xp.where(abs(high) <= exact, high, high + _ERROR * abs(high) + _TINY)
    low, high = xp.where(low < -_LARGEST, -np.inf, low), xp.where(high > _LARGEST, np.inf, high)
    lost = xp.isnan(low) | xp.isnan(high)
    for arg in args if node.op not in ("float", "where") else ():
        lost = lost | _is_lost(arg)
    return Range(xp.where(lost, -np.inf, low), xp.where(lost, np.inf, high))


def _is_lost(x: Range) -> Any:
    """Whether nothing is known of a float, which may be NaN."""
    return (x.low == -np.inf) & (x.high == np.inf)


_MAY_OVERFLOW = ("add", "subtract", "multiply", "negative", "absolute", "floor_divide")
# Whose results are numbers that there are already.
_AS_THEY_ARE = ("symbol", "element", "negative", "absolute", "sign", "minimum", "maximum", "where")


def _corners(xp: Any, made: list[Bound]) -> tuple[Bound, Bound]:
    low, high = made[0], made[0]
    for bound in made[1:]:
        low, high = xp.minimum(low, bound), xp.maximum(high, bound)
    return low, high


def _multiply(xp: Any, type: str, _: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    made = [x * y for x in a for y in b]
    if type == INT:  # an infinite bound of ints is none: there are only finite ones
        made = [xp.where(xp.isnan(x), 0, x) for x in made]
    return _corners(xp, made)


def _square(xp: Any, type: str, types: Any, a: Range, _: Range) -> tuple[Bound, Bound]:
    low, high = _absolute(xp, type, types, a)
    return low * low, high * high


def _divide(xp: Any, type: str, _: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    low, high = _corners(xp, [x / y for x in a for y in b])
    around = (b.low <= 0) & (b.high >= 0)
    return xp.where(around, -np.inf, low), xp.where(around, np.inf, high)


def _floor_divide(xp: Any, type: str, _: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    around = (b.low <= 0) & (b.high >= 0)
    made = [xp.floor_divide(x, xp.where(around, 1, y)) for x in a for y in b]
    if type == INT:  # NumPy has NaN for infinite numbers
        ends = [xp.sign(x) * xp.sign(xp.where(around, 1, y)) * np.inf for x in a for y in b]
        made = [xp.where(xp.isnan(x), end, x) for x, end in zip(made, ends, strict=True)]
    low, high = _corners(xp, made)
    most = xp.maximum(abs(a.low), abs(a.high)) if type == INT else np.inf  # no int between -1 and 1 divides but 0
    return xp.where(around, -most, low), xp.where(around, most, high)


def _remainder(xp: Any, type: str, _: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    last = 1 if type == INT else 0
    low, high = xp.minimum(b.low + last, 0), xp.maximum(b.high - last, 0)
    if type == FLOAT:
        around = (b.low <= 0) & (b.high >= 0) | xp.isinf(a.low) | xp.isinf(a.high)
        return xp.where(around, -np.inf, low), xp.where(around, np.inf, high)
    by = xp.where((b.low == b.high) & (b.low > 0), b.low, 1)
    first, final = xp.floor_divide(a.low, by), xp.floor_divide(a.high, by)
    within = (b.low == b.high) & (b.low > 0) & (first == final)
    return xp.where(within, a.low - first * by, low), xp.where(within, a.high - first * by, high)


def _power(xp: Any, type: str, _: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    above = a.low > 0
    low, high = _corners(xp, [xp.power(xp.where(above, x, 1), y) for x in a for y in b])
    return xp.where(above, low, -np.inf), xp.where(above, high, np.inf)


def _absolute(xp: Any, type: str, _: Any, a: Range) -> tuple[Bound, Bound]:
    around = (a.low <= 0) & (a.high >= 0)
    low, high = xp.minimum(abs(a.low), abs(a.high)), xp.maximum(abs(a.low), abs(a.high))
    return xp.where(around, 0, low), high


def _rising(function: str, least: float = -np.inf) -> Callable[..., tuple[Bound, Bound]]:
    def rule(xp: Any, type: str, _: Any, a: Range) -> tuple[Bound, Bound]:
        call, defined = getattr(xp, function), a.low >= least
        bounds = (call(xp.where(defined, x, 1.0)) for x in a)
        low, high = bounds
        return xp.where(defined, low, -np.inf), xp.where(defined, high, np.inf)

    return rule


def _wave(xp: Any, type: str, _: Any, a: Range) -> tuple[Bound, Bound]:
    lost = xp.isinf(a.low) | xp.isinf(a.high)
    return xp.where(lost, -np.inf, -1.0), xp.where(lost, np.inf, 1.0)


def _as_bool(low: Any, high: Any) -> tuple[Bound, Bound]:
    """Bounds of bools; of the many of a table in bytes."""
    low, high = (x.astype(np.uint8) if hasattr(x, "astype") else int(x) for x in (low, high))
    return low, high


def _equal(xp: Any, type: str, _: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    same = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
    return _as_bool(same, (a.low <= b.high) & (b.low <= a.high))


def _invert(xp: Any, type: str, _: Any, a: Range) -> tuple[Bound, Bound]:
    whole = 1 if type == BOOL else -1
    return whole - a.high, whole - a.low


def _and(xp: Any, type: str, _: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    if type == BOOL:
        return a.low * b.low, a.high * b.high
    high = xp.where(a.low >= 0, xp.where(b.low >= 0, xp.minimum(a.high, b.high), a.high), b.high)
    known = (a.low >= 0) | (b.low >= 0)
    return xp.where(known, 0, -np.inf), xp.where(known, high, np.inf)


def _or(xp: Any, type: str, _: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    if type == BOOL:
        return xp.maximum(a.low, b.low), xp.maximum(a.high, b.high)
    return _bits(xp, a, b)


def _xor(xp: Any, type: str, _: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    if type == BOOL:
        return _as_bool(
            (a.low == a.high) & (b.low == b.high) & (a.low != b.low),
            (a.low != a.high) | (b.low != b.high) | (a.low != b.low),
        )
    return _bits(xp, a, b)


def _bits(xp: Any, a: Range, b: Range) -> tuple[Bound, Bound]:
    """Of ints that are not negative: those of as many bits as the longer has."""
    known = (a.low >= 0) & (b.low >= 0)
    most = xp.maximum(a.high, b.high)
    high = xp.exp2(xp.floor(xp.log2(xp.maximum(most, 0.5))) + 1) - 1
    return xp.where(known, 0, -np.inf), xp.where(known, high, np.inf)


def _where(xp: Any, type: str, _: Any, condition: Range, a: Range, b: Range) -> tuple[Bound, Bound]:
    low = xp.where(condition.low == 1, a.low, xp.where(condition.high == 0, b.low, xp.minimum(a.low, b.low)))
    high = xp.where(condition.low == 1, a.high, xp.where(condition.high == 0, b.high, xp.maximum(a.high, b.high)))
    return low, high


def _int(xp: Any, type: str, types: Any, a: Range) -> tuple[Bound, Bound]:
    if types[0] == BOOL:
        return a
    low, high = (xp.trunc(xp.clip(x, -LARGEST_INT, LARGEST_INT)) for x in a)
    return low, high


_RULES: dict[str, Callable[..., tuple[Bound, Bound]]] = {
    "add": lambda xp, type, _, a, b: (a.low + b.low, a.high + b.high),
    "subtract": lambda xp, type, _, a, b: (a.low - b.high, a.high - b.low),
    "multiply": _multiply,
    "divide": _divide,
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "power": _power,
    "negative": lambda xp, type, _, a: (-a.high, -a.low),
    "absolute": _absolute,
    "sign": lambda xp, type, _, a: (xp.sign(a.low), xp.sign(a.high)),
    "minimum": lambda xp, type, _, a, b: (xp.minimum(a.low, b.low), xp.minimum(a.high, b.high)),
    "maximum": lambda xp, type, _, a, b: (xp.maximum(a.low, b.low), xp.maximum(a.high, b.high)),
    "floor": _rising("floor"),
    "exp": _rising("exp"),
    "exp2": _rising("exp2"),
    "log": _rising("log", 0.0),
    "log2": _rising("log2", 0.0),
    "log1p": _rising("log1p", -1.0),
    "tanh": _rising("tanh"),
    "sqrt": _rising("sqrt", 0.0),
    "sin": _wave,
    "cos": _wave,
    "isfinite": lambda xp, type, _, a: _as_bool(xp.isfinite(a.low) & xp.isfinite(a.high), True),
    "less": lambda xp, type, _, a, b: _as_bool(a.high < b.low, a.low < b.high),
    "less_equal": lambda xp, type, _, a, b: _as_bool((a.high <= b.low) & ~_is_lost(a) & ~_is_lost(b), a.low <= b.high),
    "equal": _equal,
    "not_equal": lambda xp, type, types, a, b: _invert(xp, BOOL, types, Range(*_equal(xp, type, types, a, b))),
    "bitwise_and": _and,
    "bitwise_or": _or,
    "bitwise_xor": _xor,
    "invert": _invert,
    "where": _where,
    "int": _int,
    "float": lambda xp, type, types, a: a if types[0] == BOOL else tuple(xp.clip(x, -(2.0**63), 2.0**63) for x in a),
}
