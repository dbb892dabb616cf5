"""s = s - alibi_slopes[head] * |i + q_offset - j|"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_flash._src.arrays import Described, described
from cupy_flash._src.components.component import Array, Region, Score, Sizes
from cupy_flash._src.components.positions import FARTHEST, moves


def geometric(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    """The paper's: of n heads 2^(-8/n), 2^(-16/n) and so on."""
    heads = full[-3]
    return (2.0 ** (-8 * np.arange(1, heads + 1) / heads)).astype(np.float32)


def of_each_batch_element(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-0.01, 0.1, full[:-2]).astype(np.float32)


@dataclass(frozen=True)
class Alibi(Score):
    """Attention with linear biases (Press, Smith and Lewis 2021, arXiv:2108.12409, section 3)."""

    keyword, lacks, learns = "alibi_slopes", 2, True
    examples = (geometric, of_each_batch_element)
    uses_offset = True

    @staticmethod
    def check(value: Any) -> Described:
        return described("alibi_slopes", value, np.dtype(np.float32))

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Alibi | None:
        if options["alibi_slopes"] is None:
            return None
        offset = 0 if moves(options) else options["q_offset"] or 0
        if abs(offset) > FARTHEST:
            raise ValueError(f"q_offset is {offset}: with alibi_slopes expected at most {FARTHEST} in size")
        return cls()

    def forward(self, xp: Any, s: Array, region: Region) -> Array:
        return s - region.place.arrays["alibi_slopes"].astype(s.dtype) * _distances(xp, region, s.dtype)

    def backward(self, xp: Any, ds: Array, s: Array, region: Region) -> Array:
        return ds

    def term(self, xp: Any, ds: Array, region: Region) -> Array:
        return -ds * _distances(xp, region, ds.dtype)


def _distances(xp: Any, region: Region, dtype: np.dtype) -> Array:
    return abs(region.queries(xp) + region.place.q_offset - region.keys(xp)).astype(dtype)
