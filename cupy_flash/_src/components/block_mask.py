"""Blocks of queries and keys that a mask's function shows: as kernels list them, and as callers may keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_flash._src.components.component import Array
from cupy_flash._src.components.mods import TABLE, Mod
from cupy_flash._src.expressions.blocks import classify

LISTS = ("of_queries", "of_keys")  # of MaskModParams
BLOCK = 64  # kBlock of cpu/mask/mask_mod.h, kCell of attention/block_lists.cuh


@dataclass(frozen=True, eq=False)
class BlockMask:
    """A mask's function, what it captures, and which blocks of queries and keys it shows.

    Attributes
    ----------
    mask_mod, mask_args
        As they were given.
    shape : tuple of int
        Of the scores.
    table : array of uint8, shape (batch, heads, query blocks, key blocks)
        Of each 64 queries and 64 keys: 0 where no query sees a key, 2 where each sees all, 1 where that is not known.
        Of batch and heads 1 where the function does not depend on them.
    """

    mask_mod: Callable[..., Any]
    mask_args: tuple[Any, ...]
    shape: tuple[int, ...]
    table: Any

    def __repr__(self) -> str:
        told = f"{getattr(self.mask_mod, '__name__', self.mask_mod)}, {self.shape}"
        if self.table.size:
            words = ("hidden", "in part", "seen")
            shares = (f"{float((self.table == n).mean()):.0%} {word}" for n, word in enumerate(words))
            told += f": {', '.join(shares)}"
        return f"BlockMask({told})"


def table_shape(mod: Mod) -> tuple[int, int, int, int]:
    """Of `blocks_of`."""
    known, sizes = mod.graph.symbols, mod.sizes
    leading = (sizes.batch if "b" in known else 1, sizes.heads if "h" in known else 1)
    return (*leading, -(-sizes.seqlen_q // BLOCK), -(-sizes.seqlen_k // BLOCK))


def blocks_of(mod: Mod, arrays: Mapping[str, Array]) -> Array:
    """Of each block of `BLOCK` queries and keys which share is seen: as the caller knows it, or found now."""
    return arrays[TABLE] if mod.has_table else classified(np, mod, arrays)


def classified(xp: Any, mod: Mod, arrays: Mapping[str, Array]) -> Array:
    """The same, found now."""
    extents = mod.sizes.batch, mod.sizes.heads, mod.sizes.seqlen_q, mod.sizes.seqlen_k
    return classify(mod.graph, xp, extents, (BLOCK, BLOCK), mod.values_among(arrays))
