"""One more logit in the sum of each row, exp(sinks[head]), that has no value"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_flash._src.arrays import Described
from cupy_flash._src.components.component import Array, Place, Rows, Sink, Sizes
from cupy_flash._src.components.floats import is_wide, numbers
from cupy_flash._src.components.lengths import INTEGERS, rows


def of_heads(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(full[-3]).astype(np.float32)


def of_each_batch_element(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
    """Some heads have none."""
    sinks = rng.normal(2, 3, full[:-2]).astype(np.float32)
    return np.where(rng.random(sinks.shape) < 0.2, np.float32(-np.inf), sinks)


@dataclass(frozen=True)
class Sinks(Sink):
    """Attention sinks that are learned (gpt-oss, arXiv:2508.10925; Miller 2023, "Attention Is Off By One").

    Of a query that exists its log-sum-exp is no less than the sink, also where it sees no key.

    Attributes
    ----------
    wide : bool
        Whether they are float32 where q is of another dtype.
    q_lengths_wide : bool
        Whether lengths of queries, if given, have 64 bits, not 32.
    """

    wide: bool
    q_lengths_wide: bool

    keyword, lacks, floats, learns = "sinks", 2, True, True
    examples = (of_heads, of_each_batch_element)

    @staticmethod
    def check(value: Any) -> Described:
        return numbers("sinks", value)

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Sinks | None:
        given, lengths = options["sinks"], options["q_lengths"]
        if given is None:
            return None
        return cls(is_wide("sinks", given, sizes), lengths is not None and lengths.dtype == INTEGERS[1])

    @property
    def type(self) -> str:
        return "FloatSinks" if self.wide else "Sinks"

    def of_queries(self, xp: Any, query: Rows, place: Place) -> Array:
        sinks, length = place.arrays["sinks"], rows(place, "q_lengths", place.seqlen_q)
        return sinks + query * 0 if length is None else xp.where(query < length, sinks, -xp.inf)
