"""Query i exists when i < q_lengths of its batch element: the others see nothing"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cupy_flash._src.components.component import Interval, Place, Rows
from cupy_flash._src.components.lengths import Lengths, each


@dataclass(frozen=True)
class QueryLengths(Lengths):
    """How many queries each batch element has: rows behind are padding."""

    keyword = "q_lengths"
    examples = (each(0.5, 1, -2), each(0, 1, -2, np.int32))
    sequence = "seqlen_q"

    def keys(self, query: Rows, place: Place) -> Interval:
        length = self.rows(place)
        return Interval() if length is None else Interval((query >= length) * place.seqlen_k, None)

    def queries(self, key: Rows, place: Place) -> Interval:
        length = self.rows(place)
        return Interval() if length is None else Interval(None, length)
