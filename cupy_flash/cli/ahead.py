"""Compiling what a command is about to need."""

from __future__ import annotations

import sys
from collections.abc import Collection

from cupy_flash.compile import compile_all
from cupy_flash.specialization import Specialization


def compile_ahead(kernels: Collection[Specialization], arch: str) -> None:
    """Compile on all cores; a kernel that does not compile is told here and fails at the call that needs it."""
    print(f"{len(kernels)} kernels for {arch} to compile or to find in the cache", file=sys.stderr, flush=True)
    try:
        compile_all(kernels, arch)
    except RuntimeError as error:
        print(str(error).partition("\n")[0], file=sys.stderr, flush=True)
