"""What is measured: the cases, the work in each, and the numbers they are computed on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cupy_flash._src.cli.bench import options
from cupy_flash._src.problem import DTYPES

HIDDEN, TOKENS = 2048, 16384  # of the FlashAttention papers: 16k positions in all, heads of all sizes 2048 wide
SEQLENS = (512, 1024, 2048, 4096, 8192, 16384)
DECODE_TOKENS, DECODE_HEAD_DIM = 131072, 128
DECODE_SEQLENS = (1024, 4096, 16384, 65536, 131072)
DECODE_HEADS = ((16, 16), (64, 8))  # MHA and GQA
QUICK_SEQLENS, QUICK_DECODE_SEQLENS = (2048, 16384), (16384, 131072)
# Options as training has them: each with its mask, head dimension 128.
OPTIONS = (
    ("window1024", True, 16384),
    ("documents2", False, 8192),
    ("alibi", True, 4096),
    ("softcap50", True, 4096),
    ("lengths", False, 2048),
    ("bias", False, 1024),
    ("sinks", True, 4096),
    ("softcapmod50", True, 4096),  # functions, beside the built-in options above
    ("documentsmod2", False, 8192),
)
QUICK_OPTIONS = ("window1024", "documents2", "lengths")
REDUCED_HEADS, REDUCED_SEQLEN, REDUCED_DECODE_SEQLEN = 2, 128, 256  # about a second each in the emulator
POOL = 4194301  # a prime, so that no two rows of a tensor made of repeats of the pool are the same numbers


@dataclass(frozen=True)
class Case:
    """One thing to time: attention in one direction on one shape ("forward", "backward", "decode").

    Its fields are columns of the results, as strings there. `option` names one of `options.KINDS`.
    """

    direction: str
    dtype: str
    batch: int
    heads_q: int
    heads_k: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    causal: bool
    option: str = ""

    def __str__(self) -> str:
        heads = f"{self.heads_q}" if self.heads_q == self.heads_k else f"{self.heads_q}/{self.heads_k}"
        mask = " causal" * self.causal + f" {self.option}" * bool(self.option)
        return f"{self.direction} {self.dtype} D {self.head_dim}{mask} S {self.seqlen_k} B {self.batch} H {heads}"

    @property
    def group(self) -> int:
        return self.heads_q // self.heads_k

    @property
    def flops(self) -> int:
        """4 H D forward for each pair that is seen, of which causal has half as papers count; 2.5 times backward."""
        forward = int(4 * self.heads_q * self.head_dim * options.named(self.option).pairs(self))
        return forward * (5 if self.direction == "backward" else 2) // 2

    @property
    def bytes_moved(self) -> int:
        """What one pass must read and write: inputs and results once, of keys those that exist.

        Of options what has a gradient counts.
        """
        q = self.batch * self.heads_q * self.seqlen_q * self.head_dim
        option = options.named(self.option)
        kv = option.keys(self) * self.heads_k * self.head_dim
        learned = sum(map(prod, option.learned(self).values()))
        tensors = 4 * q + 4 * kv + 2 * learned if self.direction == "backward" else 2 * q + 2 * kv + learned
        return tensors * DTYPES[self.dtype].itemsize

    def reduced(self) -> Case:
        """The same for the emulator: few heads and short sequences."""
        longest = REDUCED_DECODE_SEQLEN if self.direction == "decode" else REDUCED_SEQLEN
        heads_k = min(self.heads_k, REDUCED_HEADS)
        return replace(
            self,
            batch=1,
            heads_q=heads_k * self.group,
            heads_k=heads_k,
            seqlen_q=min(self.seqlen_q, longest),
            seqlen_k=min(self.seqlen_k, longest),
            option=str(options.named(self.option).shortened(max(1, self.seqlen_k // longest))),
        )


def cases(dtype: str, quick: bool) -> list[Case]:
    """All cases, those that say most first: should time run out, the widest heads and short sequences are missing."""

    def training(*head_dims: int) -> list[Case]:
        return [
            Case(direction, dtype, TOKENS // s, HIDDEN // d, HIDDEN // d, s, s, d, causal)
            for s in sorted(QUICK_SEQLENS if quick else SEQLENS, reverse=True)
            for d in head_dims
            for causal in (False, True)
            for direction in ("forward", "backward")
        ]

    decode = [
        Case("decode", dtype, DECODE_TOKENS // s, *heads, 1, s, DECODE_HEAD_DIM, False)
        for s in sorted(QUICK_DECODE_SEQLENS if quick else DECODE_SEQLENS, reverse=True)
        for heads in DECODE_HEADS
    ]
    return [*training(128, 64), *decode, *_with_options(dtype, quick), *training(256)]


def _with_options(dtype: str, quick: bool) -> list[Case]:
    """Each option in training, and lengths in decoding from a cache that is filled to different lengths."""
    d, s = DECODE_HEAD_DIM, QUICK_DECODE_SEQLENS[0]
    heads = HIDDEN // d
    chosen = [x for x in OPTIONS if x[0] in QUICK_OPTIONS] if quick else OPTIONS
    return [
        *(
            Case(direction, dtype, TOKENS // s, heads, heads, s, s, d, causal, option)
            for option, causal, s in chosen
            for direction in (("forward",) if quick else ("forward", "backward"))
        ),
        Case("decode", dtype, DECODE_TOKENS // s, *DECODE_HEADS[-1], 1, s, d, False, "lengths"),
    ]


class Inputs(NamedTuple):
    """Views (B, H, S, D) of memory that lies as (B, S, H, D), as models have it."""

    q: Any
    k: Any
    v: Any
    dout: Any


class Numbers:
    """Makes inputs by viewing four buffers of N(0, 1): cases of one size share them.

    `xp` is cupy; NumPy serves the tests.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self._buffers: dict[tuple[str, str], Any] = {}

    def inputs(self, case: Case) -> Inputs:
        def tensor(name: str, heads: int, seqlen: int) -> Any:
            shape = case.batch, seqlen, heads, case.head_dim
            return self._buffer(name, case.dtype, int(np.prod(shape))).reshape(shape).swapaxes(1, 2)

        return Inputs(
            tensor("q", case.heads_q, case.seqlen_q),
            tensor("k", case.heads_k, case.seqlen_k),
            tensor("v", case.heads_k, case.seqlen_k),
            tensor("dout", case.heads_q, case.seqlen_q),
        )

    def _buffer(self, name: str, dtype: str, size: int) -> Any:
        found = self._buffers.get((name, dtype))
        if found is None or found.size < size:
            rng = np.random.default_rng(list(name.encode()))
            pool = self.xp.asarray(rng.standard_normal(POOL, np.float32).astype(DTYPES[dtype]))
            found = self._buffers[name, dtype] = self.xp.empty(size, DTYPES[dtype])
            for start in range(0, size, POOL):
                found[start : start + POOL] = pool[: size - start]
        return found[:size]


def row_blocks(case: Case, rows: int = 32) -> Iterator[slice]:
    """The first and the last rows: what is verified."""
    yield slice(0, min(rows, case.seqlen_q))
    if case.seqlen_q > rows:
        yield slice(max(rows, case.seqlen_q - rows), case.seqlen_q)
