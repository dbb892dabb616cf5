"""What importing the package does where there is a GPU: the most used kernels are compiled, or taken from the cache."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import warnings

MODES = ("import", "lazy")


def compile_core_kernels() -> None:
    """Make the core kernels ready for the current GPU, unless CUPY_FLASH_COMPILE is ``lazy``.

    Does nothing, and does not import CuPy, where there is no driver or no CuPy. A failure is a warning: the call
    that needs a kernel reports it in full.

    Raises
    ------
    ValueError
        If CUPY_FLASH_COMPILE is neither empty, ``import`` nor ``lazy``.
    """
    mode = os.environ.get("CUPY_FLASH_COMPILE") or "import"
    if mode not in MODES:
        raise ValueError(f"CUPY_FLASH_COMPILE is {mode!r}: expected one of {', '.join(MODES)}")
    if mode == "lazy" or not _has_driver() or importlib.util.find_spec("cupy") is None:
        return
    from cupy_flash.backends.cupy_ import load_core

    try:
        load_core()
    except Exception as error:
        warnings.warn(f"cupy_flash could not prepare its kernels: {error}", RuntimeWarning, stacklevel=3)


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
