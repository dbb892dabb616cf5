"""Expression graphs: nodes in a list, each after those that it is made of, none twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cupy_flash._src.expressions.operations import BOOL, FLOAT, INT, OPERATIONS, TYPES, compute

LARGEST = 2**63 - 1  # of an int
_FLOAT64 = np.dtype(np.float64)


class Node(NamedTuple):
    """One value.

    Attributes
    ----------
    op : str
        A key of `OPERATIONS`, or ``"constant"``, ``"symbol"``, ``"scalar"``, ``"element"``, ``"size"``.
    type : str
        ``"bool"``, ``"int"`` or ``"float"``.
    args : tuple of int
        Numbers of the nodes that it is made of; of an element its indices.
    value : object
        Of a constant its digits, a float's by `float.hex`, for nan differs from itself and 0.0 not from -0.0; of a
        symbol its name, of a scalar or an element the number of the captured argument, of a size that and the axis.
    """

    op: str
    type: str
    args: tuple[int, ...] = ()
    value: Any = None

    @property
    def number(self) -> Any:
        """The value of a constant."""
        return float.fromhex(self.value) if self.type == FLOAT else self.value


class Graph(NamedTuple):
    """Nodes of which the roots are made, all of them.

    Two functions that compute the same in the same way have equal graphs.
    """

    nodes: tuple[Node, ...]
    roots: tuple[int, ...]

    @property
    def root(self) -> Node:
        return self.nodes[self.roots[0]]

    def find(self, op: str) -> list[int]:
        """Numbers of the nodes of an operation."""
        return [n for n, node in enumerate(self.nodes) if node.op == op]

    @property
    def symbols(self) -> set[str]:
        """Names of those that occur."""
        return {self.nodes[n].value for n in self.find("symbol")}

    def dependence(self) -> list[frozenset[str]]:
        """For each node the symbols that it depends on."""
        found: list[frozenset[str]] = []
        for node in self.nodes:
            own = frozenset([node.value]) if node.op == "symbol" else frozenset()
            found.append(own.union(*(found[arg] for arg in node.args)))
        return found


class Builder:
    """Makes a graph. Nodes are known by their numbers.

    What is constant is computed here, and what is equal is one node.

    Attributes
    ----------
    nodes : list of Node
        All that were made.
    places : dict
        Of elements' nodes, the lines that look them up. No part of the graph.
    """

    def __init__(self, graph: Graph | None = None) -> None:
        self.nodes: list[Node] = []
        self.places: dict[int, str] = {}
        self._known: dict[Node, int] = {}
        for node in graph.nodes if graph else ():
            self._add(node)

    def graph(self, *roots: int) -> Graph:
        """What the roots are made of, in the order of the nodes."""
        numbers = {n: new for new, n in enumerate(sorted(made_of(self.nodes, roots)))}
        nodes = tuple(self.nodes[n]._replace(args=tuple(numbers[arg] for arg in self.nodes[n].args)) for n in numbers)
        return Graph(nodes, tuple(numbers[n] for n in roots))

    def type(self, n: int) -> str:
        return self.nodes[n].type

    def symbol(self, name: str, type: str) -> int:
        return self._add(Node("symbol", type, (), name))

    def scalar(self, number: int, type: str) -> int:
        return self._add(Node("scalar", type, (), number))

    def element(self, number: int, type: str, indices: Iterable[int]) -> int:
        return self._add(Node("element", type, tuple(indices), number))

    def size(self, number: int, axis: int) -> int:
        return self._add(Node("size", INT, (), (number, axis)))

    def constant(self, value: bool | int | float) -> int:
        """A number.

        Raises
        ------
        ValueError
            If it is an int that 64 bits do not hold.
        """
        if isinstance(value, float):
            return self._add(Node("constant", FLOAT, (), value.hex()))
        if abs(value) > LARGEST:
            raise ValueError(f"{value} is too large: ints have 64 bits")
        return self._add(Node("constant", BOOL if isinstance(value, bool) else INT, (), value))

    def copy(self, node: Node, args: Iterable[int]) -> int:
        """A node of another graph that is no operation, made of these."""
        return self._add(node._replace(args=tuple(args)))

    def value(self, n: int) -> Any:
        """That of a constant, else None."""
        node = self.nodes[n]
        return node.number if node.op == "constant" else None

    def convert(self, n: int, type: str) -> int:
        """The node as one of another type; a number is true unless it is 0."""
        if self.type(n) == type:
            return n
        if type == BOOL:
            return self.apply("not_equal", n, self.constant(0))
        if (value := self.value(n)) is not None:
            return self.constant(compute(type, np, _FLOAT64, value).item())
        return self._add(Node(type, type, (n,)))

    def apply(self, op: str, *args: int) -> int:
        """The operation of nodes, whose types it makes fit.

        Raises
        ------
        TypeError
            If it does not take them.
        """
        args = self._fitting(op, args)
        gives = OPERATIONS[op].gives
        type = self.type(args[-1]) if gives == "same" else gives
        simple = self._simplified(op, args)
        if simple is not None:
            return simple
        if OPERATIONS[op].commutes:
            args = tuple(sorted(args))
        return self._add(Node(op, type, args))

    def where(self, condition: int, x: int, y: int) -> int:
        return self.apply("where", condition, x, y)

    def _fitting(self, op: str, args: Sequence[int]) -> tuple[int, ...]:
        takes, types = OPERATIONS[op].takes, [self.type(arg) for arg in args]
        if op == "where":
            widest = max(types[1:], key=TYPES.index)
            return (self.convert(args[0], BOOL), *(self.convert(arg, widest) for arg in args[1:]))
        if takes in TYPES:
            return tuple(self.convert(arg, takes) for arg in args)
        widest = max(types, key=TYPES.index)
        if takes == "bits" and widest == FLOAT:
            raise TypeError(f"{op} of a float: expected bools or ints")
        if takes == "number" and widest == BOOL:
            if OPERATIONS[op].gives == BOOL:
                widest = INT
            else:
                raise TypeError(f"{op} of bools: expected numbers, or &, |, ^ and ~")
        return tuple(self.convert(arg, widest) for arg in args)

    def _simplified(self, op: str, args: tuple[int, ...]) -> int | None:
        """What is known to be the same: a constant, or one of the nodes that there are."""
        values = [self.value(arg) for arg in args]
        if None not in values:
            return self.constant(self._folded(op, values))
        x, y = args[0], args[-1]
        if op == "where":
            condition = values[0]
            return args[1] if condition or args[1] == args[2] else None if condition is None else args[2]
        if op in ("minimum", "maximum", "bitwise_and", "bitwise_or") and x == y:
            return x
        if op in ("bitwise_and", "bitwise_or") and self.type(x) == BOOL and self.apply("invert", x) == y:
            return self.constant(op == "bitwise_or")
        if op in ("negative", "invert") and self.nodes[x].op == op:
            return self.nodes[x].args[0]
        first, last = values[0], values[-1]
        if op in ("add", "multiply", "bitwise_and", "bitwise_or") and first is not None:
            x, y, first, last = y, x, last, first
        if last is None:
            return None
        if self.type(y) == BOOL:
            if op not in ("bitwise_and", "bitwise_or"):
                return None
            return x if last == (op == "bitwise_and") else y
        neutral = {"add": -0.0, "subtract": 0.0, "multiply": 1.0, "divide": 1.0}.get(op)  # 0.0 + -0.0 is not -0.0
        if neutral is not None and y == self.convert(self.constant(neutral), self.type(y)):
            return x
        return y if op == "multiply" and self.type(y) == INT and last == 0 else None

    @staticmethod
    def _folded(op: str, values: list[Any]) -> Any:
        exact = OPERATIONS[op].exact
        if exact is not None and all(type(value) is int for value in values):
            return exact(*values)
        with np.errstate(all="ignore"):
            return np.asarray(compute(op, np, _FLOAT64, *values)).item()

    def _add(self, node: Node) -> int:
        found = self._known.setdefault(node, len(self.nodes))
        if found == len(self.nodes):
            self.nodes.append(node)
        return found


def made_of(nodes: Sequence[Node], roots: Iterable[int]) -> set[int]:
    """Numbers of the nodes that some are made of, themselves included."""
    found = set(roots)
    left = list(found)
    while left:
        new = set(nodes[left.pop()].args) - found
        found |= new
        left += new
    return found


def evaluate(
    graph: Graph, xp: Any, dtype: np.dtype, symbols: Mapping[str, Any], arguments: Sequence[Any]
) -> tuple[Any, ...]:
    """The roots' values, of symbols' and captured arguments' values: numbers, or arrays that broadcast.

    Floats are of `dtype`. An index beyond its array takes the element at the nearest end.
    """
    types = {BOOL: np.dtype(np.bool_), INT: np.dtype(np.int64), FLOAT: dtype}
    values: list[Any] = []
    for node in graph.nodes:
        if node.op == "constant":
            values.append(types[node.type].type(node.number))
        elif node.op == "symbol":
            values.append(xp.asarray(symbols[node.value]))
        elif node.op == "size":
            number, axis = node.value
            values.append(xp.asarray(arguments[number].shape[axis], np.int64))
        elif node.op in ("scalar", "element"):
            x = xp.asarray(arguments[node.value])
            if node.args:
                x = x[positions(xp, [values[arg] for arg in node.args], x.shape)]
            values.append(x.astype(types[node.type]))
        else:
            values.append(compute(node.op, xp, dtype, *(values[arg] for arg in node.args)))
    return tuple(values[n] for n in graph.roots)


def positions(xp: Any, indices: Sequence[Any], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Indices as they are within an array: negative ones count from its end."""
    found = zip(indices, shape, strict=True)
    return tuple(xp.clip(xp.where(n < 0, n + size, n), 0, max(size - 1, 0)) for n, size in found)
