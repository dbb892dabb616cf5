"""Expressions as text of CUDA and of C++: calls of functions that attention/expression.cuh and cpu/expression.h have.

The same text serves numbers, vectors of them and intervals: only the types Int, Wide, Float and Bool differ. An int has
32 bits wherever its values are known to fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cupy_flash._src.expressions.graph import Graph, Node, made_of
from cupy_flash._src.expressions.indices import GUARDED, INSIDE, values_of
from cupy_flash._src.expressions.operations import BOOL, FLOAT, INT
from cupy_flash._src.expressions.ranges import ANYTHING, Range, ranges

MOST = {"b": 2**24, "h": 2**16, "i": 2**29, "j": 2**29}  # positions lie below
SMALL = 2**30  # ints of this size and less are passed as 32 bits
STORAGE = {
    "bool": "bool", "float16": "Float16", "bfloat16": "BFloat16", "float32": "float", "float64": "double",
    **{name: f"{name}_t" for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")},
}  # fmt: skip
_INT32 = Range(-(2.0**31), 2.0**31 - 1)
_TYPES = {BOOL: "Bool", FLOAT: "Float"}


class Value(NamedTuple):
    """A captured argument in a kernel.

    Attributes
    ----------
    name : str
        Of the parameter.
    dtype : dtype
        Of a scalar or of an array's elements.
    is_small : bool
        Of a scalar, whether it is an int of 32 bits.
    ndim : int or None
        Of an array.
    is_near : bool
        Of an array, whether 32 bits hold how far its elements lie from the first.
    """

    name: str
    dtype: np.dtype
    is_small: bool = False
    ndim: int | None = None
    is_near: bool = False


class Code(NamedTuple):
    """A graph's text.

    Attributes
    ----------
    members : tuple of (str, str)
        Types and names of what depends on the query alone and is used for each key.
    row : tuple of str
        Statements that compute these.
    bodies : tuple of (tuple of str, tuple of str)
        For each group of roots the statements for one key, and the names of the results.
    """

    members: tuple[tuple[str, str], ...]
    row: tuple[str, ...]
    bodies: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def code(
    graph: Graph,
    arguments: Sequence[Value],
    states: Mapping[int, tuple[str, ...]],
    groups: Sequence[Sequence[int]],
    calls: Mapping[str, str] = {},
) -> Code:
    """The text of a graph.

    Parameters
    ----------
    graph : Graph
        Of one or more roots.
    arguments : sequence of Value
        What the function captures.
    states : mapping
        Of elements' nodes, for each axis, where indices lie (`expressions.indices`).
    groups : sequence
        Which of the roots, by their places, are computed together.
    calls : mapping
        Functions that others take the places of, by their names.
    """
    types = _types(graph, arguments)
    dependence = graph.dependence()
    of_key = [bool(found & {"s", "j"}) for found in dependence]
    lines = [  # which symbols and constants need none of
        f"const auto x{n} = {_made(n, graph, types, arguments, states.get(n, ()), calls)};"
        if node.op not in ("constant", "symbol")
        else ""
        for n, node in enumerate(graph.nodes)
    ]
    bodies = []
    used: set[int] = set()
    for group in groups:
        roots = [graph.roots[place] for place in group]
        body = [n for n in sorted(made_of(graph.nodes, roots)) if of_key[n] and lines[n]]
        used |= {arg for n in body for arg in graph.nodes[n].args if not of_key[arg]}
        used |= {root for root in roots if not of_key[root]}
        bodies.append((tuple(lines[n] for n in body), tuple(_name(graph, types, root) for root in roots)))
    row = sorted(made_of(graph.nodes, used))
    members = tuple((types[n], _name(graph, types, n)) for n in sorted(used) if lines[n])
    return Code(members, tuple(lines[n] for n in row if lines[n]), tuple(bodies))


def _types(graph: Graph, arguments: Sequence[Value]) -> list[str]:
    """For each node Bool, Float, Int, or Wide where an int may need more than 32 bits."""

    def of(node: Node, _: list[Range]) -> Range:
        return ANYTHING if node.type == FLOAT else values_of(arguments[node.value].dtype)

    symbols = {name: Range(0.0, most - 1.0) for name, most in MOST.items()}
    scalars = {n: Range(-SMALL, SMALL) if x.is_small else ANYTHING for n, x in enumerate(arguments)}
    found = ranges(graph, np, symbols, scalars, of)
    fits = (float(low) >= _INT32.low and float(high) <= _INT32.high for low, high in found)
    return [_TYPES.get(node.type) or ("Int" if fit else "Wide") for node, fit in zip(graph.nodes, fits, strict=True)]


def _name(graph: Graph, types: list[str], n: int) -> str:
    """How the node is written where it is used."""
    node = graph.nodes[n]
    return f"{types[n]}({_literal(node)})" if node.op == "constant" else node.value if node.op == "symbol" else f"x{n}"


def _made(
    n: int,
    graph: Graph,
    types: list[str],
    arguments: Sequence[Value],
    states: tuple[str, ...],
    calls: Mapping[str, str],
) -> str:
    """The expression of a node."""
    node, type = graph.nodes[n], types[n]
    function = calls.get(node.op, node.op)
    names = [_name(graph, types, arg) for arg in node.args]
    if node.op == "scalar":
        return f"{type}(params.{arguments[node.value].name})"
    if node.op == "size":
        number, axis = node.value
        return f"{type}(params.{arguments[number].name}.sizes[{axis}])"
    if node.op == "element":
        array = f"params.{arguments[node.value].name}"
        indices = places(array, names, states)
        storage = STORAGE[arguments[node.value].dtype.name]
        return f"np::{function}<{type}, {storage}>({', '.join([array, *indices])})"
    if node.op in ("int", "float"):
        return f"np::{graph.nodes[node.args[0]].type}_to_{node.op}<{type}>({names[0]})"
    wide = "Wide" in (type, *(types[arg] for arg in node.args))
    widens = [wide and types[arg] == "Int" for arg in node.args]
    names = [f"np::wide({name})" if widen else name for name, widen in zip(names, widens, strict=True)]
    if node.op == "multiply" and names[0] == names[1]:  # of which intervals know more
        function, names = "square", names[:1]
    call = f"np::{function}({', '.join(names)})"
    return f"np::narrow({call})" if wide and type == "Int" else call


def places(array: str, indices: Sequence[str], states: Sequence[str]) -> list[str]:
    """Indices as they count from the start of an array's axes."""
    calls = {INSIDE: "{0}", GUARDED: "np::held({0}, {1})"}
    return [
        calls.get(state, "np::wrapped({0}, {1})").format(index, f"{array}.sizes[{axis}]")
        for axis, (index, state) in enumerate(zip(indices, states, strict=True))
    ]


def _literal(node: Node) -> str:
    if node.type == BOOL:
        return "true" if node.number else "false"
    if node.type == INT:
        return f"{node.number}{'ll' if abs(node.number) >= 2**31 else ''}"
    number = node.number
    if number != number:
        return "np::nan()"
    if abs(number) == float("inf"):
        return "np::infinite()" if number > 0 else "-np::infinite()"
    return number.hex()
