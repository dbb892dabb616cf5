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
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cupy_flash._src import source, structs
from cupy_flash._src.backends import numpy_, threads
from cupy_flash._src.backends.host_terms import clear_unseeing, dsinks
from cupy_flash._src.components import ARRAYS, COMPONENTS
from cupy_flash._src.components.block_mask import blocks_of, table_shape
from cupy_flash._src.components.component import arrays_in, declarations, fill
from cupy_flash._src.components.mods import is_captured
from cupy_flash._src.expressions.blocks import SOME
from cupy_flash._src.operands import BACKWARD, Cotangents, Gradients, Operands
from cupy_flash._src.problem import AttentionProblem, Term
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
TABLE_WORK = 2**22  # with fewer, to make a table of the blocks that a function shows takes longer than it saves
FEW_QUERIES = 4  # with fewer to a key, reading it takes most of the time: as long as so many multiply-adds
KEPT_BYTES = 2**25  # of memory for the next call
KEY_BLOCK = 480  # as cpu/backward_plan.h has it, at most
SPLITS, PARTS_BYTES = 32, 10**7  # of a gradient of an option, at most: parts of its sums, and what they take
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
_OF_HEADS = {keyword for keyword, component in ARRAYS.items() if (component.lacks or 0) < 3}  # with an axis of heads
_ARRAYS = (*BACKWARD, "dterm")  # of a Call
# Of its Arrays: functions that are traced, what they capture, and blocks that a mask shows.
_OF_MODS = (
    *("score_panel", "score_row", "score_params"),
    *("mask_panel", "mask_row", "mask_params", "mask_blocks"),
)
_DTYPES = ("float16", "bfloat16", "float32", "float64")  # in the order of enum DType

Array = np.ndarray


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
def library(isa: str, arithmetic: str) -> dict[str, Callable[[Any], int]]:
    """The functions of ``cuda_src/cpu/attention.cpp`` compiled for an instruction set and a type of arithmetic.

    Raises
    ------
    ToolchainError
        If there is no compiler or it refuses the source.
    """
    loaded = load(compile_library(isa, arithmetic))
    functions = {}
    for name in ("forward", "forward_memory", "backward", "backward_memory", "term", "term_memory", "digest"):
        function = functions[name] = getattr(loaded, f"attention_{name}")
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p]
    return functions


def compile_library(isa: str, arithmetic: str = "float32") -> Path:
    """The library of an instruction set and a type of arithmetic, from the cache or the compiler."""
    return compile_shared(
        flatten("cpu/attention.cpp"),
        "attention",
        flags=(*_FLAGS, f"-DNUMBER={ARITHMETIC[arithmetic]}", *feature_flags(ISAS[isa])),
        freestanding=True,
        folder="cpu",
        notice=f"cupy_flash: compiling the CPU backend for {arithmetic} (once; a few seconds)",
    )


def flatten(name: str) -> str:
    """A source of ``cuda_src/cpu`` with its includes, of which ``cpu/components.h`` lists the components."""
    return source.flatten(name, virtual={"cpu/components.h": _components_header()})


def _components_header() -> str:
    """The parameters of all components and their arrays, and what scores, masks and places are composed of."""
    steps, masks, moves, sinks = (
        ", ".join(c.__name__ for c in COMPONENTS if c.concept == concept)
        for concept in ("Score", "Mask", "Place", "Sink")
    )
    arrays = ", ".join(f"*{name}" for name in (*ARRAYS, *_OF_MODS))
    parameters = declarations(COMPONENTS, [""] * len(COMPONENTS), "cpu", "h")
    return (
        f"#pragma once\n{parameters}struct Arrays {{\n  char {arrays};\n}};\n"
        f"template <class T>\nusing Score = ScoreOf<T, {steps}>;\nusing KeyMask = MaskOf<{masks}>;\n"
        f"using Place = PlaceOf<{moves}>;\nusing Sink = {sinks};\n"
    )


@functools.cache
def _structs() -> dict[str, np.dtype]:
    return structs.structs_of(flatten("cpu/shape.h"))


@functools.cache
def _call_type() -> type[ctypes.Structure]:
    """Call of ``cuda_src/cpu/shape.h``. ctypes makes one in 0.6 us, NumPy a record of these fields in 1.5."""
    kinds = {"u": ctypes.c_void_p, "i": ctypes.c_int64}

    def fields(struct: np.dtype) -> list[tuple[str, Any]]:
        """All of 8 bytes: those of a struct inside lie where its own would."""
        members = [(name, struct[name]) for name in struct.names or ()]
        return [x for name, of in members for x in (fields(of) if of.names else [(name, kinds[of.kind])])]

    return type("Call", (ctypes.Structure,), {"_fields_": fields(_structs()["Call"])})


def forward(problem: AttentionProblem, operands: Operands) -> None:
    """Write attention into `out` and `lse`."""
    clear_unseeing(problem, operands)
    if operands.lse[..., slice(*problem.seeing)].size:
        _run("forward", problem.without_terms, tuple(operands.kept.values()), operands.arrays)


def backward(problem: AttentionProblem, operands: Operands, cotangents: Cotangents) -> Gradients:
    """Return new arrays."""
    # Of rows that see no key dq is not written.
    dq = np.zeros(problem.q_shape, problem.out_storage) if "q" in problem.wrt else None
    dk = np.empty(problem.k_shape, problem.storage) if "k" in problem.wrt else None
    dv = np.empty(problem.v_shape, problem.storage) if "v" in problem.wrt else None
    parts = {
        term: np.zeros((_splits(problem, term), *term.shape), problem.accumulator)
        for term in problem.terms
        if term.keyword != "sinks"
    }
    given = *operands.kept.values(), *cotangents
    added = _adds_to_bias(problem) if operands.lse.size else None
    # Without queries too: the gradients are then 0.
    if problem.seqlen_k and problem.wants_inputs and math.prod(problem.batch):
        with_bias = replace(problem, terms=() if added is None else (added,))
        arrays = *given, dq, dk, dv, None if added is None else parts[added]
        _run("backward", with_bias, arrays, operands.arrays)
    terms = {}
    for term in problem.terms:
        if term.keyword == "sinks":
            terms[term.keyword] = dsinks(problem, operands, cotangents, term)
            continue
        if term != added and operands.lse[..., slice(*problem.seeing)].size and problem.seqlen_k:
            _run("term", replace(problem, terms=(term,)), (*given, None, None, None, parts[term]), operands.arrays)
        terms[term.keyword] = parts[term][0] if len(parts[term]) == 1 else parts[term].sum(axis=0)
    return Gradients(dq, dk, dv, terms, numpy_.captured(problem, operands, cotangents))


def digest(problem: AttentionProblem, operands: Operands) -> Array:
    """What the arrays hold, in 64 bits for each head of q (rows) and array (columns)."""
    digests = np.zeros((math.prod(problem.batch) * problem.num_heads_q, 5), np.uint64)
    _run("digest", problem.without_terms, tuple(operands.kept.values()), {}, digests)
    return digests


def _run(
    name: str,
    problem: AttentionProblem,
    arrays: tuple[Array | None, ...],
    options: Mapping[str, Array],
    result: Array | None = None,
) -> None:
    """Call the function of that name on arrays in the order of `_ARRAYS`; its memory is `result` or borrowed.

    `options` are those of `Operands.arrays`.
    """
    captured = options
    if problem.mods:
        options = {name: x for name, x in options.items() if not is_captured(name)}
    options = {name: x.astype(np.int64, copy=False) if x.dtype.kind == "i" else x for name, x in options.items()}
    describe = _shape if math.prod(problem.batch) * problem.num_heads_q <= CACHED_HEADS else _shape.__wrapped__
    functions = library(isa(problem.arithmetic), problem.arithmetic)
    strides = tuple([None if x is None else x.strides for x in arrays])
    address, work, _ = describe(problem, strides, tuple([(keyword, x.strides) for keyword, x in options.items()]))
    call = _call_type()(address, *[None if x is None else _address(x) for x in arrays])
    for keyword, x in options.items():
        setattr(call, keyword, _address(x))
    wanted = problem.mods and result is None
    kept = _tell_of_mods(call, problem, captured, with_table=work > TABLE_WORK) if wanted else []
    call.threads = threads.num_threads() if work > INLINE_WORK else 1
    reference, function = ctypes.byref(call), functions[name]
    memory = _borrow(functions[f"{name}_memory"](reference)) if result is None else result
    call.memory = _address(memory)
    while function(reference):
        pass
    if result is None:
        _give_back(memory)
    del kept


def _tell_of_mods(
    call: ctypes.Structure, problem: AttentionProblem, options: Mapping[str, Array], *, with_table: bool
) -> list[Array]:
    """Set a call's fields of traced functions; what is returned is to be kept until it is done."""
    kept = []
    for mod, functions in zip(problem.mods, compile_mods(problem), strict=True):
        record = functions.record.copy()
        for field, name in functions.arrays:
            record[field]["data"] = _address(options[name])
        fields = functions.addresses | {f"{mod.concept.lower()}_params": _address(record)}
        kept.append(record)
        if mod.concept == "Mask":
            is_known = with_table or mod.has_table
            blocks = blocks_of(mod, options) if is_known else np.full(table_shape(mod), SOME, np.uint8)
            kept.append(np.ascontiguousarray(blocks))
            fields["mask_blocks"] = _address(kept[-1])
        for field, address in fields.items():
            setattr(call, field, address)
    return kept


class _ModFunctions(NamedTuple):
    """Of a traced function: what it is told but for addresses, and where what was compiled lies.

    Attributes
    ----------
    record : array
        Its struct.
    arrays : tuple of (str, str)
        Those of the struct's fields that stand for arrays, and the arrays' names.
    addresses : dict
        Of functions, by the fields of a call.
    """

    record: Array
    arrays: tuple[tuple[str, str], ...]
    addresses: dict[str, int | None]


@functools.lru_cache(maxsize=256)
def compile_mods(problem: AttentionProblem) -> tuple[_ModFunctions, ...]:
    """Of each of `AttentionProblem.mods`, from the cache or the compiler.

    Raises
    ------
    ToolchainError
        If the compiler refuses the source.
    """
    found = []
    for mod in problem.mods:
        struct, addresses = _compiled_mod(mod.cpu_text(), mod.concept, problem.arithmetic)
        record, told = np.zeros(1, struct), mod.params()
        for field in struct.names or ():
            record[field] = told[field]
        arrays = [field for field in struct.names or () if struct[field].names is not None]
        found.append(_ModFunctions(record, tuple((field, mod.array_of(field)) for field in arrays), addresses))
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _compiled_mod(text: str, concept: str, arithmetic: str) -> tuple[np.dtype, dict[str, int | None]]:
    """A function's struct, and the addresses of what was compiled, by the fields of a call."""
    library = load(
        compile_shared(
            source.flatten("mod.cpp", virtual={"mod.cpp": text}),
            "mod",
            flags=(*_FLAGS, f"-DNUMBER={ARITHMETIC[arithmetic]}", *feature_flags(ISAS[isa(arithmetic)])),
            freestanding=True,
            folder="cpu",
            notice="cupy_flash: compiling a function for the CPU (once; less than a second)",
        )
    )
    names = (f"{concept.lower()}_{form}" for form in ("panel", "row"))
    found = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names}
    return structs.structs_of(text)[f"{concept}ModParams"], found


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
def _shape(
    problem: AttentionProblem,
    strides: tuple[tuple[int, ...] | None, ...],
    of_options: tuple[tuple[str, tuple[int, ...]], ...],
) -> tuple[int, int, list[Array]]:
    """What calls for this problem on arrays of these strides have in common.

    The address of a Shape of ``cuda_src/cpu/shape.h``, multiply-adds, and what is to be kept alive with it.
    """
    heads_q, heads_k = ((*problem.batch, heads) for heads in (problem.num_heads_q, problem.num_heads_k))
    record = np.zeros((), _structs()["Shape"])
    kept, (begin, end) = [record], problem.seeing

    def lay_out(layout: Array, heads: tuple[int, ...], strides: tuple[int, ...]) -> None:
        begins = np.zeros(1, np.int64)
        for n, stride in zip(heads, strides, strict=False):
            begins = (begins[:, None] + np.arange(n) * stride).ravel()
        kept.append(begins)
        row, col = (*strides[len(heads) :], 0)[:2]
        _fill(layout, heads=_address(begins), row=row, col=col)

    _fill(
        record,
        dtype=_DTYPES.index(problem.dtype),
        out_dtype=_DTYPES.index(problem.out_storage.name),
        heads_q=math.prod(heads_q),
        heads_k=math.prod(heads_k),
        seqlen_q=problem.seqlen_q,
        seqlen_k=problem.seqlen_k,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        q_offset=problem.q_offset,
        first_query=begin,
        queries=end - begin,
        heads_alike=problem.group_size == 1
        or not (
            any(of[-3] for x, of in of_options if x in _OF_HEADS)
            or any("h" in mod.graph.symbols for mod in problem.mods)
        ),
    )
    components, options = record["components"], dict(of_options)
    fill(components, problem.components)
    for (struct, field), keyword in arrays_in(components.dtype, problem.components):
        if keyword in options:
            lay_out(components[struct][field], heads_q, options[keyword])
    own = heads_q  # of what heads share that it pays to read again soon
    if "bias" in options:
        own = tuple(n if stride else 1 for n, stride in zip(heads_q, options["bias"], strict=False))
    for term in problem.terms:
        _fill(record["term"], **_term(problem, term, kept))
        own = term.shape[:-2]
    order = _order(problem, own)
    kept.append(order)
    _fill(record["order"], units=order.shape[0], members=order.shape[1], heads=_address(order))
    for name, of in zip(BACKWARD, strides, strict=False):
        if of is not None:
            lay_out(record[name], heads_k if name in ("k", "v", "dk", "dv") else heads_q, of)
    queries = max(problem.group_size * (end - begin), FEW_QUERIES)  # that share a key
    work = math.prod(heads_k) * queries * _keys_of_a_query(problem) * (problem.head_dim + problem.head_dim_v)
    return record.ctypes.data, int(work), kept


def _adds_to_bias(problem: AttentionProblem) -> Term | None:
    """The bias whose gradient the pass of dq, dk and dv adds up, where that keeps all threads busy.

    Its sums are those of a pass of its own, bit for bit.
    """
    for term in problem.terms:
        if term.keyword == "bias" and _has_blocks(term) and problem.wants_inputs:
            items = len(_order(problem, term.shape[:-2])) * -(-problem.seqlen_k // KEY_BLOCK)
            return term if items >= 2 * threads.num_threads() else None
    return None


def _has_blocks(term: Term) -> bool:
    """Whether it has an element for each query and key."""
    return min(term.shape[-2:]) > 1


def _splits(problem: AttentionProblem, term: Term) -> int:
    """How many parts heads are shared into that have elements in common, where only heads are left to be shared.

    It is the same whatever the number of threads, and so is the order of the sum.
    """
    if _has_blocks(term):
        return 1
    heads, elements = math.prod(term.shape[:-2]), max(1, math.prod(term.shape))
    members = math.prod(problem.lse_shape[:-1]) // max(1, heads)
    bytes_of_all = elements * problem.accumulator.itemsize
    return max(1, min(members, SPLITS // max(1, heads), PARTS_BYTES // bytes_of_all))


def _sharing(heads: tuple[int, ...], own: tuple[int, ...]) -> Array:
    """Numbers of heads, of (*batch, heads), in a row for each element of an array of the shape `own`."""
    numbers = np.arange(math.prod(heads)).reshape(heads)
    along, rows = [axis for axis, n in enumerate(own) if n == 1], math.prod(own)
    shared = np.moveaxis(numbers, along, range(-len(along), 0)).reshape(rows, numbers.size // max(1, rows))
    return np.ascontiguousarray(shared)


def _order(problem: AttentionProblem, own: tuple[int, ...]) -> Array:
    """Key heads, in a row those whose query heads have an array of that shape in common."""
    heads = (*problem.batch, problem.num_heads_k)
    return _sharing(heads, (*own[:-1], problem.num_heads_k if own[-1] > 1 else 1))


def _term(problem: AttentionProblem, term: Term, kept: list[Array]) -> dict[str, int]:
    """The Term of ``cuda_src/cpu/shape.h``."""
    members, splits = _sharing(problem.lse_shape[:-1], term.shape[:-2]), _splits(problem, term)
    group_of = np.empty(members.size, np.int64)
    group_of[members] = np.arange(len(members))[:, None]
    lacking = -members.shape[1] % splits
    members = np.pad(members, ((0, 0), (0, lacking)), constant_values=-1).reshape(len(members), splits, -1)
    members = members.swapaxes(0, 1).reshape(-1, members.shape[-1])
    kept += [members, group_of]
    steps = [component.keyword for component in COMPONENTS if component.concept == "Score"]
    return {
        "step": steps.index(term.keyword) - 1,
        "groups": members.shape[0],
        "members": members.shape[1],
        "heads": _address(members),
        "group_of": _address(group_of),
        "own_rows": term.shape[-2] > 1,
        "own_cols": term.shape[-1] > 1,
    }


def _keys_of_a_query(problem: AttentionProblem) -> float:
    """How many a query sees on average, by a few of those that see any."""
    begin, end = problem.seeing
    if not problem.masks or begin == end:
        return problem.seqlen_k
    seen = problem.keys(np.arange(begin, end, -(-(end - begin) // 16)))
    return float((seen.end - seen.begin).mean())


def _fill(record: Array, **values: Any) -> None:
    """Set fields of a structured array without axes by their names."""
    for name, value in values.items():
        record[name] = value


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
