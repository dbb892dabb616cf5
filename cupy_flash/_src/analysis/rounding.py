"""How far roundings move what a traced function computes: those of its operations, carried on by derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cupy_flash._src.arrays import Described
from cupy_flash._src.components.component import Region
from cupy_flash._src.components.mods import Mod
from cupy_flash._src.expressions.derivative import derivatives
from cupy_flash._src.expressions.graph import Graph, positions
from cupy_flash._src.expressions.operations import FLOAT
from cupy_flash._src.expressions.symbols import type_of

Array = np.ndarray
# Others are off by an eps of what they make: a rounding to nearest is half of one, and a division may be a product with
# a reciprocal. Functions of mathematical libraries are off by 4 at most (CUDA C++ Programming Guide, "Mathematical
# Functions").
_EXACT = ("symbol", "negative", "absolute", "sign", "minimum", "maximum", "floor", "where")
_LIBRARY = dict.fromkeys(("exp", "exp2", "log", "log2", "log1p", "tanh", "sin", "cos", "power"), 4.0)


class Roundings(NamedTuple):
    """Of a function's result at each score, in eps.

    Attributes
    ----------
    own : ndarray
        What its operations make of it.
    by_score : ndarray
        How often it has the error of the score that it was given.
    """

    own: Array
    by_score: Array


def captured_floats(arguments: Sequence[Any]) -> dict[int, Described]:
    """The arrays of floats among what a function captures, by the arguments' numbers."""
    return {n: x for n, x in enumerate(arguments) if isinstance(x, Described) and type_of(x.dtype) == FLOAT}


def of_score(step: Mod, s: Array, region: Region, tanh: float = 0.0) -> Roundings:
    """Of what the step makes of the scores, where a tanh is off by so many eps."""
    return _carried(step, step.graph, s, region, tanh)


def of_slope(step: Mod, s: Array, region: Region, tanh: float = 0.0) -> Roundings:
    """Of its derivative with respect to the score."""
    builder, found = derivatives(step.graph, lambda n: step.graph.nodes[n].op == "symbol")
    return _carried(step, builder.graph(*found.values() or [builder.constant(0.0)]), s, region, tanh)


def _carried(step: Mod, graph: Graph, s: Array, region: Region, tanh: float) -> Roundings:
    """|d root / d node| eps |node|, of all nodes: to first order, as a choice or a floor that tips is none."""
    builder, found = derivatives(graph, lambda n: True)
    numbers = list(found)
    both = builder.graph(*numbers, *found.values())
    made = step.evaluate(both, np, np.dtype(np.float64), region, s=s)
    own, by_score = np.zeros(s.shape), np.zeros(s.shape)
    for n, value, factor in zip(numbers, made, made[len(numbers) :], strict=False):
        factor = np.abs(factor)
        op = graph.nodes[n].op
        if op == "symbol":
            by_score = by_score + factor
        elif op not in _EXACT:
            own = own + max(_LIBRARY.get(op, 1.0), tanh * (op == "tanh")) * factor * np.abs(value)
    return Roundings(*(np.where(np.isfinite(x), x, 0.0) for x in (own, by_score)))


def gathered_parts(
    step: Mod, s: Array, region: Region, tanh: float = 0.0
) -> Iterator[tuple[int, Array, Roundings, tuple[Array, ...]]]:
    """Wherever a captured array of floats enters the score: its number, the derivative, its roundings, the elements."""
    nodes = step.graph.nodes
    builder, found = derivatives(step.graph, lambda n: nodes[n].op == "element" and nodes[n].type == FLOAT)
    for n, root in found.items():
        number = nodes[n].value
        both = builder.graph(root, *nodes[n].args)
        factor, *indices = step.evaluate(both, np, np.dtype(np.float64), region, s=s)
        shape = step.arguments[number].shape
        places = tuple(np.broadcast_to(index, s.shape) for index in positions(np, indices, shape))
        off = _carried(step, builder.graph(root), s, region, tanh)
        yield number, np.broadcast_to(np.abs(factor), s.shape), off, places
