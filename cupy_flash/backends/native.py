"""The CPU backend's compiled tier: tiled attention in C++, compiled at first use, scheduled from here.

Work items are those of the NumPy tier: (head, block of queries) forward, (key head, block of keys) backward. Each
is a call of a function in ``cuda_src/cpu``, during which other threads run Python.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cupy_flash import source
from cupy_flash.backends import threads
from cupy_flash.backends.blocks import blocks, end_key, first_query
from cupy_flash.problem import AttentionProblem
from cupy_flash.toolchain import compile_shared, cpu_features

QUERY_BLOCK = 192  # whole panels of queries for every vector width
BACKWARD_QUERY_BLOCK = 192
KEY_BLOCK = 480  # whole tiles of 60 keys, and nearly of 64
INLINE_WORK = 2**22  # multiplications that take less time than a wake-up of the other threads

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti", "-w")
_ISA_FLAGS = {
    "AVX-512": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx2", "fma"),
    "AVX2": ("avx2", "fma"),
    "portable": (),
}
_DTYPES = ("float16", "bfloat16", "float32", "float64")  # in the order of enum DType

Array = np.ndarray
Item = tuple[int, int, int]  # a head and a range of rows

_BYTES = np.dtype(np.uint8)
_scratch = threads.Scratch()


class _Strides(ctypes.Structure):
    _fields_ = (("row", ctypes.c_int64), ("col", ctypes.c_int64))


class _Shape(ctypes.Structure):
    """Shape of cuda_src/cpu/shape.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "seqlen_q", "seqlen_k", "head_dim", "head_dim_v", "q_offset")),
        ("scale", ctypes.c_double),
        *((name, _Strides) for name in ("q", "k", "v", "out", "dout")),
        *((name, ctypes.c_int64) for name in ("lse", "dlse")),
    )


def isa() -> str:
    """The widest instruction set that the source knows and this CPU has."""
    return next(name for name, features in _ISA_FLAGS.items() if set(features) <= cpu_features())


@functools.cache
def library(isa: str) -> ctypes.CDLL:
    """The functions of ``cuda_src/cpu/attention.cpp`` compiled for an instruction set.

    Raises
    ------
    ToolchainError
        If there is no compiler or it refuses the source.
    """
    loaded = ctypes.CDLL(str(compile_library(isa)))
    pointer, integer, shape = ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(_Shape)
    for name, result, arguments in (
        ("forward_scratch", integer, [shape, integer]),
        ("backward_scratch", integer, [shape, integer, integer]),
        ("forward", None, [shape, *[pointer] * 5, *[integer] * 2, pointer]),
        ("load_keys", None, [shape, *[pointer] * 2, *[integer] * 4, pointer]),
        ("backward", None, [shape, *[pointer] * 5, *[integer] * 6, pointer]),
        ("add_dq", None, [shape, pointer, *[integer] * 4, pointer]),
        ("store_keys", None, [shape, *[pointer] * 2, *[integer] * 4, pointer]),
    ):
        function = getattr(loaded, f"attention_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def compile_library(isa: str) -> Path:
    """The library of an instruction set, from the cache or the compiler."""
    return compile_shared(
        source.flatten("cpu/attention.cpp"),
        "attention",
        flags=(*_FLAGS, *(f"-m{feature}" for feature in _ISA_FLAGS[isa])),
        freestanding=True,
        folder="cpu",
        notice="cupy_flash: compiling the CPU backend (once; a few seconds)",
    )


def forward(problem: AttentionProblem, q: Array, k: Array, v: Array, out: Array, lse: Array) -> None:
    """Write attention of `q`, `k`, `v` into `out` and `lse`; shapes are those of `problem`."""
    first = first_query(problem)
    if first:
        out[..., :first, :] = 0
        lse[..., :first] = -np.inf
    functions = library(isa())
    shape = _shape(problem, q=q, k=k, v=v, out=out, lse=lse)
    size = functions.attention_forward_scratch(shape, min(QUERY_BLOCK, problem.seqlen_q))
    q_at, k_at, v_at, out_at, lse_at = _addresses(q), _addresses(k), _addresses(v), _addresses(out), _addresses(lse, 1)

    def query_block(item: Item) -> None:
        head, i0, i1 = item
        key_head = head // problem.group_size
        functions.attention_forward(
            shape, q_at[head], k_at[key_head], v_at[key_head], out_at[head], lse_at[head], i0, i1 - i0, _memory(size)
        )

    # Head by head, so that the threads share its keys in the cache. The last queries first: when causal they see
    # the most keys.
    rows = blocks(first, problem.seqlen_q, QUERY_BLOCK)[::-1]
    _run(query_block, [(head, i0, i1) for head in range(len(q_at)) for i0, i1 in rows], problem)


def backward(
    problem: AttentionProblem,
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    dlse: Array | None,
) -> tuple[Array, Array, Array]:
    """Return dq, dk, dv; shapes are those of `problem`."""
    dq = np.zeros(problem.q_shape, problem.accumulator)
    dk, dv = np.zeros(problem.k_shape, problem.storage), np.zeros(problem.v_shape, problem.storage)
    functions = library(isa())
    shape = _shape(problem, q=q, k=k, v=v, out=out, dout=dout, lse=lse, dlse=dlse)
    keys, queries = min(KEY_BLOCK, problem.seqlen_k), min(BACKWARD_QUERY_BLOCK, problem.seqlen_q)
    size = functions.attention_backward_scratch(shape, keys, queries)
    k_at, v_at, dk_at, dv_at, dq_at = (_addresses(x) for x in (k, v, dk, dv, dq))
    statistics = _addresses(lse, 1), _addresses(dlse, 1) if dlse is not None else [None] * len(dq_at)
    heads = list(zip(_addresses(dout), _addresses(q), _addresses(out), *statistics, strict=True))
    query_blocks = blocks(first_query(problem), problem.seqlen_q, BACKWARD_QUERY_BLOCK)
    turns = threads.Turns()

    def key_block(item: Item) -> None:
        """dk and dv of a block of keys, and its part of dq."""
        key_head, j0, j1 = item
        memory = _memory(size)
        functions.attention_load_keys(shape, k_at[key_head], v_at[key_head], j0, j1 - j0, keys, queries, memory)
        for head in range(key_head * problem.group_size, (key_head + 1) * problem.group_size):
            for i0, i1 in query_blocks:
                if end_key(problem, i1 - 1) <= j0:
                    continue
                block = j0, j1 - j0, i0, i1 - i0
                functions.attention_backward(shape, *heads[head], *block, keys, queries, memory)
                turns.wait((head, i0), j0 // KEY_BLOCK)
                functions.attention_add_dq(shape, dq_at[head], i0, i1 - i0, keys, queries, memory)
                turns.done((head, i0))
        functions.attention_store_keys(shape, dk_at[key_head], dv_at[key_head], j0, j1 - j0, keys, queries, memory)

    # All heads of one key block, then of the next: threads then rarely meet in one head, where the order of
    # the sums in dq would make them wait. When causal, the most queries see the first key blocks.
    key_blocks = blocks(0, problem.seqlen_k, KEY_BLOCK)
    items = [(head, j0, j1) for j0, j1 in key_blocks for head in range(len(k_at))]
    _run(turns.guard(key_block), items, problem)
    return dq.astype(problem.storage, copy=False), dk, dv


def _run(function: Callable[[Item], None], items: Sequence[Item], problem: AttentionProblem) -> None:
    work = len(items) * problem.seqlen_k * (problem.head_dim + problem.head_dim_v) * min(problem.seqlen_q, QUERY_BLOCK)
    threads.run(function, items, use_blas=False, use_helpers=work > INLINE_WORK)


def _memory(size: int) -> int:
    return _scratch("native", (size,), _BYTES).ctypes.data


def _shape(problem: AttentionProblem, *, lse: Array, dlse: Array | None = None, **matrices: Array) -> _Shape:
    strides: dict[str, Any] = {name: _Strides(*x.strides[-2:]) for name, x in matrices.items()}
    return _Shape(
        dtype=_DTYPES.index(problem.dtype),
        seqlen_q=problem.seqlen_q,
        seqlen_k=problem.seqlen_k,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        q_offset=problem.q_offset if problem.causal else problem.seqlen_k,
        scale=problem.scale,
        lse=lse.strides[-1],
        dlse=0 if dlse is None else dlse.strides[-1],
        **strides,
    )


def _addresses(x: Array, axes: int = 2) -> list[int]:
    """Address of each head's first element, in the order of the leading axes; `axes` belong to a head."""
    addresses = [x.ctypes.data]
    for n, stride in zip(x.shape[:-axes], x.strides[:-axes], strict=True):
        addresses = [address + i * stride for address in addresses for i in range(n)]
    return addresses
