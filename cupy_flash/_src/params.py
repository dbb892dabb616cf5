"""What kernels are passed: the structs of cuda_src/params.cuh and those of the components that a kernel is made of."""

from __future__ import annotations

import functools

import numpy as np

from cupy_flash._src import source
from cupy_flash._src.specialization import Part, composition
from cupy_flash._src.structs import structs_of

BATCH_DIMS = 4  # kBatchDims


@functools.cache
def layout(struct: str, parts: tuple[Part, ...] = ()) -> np.dtype:
    """The layout of a struct, and after it, as field `components`, of what the parts are told.

    Kernels that are made of fewer parts, or of none, read as much of it as they know.
    """
    structs = structs_of(source.flatten("parts", virtual={"parts": '#include "params.cuh"\n' + composition(parts)}))
    whole = structs[struct]
    if not parts:
        return whole
    fields = [(name, whole[name]) for name in whole.names or ()]
    return np.dtype([*fields, ("components", structs["Components"])], align=True)
