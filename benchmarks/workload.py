"""One forward and one backward, for compute-sanitizer and Nsight Compute to run: only our kernels are launched.

compute-sanitizer --tool memcheck python benchmarks/workload.py --seqlen 256
ncu --set full --page raw --csv python benchmarks/workload.py --seqlen 4096 --heads 16 > ncu.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from cupy_flash import flash_attention, flash_attention_backward
from cupy_flash._src.cli.arguments import add_options, add_wrt
from cupy_flash._src.cli.arguments import options as options_of
from cupy_flash._src.components import INPUTS
from cupy_flash._src.problem import DTYPES


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cuda", help="cuda, cpu, emulator or emulator:<architecture>")
    parser.add_argument("--dtype", default="float16", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--heads-k", type=int, help="heads of keys, by default as many")
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--seqlen-q", type=int, help="queries, by default as many as keys; 1 is a step of decoding")
    parser.add_argument("--head-dim", type=int, default=128)
    add_options(parser)
    add_wrt(parser, "q k v")
    options = parser.parse_args(argv)
    q_shape, k_shape = (
        (options.batch, heads, seqlen, options.head_dim)
        for heads, seqlen in (
            (options.heads, options.seqlen_q or options.seqlen),
            (options.heads_k or options.heads, options.seqlen),
        )
    )
    rng = np.random.default_rng(0)
    # Made and summed on the host, so that CuPy has no kernels to launch.
    inputs = [rng.standard_normal(s, np.float32).astype(DTYPES[options.dtype]) for s in (q_shape, k_shape, k_shape)]
    dout = rng.standard_normal(q_shape, np.float32).astype(DTYPES[options.dtype])
    given = options_of(options, (*q_shape[:-1], k_shape[-2]))
    results = run(*inputs, dout, given, tuple(options.wrt or INPUTS), options.backend)
    results = {name: np.where(np.isneginf(x), 0, x) for name, x in results.items()}  # lse of a row that sees no key
    print("checksum", *(f"{name} {np.abs(x.astype(np.float64)).sum():.6g}" for name, x in results.items()))


def run(
    q: Any, k: Any, v: Any, dout: Any, given: dict[str, Any], wrt: tuple[str, ...], backend: str
) -> dict[str, np.ndarray]:
    """Results on the host, by name; `given` are the options of the calls."""
    arrays = [q, k, v, dout]
    if backend == "cuda":
        import cupy

        cupy.cuda.set_allocator(None)  # compute-sanitizer sees no overrun within a block of the memory pool
        arrays = [cupy.asarray(x) for x in arrays]
        given = {name: cupy.asarray(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
    q, k, v, dout = arrays
    out, lse = flash_attention(q, k, v, **given, return_lse=True, backend=backend)
    grads = flash_attention_backward(dout, q, k, v, out, lse, **given, wrt=wrt, backend=backend)
    results = {"out": out, "lse": lse, **{f"d{name}": x for name, x in zip(wrt, grads, strict=True)}}
    return {name: x if isinstance(x, np.ndarray) else x.get() for name, x in results.items()}


if __name__ == "__main__":
    main()
