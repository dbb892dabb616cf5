"""Error of the half-precision kernels on inputs with outliers: FlashAttention-3's table, without a GPU.

    pip install -e ".[emulator]" && python benchmarks/accuracy.py

Shah et al. 2024, section 4.3: entries of q, k and v from N(0, 1) + N(0, 100) Bernoulli(0.001), root mean square error
of the output against float64. "standard" is attention as frameworks compute it, with the scores and then the
probabilities stored in the type of the inputs; products, sums and the softmax itself run in float32.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from cupy_flash import attention_reference, flash_attention
from cupy_flash._src.problem import DTYPES


class Row(NamedTuple):
    """One line of the table: root mean square errors against float64."""

    dtype: str
    seqlen: int
    head_dim: int
    ours: float
    standard: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float16", "bfloat16"])
    parser.add_argument("--seqlens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--backend", default="emulator:sm_80", help="emulator:<architecture>, cpu or cuda")
    options = parser.parse_args()
    print(f"| {options.backend} | S | d | standard attention | cupy_flash | ratio |\n|---|---|---|---|---|---|")
    for row in measure(options.dtypes, options.seqlens, options.head_dims, options.heads, options.backend):
        print(f"| {row.dtype} | {row.seqlen} | {row.head_dim} | {row.standard:.2e} | {row.ours:.2e} | "
              f"{row.standard / row.ours:.2f} |", flush=True)  # fmt: skip


def measure(
    dtypes: Iterable[str], seqlens: Iterable[int], head_dims: Iterable[int], heads: int, backend: str
) -> Iterator[Row]:
    """The table; every line has the same seed."""
    for dtype, seqlen, head_dim in product(dtypes, seqlens, head_dims):
        rng = np.random.default_rng(0)
        q, k, v = (outliers(rng, (heads, seqlen, head_dim)).astype(DTYPES[dtype]) for _ in range(3))
        exact = attention_reference(q, k, v, compute_dtype=np.float64)
        ours, standard = _on(backend, q, k, v), standard_attention(q, k, v)
        yield Row(dtype, seqlen, head_dim, rmse(ours, exact), rmse(standard, exact))


def outliers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """N(0, 1), and N(0, 100) added to one entry in a thousand."""
    return rng.standard_normal(shape) + 10 * rng.standard_normal(shape) * (rng.random(shape) < 0.001)


def standard_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v, scores, probabilities and output rounded to the dtype of q."""
    dtype, scale = q.dtype, 1 / math.sqrt(q.shape[-1])

    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(dtype).astype(np.float32)

    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    s = rounded(scale * (q @ k.swapaxes(-1, -2)))
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    return rounded(rounded(p / p.sum(axis=-1, keepdims=True)) @ v)


def rmse(x: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square error."""
    return float(np.sqrt(np.mean((x.astype(np.float64) - exact) ** 2)))


def _on(backend: str, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    if backend != "cuda":
        return flash_attention(q, k, v, backend=backend)
    import cupy

    return cupy.asnumpy(flash_attention(*map(cupy.asarray, (q, k, v))))


if __name__ == "__main__":
    main()
