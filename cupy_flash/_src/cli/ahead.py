"""Compiling what a command is about to need."""

from __future__ import annotations

from collections.abc import Collection

from cupy_flash._src.compile import compile_all
from cupy_flash._src.notice import say
from cupy_flash._src.specialization import Specialization


def compile_ahead(kernels: Collection[Specialization], arch: str) -> None:
    """Compile on all cores; a kernel that does not compile is told here and fails at the call that needs it."""
    say(f"{len(kernels)} kernels for {arch} to compile or to find in the cache")
    try:
        compile_all(kernels, arch)
    except RuntimeError as error:
        say(str(error).partition("\n")[0])
