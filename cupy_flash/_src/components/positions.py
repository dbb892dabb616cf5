"""Where queries stand among the keys, and how far from there they see: what several options say together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cupy_flash._src.components.component import Sizes

Bounds = tuple[int | None, int | None]  # how many keys before and behind its own position a query sees; None: all


def bounds(options: Mapping[str, Any]) -> Bounds:
    """What `causal` and `window` allow, by their keywords."""
    left, right = options["window"] or (None, None)
    return (left, 0) if options["causal"] else (left, right)


def fitted(options: Mapping[str, Any], sizes: Sizes) -> tuple[Bounds, int]:
    """The bounds, and the offset, in numbers of at most the sizes' sum that hide the same keys."""
    (left, right), offset = bounds(options), sizes.q_offset
    low = -sizes.seqlen_q if left is None else _clip(offset - left, sizes)  # key j is seen when low <= j - i <= high
    high = sizes.seqlen_k if right is None else _clip(offset + right, sizes)
    offset = min(max(offset, low), high)
    return (None if left is None else offset - low, None if right is None else high - offset), offset


def _clip(distance: int, sizes: Sizes) -> int:
    return min(max(distance, -sizes.seqlen_q), sizes.seqlen_k)
