"""The backend "cpu" and the choice of its tier: compiled C++ where a compiler is found, else NumPy."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from cupy_flash._src.backends import Seal, native, numpy_, threads
from cupy_flash._src.backends.seal import HostSeal
from cupy_flash._src.guards import check_indices
from cupy_flash._src.notice import warn
from cupy_flash._src.operands import Cotangents, Gradients, Merge, Operands
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.source import SourcesMissingError
from cupy_flash._src.toolchain import InterruptedCompilerError, NoCompilerError, ToolchainError

TIERS = ("auto", "native", "numpy")
_COMMON = "float32"  # the arithmetic of all dtypes but float64
_MOST_TRIES = 8  # of a compiler that is kept from its end

_settled: dict[str, str | None] = {}  # by arithmetic: what `_failure` returns from now on
_interrupted: dict[str, int] = {}  # by arithmetic: tries so far
_refused: dict[AttentionProblem, str] = {}  # what the compiler says of the functions


class CpuBackend:
    """The backend "cpu"; see `cupy_flash._src.backends.Backend`."""

    namespace: Any = np

    def placed(self, **arrays: Any) -> AbstractContextManager[None]:
        return np.errstate(all="ignore")

    def expect(self, problem: AttentionProblem) -> None:
        pass

    def forward(self, problem: AttentionProblem, operands: Operands) -> None:
        check_indices(np, problem, operands.arrays)
        _tier_of(problem).forward(problem, operands)

    def backward(self, problem: AttentionProblem, operands: Operands, cotangents: Cotangents) -> Gradients:
        # Always deterministic: every sum has a fixed order, whatever the number of threads.
        check_indices(np, problem, operands.arrays)
        return _tier_of(problem).backward(problem, operands, cotangents)

    def merge(self, problem: AttentionProblem, parts: Merge) -> None:
        numpy_.merge(problem, parts)

    def seal(self, problem: AttentionProblem, operands: Operands) -> Seal:
        return HostSeal(_tier(problem.arithmetic).digest, problem, operands)

    def status(self) -> str:
        cpus = f"{threads.num_threads()} threads"
        if _tier(_COMMON) is native:
            return f"compiled C++ for {native.isa(_COMMON)}, {cpus}"
        if tier_wanted() == "numpy":
            return f"NumPy {np.__version__}, {cpus}: CUPY_FLASH_CPU_TIER=numpy"
        why = " ".join(str(_failure(_COMMON)).split())
        return f"NumPy {np.__version__}, {cpus}; the faster compiled tier is missing: {why}"


def tier_wanted() -> str:
    """Return CUPY_FLASH_CPU_TIER, by default "auto".

    Raises
    ------
    ValueError
        If it is none of `TIERS`.
    """
    wanted = os.environ.get("CUPY_FLASH_CPU_TIER") or "auto"
    if wanted not in TIERS:
        raise ValueError(f"CUPY_FLASH_CPU_TIER is {wanted!r}: expected one of {', '.join(TIERS)}")
    return wanted


def _tier(arithmetic: str) -> Any:
    """The module that computes in this dtype: `native` or `numpy_`."""
    wanted = tier_wanted()
    if wanted == "numpy":
        return numpy_
    failure = _failure(arithmetic)
    if failure is None:
        return native
    if wanted == "native":
        raise RuntimeError(f"CUPY_FLASH_CPU_TIER is 'native', but the compiled tier is missing: {failure}")
    return numpy_


def _tier_of(problem: AttentionProblem) -> Any:
    """The same for a problem: NumPy's tier where a function does not compile."""
    tier = _tier(problem.arithmetic)
    failure = _failure_of_mods(problem) if tier is native and problem.mods else None
    if failure is None:
        return tier
    if tier_wanted() == "native":
        raise RuntimeError(f"CUPY_FLASH_CPU_TIER is 'native', but a function does not compile: {failure}")
    return numpy_


def _failure_of_mods(problem: AttentionProblem) -> str | None:
    """Why the compiled tier cannot compute a problem's functions, None if it can; as `_failure` warns."""
    if problem in _refused:
        return _refused[problem]
    try:
        native.compile_mods(problem)
    except (ToolchainError, OSError) as error:
        if not isinstance(error, NoCompilerError):
            warn(f"the CPU backend runs in NumPy, a function does not compile: {error}")
        if not isinstance(error, InterruptedCompilerError):
            _refused[problem] = str(error)
        return str(error)
    return None


def _failure(arithmetic: str) -> str | None:
    """Why the compiled tier cannot run, None if it can.

    Anything but the lack of a compiler or of the sources is warned of, once. After a compiler that was kept from its
    end the next call tries again, a few times.
    """
    if arithmetic in _settled:
        return _settled[arithmetic]
    failure = None
    try:
        native.library(native.isa(arithmetic), arithmetic)
    except (NoCompilerError, SourcesMissingError) as error:
        failure = str(error)
    except (ToolchainError, OSError) as error:
        failure, tries = str(error), _interrupted.get(arithmetic, 0) + 1
        if isinstance(error, InterruptedCompilerError) and tries < _MOST_TRIES:
            _interrupted[arithmetic] = tries
            warn(f"the CPU backend runs this call in NumPy, the next may be faster: {failure}")
            return failure
        warn(f"the CPU backend runs in NumPy, its compiled tier failed: {failure}")
    _settled[arithmetic] = failure
    return failure
