"""The seal on arrays that kernels read."""

from __future__ import annotations

from typing import Any

from cupy_flash import launch
from cupy_flash.backends.seal import NAMES
from cupy_flash.problem import AttentionProblem


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
