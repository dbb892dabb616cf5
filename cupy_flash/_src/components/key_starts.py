"""Key j exists when j >= k_starts of its batch element"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cupy_flash._src.components.component import Interval, Place, Rows
from cupy_flash._src.components.lengths import Lengths, each


@dataclass(frozen=True)
class KeyStarts(Lengths):
    """Where each batch element's keys begin: those before are padding."""

    keyword = "k_starts"
    examples = (each(0, 0.5, -1), each(0, 1, -1, np.int32))

    def keys(self, query: Rows, place: Place) -> Interval:
        start = self.rows(place)
        return Interval() if start is None else Interval(start, None)

    def queries(self, key: Rows, place: Place) -> Interval:
        start = self.rows(place)
        return Interval() if start is None else Interval(None, (key >= start) * place.seqlen_q)
