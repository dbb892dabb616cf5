"""What importing the package does where there is a GPU: the most used kernels are compiled, or taken from the cache."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

# All backends: a child forked by another thread while the first call imports one could never import it.
from cupy_flash._src.backends import cpu, cupy_, emulator  # noqa: F401
from cupy_flash._src.notice import warn

MODES = ("import", "lazy")


def compile_core_kernels() -> None:
    """Make the core kernels ready for the current GPU, unless CUPY_FLASH_COMPILE is ``lazy``.

    Does nothing where there is no CuPy or no usable GPU, and does not even import CuPy where there is no driver. A
    failure to compile is a warning: the call that needs a kernel reports it in full.

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
    try:
        cupy_.import_cupy()
    except RuntimeError:
        return
    try:
        cupy_.prepare_core()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        warn(f"cupy_flash could not prepare its kernels: {reason}")


def _has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
