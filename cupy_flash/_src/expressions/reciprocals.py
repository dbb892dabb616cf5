"""Divisions of scores by what a row has in common, as products: the reciprocal is then found once a row."""

from __future__ import annotations

from cupy_flash._src.expressions.graph import Builder, Graph
from cupy_flash._src.expressions.operations import OPERATIONS


def with_reciprocals(graph: Graph) -> Graph:
    """The graph with x / y as x * (1 / y) where x is made of the score, and y of neither that nor the key.

    A score is rounded already, so that it matters little how its quotient is. Of positions quotients stay as they are:
    i / 3 is a whole number where i is a multiple of 3, and i * (1 / 3) may not be.
    """
    builder, dependence, made = Builder(), graph.dependence(), list[int]()
    for n, node in enumerate(graph.nodes):
        args = [made[arg] for arg in node.args]
        if node.op == "divide" and "s" in dependence[n] and not dependence[node.args[1]] & {"s", "j"}:
            reciprocal = builder.apply("divide", builder.constant(1.0), args[1])
            made.append(builder.apply("multiply", args[0], reciprocal))
        elif node.op in ("int", "float"):
            made.append(builder.convert(args[0], node.op))
        elif node.op in OPERATIONS:
            made.append(builder.apply(node.op, *args))
        else:
            made.append(builder.copy(node, args))
    return builder.graph(*(made[root] for root in graph.roots))
