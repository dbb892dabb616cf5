"""What the options have in common that have a number for each batch element, of rows of a sequence mostly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cupy_flash._src.arrays import Described, described
from cupy_flash._src.components.component import Mask, Place, Rows, Sizes
from cupy_flash._src.options import integer

INTEGERS = (np.dtype(np.int32), np.dtype(np.int64))


def numbers(keyword: str, value: Any) -> Described:
    """What describes an array of integers of the leading shape.

    Raises
    ------
    TypeError
        If it has another dtype than `INTEGERS`.
    ValueError
        If kernels cannot read it in place.
    """
    return described(keyword, value, *INTEGERS)


def rows(place: Place, keyword: str, most: int) -> Rows | None:
    """The numbers of such an option within ``[0, most]``, or None where it is not given or not known yet."""
    found = place.arrays.get(keyword)
    return None if found is None else found.clip(0, most)


def each(low: float, high: float, axis: int, dtype: Any = np.int64) -> Callable[..., np.ndarray]:
    """An example: of each batch element a number between two shares of the sequence that is this axis of scores."""

    def draw(rng: np.random.Generator, full: tuple[int, ...]) -> np.ndarray:
        return rng.integers(round(low * full[axis]), round(high * full[axis]) + 1, full[:-3]).astype(dtype)

    draw.__name__ = f"{low:g} to {high:g} as {np.dtype(dtype)}"
    return draw


@dataclass(frozen=True)
class Lengths(Mask):
    """Which rows of a sequence exist in each batch element.

    Attributes
    ----------
    wide : bool
        Whether the array's numbers have 64 bits, not 32.
    sequence : str
        The field of `Sizes` and `Place` that has the sequence's length.
    """

    wide: bool

    lacks = 3
    sequence: ClassVar[str] = "seqlen_k"

    @classmethod
    def array(cls, value: Any) -> Any:
        """The array that is given, or one of a number that all batch elements have in common."""
        if not isinstance(value, np.generic) and (hasattr(value, "ndim") or hasattr(value, "__dlpack__")):
            return value
        number = integer(cls.keyword, value)
        if abs(number) > np.iinfo(np.int64).max:
            raise ValueError(f"{cls.keyword} is {number}: expected a number of rows")
        return np.array(number, np.int64)

    @classmethod
    def check(cls, value: Any) -> Described:
        return numbers(cls.keyword, value)

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Lengths | None:
        given = options[cls.keyword]
        return None if given is None else cls(given.dtype == INTEGERS[1])

    @classmethod
    def check_values(cls, values: np.ndarray, sizes: Sizes) -> None:
        most = getattr(sizes, cls.sequence)
        for value in values.min(initial=0), values.max(initial=0):
            if not 0 <= value <= most:
                raise ValueError(f"{cls.keyword} has {value}: expected 0 to {most}, the sequence length")

    def rows(self, place: Place) -> Rows | None:
        """The numbers in a place, as far as they are known."""
        return rows(place, self.keyword, getattr(place, self.sequence))
