"""The seal on arrays that kernels read."""

from __future__ import annotations

from typing import Any

from cupy_flash._src import launch
from cupy_flash._src.backends.seal import NAMES, names_of
from cupy_flash._src.problem import AttentionProblem


class DeviceSeal:
    """Of arrays that kernels read: digests by kernels of `cuda_src/attention/seal.cu`."""

    def __init__(self, runtime: launch.Runtime, problem: AttentionProblem, *arrays: Any) -> None:
        self._runtime, self._problem = runtime, problem
        self._tensors = launch.seal(runtime, problem, dict(zip(NAMES, arrays, strict=True)))

    def check(self) -> Any:
        return launch.find_changed(self._runtime, self._problem, self._tensors)

    def changed(self) -> tuple[str, ...]:
        return names_of(DeviceSeal.check(self))

    def spoil(self, flags: Any, dq: Any, dk: Any, dv: Any) -> None:
        launch.spoil(self._runtime, self._problem, flags, dq, dk, dv)
