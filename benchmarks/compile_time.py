"""Time that NVRTC takes for each kernel, cold: one after another, in a cache of its own, on one core.

    python benchmarks/compile_time.py --archs sm_75 sm_90a

The bar is 3 seconds for any one kernel.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time

from cupy_flash._src import compile
from cupy_flash._src.device import NAMED, named
from cupy_flash._src.plan import all_specializations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["sm_75", "sm_80", "sm_90a", "sm_100"], choices=NAMED)
    parser.add_argument("--elements", nargs="+", default=["Float16", "float"], help="BFloat16 and double exist too")
    parser.add_argument("--slowest", type=int, default=3, help="how many kernels to name for each architecture")
    options = parser.parse_args()
    print("| arch | family | kernels | median s | slowest s |\n|---|---|---|---|---|")
    for arch in options.archs:
        times: dict[str, dict[str, float]] = {}
        kernels = [k for k in all_specializations(named(arch)) if dict(k.types)["Element"] in options.elements]
        with tempfile.TemporaryDirectory() as folder:
            os.environ["CUPY_FLASH_CACHE_DIR"] = folder
            for i, kernel in enumerate(kernels):
                print(f"\r{arch} {i}/{len(kernels)}", end="", file=sys.stderr)
                start = time.perf_counter()
                compile.to_cubin(kernel, arch)
                times.setdefault(kernel.family, {})[str(kernel)] = time.perf_counter() - start
        print(end="\r", file=sys.stderr)
        for family, seconds in times.items():
            slowest = max(seconds.values())
            print(f"| {arch} | {family} | {len(seconds)} | {statistics.median(seconds.values()):.2f} | {slowest:.2f} |")
        together = {name: s for seconds in times.values() for name, s in seconds.items()}
        for name in sorted(together, key=together.__getitem__, reverse=True)[: options.slowest]:
            print(f"  {together[name]:.2f} s  {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
