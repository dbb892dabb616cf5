"""Query i sees key j when j <= i + q_offset"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cupy_flash._src.components.component import Interval, Mask, Place, Rows, Sizes
from cupy_flash._src.components.positions import bounds
from cupy_flash._src.options import boolean


@dataclass(frozen=True)
class Causal(Mask):
    """No query sees a key behind it. With a window on the left it is the right side of that."""

    keyword, default = "causal", False
    examples = (True,)
    uses_offset = True

    @staticmethod
    def check(value: Any) -> bool:
        return boolean("causal", value)

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Causal | None:
        return cls() if bounds(options) == (None, 0) else None

    def params(self) -> dict[str, Any]:
        return {"used": True}

    def keys(self, query: Rows, place: Place) -> Interval:
        return Interval() if place.q_offset is None else Interval(None, query + place.q_offset + 1)

    def queries(self, key: Rows, place: Place) -> Interval:
        return Interval() if place.q_offset is None else Interval(key - place.q_offset, None)
