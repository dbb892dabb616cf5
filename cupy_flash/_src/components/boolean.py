"""Query i sees key j when mask[..., i, j] is true"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_flash._src.arrays import Described, described
from cupy_flash._src.components.component import Array, Mask, Region, Sizes


def of_each_head(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    return rng.random(full) < 0.7


def of_keys(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    return rng.random((*full[:-3], 1, 1, full[-1])) < 0.5


def of_chunks(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    """Each chunk of positions sees itself: whole tiles are empty, others full."""
    return np.arange(full[-2])[:, None] // 96 == np.arange(full[-1]) // 96


@dataclass(frozen=True)
class Boolean(Mask):
    """Any mask, an element for each query and key, read in place."""

    keyword, lacks = "mask", 0
    examples = (of_each_head, of_keys, of_chunks)
    elementwise = True

    @staticmethod
    def check(value: Any) -> Described:
        if value.dtype.kind in "fV":  # V: bfloat16
            raise TypeError(
                f"mask has dtype {value.dtype}: expected bool, true where a key is seen; numbers that are added to "
                "scores are a bias"
            )
        return described("mask", value, np.dtype(np.bool_))

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Boolean | None:
        return None if options["mask"] is None else cls()

    def shows(self, xp: Any, region: Region) -> Array:
        return region.place.arrays["mask"][..., region.rows, region.cols]
