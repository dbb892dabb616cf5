"""s = s + bias[..., i, j]"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_flash._src.arrays import Described
from cupy_flash._src.components.component import Array, Region, Score, Sizes
from cupy_flash._src.components.floats import is_wide, numbers


def of_each_head(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(full[-3:]).astype(np.float32)


def of_distances(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    """A number for each head and distance, as in T5: a view of a table in which rows overlap."""
    heads, sq, sk = full[-3:]
    table = rng.standard_normal((heads, sq + sk)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(table, sk, axis=-1)
    return windows[:, 1 : sq + 1][:, ::-1]


def of_keys(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    """The same for all queries and heads; some keys are hidden."""
    bias = rng.standard_normal((*full[:-3], 1, 1, full[-1])).astype(np.float32)
    return np.where(rng.random(bias.shape) < 0.2, np.float32(-np.inf), bias)


@dataclass(frozen=True)
class Bias(Score):
    """Numbers that are added to scores, an element for each query and key, read in place.

    Attributes
    ----------
    wide : bool
        Whether they are float32 where q is of another dtype.
    """

    wide: bool

    keyword, lacks, floats, learns = "bias", 0, True, True
    examples = (of_each_head, of_distances, of_keys)

    @staticmethod
    def check(value: Any) -> Described:
        if value.dtype == np.bool_:
            raise TypeError("bias has dtype bool: expected numbers that are added to scores; booleans are a mask")
        return numbers("bias", value)

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Bias | None:
        given = options["bias"]
        return None if given is None else cls(is_wide("bias", given, sizes))

    @property
    def type(self) -> str:
        return "FloatBias" if self.wide else "Bias"

    def forward(self, xp: Any, s: Array, region: Region) -> Array:
        return s + region.place.arrays["bias"][..., region.rows, region.cols].astype(s.dtype)

    def backward(self, xp: Any, ds: Array, s: Array, region: Region) -> Array:
        return ds

    def term(self, xp: Any, ds: Array, region: Region) -> Array:
        return ds
