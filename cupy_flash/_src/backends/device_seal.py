"""The seal on arrays that kernels read."""

from __future__ import annotations

from typing import Any

from cupy_flash._src import launch
from cupy_flash._src.backends.seal import names_of
from cupy_flash._src.operands import Gradients, Operands
from cupy_flash._src.problem import AttentionProblem


class DeviceSeal:
    """Of arrays that kernels read: digests by kernels of `cuda_src/attention/seal.cu`."""

    def __init__(self, runtime: launch.Runtime, problem: AttentionProblem, operands: Operands) -> None:
        self._runtime, self._problem = runtime, problem
        self._tensors = launch.seal(runtime, problem, operands)

    def check(self) -> Any:
        return launch.find_changed(self._runtime, self._problem, self._tensors)

    def changed(self) -> tuple[str, ...]:
        return names_of(DeviceSeal.check(self))

    def spoil(self, flags: Any, gradients: Gradients) -> None:
        launch.spoil(self._runtime, self._problem, flags, gradients)
