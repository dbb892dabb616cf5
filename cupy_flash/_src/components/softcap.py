"""s = softcap * tanh(s / softcap)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cupy_flash._src.components.component import Array, Region, Score, Sizes
from cupy_flash._src.options import real


@dataclass(frozen=True)
class Softcap(Score):
    """A bound that the sizes of scores approach (Gemma 2, arXiv:2408.00118, section 2.2).

    Attributes
    ----------
    cap : float
        Above 0, and within powers of 2 that the accumulator's dtype can divide scores by.
    """

    cap: float

    keyword = "softcap"
    examples = (5.0, 30.0)
    error = 2.0**-11  # of tanh.approx (PTX ISA 9.7.3)

    @staticmethod
    def check(value: Any) -> float:
        cap = real("softcap", value)
        if cap <= 0:
            raise ValueError(f"softcap is {cap}: expected a number above 0, or None for no cap")
        return cap

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Softcap | None:
        value = options["softcap"]
        largest = 2.0 ** (900 if sizes.dtype == "float64" else 100)
        return None if value is None else cls(min(max(value, 1 / largest), largest))

    def forward(self, xp: Any, s: Array, region: Region) -> Array:
        return self.cap * xp.tanh(s / self.cap)

    def backward(self, xp: Any, ds: Array, s: Array, region: Region) -> Array:
        return ds * (1 - xp.tanh(s / self.cap) ** 2)
