"""What is measured: sections of cases, and the numbers that a case is computed on."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from cupy_flash._src import problem
from cupy_flash._src.backends import native
from cupy_flash._src.cli.bench.cases import Case as BenchCase
from cupy_flash._src.cli.bench.cases import Inputs

SECTIONS = ("speed", "small", "decode", "window", "bias", "memory", "growth", "compile")
DTYPES = ("float32", "bfloat16", "float16")
FORWARD, BOTH = "forward", "fwd+bwd"
HEADS = 8
SMALL_SEQLENS, SMALL_DTYPES = (64, 128, 256), ("float32", "bfloat16")
DECODE_HEADS, DECODE_SEQLEN = ((8, 8), (32, 8), (1, 1)), 4096
WINDOW, WINDOW_SEQLENS = "window512", (4096, 16384)  # an option of `bench`: 512 keys before, none behind
BIAS, BIAS_ROWS, BIAS_SEQLENS = "bias", 32, (256, 512)
MEMORY_SEQLEN, MEMORY_GROWTH_SEQLENS = 16384, (2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Case:
    """One line of a table; its fields are columns of the CSV.

    `what` is "forward" or "fwd+bwd", or the instruction set that is compiled for, when the rest has no meaning.
    """

    section: str
    what: str
    dtype: str = ""
    heads_q: int = 0
    heads_k: int = 0
    seqlen_q: int = 0
    seqlen_k: int = 0
    head_dim: int = 0
    causal: bool = False
    option: str = ""
    batch: int = 1

    def __str__(self) -> str:
        seqlen = f"{self.seqlen_k}" if self.seqlen_q == self.seqlen_k else f"{self.seqlen_q}x{self.seqlen_k}"
        mask = " causal" * self.causal + f" {self.option}" * bool(self.option)
        return f"{self.dtype} {self.what} S {seqlen} d {self.head_dim} H {self.heads}{mask}"

    @property
    def heads(self) -> str:
        """Of queries, behind a batch of more than one; and of keys where these are others."""
        batch = f"{self.batch}x" if self.batch > 1 else ""
        return f"{batch}{self.heads_q}" + (f"/{self.heads_k}" if self.heads_q != self.heads_k else "")

    @property
    def bench(self) -> BenchCase:
        """The case of `bench` that has the same results: of a backward its gradients."""
        sizes = self.heads_q, self.heads_k, self.seqlen_q, self.seqlen_k, self.head_dim
        direction = "forward" if self.what == FORWARD else "backward"
        return BenchCase(direction, self.dtype, self.batch, *sizes, self.causal, self.option)

    @property
    def flops(self) -> int:
        """4 H Sq Sk d forward, half of it if causal, of a window what it shows; 3.5 times as much with the backward."""
        forward = replace(self.bench, direction="forward").flops
        return forward * (7 if self.what == BOTH else 2) // 2


def square(section: str, what: str, dtype: str, seqlen: int, head_dim: int, causal: bool = False) -> Case:
    """As many keys as queries, 8 heads."""
    return Case(section, what, dtype, HEADS, HEADS, seqlen, seqlen, head_dim, causal)


def cases(
    sections: Iterable[str],
    dtypes: Sequence[str],
    seqlens: Sequence[int],
    half_seqlens: Sequence[int],
    head_dims: Sequence[int],
    quick: bool,
) -> Iterator[Case]:
    """Cases of the sections, each once; growth needs some of speed's and of memory's, several lengths of each."""
    if "speed" in sections:
        for dtype in dtypes:
            lengths = seqlens if dtype == "float32" else half_seqlens
            for s, d, causal, what in product(sorted(lengths), head_dims, (False, True), (FORWARD, BOTH)):
                yield square("speed", what, dtype, s, d, causal)
    elif "growth" in sections:
        for s, what in product(sorted(seqlens), (FORWARD, BOTH)):
            yield square("speed", what, dtypes[0], s, head_dims[0])
    small_dtypes = [dtype for dtype in SMALL_DTYPES if dtype in dtypes]
    if "small" in sections:
        for dtype, s, what in product(small_dtypes, SMALL_SEQLENS, (FORWARD, BOTH)):
            yield square("small", what, dtype, s, 64)
    if "decode" in sections:
        for dtype, d, heads in product(small_dtypes, (64, 128), DECODE_HEADS):
            yield Case("decode", FORWARD, dtype, *heads, 1, DECODE_SEQLEN, d)
    if "window" in sections:
        for s, what in product(WINDOW_SEQLENS[:1] if quick else WINDOW_SEQLENS, (FORWARD, BOTH)):
            yield Case("window", what, dtypes[0], HEADS, HEADS, s, s, 64, True, WINDOW)
    if "bias" in sections:
        lengths_of_pairs = BIAS_SEQLENS[:1] if quick else BIAS_SEQLENS
        for dtype, s, d, what in product(small_dtypes, lengths_of_pairs, (32, 64), (FORWARD, BOTH)):
            yield Case("bias", what, dtype, HEADS, HEADS, s, s, d, option=BIAS, batch=BIAS_ROWS)
        heads = HEADS * BIAS_ROWS  # each with a bias of its own
        yield Case("bias", FORWARD, dtypes[0], heads, heads, BIAS_SEQLENS[0], BIAS_SEQLENS[0], 64, option=BIAS)
    lengths = {MEMORY_SEQLEN} if "memory" in sections else set()
    if "growth" in sections:
        lengths |= set(MEMORY_GROWTH_SEQLENS)
    for s in sorted(length for length in lengths if length < MEMORY_SEQLEN or not quick):
        yield square("memory", BOTH, "float32", s, 64)
    if "compile" in sections:
        yield from (Case("compile", isa) for isa in native.ISAS)


def make_inputs(case: Case) -> Inputs:
    """q, k, v and dout of N(0, 1), shapes (batch, H, S, d)."""
    heads = (case.batch, case.heads_q), (case.batch, case.heads_k)
    return _make_inputs(case.dtype, *heads, case.seqlen_q, case.seqlen_k, case.head_dim)


@functools.lru_cache(maxsize=1)
def _make_inputs(
    dtype: str, heads_q: tuple[int, ...], heads_k: tuple[int, ...], seqlen_q: int, seqlen_k: int, head_dim: int
) -> Inputs:
    rng = np.random.default_rng(0)
    shape_q, shape_k = (*heads_q, seqlen_q, head_dim), (*heads_k, seqlen_k, head_dim)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(problem.DTYPES[dtype], copy=False)

    return Inputs(q=normal(shape_q), k=normal(shape_k), v=normal(shape_k), dout=normal(shape_q))
