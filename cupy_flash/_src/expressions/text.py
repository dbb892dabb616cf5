"""Expressions as a reader writes them."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from cupy_flash._src.expressions.graph import Graph, Node
from cupy_flash._src.expressions.operations import OPERATIONS

_LEAVES = ("constant", "symbol", "scalar", "size")


def expressions(graph: Graph, arguments: Sequence[str]) -> list[str]:
    """Each node by itself, with the captured arguments by their names."""
    texts: list[str] = []
    for node in graph.nodes:
        texts.append(_text(node, [texts[arg] for arg in node.args], arguments))
    return [_bare(text) for text in texts]


def statements(graph: Graph, arguments: Sequence[str], results: Sequence[str]) -> list[str]:
    """Lines in Python that compute the roots, with the captured arguments by their names.

    Examples
    --------
    >>> from cupy_flash._src.expressions.graph import Builder
    >>> builder = Builder()
    >>> s, i, j = builder.symbol("s", "float"), builder.symbol("i", "int"), builder.symbol("j", "int")
    >>> distance = builder.apply("absolute", builder.apply("subtract", i, j))
    >>> score = builder.apply("subtract", s, builder.element(0, "float", (distance,)))
    >>> statements(builder.graph(score), ["table"], ["score"])
    ['score = s - table[absolute(i - j)]']
    """
    uses = collections.Counter(arg for node in graph.nodes for arg in node.args) + collections.Counter(graph.roots)
    names: dict[int, str] = {}
    lines = []
    texts: list[str] = []
    for n, node in enumerate(graph.nodes):
        text = _text(node, [texts[arg] for arg in node.args], arguments)
        if uses[n] > 1 and node.op not in _LEAVES:
            names[n] = f"x{len(names)}"
            lines.append(f"{names[n]} = {_bare(text)}")
            text = names[n]
        texts.append(text)
    return lines + [f"{name} = {_bare(texts[n])}" for name, n in zip(results, graph.roots, strict=True)]


def _text(node: Node, args: list[str], arguments: Sequence[str]) -> str:
    if node.op == "constant":
        return f"({node.number!r})" if repr(node.number).startswith("-") else repr(node.number)
    if node.op == "symbol":
        return node.value
    if node.op == "size":
        return f"{arguments[node.value[0]]}.shape[{node.value[1]}]"
    if node.op in ("scalar", "element"):
        return arguments[node.value] + (f"[{', '.join(map(_bare, args))}]" if args else "")
    form = OPERATIONS[node.op].text
    return f"({form.format(*args)})" if form else f"{node.op}({', '.join(map(_bare, args))})"


def _bare(text: str) -> str:
    """Without the brackets around all of it, which those at its ends are."""
    return text[1:-1] if text.startswith("(") else text
