"""Derivatives of a graph, as more of its nodes: the chain rule from the root back (reverse mode).

Griewank and Walther, "Evaluating Derivatives", 2008, section 3.2. Where a function chooses, its derivative is that of
what it chose: of equal numbers the first's, and of what it did not choose nothing, were it infinite or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cupy_flash._src.expressions.graph import Builder, Graph
from cupy_flash._src.expressions.operations import FLOAT


def derivatives(graph: Graph, wanted: Callable[[int], bool]) -> tuple[Builder, dict[int, int]]:
    """Derivatives of the root with respect to nodes.

    Parameters
    ----------
    graph : Graph
        Of one root, a float.
    wanted : callable
        Tells of the number of a node, a float, whether its derivative is.

    Returns
    -------
    builder : Builder
        The graph's nodes by their numbers, and those of the derivatives.
    found : dict
        The derivatives by the wanted nodes; those that are 0 whatever the values are missing.
    """
    builder = Builder(graph)
    adjoints = {graph.roots[0]: Chosen(builder.constant(True), builder.constant(1.0))}
    for n in range(graph.roots[0], -1, -1):
        if n not in adjoints:
            continue
        for arg, chosen in _parts(builder, n):
            part = _times(builder, adjoints[n], chosen)
            if builder.value(part.value) != 0.0:
                adjoints[arg] = _plus(builder, adjoints[arg], part) if arg in adjoints else part
    found = {n: adjoint for n, adjoint in adjoints.items() if n < len(graph.nodes) and wanted(n)}
    return builder, {n: _where(builder, *adjoint) for n, adjoint in found.items()}


class Chosen(NamedTuple):
    """A derivative where a condition is true; elsewhere it is 0, whatever the value."""

    condition: int
    value: int


def _where(builder: Builder, condition: int, value: int) -> int:
    return builder.where(condition, value, builder.constant(0.0))


def _times(builder: Builder, x: Chosen, y: Chosen) -> Chosen:
    condition = builder.apply("bitwise_and", x.condition, y.condition)
    a, b = sorted((x.value, y.value), key=lambda n: builder.value(n) is None)
    if 0.0 in (builder.value(a), builder.value(b)):
        return Chosen(condition, builder.constant(0.0))
    factors = builder.nodes[b].args if builder.nodes[b].op == "multiply" else ()
    for constant in factors if builder.value(a) is not None else ():
        if builder.value(constant) is not None:  # constants come together
            (other,) = {*factors} - {constant}
            a, b = builder.apply("multiply", a, constant), other
    return Chosen(condition, builder.apply("multiply", a, b))


def _plus(builder: Builder, x: Chosen, y: Chosen) -> Chosen:
    if x.condition == y.condition:
        return Chosen(x.condition, builder.apply("add", x.value, y.value))
    if builder.nodes[x.condition].op == "invert":
        x, y = y, x
    either = builder.apply("bitwise_or", x.condition, y.condition)
    if builder.apply("invert", x.condition) == y.condition:
        return Chosen(either, builder.where(x.condition, x.value, y.value))
    return Chosen(either, builder.apply("add", _where(builder, *x), _where(builder, *y)))


def _parts(builder: Builder, n: int) -> Iterator[tuple[int, Chosen]]:
    """The floats that a node is made of, and what it changes by when they do."""
    node = builder.nodes[n]
    if node.type != FLOAT:
        return
    if node.op in _CHOICES:
        condition = _CHOICES[node.op](builder.apply, *node.args)
        for arg, chooses in zip(node.args[-2:], (condition, builder.apply("invert", condition)), strict=True):
            yield arg, Chosen(chooses, builder.constant(1.0))
    elif node.op in _RULES:
        factors = _RULES[node.op](builder.constant, builder.apply, n, *node.args)
        for arg, factor in zip(node.args, factors, strict=True):
            yield arg, Chosen(builder.constant(True), factor)


# Of (operations, the node's arguments): whether it chooses the first of the last two.
_CHOICES: dict[str, Callable[..., int]] = {
    "minimum": lambda f, a, b: f("less_equal", a, b),
    "maximum": lambda f, a, b: f("less_equal", b, a),
    "where": lambda f, condition, a, b: condition,
}
# Of (constants, operations, the node, its arguments): the factor of each argument. Operations that are missing are
# constant almost everywhere.
_RULES: dict[str, Callable[..., tuple[int, ...]]] = {
    "add": lambda c, f, y, a, b: (c(1.0), c(1.0)),
    "subtract": lambda c, f, y, a, b: (c(1.0), c(-1.0)),
    "multiply": lambda c, f, y, a, b: (b, a),
    "divide": lambda c, f, y, a, b: (f("divide", c(1.0), b), f("negative", f("divide", y, b))),
    "remainder": lambda c, f, y, a, b: (c(1.0), f("negative", f("floor_divide", a, b))),
    "power": lambda c, f, y, a, b: (
        f("multiply", b, f("power", a, f("subtract", b, c(1.0)))),
        f("where", f("less", c(0.0), a), f("multiply", y, f("log", a)), c(0.0)),
    ),
    "negative": lambda c, f, y, a: (c(-1.0),),
    "absolute": lambda c, f, y, a: (f("sign", a),),
    "exp": lambda c, f, y, a: (y,),
    "exp2": lambda c, f, y, a: (f("multiply", y, c(math.log(2))),),
    "log": lambda c, f, y, a: (f("divide", c(1.0), a),),
    "log2": lambda c, f, y, a: (f("divide", c(1 / math.log(2)), a),),
    "log1p": lambda c, f, y, a: (f("divide", c(1.0), f("add", a, c(1.0))),),
    "tanh": lambda c, f, y, a: (f("subtract", c(1.0), f("multiply", y, y)),),
    "sqrt": lambda c, f, y, a: (f("divide", c(0.5), y),),
    "sin": lambda c, f, y, a: (f("cos", a),),
    "cos": lambda c, f, y, a: (f("negative", f("sin", a)),),
}
