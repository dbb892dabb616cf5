"""Arrays of other libraries on the CPU, taken without a copy: by NumPy, and bfloat16, which it does not know, by hand.

Source: the DLPack specification, https://dmlc.github.io/dlpack/latest/c_api.html and python_spec.html beside it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np

_BFLOAT, _BITS, _LANES = 4, 16, 1  # DLDataType: kDLBfloat, and what makes it the common bfloat16

# A prototype of its own: ctypes.pythonapi.PyCapsule_GetPointer belongs to all libraries of the process.
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Tensor(ctypes.Structure):
    """DLTensor, with which the DLManagedTensor in a capsule begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Memory:
    """What the array refers to. A capsule that nobody has consumed gives the memory back when it dies."""

    def __init__(self, capsule: Any, interface: dict[str, Any]) -> None:
        self.capsule = capsule
        self.__array_interface__ = interface


def from_dlpack(x: Any) -> np.ndarray:
    """`numpy.from_dlpack`, for bfloat16 too; the latter's arrays are read-only.

    Raises
    ------
    BufferError, RuntimeError, TypeError, ValueError
        As NumPy or the library of `x` does where it cannot be taken.
    """
    # Looked at first, which takes 8 us of a torch tensor: NumPy, when it refuses, destroys the capsule while its error
    # is pending, and an exporter's destructor in Python does not survive that.
    array = _bfloat16(x)
    return np.from_dlpack(x) if array is None else array


def _bfloat16(x: Any) -> np.ndarray | None:
    """The array, None if it has another dtype or NumPy has to say what is wrong with it."""
    try:
        capsule = x.__dlpack__()
        tensor = _Tensor.from_address(_get_pointer(capsule, b"dltensor"))
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None
    if (tensor.code, tensor.bits, tensor.lanes) != (_BFLOAT, _BITS, _LANES):
        return None
    shape, itemsize = tuple(tensor.shape[: tensor.ndim]), _BITS // 8
    interface = {
        "version": 3,
        "typestr": np.dtype(np.uint16).str,
        "shape": shape,
        "strides": tuple(n * itemsize for n in tensor.strides[: tensor.ndim]) if tensor.strides else None,
        "data": ((tensor.data or 0) + tensor.byte_offset, True),
    }
    return np.asarray(_Memory(capsule, interface)).view(ml_dtypes.bfloat16)
