"""Time that a repeated call spends in Python before its kernels start, on a machine without a GPU.

    python benchmarks/overhead.py

It is the whole of a call through the backend "cuda" and through CuPy, whose own code looks at the arrays, takes memory
from its pool and gives it back, and hands the parameters to the driver. Left out is what the CUDA runtime and driver
take themselves: `driverless` stands in for them, with 0.3 us for each kernel, memset and change of the device.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import driverless  # before CuPy
import numpy as np

from cupy_flash import flash_attention, flash_attention_backward, flash_attention_vjp, merge_attention, mods


class Clock:
    """Seconds from the beginning of a call until its first kernel and until its return."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.kernels = call, 0

    def launch(self, *_: int) -> None:
        if not self.kernels:
            self.first = perf_counter()
        self.kernels += 1

    def measure(self) -> tuple[float, float]:
        self.kernels, begin = 0, perf_counter()
        self.call()
        end = perf_counter()
        return self.first - begin, end - begin


def calls() -> dict[str, Callable[[], Any]]:
    import cupy

    q = cupy.empty((2, 16, 4096, 128), np.float16)
    few = cupy.empty((2, 2, 512, 128), np.float16)
    out, lse = flash_attention(q, q, q, causal=True, return_lse=True)
    vjp = flash_attention_vjp(q, q, q, causal=True)[1]
    functions: dict[str, Any] = {"score_mod": mods.softcap, "score_args": (30.0,), "mask_mod": mods.causal}
    numbers = cupy.empty((2, 4096), np.int32)
    documents: dict[str, Any] = {"mask_mod": mods.documents, "mask_args": (numbers, numbers)}
    return {
        "forward": lambda: flash_attention(q, q, q, causal=True),
        "forward, one query": lambda: flash_attention(q[:, :, :1], q, q, causal=True),
        "backward": lambda: flash_attention_backward(q, q, q, q, out, lse, causal=True),
        "backward, deterministic": lambda: flash_attention_backward(
            q, q, q, q, out, lse, causal=True, deterministic=True
        ),
        "backward, few keys": lambda: flash_attention_backward(q, q, few, few, out, lse, causal=True),
        "vjp: forward": lambda: flash_attention_vjp(q, q, q, causal=True),
        "vjp: backward": lambda: vjp(q),
        "forward, functions": lambda: flash_attention(q, q, q, **functions),
        "forward, documents": lambda: flash_attention(q, q, q, **documents),
        "backward, functions": lambda: flash_attention_backward(q, q, q, q, out, lse, **functions),
        "merge": lambda: merge_attention(out, lse, out, lse),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    clocks = {label: Clock(call) for label, call in calls().items()}
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in clocks}
    for _ in range(options.repeat):
        for label, clock in clocks.items():
            driverless.on_launch = clock.launch
            times[label] += [clock.measure() for _ in range(options.calls)]
    print("| call | kernels | us until the first: median | fastest | us until the return: median | fastest |")
    print("|---|---|---|---|---|---|")
    for label, clock in clocks.items():
        columns = [f"{1e6 * of(x):.1f}" for x in zip(*times[label], strict=True) for of in (statistics.median, min)]
        print(f"| {label} | {clock.kernels} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
