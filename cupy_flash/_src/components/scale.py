"""s = scale * q . k"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_flash._src.components.component import Array, Region, Score, Sizes
from cupy_flash._src.options import real

LOG2_E = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class Scale(Score):
    """The first step of every problem.

    Attributes
    ----------
    scale : float
        Times log2(e) it is finite in the accumulator's dtype.
    """

    scale: float

    keyword = "scale"
    examples = (0.3, -0.2, 0.0)

    @staticmethod
    def check(value: Any) -> float:
        return real("scale", value)

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Scale:
        value = options["scale"]
        if value is None:
            return cls(1.0 / math.sqrt(sizes.head_dim))
        # Kernels take exponentials to base 2: of scores times scale * log2(e), in the accumulator's type.
        largest = float(np.finfo(np.float64 if sizes.dtype == "float64" else np.float32).max)
        if abs(value) * LOG2_E > largest:
            raise ValueError(f"scale is {value}: expected at most {largest / LOG2_E:.3g} in size for {sizes.dtype}")
        return cls(value + 0.0)  # -0.0 is found where 0.0 is: it must not mean another sign

    @property
    def type(self) -> str:
        return "NegatedScale" if self.scale < 0 else "Scale"

    def params(self) -> dict[str, Any]:
        # In float32, for kernels that have no double, one may be too large (of float64's) or too small; on a GPU nobody
        # has set the caller's errors aside.
        told = {"scale": np.float64(self.scale), "unit": np.float64(abs(self.scale) * LOG2_E)}
        with np.errstate(all="ignore"):
            told |= {f"{name}_f32": value.astype(np.float32) for name, value in told.items()}
        # A unit of 0 would turn a hidden key's -inf into NaN; what is about the least normal number gives 2^0 as well.
        return told | {"unit": max(told["unit"], 2.3e-308), "unit_f32": max(told["unit_f32"], 1.2e-38)}

    def forward(self, xp: Any, s: Array, region: Region) -> Array:
        return s * self.scale

    def backward(self, xp: Any, ds: Array, s: Array, region: Region) -> Array:
        return ds * self.scale
