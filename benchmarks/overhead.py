"""Time that a call spends in Python before its kernels start: everything cached, launches and allocation stubbed.

    python benchmarks/overhead.py

What is left out is CuPy's: allocating the results and handing a kernel to the driver. The bar is 20 microseconds a
forward call.
"""

from __future__ import annotations

import argparse
import statistics
import timeit
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from cupy_flash import flash_attention, flash_attention_backward
from cupy_flash._src import backends, launch
from cupy_flash._src.backends.emulator import EmulatorBackend


class Stub(EmulatorBackend):
    """Plans and packs as a GPU's backend does, and stops before the launch."""

    def placed(self, **arrays: Any) -> AbstractContextManager[None]:
        """Nothing: NumPy's floating-point errors, which the emulator turns off in 1.6 us, are none of a GPU's."""
        return nullcontext()

    def address(self, array: Any) -> int:
        """CuPy keeps an address as a number; NumPy takes longer to find one than the rest of the packing."""
        return 0

    def run(self, step: Any, params: Any, tensors: Any) -> None:
        pass

    def forward(self, *args: Any) -> None:
        launch.forward(self, *args)

    def backward(self, *args: Any) -> tuple[Any, Any, Any]:
        return launch.backward(self, *args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    name = "emulator:sm_80"
    backends._instances[name] = Stub("sm_80")
    # Small arrays: the allocator's time for large ones is not ours.
    q, k = (np.zeros((2, heads, 32, 64), np.float16) for heads in (8, 2))
    out, lse = flash_attention(q, k, k, causal=True, return_lse=True, backend=name)
    calls = {
        "forward": lambda: flash_attention(q, k, k, causal=True, backend=name),
        "backward": lambda: flash_attention_backward(q, q, k, k, out, lse, causal=True, backend=name),
    }
    print("| call | median us | fastest us |\n|---|---|---|")
    for label, call in calls.items():
        times = [t / options.calls * 1e6 for t in timeit.repeat(call, number=options.calls, repeat=options.repeat)]
        print(f"| {label} | {statistics.median(times):.1f} | {min(times):.1f} |")


if __name__ == "__main__":
    main()
