"""Arrays as checks and look-ups know them: all but their elements and where exactly they lie."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {  # of q, k and v
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
Fields = tuple[np.dtype, tuple[int, ...], tuple[int, ...], bool]  # of a Described; a plain tuple is made sooner


class Described(NamedTuple):
    """What is known of an array without a look at its elements."""

    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: bool


def describe(array: Any) -> Fields:
    aligned = array.flags.aligned if isinstance(array, np.ndarray) else array.data.ptr % array.itemsize == 0
    return array.dtype, array.shape, array.strides, aligned


def check_plain(name: str, array: np.ndarray) -> None:
    """Raise for the kinds of NumPy array that mean something else by their elements or by indexing."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: masks are not supported, expected a plain array")
    if isinstance(array, np.matrix):
        raise TypeError(f"{name} is a numpy.matrix, which stays 2-D whatever is done to it: expected a plain array")


def check_like(name: str, array: Any, shape: tuple[int, ...], *dtypes: np.dtype) -> None:
    """Raise unless `array` has exactly this shape and one of these dtypes."""
    check_description(name, describe(array), shape, dtypes)


@functools.lru_cache(maxsize=1024)
def check_description(name: str, fields: Fields, shape: tuple[int, ...], dtypes: tuple[np.dtype, ...]) -> None:
    """The same of an array's description."""
    array = Described(*fields)
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}: expected {shape}")
    if np.dtype(array.dtype) not in dtypes:
        expected = " or ".join(dict.fromkeys(map(str, dtypes)))
        raise TypeError(f"{name} has dtype {array.dtype}: expected {expected}")
    check_strides(name, array)
    check_aligned(name, array)


def check_strides(name: str, array: Described) -> None:
    """Elements must lie whole elements apart, as a GPU needs them."""
    itemsize = np.dtype(array.dtype).itemsize
    if any(stride % itemsize for stride, n in zip(array.strides, array.shape, strict=True) if n > 1):
        raise ValueError(f"{name} has strides {array.strides} bytes: expected multiples of the item size {itemsize}")


def check_aligned(name: str, array: Described) -> None:
    """The first element's address must be a multiple of the item size."""
    if not array.aligned and 0 not in array.shape:
        expected = f"expected an address that is a multiple of {array.dtype.itemsize}"
        raise ValueError(f"{name} is not aligned in memory: {expected}")


def described(name: str, array: Any, *dtypes: np.dtype) -> Described:
    """What describes an array that kernels can read in place and that has one of these dtypes; else raise."""
    fields = describe(array)
    check_description(name, fields, fields[1], dtypes)
    return Described(*fields)
