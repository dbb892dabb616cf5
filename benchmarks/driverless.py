"""CuPy on a machine without a GPU: what its compiled modules take from the CUDA runtime and driver does nothing.

To be imported before CuPy. A Cython module publishes its functions, by name and C signature, in `__pyx_capi__`, from
where modules that are imported later take them. Arrays, the memory pool and the handling of a kernel's arguments are
then CuPy's own. Addresses are numbers that nothing may read, and a kernel that is launched goes to `on_launch`.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

if "cupy" in sys.modules:
    raise RuntimeError("CuPy is imported already: expected to be imported after driverless")
os.environ["CUPY_FLASH_COMPILE"] = "lazy"  # where there is a GPU, importing the package imports CuPy and compiles

from cupy_backends.cuda.api import driver, runtime

from cupy_flash._src import compile
from cupy_flash._src.backends import cupy_
from cupy_flash._src.device import named

_TYPES = {
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "size_t": ctypes.c_size_t,
    "intptr_t": ctypes.c_ssize_t,
    "PyObject *": ctypes.py_object,
}
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_kept: list[Any] = []  # capsules refer to what they hold by its address

ARCH = "sm_90a"


def on_launch(grid: int, block: int, shared_bytes: int, arguments: int) -> None:
    """To be replaced: `arguments` is the address of the addresses of the kernel's arguments, valid during the call.

    What it raises is printed, and the launch goes on.
    """


def _replace(module: ModuleType, name: str, function: Callable[..., Any], native: Any = None) -> None:
    signature = _name(module.__pyx_capi__[name])
    words = re.split("[(,]", signature.decode().removesuffix(")"))  # of the result, then of each argument
    types = [_TYPES[x.removesuffix("__pyx_skip_dispatch").strip()] for x in words if x != "void"]
    native = native or ctypes.PYFUNCTYPE(*types)(function)
    _kept.extend([signature, native])
    module.__pyx_capi__[name] = _new(ctypes.cast(native, ctypes.c_void_p), signature, None)
    setattr(module, name, function)


def _launch(function: int, grid: int, _y: int, _z: int, block: int, *rest: int) -> None:
    on_launch(grid, block, rest[2], rest[4])


_free = itertools.count(1 << 40, 1 << 36)  # addresses, far from one another
# CuPy asks for the current GPU a dozen times a call, and a function in Python would add 0.3 us each time. C's `abs`
# has the number too: Cython passes an argument of its own, 0.
_replace(runtime, "getDevice", lambda *_: 0, ctypes.CDLL(None).abs)
_replace(runtime, "getDeviceCount", lambda *_: 1)
_replace(runtime, "setDevice", lambda *_: None)
_replace(runtime, "_ensure_context", lambda *_: None)
_replace(runtime, "malloc", lambda *_: next(_free))
_replace(runtime, "free", lambda *_: None)
_replace(runtime, "memsetAsync", lambda *_: None)
_replace(driver, "moduleLoad", lambda *_: 1)
_replace(driver, "moduleUnload", lambda *_: None)
_replace(driver, "moduleGetFunction", lambda *_: 1)
_replace(driver, "funcSetAttribute", lambda *_: None)
_replace(driver, "launchKernel", _launch)
runtime.driverGetVersion = lambda: 13000
cupy_._device = lambda index: named(ARCH)
compile.to_cubin = lambda kernel, arch: SimpleNamespace(path="")
