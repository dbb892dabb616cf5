"""Where queries stand among the keys, and how far from there they see: what several options say together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cupy_flash._src.components.component import Sizes

Bounds = tuple[int | None, int | None]  # how many keys before and behind its own position a query sees; None: all

# Positions that only the call tells, and distances from them, stay within these: kernels add them in 32 bits.
FARTHEST, WIDEST = 2**29, 2**30


def bounds(options: Mapping[str, Any]) -> Bounds:
    """What `causal` and `window` allow, by their keywords."""
    left, right = options["window"] or (None, None)
    return (left, 0) if options["causal"] else (left, right)


def matter(options: Mapping[str, Any]) -> bool:
    """Whether positions of queries do."""
    return bounds(options) != (None, None) or options["alibi_slopes"] is not None


def moves(options: Mapping[str, Any]) -> bool:
    """Whether the first query's position among the keys is known only in the call."""
    given = options["q_offset"]
    if given is None:
        return options["k_lengths"] is not None or options["q_lengths"] is not None
    return not isinstance(given, int)


def fitted(options: Mapping[str, Any], sizes: Sizes) -> tuple[Bounds, int]:
    """The bounds, and the offset as far as it is known, in numbers that 32 bits have and that hide the same keys."""
    (left, right), given = bounds(options), options["q_offset"]
    if moves(options):
        return (None if left is None else min(left, WIDEST), None if right is None else min(right, WIDEST)), 0
    offset = sizes.seqlen_k - sizes.seqlen_q if given is None else given
    low = -sizes.seqlen_q if left is None else _clip(offset - left, sizes)  # key j is seen when low <= j - i <= high
    high = sizes.seqlen_k if right is None else _clip(offset + right, sizes)
    if options["alibi_slopes"] is None:  # which has distances from the position itself
        offset = min(max(offset, low), high)
    return (None if left is None else offset - low, None if right is None else high - offset), offset


def _clip(distance: int, sizes: Sizes) -> int:
    return min(max(distance, -sizes.seqlen_q), sizes.seqlen_k)
