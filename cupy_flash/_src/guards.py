"""Looks for elements that functions ask of arrays and these do not have, before a call computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cupy_flash._src.components.block_mask import BLOCK
from cupy_flash._src.components.component import Array, Region
from cupy_flash._src.components.mods import Mod
from cupy_flash._src.expressions.blocks import classify
from cupy_flash._src.expressions.graph import Graph
from cupy_flash._src.problem import AttentionProblem


def check_indices(xp: Any, problem: AttentionProblem, arrays: Mapping[str, Array]) -> None:
    """Raise an IndexError if an index leaves its array for a query and a key that it sees; on a GPU this waits.

    Indices that intervals prove to be inside cost nothing. Of others elements are looked at in blocks of which
    intervals do not tell that all is well.
    """
    for mod in problem.mods:
        if mod.outside is not None:
            _check(xp, problem, mod, mod.outside, arrays)


def _check(xp: Any, problem: AttentionProblem, mod: Mod, outside: Graph, arrays: Mapping[str, Array]) -> None:
    sizes = math.prod(problem.batch), problem.num_heads_q, problem.seqlen_q, problem.seqlen_k
    blocks = classify(outside, xp, sizes, (BLOCK, BLOCK), mod.values_among(arrays))
    blocks = np.broadcast_to(blocks.get() if xp is not np else blocks, (*sizes[:2], *blocks.shape[2:]))
    for number, head in enumerate(np.ndindex(*problem.batch, problem.num_heads_q)):
        of_head = blocks[number // problem.num_heads_q, head[-1]]
        place = problem.place(arrays, head)
        for row in np.flatnonzero(of_head.any(axis=1)).tolist():
            columns = np.flatnonzero(of_head[row]).tolist()
            region = Region(
                place,
                slice(row * BLOCK, min((row + 1) * BLOCK, problem.seqlen_q)),
                slice(columns[0] * BLOCK, min((columns[-1] + 1) * BLOCK, problem.seqlen_k)),
            )
            seen = problem.seen(xp, region)  # which checks what masks look up
            if mod.concept == "Score":
                mod.check_indices(xp, seen, region)
