"""The transpose of broadcasting: what the gradient of a broadcast array needs."""

from __future__ import annotations

from typing import Any

import numpy as np


def sum_to_shape(x: Any, shape: tuple[int, ...]) -> Any:
    """Sum `x` over the axes along which an array of `shape` was broadcast; half types are summed in float32.

    Examples
    --------
    >>> sum_to_shape(np.ones((2, 3, 4)), (3, 1)).ravel()
    array([8., 8., 8.])
    """
    if x.shape == shape:
        return x
    lead = x.ndim - len(shape)
    axes = tuple(i for i in range(x.ndim) if i < lead or x.shape[i] != shape[i - lead])
    dtype = np.dtype(np.float32) if x.dtype.itemsize < 4 else x.dtype
    return x.sum(axis=axes, keepdims=True, dtype=dtype).astype(x.dtype, copy=False).reshape(shape)
