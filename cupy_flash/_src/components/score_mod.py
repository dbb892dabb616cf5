"""s = score_mod(s, b, h, i, j, *score_args)"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cupy_flash._src.arrays import Described
from cupy_flash._src.components.component import Array, Region, Score
from cupy_flash._src.components.mods import Mod
from cupy_flash._src.expressions import headers
from cupy_flash._src.expressions.cxx import places
from cupy_flash._src.expressions.derivative import derivatives
from cupy_flash._src.expressions.graph import Builder, Graph, positions
from cupy_flash._src.expressions.operations import FLOAT
from cupy_flash._src.expressions.reciprocals import with_reciprocals
from cupy_flash._src.expressions.symbols import type_of
from cupy_flash._src.expressions.tracing import SCORE


def biased(s: Any, b: Any, h: Any, i: Any, j: Any, table: Any) -> Any:
    return s + table[h, np.clip(i - j + 32, 0, 64)]


def of_distances(rng: np.random.Generator, full: tuple[int, ...]) -> dict[str, Any]:
    """A table that is learned, for each head and distance."""
    return {"score_mod": biased, "score_args": (rng.standard_normal((full[-3], 65)).astype(np.float32),)}


def bounded(s: Any, b: Any, h: Any, i: Any, j: Any, cap: Any) -> Any:
    return cap * np.tanh(s / cap)


def capped(rng: np.random.Generator, full: tuple[int, ...]) -> dict[str, Any]:
    return {"score_mod": bounded, "score_args": (5.0,)}


class Gathered(NamedTuple):
    """What the gradients of captured arrays are made of.

    Attributes
    ----------
    graph : Graph
        Its roots are, of one place after another where an array enters the score, the derivative and the indices.
    arrays : tuple of int
        The arrays, by the arguments' numbers.
    """

    graph: Graph
    arrays: tuple[int, ...]


@dataclass(frozen=True)
class ScoreMod(Mod, Score):
    """A function of the caller, the last step before the softmax."""

    keyword, captured, kind = "score_mod", "score_args", SCORE
    examples = (of_distances, capped)

    @property
    def text(self) -> str:
        return header(self)

    def cpu_text(self) -> str:
        both = with_reciprocals(with_slope(self.graph))
        return headers.cpu_score(self.struct_text(), self.code(both, (0,), (1,)))

    def forward(self, xp: Any, s: Array, region: Region) -> Array:
        (found,) = self.evaluate(self.graph, xp, s.dtype, region, s=s)
        is_new = found is not s and found.shape == s.shape
        return found if is_new else xp.array(xp.broadcast_to(found, s.shape))

    def backward(self, xp: Any, ds: Array, s: Array, region: Region) -> Array:
        (factor,) = self.evaluate(slope(self.graph), xp, s.dtype, region, s=s)
        return ds * factor

    def new_gradients(self, xp: Any, dtype: np.dtype) -> tuple[Array | None, ...]:
        return tuple(
            xp.zeros(x.shape, dtype) if isinstance(x, Described) and type_of(x.dtype) == FLOAT else None
            for x in self.arguments
        )

    def gather(self, xp: Any, ds: Array, s: Array, region: Region, gradients: Sequence[Array | None]) -> None:
        of = gathered(self.graph)
        found = iter(self.evaluate(of.graph, xp, s.dtype, region, s=s))
        for number in of.arrays:
            shape = self.arguments[number].shape  # type: ignore[union-attr]
            factor, indices = next(found), [next(found) for _ in shape]
            gradient = gradients[number]
            if gradient is not None:
                _add(xp, gradient, positions(xp, indices, shape), xp.where(ds == 0, 0, ds * factor))


def _add(xp: Any, gradient: Array, indices: tuple[Array, ...], parts: Array) -> None:
    """gradient[indices] += parts, in order; what goes to one element all along an axis is summed first."""
    flat = xp.zeros((1,) * parts.ndim, np.int64)
    for index, size in zip(indices, gradient.shape, strict=True):
        flat = flat * size + index
    along = tuple(axis for axis, n in enumerate(flat.shape) if n == 1)
    parts = parts.sum(axis=along, keepdims=True)
    xp.add.at(gradient.reshape(-1), xp.broadcast_to(flat, parts.shape), parts)


@functools.lru_cache(maxsize=1024)
def header(mod: ScoreMod) -> str:
    """Its struct and its step, as CUDA."""
    graph = mod.graph
    elements = [n for n in graph.find("element") if graph.nodes[n].type == FLOAT]
    builder, found = derivatives(graph, lambda n: graph.nodes[n].value == "s" or n in elements)
    slope = next((factor for n, factor in found.items() if n not in elements), builder.constant(0.0))
    sites = [(n, found[n]) for n in elements if n in found]
    states = dict(zip(graph.find("element"), mod.states, strict=True))
    roots, arrays = [*graph.roots, slope], []
    groups: list[Sequence[int]] = [(0,), (1,)]
    for n, factor in sites:
        groups.append(range(len(roots), len(roots) + 1 + len(graph.nodes[n].args)))
        roots += [factor, *graph.nodes[n].args]
        arrays.append(mod.passed[graph.nodes[n].value].name)
    together = [place for group in groups[2:] for place in group]
    code = mod.code(with_reciprocals(builder.graph(*roots)), (0,), (1,), together, tanh="tanh_of_score<Element>")
    results = iter(code.bodies[2][1])
    gathered = [
        headers.Site(array, next(results), places(f"params.{array}", [next(results) for _ in states[n]], states[n]))
        for array, (n, _) in zip(arrays, sites, strict=True)
    ]
    return headers.INCLUDES + mod.struct_text() + headers.score(code, mod.looks_up_keys, gathered)


def with_slope(graph: Graph) -> Graph:
    """The score, and its derivative with respect to s."""
    builder, found = derivatives(graph, lambda n: graph.nodes[n].op == "symbol")
    return builder.graph(*graph.roots, *found.values() or [builder.constant(0.0)])


@functools.lru_cache(maxsize=1024)
def slope(graph: Graph) -> Graph:
    """The derivative alone."""
    both = with_slope(graph)
    return Builder(both).graph(both.roots[1])


@functools.lru_cache(maxsize=1024)
def gathered(graph: Graph) -> Gathered:
    """The derivatives of the score with respect to elements of captured arrays."""
    builder, found = derivatives(graph, lambda n: graph.nodes[n].op == "element" and graph.nodes[n].type == FLOAT)
    roots = [root for n, factor in found.items() for root in (factor, *graph.nodes[n].args)]
    return Gathered(builder.graph(*roots), tuple(graph.nodes[n].value for n in found))
