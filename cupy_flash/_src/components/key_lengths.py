"""Key j exists when j < k_lengths of its batch element"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cupy_flash._src.components.component import Interval, Place, Rows
from cupy_flash._src.components.lengths import Lengths, each


@dataclass(frozen=True)
class KeyLengths(Lengths):
    """How many keys each batch element has: those behind are padding."""

    keyword = "k_lengths"
    examples = (each(0.5, 1, -1), each(0, 1, -1, np.int32))

    def keys(self, query: Rows, place: Place) -> Interval:
        length = self.rows(place)
        return Interval() if length is None else Interval(None, length)

    def queries(self, key: Rows, place: Place) -> Interval:
        length = self.rows(place)
        return Interval() if length is None else Interval((key >= length) * place.seqlen_q, None)
