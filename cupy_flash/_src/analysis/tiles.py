"""Which tiles of scores kernels skip, and which they need not test, as a mask's function tells by intervals."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from cupy_flash._src.components.mods import Mod
from cupy_flash._src.expressions.blocks import ALL, NONE, SOME, classify
from cupy_flash._src.problem import AttentionProblem

Array = np.ndarray


def mask_function(problem: AttentionProblem) -> Mod | None:
    """The function among the problem's masks."""
    return next((mask for mask in problem.masks if isinstance(mask, Mod)), None)


def tile_shares(
    problem: AttentionProblem, tile: tuple[int, int], arrays: Mapping[str, Array], packed_heads: int = 1
) -> Array:
    """For each tile `NONE`, `SOME` or `ALL` of what its queries see of its keys.

    As lists of tiles have it: of the function by intervals, and as far as the other masks are intervals that are known
    before the call by these; of other masks an element at a time no tile is known to be seen whole.

    Parameters
    ----------
    problem : AttentionProblem
        One with a mask's function.
    tile : tuple of int
        Rows, which are queries of so many heads in turn, and keys.
    arrays : mapping
        What functions capture, by their names.
    packed_heads : int
        How many heads a tile's rows are of.

    Returns
    -------
    shares : ndarray, shape (batch, heads / packed_heads, rows of tiles, tiles of a row), bytes
        Sizes of batch and heads are 1 where the function does not depend on them.
    """
    mod = mask_function(problem)
    assert mod is not None
    sq, sk, (rows, cols) = problem.seqlen_q, problem.seqlen_k, tile
    extents, captured = (prod(problem.batch), problem.num_heads_q, sq, sk), mod.values_among(arrays)
    row = np.arange(0, sq * packed_heads, rows)
    first, last = row // packed_heads, (np.minimum(row + rows, sq * packed_heads) - 1) // packed_heads
    if packed_heads == 1:
        shares = classify(mod.graph, np, extents, tile, captured)
    else:
        shares = _together(classify(mod.graph, np, extents, (1, cols), captured), first, last, packed_heads)
    begin = np.arange(0, sk, cols)
    end = np.minimum(begin + cols, sk)
    known, of_first, of_last = problem.keys(first, last), problem.keys(first), problem.keys(last)
    met = (begin < known.end[:, None]) & (end > known.begin[:, None])
    whole = (begin >= of_last.begin[:, None]) & (end <= of_first.end[:, None])
    if any(mask.elementwise and mask is not mod for mask in problem.masks):
        whole = np.zeros_like(whole)
    return np.where(met, np.where(whole, shares, np.minimum(shares, SOME)), NONE).astype(np.uint8)


def _together(shares: Array, first: Array, last: Array, packed_heads: int) -> Array:
    """Of tiles that have the queries from `first` to `last` of several heads, from those of one query of one head."""
    batch, heads, _, blocks = shares.shape
    together = min(heads, packed_heads)  # 1 where all heads have the same
    shares = shares.reshape(batch, heads // together, together, -1, blocks)
    low, high = shares.min(2), shares.max(2)
    tiles = [slice(i, j + 1) for i, j in zip(first.tolist(), last.tolist(), strict=True)]
    low = np.stack([low[:, :, queries].min(2) for queries in tiles], axis=2)
    high = np.stack([high[:, :, queries].max(2) for queries in tiles], axis=2)
    return np.where(high == NONE, NONE, np.where(low == ALL, ALL, SOME))


def counts(shares: Array) -> tuple[int, int, int]:
    """How many tiles are skipped, how many need no test, and how many are tested."""
    none, whole = int((shares == NONE).sum()), int((shares == ALL).sum())
    return none, whole, shares.size - none - whole
