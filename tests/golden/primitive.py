"""One primitive of cuda_src/ptx in a small kernel: its inputs, what it must give, and the kernel's text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from emulator.both_paths import assert_same_bits

Arrays = dict[str, np.ndarray]
C_TYPES = {"float32": "float", "float64": "double", "float16": "uint16_t"}
SHARED_BYTES = 4096


@dataclass(frozen=True)
class TensorMap:
    """A TMA view of an array: the box that a copy moves (dimensions as the array's), the swizzle in bytes (0: none)."""

    array: str
    box: tuple[int, ...]
    swizzle: int = 128


@dataclass(frozen=True, eq=False)
class Primitive:
    """A kernel body over `params.<array>` and the thread index `t`, and what it must give.

    `rtol` is the largest relative error against `expected` (0: equal in every bit), `atol` what may add to it near 0.
    `prelude` stands before the kernel. Tensor maps are fields of `params` too, before the arrays. `max_arch` is for
    what later GPUs dropped.
    """

    name: str
    body: str
    inputs: Arrays
    outputs: Arrays
    expected: Callable[[Arrays], Arrays]
    threads: int = 32
    min_arch: int = 75
    max_arch: int = 999
    rtol: float = 0.0
    atol: float = 0.0
    headers: tuple[str, ...] = ()
    prelude: str = ""
    maps: Mapping[str, TensorMap] = field(default_factory=dict)
    shared_bytes: int = SHARED_BYTES

    @property
    def arrays(self) -> Arrays:
        return self.inputs | self.outputs

    @property
    def source(self) -> str:
        fields = "".join(f"  ptx::TensorMap {name};\n" for name in self.maps)
        fields += "".join(f"  {_pointer(a, name in self.outputs)} {name};\n" for name, a in self.arrays.items())
        return _KERNEL.format(
            headers="".join(f'#include "ptx/{header}.cuh"\n' for header in self.headers),
            fields=fields,
            prelude=self.prelude,
            threads=self.threads,
            body=self.body,
        )


_KERNEL = """\
#include "platform.cuh"
{headers}
struct Params {{
{fields}}};

{prelude}
extern "C" __global__ void __launch_bounds__({threads}, 1) primitive(const __grid_constant__ Params params) {{
  const int t = threadIdx.x;
{body}
}}
"""


def _pointer(array: np.ndarray, writable: bool) -> str:
    c_type = C_TYPES.get(array.dtype.name, f"{array.dtype.name}_t")
    return f"{c_type}*" if writable else f"const {c_type}*"


def rng_of(name: str) -> np.random.Generator:
    """Random numbers of its own for each name."""
    return np.random.default_rng(list(name.encode()))


def check(primitive: Primitive, outputs: Arrays) -> None:
    """Raise AssertionError where outputs are not what the oracle expects."""
    expected = primitive.expected(primitive.inputs)
    if primitive.rtol == 0:
        assert_same_bits(outputs, {name: value.astype(outputs[name].dtype) for name, value in expected.items()})
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=primitive.rtol, atol=primitive.atol, err_msg=name)
