"""Tensor maps for TMA, encoded by the driver through the package cuda-bindings."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from golden.primitive import TensorMap

# Where a kernel's parameters hold a CUtensorMap.
BYTES = 128
ALIGNMENT = 64


class Geometry(NamedTuple):
    """The driver's arguments, innermost dimension first; strides in bytes, without the innermost."""

    dims: list[int]
    strides: list[int]
    box: list[int]


def geometry(view: TensorMap, shape: tuple[int, ...], itemsize: int) -> Geometry:
    """Describe a C-contiguous array.

    Raises
    ------
    ValueError
        If TMA cannot move such boxes: strides are multiples of 16 bytes, a swizzled box's rows at most as long as
        the swizzle, no side longer than 256.
    """
    strides = [itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape) - 1)]
    if len(view.box) != len(shape) or not all(1 <= side <= 256 for side in view.box):
        raise ValueError(f"box {view.box} of an array of shape {shape}: one side of 1..256 for each dimension")
    if any(stride % 16 for stride in strides):
        raise ValueError(f"strides {strides} of an array of shape {shape}: multiples of 16 bytes")
    row = view.box[-1] * itemsize
    if row % 16 or (view.swizzle and row > view.swizzle):
        raise ValueError(f"box rows of {row} bytes: a multiple of 16 and no longer than the swizzle, {view.swizzle}")
    return Geometry(list(shape[::-1]), strides[::-1], list(view.box[::-1]))


def encode(view: TensorMap, pointer: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The 16 words of the CUtensorMap; elements outside the array are read as zeros.

    Raises
    ------
    RuntimeError
        If cuda-bindings is not installed or the driver refuses the arguments.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        raise RuntimeError("tensor maps are encoded by the package cuda-bindings: pip install cuda-bindings") from None
    dims, strides, box = geometry(view, shape, dtype.itemsize)
    swizzle = f"SWIZZLE_{view.swizzle}B" if view.swizzle else "SWIZZLE_NONE"
    status, encoded = driver.cuTensorMapEncodeTiled(
        getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{dtype.name.upper()}"),
        len(dims),
        pointer,
        [driver.cuuint64_t(value) for value in dims],
        [driver.cuuint64_t(value) for value in strides],
        [driver.cuuint32_t(value) for value in box],
        [driver.cuuint32_t(1)] * len(dims),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_{swizzle}"),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"cuTensorMapEncodeTiled of {shape} {dtype} by {view}: {status!r}")
    return np.array([int(word) for word in encoded.opaque], np.uint64)
