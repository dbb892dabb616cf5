"""What the options have in common whose arrays hold numbers that scores meet: the dtype of q, or float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from cupy_flash._src.arrays import DTYPES, Described, described
from cupy_flash._src.components.component import Sizes


def numbers(keyword: str, value: Any) -> Described:
    """What describes an array of numbers.

    Raises
    ------
    TypeError
        If q could not have its dtype.
    ValueError
        If kernels cannot read it in place.
    """
    return described(keyword, value, *DTYPES.values())


def is_wide(keyword: str, given: Described, sizes: Sizes) -> bool:
    """Whether its dtype is float32 and that of q another.

    Raises
    ------
    TypeError
        If it is neither float32 nor that of q.
    """
    if given.dtype == DTYPES[sizes.dtype]:
        return False
    if given.dtype != np.float32:
        others = "" if sizes.dtype == "float32" else ", or float32"
        raise TypeError(f"{keyword} has dtype {given.dtype}: expected {sizes.dtype}, as q has{others}")
    return True
