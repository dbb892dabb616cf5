"""Which blocks of queries and keys a mask's function shows: none of it, all of it, or some that must be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cupy_flash._src.expressions.graph import Graph, Node
from cupy_flash._src.expressions.operations import BOOL, FLOAT
from cupy_flash._src.expressions.ranges import ANYTHING, UNKNOWN, Range, ranges

NONE, SOME, ALL = 0, 1, 2


def classify(
    graph: Graph, xp: Any, extents: tuple[int, int, int, int], block: tuple[int, int], arguments: Sequence[Any]
) -> Any:
    """For each block `NONE`, `SOME` or `ALL`, as bytes of shape (batch, heads, query blocks, key blocks).

    Sizes of batch and heads are 1 where the function does not depend on them.

    Parameters
    ----------
    graph : Graph
        Of a mask.
    xp : module
        numpy or cupy.
    extents : tuple of int
        Batch elements, heads, queries and keys.
    block : tuple of int
        Queries and keys of a block.
    arguments : sequence
        What the function captures.
    """
    batch, heads, sq, sk = extents
    known = graph.symbols
    b = xp.arange(batch if "b" in known else 1, dtype=np.float64)[:, None, None, None]
    h = xp.arange(heads if "h" in known else 1, dtype=np.float64)[:, None, None]
    i = _blocks(xp, sq, block[0])
    j = _blocks(xp, sk, block[1])
    symbols = {"b": Range(b, b), "h": Range(h, h), "i": Range(*(x[:, None] for x in i)), "j": j}
    scalars: dict[Any, Range] = {
        n: Range(float(x), float(x)) for n, x in enumerate(arguments) if isinstance(x, (bool, int, float))
    }
    for size in graph.find("size"):
        number, axis = graph.nodes[size].value
        scalars[number, axis] = Range(*[float(arguments[number].shape[axis])] * 2)
    summaries: dict[Any, Any] = {}

    def of(node: Node, indices: list[Range]) -> Range:
        return _element(xp, arguments[node.value], node, indices, summaries)

    low, high = ranges(graph, xp, symbols, scalars, of)[graph.roots[0]]
    shape = np.broadcast_shapes(b.shape, h.shape, (*i.low.shape, 1), j.low.shape)
    return xp.broadcast_to(xp.asarray(low + high, np.uint8), shape)


def _blocks(xp: Any, size: int, block: int) -> Range:
    first = xp.arange(0, size, block, dtype=np.float64)
    return Range(first, xp.minimum(first + (block - 1), size - 1))


def _element(xp: Any, x: Any, node: Node, indices: list[Range], summaries: dict[Any, Any]) -> Range:
    """Between which values the elements of an array lie whose indices lie between others."""
    if node.type == FLOAT:
        return ANYTHING
    if x.size == 0:
        return UNKNOWN if node.type == BOOL else ANYTHING
    within = [_within(xp, index, size) for index, size in zip(indices, x.shape, strict=True)]
    moving = [axis for axis, (low, high) in enumerate(within) if bool((low != high).any())]
    if len(moving) > 1:
        return Range(float(x.min()), float(x.max()))
    x = x.astype(np.int8) if x.dtype == np.bool_ else x
    at = [low for low, _ in within]
    if not moving:
        value = x[tuple(at)].astype(np.float64)
        return Range(value, value)
    (axis,) = moving
    low, high = within[axis]
    level = xp.floor(xp.log2((high - low + 1).astype(np.float64))).astype(np.int64)
    bounds = []
    for name in ("minimum", "maximum"):
        made: Any = 0
        for k in xp.unique(level).tolist():
            windows = _windows(xp, x, axis, name, k, summaries, node.value)
            first, last = xp.where(level == k, low, 0), xp.where(level == k, high - (2**k - 1), 0)
            ends = []
            for start in (first, last):
                at[axis] = start
                ends.append(windows[tuple(at)])
            found = getattr(xp, name)(*ends)
            made = xp.where(level == k, found, made)
        bounds.append(made.astype(np.float64))
    return Range(*bounds)


def _within(xp: Any, index: Range, size: int) -> Range:
    """An index range as positions in an array: negative ones count from its end, and there is none beyond."""
    low, high = (xp.asarray(bound) for bound in index)
    low, high = (xp.where(xp.isfinite(x), x, sign * 2.0**53) for x, sign in ((low, -1), (high, 1)))
    wraps = high < 0  # all of them; of numbers on both sides of 0 nothing is known
    low, high = xp.where(wraps, low + size, low), xp.where(wraps, high + size, xp.where(low < 0, size - 1, high))
    return Range(*(xp.clip(x, 0, size - 1).astype(np.int64) for x in (low, high)))


def _windows(xp: Any, x: Any, axis: int, name: str, level: int, summaries: dict[Any, Any], number: int) -> Any:
    """Minima or maxima of 2^level neighbours along an axis, by where these begin."""
    key = number, axis, name, level
    if key not in summaries:
        if level == 0:
            return x
        half = _windows(xp, x, axis, name, level - 1, summaries, number)
        step, n = 2 ** (level - 1), half.shape[axis]
        ahead = [slice(None)] * half.ndim
        ahead[axis] = slice(step, n)
        behind = list(ahead)
        behind[axis] = slice(0, n - step)
        summaries[key] = getattr(xp, name)(half[tuple(ahead)], half[tuple(behind)])
    return summaries[key]
