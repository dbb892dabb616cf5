"""The CUDA kernels on NumPy arrays, executed by the emulator as if on a GPU of a named architecture."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from cupy_flash._src import compile, emulator, forks, launch, source
from cupy_flash._src.backends import Seal
from cupy_flash._src.backends.device_seal import DeviceSeal
from cupy_flash._src.backends.seal import names_of, refuse
from cupy_flash._src.device import named
from cupy_flash._src.operands import Cotangents, Gradients, Merge, Operands
from cupy_flash._src.plan import Launch
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.specialization import Specialization
from cupy_flash._src.toolchain import find_compiler

# What each kernel writes; everything else it is given is read-only, and the emulator holds it to that.
_WRITES = {
    "attention_forward": {"out", "lse", "partial_out", "partial_rows"},
    "attention_combine": {"out", "lse"},
    "attention_merge": {"out", "lse"},
    "attention_seal": {"query_digests", "key_digests"},
    "attention_find_changed": {"changed"},
    "attention_spoil": {"dq", "dk", "dv"},
    "attention_summaries": {"summary"},
    "attention_block_lists": {"of_queries", "of_keys"},
    "attention_delta": {"delta"},
    "attention_dkdv": {"dk", "dv", "dq_acc", "dk_acc", "dv_acc"},
    "attention_dq": {"dq", "dq_acc"},
    "attention_dterm": {"dterm", "dterm_parts"},
    "attention_dsinks": {"dterm", "dterm_parts"},
    "attention_sum_splits": {"dterm"},
    "attention_spoil_term": {"dterm"},
    "attention_convert_dq": {"dq"},
    "attention_convert_dkdv": {"dk", "dv"},
}


class _EmulatedSeal(DeviceSeal):
    """A device's, that need not wait to raise."""

    def check(self) -> Any:
        flags = super().check()
        refuse(names_of(flags))
        return flags

    def spoil(self, found: Any, gradients: Gradients) -> None:
        with emulator.run(continued=True):
            super().spoil(found, gradients)


class EmulatorBackend:
    """Plans for the device called `arch`, runs on the CPU under the current `cupy_flash.emulator.settings`.

    Raises
    ------
    ValueError
        If `arch` is not known.
    """

    namespace = np

    def __init__(self, arch: str = "sm_80") -> None:
        self.device = named(arch)

    def placed(self, **arrays: Any) -> AbstractContextManager[None]:
        return np.errstate(all="ignore")

    def address(self, array: Any) -> int:
        return array.__array_interface__["data"][0]

    def allocate(self, scratch: launch.Scratch) -> tuple[Any, int]:
        array = (np.zeros if scratch.zeroed else np.empty)(scratch.shape, scratch.dtype)
        return array, self.address(array)

    def run(self, step: Launch, params: np.ndarray, tensors: launch.Tensors) -> None:
        writes = _WRITES[step.kernel.entry]
        if dict(step.kernel.constants).get("kGather"):
            writes = writes | {name for name in tensors if name.startswith("gradient of")}
        buffers = [
            emulator.Buffer(name, *_extent(x), name in writes)
            for name, x in sorted(tensors.items(), key=lambda item: item[0] not in writes)
        ]
        text = _text(step.kernel, self.device.arch, emulator.current().path)
        emulator.launch(
            text, step.kernel.entry, (step.grid,), (step.block,), params.tobytes(), step.shared_bytes, buffers,
            shared_limit=self.device.shared_per_block,
        )  # fmt: skip

    def expect(self, problem: AttentionProblem) -> None:
        pass

    def forward(self, problem: AttentionProblem, operands: Operands) -> None:
        with emulator.run():
            launch.forward(self, problem, operands)

    def backward(self, problem: AttentionProblem, operands: Operands, cotangents: Cotangents) -> Gradients:
        with emulator.run():
            return launch.backward(self, problem, operands, cotangents)

    def merge(self, problem: AttentionProblem, parts: Merge) -> None:
        with emulator.run():
            launch.merge(self, problem, parts)

    def seal(self, problem: AttentionProblem, operands: Operands) -> Seal:
        with emulator.run(continued=True):  # what flash_attention_vjp does after its forward
            return _EmulatedSeal(self, problem, operands)

    def status(self) -> str:
        return f"the CUDA kernels on the CPU, planned for {self.device.arch}, {find_compiler().version}"


@functools.lru_cache(maxsize=512)
def _text(kernel: Specialization, arch: str, path: str) -> str:
    """C++ of a kernel: its own source with host headers, or NVRTC's PTX translated."""
    if path == "ptx":
        with forks.whole():  # 20 ms that few processes spend
            from cupy_flash._src.emulator.ptx import translate

        return translate(compile.to_ptx(kernel, arch))
    folders = (source.root() / "emulator", source.root())
    return source.flatten(kernel.source, virtual={"specialization.cuh": kernel.prelude()}, search=folders)


def _extent(x: np.ndarray) -> tuple[int, int]:
    """Address and length in bytes of the memory that a view spans, holes included."""
    reach = [(n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True) if x.size]
    low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach)
    return x.ctypes.data + low, high - low + x.itemsize if x.size else 0
