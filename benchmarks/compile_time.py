"""Time that NVRTC takes for each kernel, cold: one after another, in a cache of its own, on one core.

    python benchmarks/compile_time.py --archs sm_75 sm_90a
    python benchmarks/compile_time.py --functions

The bar is 3 seconds for any one kernel. With `--functions` those of calls with functions stand beside those without
options, of which they are to take 1.3 times at most, and those with built-in options; and what the CPU compiles, in 2
seconds at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cupy_flash import mods
from cupy_flash._src import compile, kernels
from cupy_flash._src.backends import native
from cupy_flash._src.device import NAMED, named
from cupy_flash._src.plan import all_specializations
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.specialization import Specialization, Variant

CALLS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal and softcap": {"causal": True, "softcap": 30.0},
    "the same as functions": {"mask_mod": mods.causal, "score_mod": mods.softcap, "score_args": (30.0,)},
    "a mask and a bias": {"mask": np.zeros((1, 1), np.bool_), "bias": np.zeros((1, 1), np.float32)},
    "documents and a relative table": {
        "mask_mod": mods.documents, "mask_args": (np.zeros((1, 1), np.int32),) * 2,
        "score_mod": mods.relative, "score_args": (np.zeros((1, 257), np.float32),),
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["sm_75", "sm_80", "sm_90a", "sm_100"], choices=NAMED)
    parser.add_argument("--elements", nargs="+", default=["Float16", "float"], help="BFloat16 and double exist too")
    parser.add_argument("--slowest", type=int, default=3, help="how many kernels to name for each architecture")
    parser.add_argument("--functions", action="store_true", help="only what functions cost, in float16")
    options = parser.parse_args()
    if options.functions:
        return compare_functions(options.archs)
    print("| arch | family | kernels | median s | slowest s |\n|---|---|---|---|---|")
    for arch in options.archs:
        times: dict[str, dict[str, float]] = {}
        made = [k for k in all_specializations(named(arch)) if dict(k.types)["Element"] in options.elements]
        with empty_cache():
            for i, kernel in enumerate(made):
                print(f"\r{arch} {i}/{len(made)}", end="", file=sys.stderr)
                times.setdefault(kernel.family, {})[str(kernel)] = seconds_of(compile.to_cubin, kernel, arch)
        print(end="\r", file=sys.stderr)
        for family, seconds in times.items():
            slowest = max(seconds.values())
            print(f"| {arch} | {family} | {len(seconds)} | {statistics.median(seconds.values()):.2f} | {slowest:.2f} |")
        together = {name: s for seconds in times.values() for name, s in seconds.items()}
        for name in sorted(together, key=together.__getitem__, reverse=True)[: options.slowest]:
            print(f"  {together[name]:.2f} s  {name}", file=sys.stderr)
    return None


def compare_functions(archs: list[str]) -> None:
    """Best of three for each kernel."""
    print("| kernel | options | seconds | of none |\n|---|---|---|---|")
    for arch in archs:
        found = {name: dict(kernels_of(arch, call)) for name, call in CALLS.items()}
        for kernel in found["none"]:
            plain = nvrtc_seconds(found["none"][kernel], arch)
            for name in CALLS:
                seconds = plain if name == "none" else nvrtc_seconds(found[name][kernel], arch)
                print(f"| {arch} {kernel} | {name} | {seconds:.2f} | {seconds / plain:.2f} |", flush=True)
    x = np.zeros((1, 1, 1, 64), np.float32)
    for name in ("the same as functions", "documents and a relative table"):
        problem = AttentionProblem.from_arrays(x, x, x, **CALLS[name])
        seconds = min(cold(native.compile_mods.__wrapped__, problem) for _ in range(3))
        print(f"| CPU | {name} | {seconds:.2f} | |", flush=True)


def kernels_of(arch: str, call: dict[str, Any]) -> Iterator[tuple[str, Specialization]]:
    for head_dim in (64, 128):
        variant = Variant.of("float16", head_dim, **call)
        yield f"forward, D {head_dim}", kernels.forward(variant, named(arch))
        yield f"dkdv, D {head_dim}", kernels.dkdv(variant, named(arch), atomic_dq=True)


def nvrtc_seconds(kernel: Specialization, arch: str) -> float:
    return min(cold(compile.to_cubin, kernel, arch) for _ in range(3))


def cold(call: Callable[..., Any], *arguments: Any) -> float:
    native._compiled_mod.cache_clear()
    with empty_cache():
        return seconds_of(call, *arguments)


def seconds_of(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


@contextmanager
def empty_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CUPY_FLASH_CACHE_DIR"] = folder
        yield


if __name__ == "__main__":
    main()
