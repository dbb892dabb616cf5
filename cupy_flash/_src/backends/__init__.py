"""Backends: where a validated problem is computed, and how one is chosen.

A backend is a module-like object with `namespace` (numpy or cupy) and the functions of `Backend`, which take a problem
and its arrays.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from cupy_flash._src import forks
from cupy_flash._src.arrays import check_plain
from cupy_flash._src.backends import dlpack
from cupy_flash._src.operands import Cotangents, Gradients, Merge, Operands
from cupy_flash._src.problem import AttentionProblem

NAMES = ("cuda", "cpu", "emulator")


class Seal(Protocol):
    """On arrays that are kept, not copied: a note of what they hold."""

    def check(self) -> Any:
        """Raise a ValueError if an array has been changed; on a GPU return what was found, without waiting for it."""

    def spoil(self, found: Any, gradients: Gradients) -> None:
        """Make the gradients NaN if `check` found a change and could not raise."""

    def changed(self) -> tuple[str, ...]:
        """Names of the arrays that no longer hold what they did."""


class Backend(Protocol):
    """What a backend offers."""

    @property
    def namespace(self) -> Any:
        """numpy or cupy: where the arrays live."""

    def placed(self, **arrays: Any) -> AbstractContextManager[Any]:
        """A context in which new arrays are made where these are; a ValueError if they are not in one place.

        Where these are NumPy's, its floating-point errors are off inside: whatever the caller's `numpy.errstate`, inf
        and 0 are results.
        """

    def expect(self, problem: AttentionProblem) -> None:
        """Make ready what both a forward and a backward take, where that is worth it."""

    def forward(self, problem: AttentionProblem, operands: Operands) -> None:
        """Write attention into `out` and its log-sum-exp into `lse`."""

    def backward(self, problem: AttentionProblem, operands: Operands, cotangents: Cotangents) -> Gradients:
        """Return the gradients of the inputs."""

    def merge(self, problem: AttentionProblem, parts: Merge) -> None:
        """Write into `out` and `lse` the attention over the keys of both results."""

    def seal(self, problem: AttentionProblem, operands: Operands) -> Seal:
        """Note what these arrays hold; they are kept, not copied."""

    def status(self) -> str:
        """Return one line for `python -m cupy_flash info`: what would run, or what to install."""


def get(name: str) -> Backend:
    """Return the backend called `name`: "cuda", "cpu", "emulator" or "emulator:<arch>".

    Raises
    ------
    ValueError
        If there is no such backend.
    RuntimeError
        If it cannot run on this machine.
    """
    family, _, arch = name.partition(":")
    if family == "emulator":
        from cupy_flash._src.backends.emulator import EmulatorBackend

        return EmulatorBackend(arch or "sm_80")
    if name == "cuda":
        from cupy_flash._src.backends.cupy_ import CupyBackend

        return CupyBackend()
    if name == "cpu":
        from cupy_flash._src.backends.cpu import CpuBackend

        return CpuBackend()
    tier = f", whose tier CUPY_FLASH_CPU_TIER={name} chooses" if name in ("native", "numpy") else ""
    raise ValueError(f"backend is {name!r}: expected None, 'cpu'{tier}, 'cuda', 'emulator' or 'emulator:<arch>'")


_DL_CPU, _DL_CUDA = 1, (2, 13)  # dlpack.h: kDLCPU; kDLCUDA and kDLCUDAManaged

_instances: dict[str, Backend] = {}
_taken: set[type] = {np.ndarray}  # types of arrays that are taken as they are; CuPy's when one has been seen


def select(name: str | None, **arrays: Any) -> tuple[Backend, list[Any]]:
    """Choose the backend and turn the arguments into its arrays (numpy or cupy, without copies).

    Raises
    ------
    TypeError
        If an argument is no array, or the arrays do not all live where the backend computes.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"backend is {name!r}: expected a string or None")
    converted = [_taken_array(key, x) for key, x in arrays.items()]
    if name is None:
        name = "cpu" if isinstance(converted[0], np.ndarray) else "cuda"
    if name not in _instances:
        _instances[name] = get(name)
    backend = _instances[name]
    for key, x in zip(arrays, converted, strict=True):
        _check_kind(backend, key, x)
    return backend, converted


def take(backend: Backend, arrays: dict[str, Any]) -> dict[str, Any]:
    """The same for options that are arrays, of a backend that is chosen.

    NumPy arrays without axes, as numbers are, go to any.
    """
    converted = {key: _taken_array(key, x) for key, x in arrays.items()}
    for key, x in converted.items():
        if not (isinstance(x, np.ndarray) and x.ndim == 0):
            _check_kind(backend, key, x)
    return converted


def _taken_array(name: str, x: Any) -> Any:
    return x if type(x) in _taken else _as_array(name, x)


def _check_kind(backend: Backend, key: str, x: Any) -> None:
    wants_gpu = backend.namespace is not np
    if isinstance(x, np.ndarray) is wants_gpu:
        seen, wanted = ("NumPy", "CuPy") if wants_gpu else ("CuPy", "NumPy")
        name = next(name for name, instance in _instances.items() if instance is backend)
        raise TypeError(f"{key} is a {seen} array: backend {name!r} takes {wanted} arrays only")


def _as_array(name: str, x: Any) -> Any:
    if isinstance(x, np.ndarray):
        check_plain(name, x)
        return x.view(np.ndarray)
    if type(x).__module__.partition(".")[0] == "cupy" and hasattr(x, "strides"):
        _taken.add(type(x))
        return x
    # DLPack first: it knows bfloat16, and asks for no synchronisation.
    if hasattr(x, "__dlpack__"):
        return _from_dlpack(name, x)
    if hasattr(x, "__cuda_array_interface__"):
        return _cupy().asarray(x)
    raise TypeError(
        f"{name} is a {type(x).__name__}: expected a NumPy or CuPy array, or one with "
        "__cuda_array_interface__ or __dlpack__"
    )


def _from_dlpack(name: str, x: Any) -> Any:
    device = x.__dlpack_device__()[0]
    if device not in (_DL_CPU, *_DL_CUDA):
        raise TypeError(f"{name} is on a device of DLPack type {device}: expected the CPU or a CUDA device")
    taker, take = ("NumPy", dlpack.from_dlpack) if device == _DL_CPU else ("CuPy", _cupy().from_dlpack)
    try:
        return take(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name} is a {type(x).__name__} that {taker} cannot take: {error}") from error


def _cupy() -> Any:
    try:
        with forks.whole():
            import cupy
    except ImportError:
        raise RuntimeError(
            'arrays on a GPU need CuPy: pip install "cupy-flash[cuda13]" (or [cuda12] for CUDA 12 drivers)'
        ) from None
    return cupy
