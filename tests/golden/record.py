"""Records what a GPU answers to each primitive: `python tests/golden/record.py` writes primitives.npz.

The emulator is compared with the record ever after (tests/emulator/test_golden.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as under pytest: the package and the tests are importable
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from golden.primitives import PRIMITIVES, SHARED_BYTES, Arrays, Primitive

from cupy_flash import source
from cupy_flash.compile import target_of, text_to_cubin

FILE = Path(__file__).with_name("primitives.npz")


def run_on_gpu(primitive: Primitive) -> Arrays:
    """Run one primitive's kernel on the current device; its outputs."""
    import cupy

    text = source.flatten("primitive.cu", virtual={"primitive.cu": primitive.source})
    compiled = text_to_cubin(text, "primitive.cu", "primitive", target_of(int(cupy.cuda.Device().compute_capability)))
    kernel = cupy.RawModule(path=str(compiled.path)).get_function("primitive")
    memory = {name: cupy.asarray(array) for name, array in primitive.arrays.items()}
    params = np.zeros(1, [(name, np.uint64) for name in memory])
    for name, array in memory.items():
        params[name] = array.data.ptr
    kernel((1,), (primitive.threads,), (params,), shared_mem=SHARED_BYTES)
    return {name: cupy.asnumpy(memory[name]) for name in primitive.outputs}


def available(compute_capability: int) -> list[Primitive]:
    """The primitives that a device has."""
    return [primitive for primitive in PRIMITIVES if primitive.min_arch <= compute_capability]


def record_all() -> Arrays:
    """Outputs of every primitive on the current device, by "primitive/output"."""
    import cupy

    device = cupy.cuda.Device()
    return {
        f"{primitive.name}/{name}": value
        for primitive in available(int(device.compute_capability))
        for name, value in run_on_gpu(primitive).items()
    }


if __name__ == "__main__":
    np.savez_compressed(FILE, **record_all())
    print(f"wrote {FILE}")
