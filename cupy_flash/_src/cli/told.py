"""What `explain` tells of functions: their formulas, their derivatives and the CUDA that kernels have of them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from cupy_flash._src.components.component import Score
from cupy_flash._src.components.mods import Mod
from cupy_flash._src.expressions.derivative import derivatives
from cupy_flash._src.expressions.operations import FLOAT
from cupy_flash._src.expressions.text import expressions, statements

# Of the header of a function: those that compute, and the constructor that computes what a row has in common.
_COMPUTING = ("Row", "forward", "backward", "gather", "shows")
_FUNCTION = re.compile(rf"^( *)__device__ [^\n]*?\b(?:{'|'.join(_COMPUTING)})\(.*?^\1\}}$", re.MULTILINE | re.DOTALL)


def formula(mod: Mod) -> Iterator[str]:
    """Lines in Python: what the function computes, and of a score its derivatives."""
    result = "score" if isinstance(mod, Score) else "seen"
    yield from statements(mod.graph, mod.traced.arguments, [result])
    if isinstance(mod, Score):
        graph = mod.graph
        builder, found = derivatives(
            graph,
            lambda n: graph.nodes[n].value == "s" or (graph.nodes[n].op == "element" and graph.nodes[n].type == FLOAT),
        )
        texts = expressions(graph, mod.traced.arguments)
        names = [f"d {result} / d {texts[n]}" for n in found]
        yield from statements(builder.graph(*found.values()), mod.traced.arguments, names)


def cuda(mod: Mod) -> Iterator[str]:
    """Lines of CUDA: the functions in which kernels compute it."""
    for match in _FUNCTION.finditer(mod.text):
        if re.search(r"\bx\d+ = |\breturn\b|\bsites\.", match[0]):
            yield from textwrap.dedent(match[0]).splitlines()
