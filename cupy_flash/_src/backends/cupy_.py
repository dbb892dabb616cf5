"""CUDA kernels on CuPy arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cupy_flash._src import compile, forks, launch, tuning
from cupy_flash._src.backends import Seal
from cupy_flash._src.backends.device_seal import DeviceSeal
from cupy_flash._src.device import Device, from_attributes
from cupy_flash._src.operands import Cotangents, Gradients, Merge, Operands
from cupy_flash._src.plan import Launch, core_specializations, plan_backward, plan_forward
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.specialization import Specialization


class CupyBackend:
    """Runs on the GPU that holds the arrays, on CuPy's current stream, without synchronising."""

    def __init__(self) -> None:
        self.namespace = import_cupy()
        self._current = self.namespace.cuda.runtime.getDevice

    @property
    def device(self) -> Device:
        """The current GPU."""
        return _device(self._current())

    def address(self, array: Any) -> int:
        return array.data.ptr

    def allocate(self, scratch: launch.Scratch) -> tuple[Any, int]:
        memory = self.namespace.cuda.alloc(scratch.nbytes)  # in half the time that an array takes
        if scratch.zeroed:
            memory.memset_async(0, scratch.nbytes)
        return memory, memory.ptr

    def run(self, step: Launch, params: np.ndarray, tensors: launch.Tensors) -> None:
        kernel = _kernel(step.kernel, self._current())
        kernel((step.grid,), (step.block,), (params,), shared_mem=step.shared_bytes)

    def placed(self, **arrays: Any) -> Any:
        """A context in which the GPU of the arrays is current."""
        (name, first), *rest = arrays.items()
        index = first.data.device_id
        for other, x in rest:
            if x.data.device_id != index:
                raise ValueError(f"{other} is on GPU {x.data.device_id}, {name} on GPU {index}: expected one GPU")
        return self.namespace.cuda.Device(index)

    def expect(self, problem: AttentionProblem) -> None:
        _compile_together(problem, self.device, (plan_forward, plan_backward))

    def forward(self, problem: AttentionProblem, operands: Operands) -> None:
        _compile_together(problem, self.device, (plan_forward,))
        launch.forward(self, problem, operands)

    def backward(self, problem: AttentionProblem, operands: Operands, cotangents: Cotangents) -> Gradients:
        _compile_together(problem, self.device, (plan_backward,))
        return launch.backward(self, problem, operands, cotangents)

    def merge(self, problem: AttentionProblem, parts: Merge) -> None:
        launch.merge(self, problem, parts)

    def seal(self, problem: AttentionProblem, operands: Operands) -> Seal:
        return DeviceSeal(self, problem, operands)

    def status(self) -> str:
        properties = self.namespace.cuda.runtime.getDeviceProperties(self._current())
        return f"{properties['name'].decode()}, {self.device.arch}"


def import_cupy() -> Any:
    """Return the module cupy, on a machine where it can run kernels.

    Raises
    ------
    RuntimeError
        If CuPy is not installed, or there is no usable driver or GPU.
    """
    try:
        with forks.whole():
            import cupy
    except ImportError:
        raise RuntimeError(
            'backend "cuda" needs CuPy: pip install "cupy-flash[cuda13]" (or [cuda12] for CUDA 12 drivers)'
        ) from None
    if not cupy.cuda.runtime.driverGetVersion():
        raise RuntimeError('backend "cuda" needs an NVIDIA GPU and its driver: there is no driver here')
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f'backend "cuda" needs a GPU and its driver: {error}') from None
    if count == 0:
        raise RuntimeError('backend "cuda" needs a GPU: the driver shows none')
    return cupy


def prepare_core() -> None:
    """Compile, where the cache lacks them, the kernels that most calls on the current GPU need.

    They are loaded at their first call: loading here would make a CUDA context in every process that only imports
    the package, and a context does not survive a fork.
    """
    device = _device(import_cupy().cuda.runtime.getDevice())
    compile.prepare(core_specializations(device), device.arch)


@functools.lru_cache(maxsize=1024)
def _compile_together(problem: AttentionProblem, device: Device, plans: tuple[Callable[..., Any], ...]) -> None:
    """Compile side by side what the cache lacks of a problem's kernels; launches would do it one after another."""
    if 0 in problem.lse_shape or problem.seqlen_k == 0:
        return
    tiles = tuning.tiles_by_hand()
    kernels = dict.fromkeys(step.kernel for plan in plans for step in plan(problem, device, tiles).all_launches)
    missing = [kernel for kernel in kernels if compile.find(kernel, device.arch) is None]
    if len(missing) > 1:
        compile.compile_all(missing, device.arch)


@functools.cache
def _device(index: int) -> Device:
    device = import_cupy().cuda.Device(index)
    return from_attributes(compile.target_of(int(device.compute_capability)), device.attributes)


@functools.cache
def _kernel(kernel: Specialization, device_index: int) -> Any:
    """The loaded entry point, allowed the shared memory it was planned with.

    It is CuPy's Function: the RawKernel around it would look up the current GPU's once more, in 0.9 us a launch.
    """
    import cupy

    cubin = compile.to_cubin(kernel, _device(device_index).arch)
    function = cupy.RawModule(path=str(cubin.path)).get_function(kernel.entry)
    function.max_dynamic_shared_size_bytes = dict(kernel.constants).get("kSharedBytes", 0)
    return function.kernel
