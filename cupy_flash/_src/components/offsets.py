"""Where each batch element's first query stands among its keys, where only the call tells"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_flash._src.components.component import Component, Place, Rows, Sizes
from cupy_flash._src.components.lengths import INTEGERS, each, numbers, rows
from cupy_flash._src.components.positions import FARTHEST, matter, moves
from cupy_flash._src.options import integer


@dataclass(frozen=True)
class Offsets(Component):
    """``q_offset`` as an array, or ``k_lengths - q_lengths``: the last query that exists stands at the last such key.

    Attributes
    ----------
    q_offset_wide, k_lengths_wide, q_lengths_wide : bool
        Whether such an array's numbers have 64 bits, not 32.
    """

    q_offset_wide: bool
    k_lengths_wide: bool
    q_lengths_wide: bool

    keyword, lacks = "q_offset", 3
    examples = (each(-0.5, 1, -1), each(-0.5, 1, -1, np.int32))
    concept = "Place"

    @staticmethod
    def array(value: Any) -> Any:
        # One without axes is a number; but not on a GPU, which would have to be waited for.
        has_axes = getattr(value, "ndim", hasattr(value, "__dlpack__"))
        return value if has_axes or hasattr(value, "__cuda_array_interface__") else None

    @staticmethod
    def check(value: Any) -> Any:
        return integer("q_offset", value) if Offsets.array(value) is None else numbers("q_offset", value)

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Offsets | None:
        if not (moves(options) and matter(options)):
            return None
        arrays = (options[name] for name in ("q_offset", "k_lengths", "q_lengths"))
        return cls(*(array is not None and array.dtype == INTEGERS[1] for array in arrays))

    def moved(self, place: Place) -> Place:
        keys, queries = rows(place, "k_lengths", place.seqlen_k), rows(place, "q_lengths", place.seqlen_q)
        return place._replace(q_offset=_offset(place, place.arrays.get("q_offset"), keys, queries))


def _offset(place: Place, given: Rows | None, keys: Rows | None, queries: Rows | None) -> Rows | None:
    if given is not None:
        return given.clip(-FARTHEST, FARTHEST)
    if keys is None and queries is None:
        return None
    return (place.seqlen_k if keys is None else keys) - (place.seqlen_q if queries is None else queries)
