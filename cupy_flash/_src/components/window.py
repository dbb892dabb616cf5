"""Query i sees key j when i + q_offset - left <= j <= i + q_offset + right"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cupy_flash._src.components.component import Interval, Mask, Place, Rows, Sizes
from cupy_flash._src.components.positions import Bounds, bounds, fitted
from cupy_flash._src.options import integer


@dataclass(frozen=True)
class Window(Mask):
    """A window that moves with the query (Longformer, arXiv:2004.05150, section 3.1; Mistral, arXiv:2310.06825).

    Attributes
    ----------
    left, right : int or None
        As `Bounds`; not both None, nor None and 0, which is `Causal`.
    """

    left: int | None
    right: int | None

    keyword = "window"
    examples = ((3, 2), (5, None), (None, 4), (0, 0))
    uses_offset = True

    @staticmethod
    def check(value: Any) -> Bounds:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"window is {value!r}: expected a pair (left, right) of int or None")
        left, right = (None if size is None else integer("window", size) for size in value)
        if min(left or 0, right or 0) < 0:
            raise ValueError(f"window is {value!r}: expected numbers of keys, at least 0, or None for all")
        return left, right

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Window | None:
        if bounds(options) in ((None, None), (None, 0)):
            return None
        (left, right), _ = fitted(options, sizes)
        return cls(left, right)

    @property
    def type(self) -> str:
        return "WindowRight" if self.left is None else "WindowLeft" if self.right is None else "Window"

    def params(self) -> dict[str, Any]:
        cuts = {"cuts_left": self.left is not None, "cuts_right": self.right is not None}
        return {**cuts, "left": self.left or 0, "right": self.right or 0}

    def keys(self, query: Rows, place: Place) -> Interval:
        if place.q_offset is None:
            return Interval()
        position = query + place.q_offset
        return Interval(
            None if self.left is None else position - self.left,
            None if self.right is None else position + self.right + 1,
        )

    def queries(self, key: Rows, place: Place) -> Interval:
        if place.q_offset is None:
            return Interval()
        position = key - place.q_offset
        return Interval(
            None if self.right is None else position - self.right,
            None if self.left is None else position + self.left + 1,
        )
