"""Whether indices may leave the arrays that functions capture."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cupy_flash._src.expressions.graph import Builder, Graph, Node
from cupy_flash._src.expressions.operations import FLOAT
from cupy_flash._src.expressions.ranges import ANYTHING, Range, ranges
from cupy_flash._src.expressions.text import expressions

INSIDE, WRAPS, GUARDED = "inside", "wraps", "guarded"


class Captive(NamedTuple):
    """A captured array, as far as indices are concerned."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


def states(
    graph: Graph,
    lookups: Sequence[str],
    symbols: Mapping[str, Range],
    scalars: Mapping[int, float],
    arrays: Mapping[int, Captive],
) -> tuple[tuple[str, ...], ...]:
    """For each element in the graph and each of its axes where the index may lie.

    ``"inside"`` the array, ``"wraps"`` where negative numbers count from its end, or ``"guarded"``, perhaps outside.

    Parameters
    ----------
    graph : Graph
        The expression.
    lookups : sequence of str
        Of each element, what to call the function and the line that looks it up.
    symbols : mapping
        Ranges of positions.
    scalars : mapping
        Values of captured scalars, by the arguments' numbers.
    arrays : mapping
        The captured arrays, likewise.

    Raises
    ------
    IndexError
        If an index surely leaves its array somewhere, or is made of the score and may.
    """

    def of(node: Node, _: list[Range]) -> Range:
        return ANYTHING if node.type == FLOAT else values_of(arrays[node.value].dtype)

    found = ranges(graph, np, symbols, {n: Range(x, x) for n, x in scalars.items()}, of)
    dependence = graph.dependence()
    names = [arrays[n].name if n in arrays else str(scalars.get(n)) for n in range(len(arrays) + len(scalars))]
    exact = _exact(graph)
    made = []
    for called, n in zip(lookups, graph.find("element"), strict=True):
        node = graph.nodes[n]
        array, axes = arrays[node.value], []
        for axis, (index, size) in enumerate(zip(node.args, array.shape, strict=True)):
            low, high = (float(bound) for bound in found[index])
            leaves = low < -size or high >= size
            of_score = leaves and "s" in dependence[index]
            if high < -size or low >= size or (leaves and index in exact) or of_score:
                text = expressions(graph, names)
                advice = ": an index that is made of the score must be clipped" if of_score else ""
                raise IndexError(
                    f"{called}: the index {text[index]} of {text[n]} goes from {low:.0f} to {high:.0f}; axis {axis} of "
                    f"{array.name} has {size} elements{advice}"
                )
            axes.append(GUARDED if leaves else INSIDE if low >= 0 else WRAPS)
        made.append(tuple(axes))
    return tuple(made)


def values_of(dtype: np.dtype) -> Range:
    """Between which the ints of a dtype lie."""
    if dtype.kind == "b":
        return Range(0.0, 1.0)
    info = np.iinfo(dtype)
    return Range(float(info.min), float(info.max)) if info.bits < 64 else ANYTHING


def _exact(graph: Graph) -> set[int]:
    """Nodes that take both ends of their ranges: a symbol, times and plus constants."""
    exact: set[int] = set()
    for n, node in enumerate(graph.nodes):
        moving = [arg for arg in node.args if graph.nodes[arg].op != "constant"]
        linear = node.op in ("add", "subtract", "multiply", "negative") and len(moving) == 1 and moving[0] in exact
        if node.op == "symbol" or linear:
            exact.add(n)
    return exact


def outside(graph: Graph, found: Sequence[tuple[str, ...]]) -> Graph | None:
    """Whether what is chosen of the graph's values is made of an element that its array does not have.

    None if that cannot be.
    """
    if not any(GUARDED in axes for axes in found):
        return None
    by_node = dict(zip(graph.find("element"), found, strict=True))
    builder = Builder(graph)
    no = builder.constant(False)
    leaves: list[int] = []
    for n, node in enumerate(graph.nodes):
        if node.op == "where":
            condition, x, y = node.args
            parts = [leaves[condition], builder.where(condition, leaves[x], leaves[y])]
        else:
            parts = [leaves[arg] for arg in node.args]
        for axis, state in enumerate(by_node.get(n, ())):
            if state == GUARDED:
                index, size = node.args[axis], builder.size(node.value, axis)
                parts.append(builder.apply("less", index, builder.apply("negative", size)))
                parts.append(builder.apply("less_equal", size, index))
        leaves.append(functools.reduce(functools.partial(builder.apply, "bitwise_or"), parts, no))
    return builder.graph(leaves[graph.roots[0]])
