"""On the CPU, in both tiers: sinks, which are a matter of rows alone, and what belongs to an element of an option."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from cupy_flash._src.backends import threads
from cupy_flash._src.components.component import Place
from cupy_flash._src.operands import Cotangents, Operands
from cupy_flash._src.problem import AttentionProblem, Term

Array = np.ndarray
ROWS = 1024  # whose outputs are copied at a time


def heads_of(problem: AttentionProblem, term: Term, index: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The heads, (*batch, head), that the term's elements at this index of (*batch, heads) belong to."""
    along = zip(problem.lse_shape[:-1], term.shape[:-2], index, strict=True)
    return itertools.product(*(range(n) if own == 1 else (i,) for n, own, i in along))


def sinks_of(problem: AttentionProblem, place: Place, first: int, last: int) -> Any:
    """Those of queries from `first` to `last` in a place, or what broadcasts to them: -inf where there is none."""
    if problem.sinks is None:
        return -np.inf
    return problem.sinks.of_queries(np, np.arange(first, last)[:, None], place)[..., 0]


def clear_unseeing(problem: AttentionProblem, operands: Operands) -> None:
    """Write `out` and `lse` of rows that see no key in any head."""
    (begin, end), place = problem.seeing, problem.place(operands.arrays)
    for first, last in ((0, begin), (end, problem.seqlen_q)):
        if first < last:
            operands.out[..., first:last, :] = 0
            operands.lse[..., first:last] = sinks_of(problem, place, first, last)


def dsinks(problem: AttentionProblem, operands: Operands, cotangents: Cotangents, term: Term) -> Array:
    """The gradient with respect to sinks.

    A sink's share of a row, exp(sink - lse), has no value: the row's part is -share * (rowsum(dout * out) - dlse).
    """
    gradient, dtype = np.zeros(term.shape, problem.accumulator), problem.accumulator

    def element(index: tuple[int, ...]) -> None:
        total = 0.0
        for head in heads_of(problem, term, index):
            place = problem.place(operands.arrays, head)
            for first in range(0, problem.seqlen_q, ROWS):
                last = min(first + ROWS, problem.seqlen_q)
                out, dout, lse = (x[head][first:last] for x in (operands.out, cotangents.dout, operands.lse))
                delta = np.einsum("nd,nd->n", dout.astype(dtype), out.astype(dtype))
                if cotangents.dlse is not None:
                    delta -= cotangents.dlse[head][first:last]
                share = np.exp(sinks_of(problem, place, first, last) - lse)
                total -= np.where(lse == -np.inf, 0, share * delta).sum(dtype=np.float64)
        gradient[index] = total

    threads.run(element, list(np.ndindex(term.shape[:-2])))
    return gradient
