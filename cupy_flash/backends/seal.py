"""What a vjp keeps between its two calls must be what it was: noted at the first, asked at the second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cupy_flash import launch
from cupy_flash.problem import AttentionProblem

NAMES = ("q", "k", "v", "out", "lse")


class Seal(Protocol):
    """On arrays that are kept, not copied: a note of what they hold."""

    def check(self) -> None:
        """Raise a ValueError if an array has been changed; on a GPU only find out, without waiting."""

    def spoil(self, dq: Any, dk: Any, dv: Any) -> None:
        """Make the gradients NaN if the last `check` found a change and could not raise."""

    def changed(self) -> tuple[str, ...]:
        """Names of the arrays that no longer hold what they did."""


class HostSeal:
    """Of NumPy arrays: digests by `digest` of a tier of the backend "cpu"."""

    def __init__(self, digest: Callable[..., np.ndarray], problem: AttentionProblem, *arrays: np.ndarray) -> None:
        self._digest = lambda: digest(problem, *arrays)
        self._before = self._digest()

    def changed(self) -> tuple[str, ...]:
        differs = (self._digest() != self._before).any(axis=0)
        return tuple(name for name, x in zip(NAMES, differs, strict=True) if x)

    def check(self) -> None:
        refuse(self.changed())

    def spoil(self, dq: Any, dk: Any, dv: Any) -> None:
        pass


class DeviceSeal:
    """Of arrays that kernels read: digests by kernels of `cuda_src/attention/seal.cu`."""

    def __init__(self, runtime: launch.Runtime, problem: AttentionProblem, *arrays: Any) -> None:
        self._runtime, self._problem = runtime, problem
        self._tensors = launch.seal(runtime, problem, dict(zip(NAMES, arrays, strict=True)))
        self._flags: Any = None

    def changed(self) -> tuple[str, ...]:
        flags = launch.find_changed(self._runtime, self._problem, self._tensors)
        return tuple(name for name, flag in zip(NAMES, flags.ravel().tolist(), strict=True) if flag)

    def check(self) -> None:
        self._flags = launch.find_changed(self._runtime, self._problem, self._tensors)

    def spoil(self, dq: Any, dk: Any, dv: Any) -> None:
        launch.spoil(self._runtime, self._problem, self._flags, dq, dk, dv)


def refuse(changed: tuple[str, ...]) -> None:
    """Raise if there is a name."""
    if changed:
        raise ValueError(
            f"{' and '.join(changed)} changed since flash_attention_vjp: expected what it was given and returned, "
            "unchanged until vjp is called (write x = out + residual, not out += residual)"
        )
