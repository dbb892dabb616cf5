"""The CPU backend's compiled tier: tiled attention in C++, compiled at first use.

A call describes arrays to a function of ``cuda_src/cpu``, which shares the work among its threads while others run
Python. After a second it comes back between two items of work, so that an interrupt is heeded; no thread is then at
work.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cupy_flash._src import source
from cupy_flash._src.backends import threads
from cupy_flash._src.backends.blocks import first_query
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.toolchain import (
    InterruptedCompilerError,
    ToolchainError,
    compile_shared,
    cpu_features,
    feature_flags,
    is_x86,
    load,
)

INLINE_WORK = 2**20  # multiply-adds that take less time than to wake other threads
FEW_QUERIES = 4  # with fewer to a key, reading it takes most of the time: as long as so many multiply-adds
KEPT_BYTES = 2**25  # of memory for the next call
CACHED_HEADS = 1024  # of a call whose description is kept: it has numbers for each

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti", "-w")
_AVX512 = ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx2", "fma")
ISAS = {  # the instruction sets that each asks for, the widest first
    "AVX-512 BF16": (*_AVX512, "avx512bf16"),
    "AVX-512": _AVX512,
    "AVX2": ("avx2", "fma"),
    "portable": (),
}
ARITHMETIC = {"float32": "float", "float64": "double"}  # dtypes of the arithmetic, and their C++ types
_DTYPES = ("float16", "bfloat16", "float32", "float64")  # in the order of enum DType
_ARRAYS = ("q", "k", "v", "out", "lse", "dout", "dlse", "dq", "dk", "dv")

Array = np.ndarray


class _Layout(ctypes.Structure):
    _fields_ = (("heads", ctypes.c_void_p), ("row", ctypes.c_int64), ("col", ctypes.c_int64))


_SIZES = (
    "dtype", "out_dtype", "heads_q", "heads_k", "seqlen_q", "seqlen_k", "head_dim", "head_dim_v", "q_offset",
    "first_query",
)  # fmt: skip


class _Shape(ctypes.Structure):
    """Shape of cuda_src/cpu/shape.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_double),
        *((name, _Layout) for name in _ARRAYS),
    )


class _Call(ctypes.Structure):
    """Call of cuda_src/cpu/shape.h."""

    _fields_ = (
        ("shape", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        ("memory", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
        ("next", ctypes.c_int64),
    )


def isas() -> list[str]:
    """Those of `ISAS` that CPUs of this machine's kind may have."""
    return list(ISAS) if is_x86() else ["portable"]


@functools.cache
def isa(arithmetic: str) -> str:
    """The widest of `ISAS` that this CPU has and the compiler takes: g++ 9 knows no AVX-512 BF16."""
    *wide, narrowest = (name for name, features in ISAS.items() if cpu_features().issuperset(features))
    for name in wide:
        try:
            compile_library(name, arithmetic)
            return name
        except InterruptedCompilerError:
            raise
        except ToolchainError:  # where it is not for the flags, the narrowest fails too, and says why
            continue
    return narrowest


@functools.cache
def library(isa: str, arithmetic: str) -> dict[str, Callable[[_Call], int]]:
    """The functions of ``cuda_src/cpu/attention.cpp`` compiled for an instruction set and a type of arithmetic.

    Raises
    ------
    ToolchainError
        If there is no compiler or it refuses the source.
    """
    loaded = load(compile_library(isa, arithmetic))
    functions = {}
    for name in ("forward", "forward_memory", "backward", "backward_memory", "digest"):
        function = functions[name] = getattr(loaded, f"attention_{name}")
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.POINTER(_Call)]
    return functions


def compile_library(isa: str, arithmetic: str = "float32") -> Path:
    """The library of an instruction set and a type of arithmetic, from the cache or the compiler."""
    return compile_shared(
        source.flatten("cpu/attention.cpp"),
        "attention",
        flags=(*_FLAGS, f"-DNUMBER={ARITHMETIC[arithmetic]}", *feature_flags(ISAS[isa])),
        freestanding=True,
        folder="cpu",
        notice=f"cupy_flash: compiling the CPU backend for {arithmetic} (once; a few seconds)",
    )


def forward(problem: AttentionProblem, q: Array, k: Array, v: Array, out: Array, lse: Array) -> None:
    """Write attention of `q`, `k`, `v` into `out` and `lse`; shapes are those of `problem`."""
    first = first_query(problem)
    if first:
        out[..., :first, :] = 0
        lse[..., :first] = -np.inf
    if lse[..., first:].size:
        _run("forward", problem, (q, k, v, out, lse))


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
    dq = np.empty(problem.q_shape, problem.out_storage)
    dk, dv = (np.empty(shape, problem.storage) for shape in (problem.k_shape, problem.v_shape))
    first = first_query(problem)
    if first:
        dq[..., :first, :] = 0
    if dk.size:  # without queries too: the gradients are then 0
        _run("backward", problem, (q, k, v, out, lse, dout, dlse, dq, dk, dv))
    return dq, dk, dv


def digest(problem: AttentionProblem, q: Array, k: Array, v: Array, out: Array, lse: Array) -> Array:
    """What the arrays hold, in 64 bits for each head of q (rows) and array (columns)."""
    digests = np.zeros((math.prod(problem.batch) * problem.num_heads_q, 5), np.uint64)
    _run("digest", problem, (q, k, v, out, lse), digests)
    return digests


def _run(name: str, problem: AttentionProblem, arrays: tuple[Array | None, ...], result: Array | None = None) -> None:
    """Call the function of that name on arrays in the order of `_ARRAYS`; its memory is `result` or borrowed."""
    describe = _shape if math.prod(problem.batch) * problem.num_heads_q <= CACHED_HEADS else _shape.__wrapped__
    shape = describe(problem, tuple([None if x is None else x.strides for x in arrays]))
    functions = library(isa(problem.arithmetic), problem.arithmetic)
    call = _Call(shape.address, *[None if x is None else _address(x) for x in arrays])
    call.threads = threads.num_threads() if shape.work > INLINE_WORK else 1
    memory = _borrow(functions[f"{name}_memory"](call)) if result is None else result
    call.memory = _address(memory)
    function = functions[name]
    while function(call):
        pass
    if result is None:
        _give_back(memory)


def _address(x: Array) -> int | None:
    """Address of the first element. NumPy's own ``x.ctypes.data`` takes 1.4 us, and a small call 25 in all."""
    if _DATA is None:
        return x.ctypes.data
    return ctypes.c_void_p.from_address(id(x) + _DATA).value


def _data_offset() -> int | None:
    """Where an array's object keeps the address, in CPython and NumPy's C ABI behind the object's head."""
    probe, offset = np.empty(1), object.__basicsize__
    known = sys.implementation.name == "cpython"
    return offset if known and ctypes.c_void_p.from_address(id(probe) + offset).value == probe.ctypes.data else None


_DATA = _data_offset()


@functools.lru_cache(maxsize=256)
def _shape(problem: AttentionProblem, strides: tuple[tuple[int, ...] | None, ...]) -> _Shape:
    """What calls for this problem on arrays of these strides have in common."""
    heads_q, heads_k = ((*problem.batch, heads) for heads in (problem.num_heads_q, problem.num_heads_k))
    shape = _Shape(
        dtype=_DTYPES.index(problem.dtype),
        out_dtype=_DTYPES.index(problem.out_storage.name),
        heads_q=math.prod(heads_q),
        heads_k=math.prod(heads_k),
        seqlen_q=problem.seqlen_q,
        seqlen_k=problem.seqlen_k,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        q_offset=problem.q_offset if problem.causal else problem.seqlen_k,
        first_query=first_query(problem),
        scale=problem.scale,
    )
    shape.address = ctypes.addressof(shape)
    queries = max(problem.group_size * problem.seqlen_q, FEW_QUERIES)  # that share a key
    shape.work = shape.heads_k * queries * problem.seqlen_k * (problem.head_dim + problem.head_dim_v)
    shape.offsets = []  # kept alive
    for name, of in zip(_ARRAYS, strides, strict=False):
        if of is None:
            continue
        heads = heads_k if name in ("k", "v", "dk", "dv") else heads_q
        offsets = np.zeros(1, np.int64)
        for n, stride in zip(heads, of, strict=False):
            offsets = (offsets[:, None] + np.arange(n) * stride).ravel()
        shape.offsets.append(offsets)
        setattr(shape, name, _Layout(offsets.ctypes.data, *of[len(heads) :]))
    return shape


_free: list[Array] = []  # memory of calls that have ended


def _borrow(size: int) -> Array:
    """Memory of at least `size` bytes that no other call has."""
    try:
        memory = _free.pop()
    except IndexError:
        memory = None
    return np.empty(size, np.uint8) if memory is None or memory.size < size else memory


def _give_back(memory: Array) -> None:
    if not _free and memory.size <= KEPT_BYTES:
        _free.append(memory)
