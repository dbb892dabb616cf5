"""From a problem and a device to the kernels to run: pure functions, no GPU needed."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod
from typing import Any, TypeVar

import numpy as np

from cupy_flash._src import kernels
from cupy_flash._src.device import Device
from cupy_flash._src.problem import DTYPES, AttentionProblem
from cupy_flash._src.specialization import Specialization, Variant, parts_of
from cupy_flash._src.tiles import PLANNED, Tiles

MAX_GRID = 2**31 - 1
MAX_SPLITS = 128
SPAN_KEYS = 2**15
COMMON: Sequence[Mapping[str, Any]] = ({}, {"causal": True})  # options of calls that kernels are compiled ahead for
_Number = TypeVar("_Number", int, np.ndarray)


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and block (both one-dimensional) and dynamic shared memory in bytes.

    `span` is the part of the keys that it takes, where launches take one each.
    """

    kernel: Specialization
    grid: int
    block: int
    shared_bytes: int
    span: int = 0


@dataclass(frozen=True)
class ForwardPlan:
    """Launches of one forward, in order, and how the first lays its work out (`Schedule` in params.cuh).

    With `num_splits` above 1 the keys of a tile are shared by as many blocks, and `combine` merges their results. With
    `num_spans` above 1 `forward` runs as often, each time over a part of the keys.
    """

    forward: Launch
    combine: Launch | None = None
    num_splits: int = 1
    packed_heads: int = 1
    section_heads: int = 1
    num_spans: int = 1

    @property
    def launches(self) -> list[Launch]:
        spans = [replace(self.forward, span=span) for span in range(self.num_spans)]
        return spans if self.combine is None else [*spans, self.combine]


@dataclass(frozen=True)
class BackwardPlan:
    """Launches of one backward, in order; those that a schedule does without are None.

    One pass: dkdv adds dQ up by atomics, into dQ itself when there is no `convert_dq`. Two passes: `dq` computes it.
    With `num_splits` above 1 the query heads of a group are shared by as many blocks, which add dK and dV up by
    atomics.
    """

    delta: Launch
    dkdv: Launch
    dq: Launch | None
    convert_dq: Launch | None
    convert_dkdv: Launch | None = None
    num_splits: int = 1

    @property
    def atomic_dq(self) -> bool:
        return self.dq is None

    @property
    def launches(self) -> list[Launch]:
        steps = (self.delta, self.dkdv, self.dq, self.convert_dq, self.convert_dkdv)
        return [step for step in steps if step is not None]


@functools.lru_cache(maxsize=1024)
def plan_forward(
    problem: AttentionProblem,
    device: Device,
    tiles: Tiles = PLANNED,
    num_splits: int | None = None,
    num_spans: int | None = None,
) -> ForwardPlan:
    """Choose the forward kernels.

    Parameters
    ----------
    problem : AttentionProblem
        What to compute. Its batch is the batch of one launch.
    device : Device
        Where.
    tiles : Tiles
        Use these tiles, and their kernel families, instead of the planner's choice.
    num_splits : int, optional
        Share the keys among so many blocks instead of the planner's choice; tensor-core kernels only.
    num_spans : int, optional
        Take the keys in so many launches instead of the planner's choice; kernels on CUDA cores only.

    Returns
    -------
    ForwardPlan

    Raises
    ------
    ValueError
        If a tile is illegal for this problem or does not fit the device, or there are too many blocks or rows.

    Notes
    -----
    The heads of a group are packed into one tile, or a smaller tile is taken, where that fills tiles better: the rule
    of FlashAttention-3. Keys are split where the blocks cannot fill the device: into the least number that comes
    within 85% of the best wave efficiency (Flash-Decoding as in FlashAttention-2).

    On CUDA cores many keys are taken in spans: rounding errors of a sum grow with its terms, here the blocks of keys,
    and with spans as a third level a float32 output of a million equal keys is off by 5e-6 rather than by 2e-4. Within
    one launch that level would take registers, which spilt.
    """
    variant, group = _variant(problem), problem.group_size
    kernel = kernels.forward(variant, device, tile=tiles.forward)
    if kernel.family == "simt":
        blocks = ceil_div(problem.seqlen_q, kernel.constant("kBlockM")) * problem.num_heads_q
        if num_spans is None:
            num_spans = max(1, ceil_div(problem.seqlen_k, SPAN_KEYS)) if problem.accumulator.itemsize == 4 else 1
        return ForwardPlan(_launch(kernel, blocks * prod(problem.batch)), num_spans=num_spans)

    packed_kernel, packed_heads = kernels.forward(variant, device, packed=True, tile=tiles.forward), 1
    alone, together = (
        _fill(rows, k.constant("kBlockM"))
        for rows, k in ((problem.seqlen_q, kernel), (problem.seqlen_q * group, packed_kernel))
    )
    if alone < 0.9 * together:
        kernel, packed_heads = packed_kernel, group
    block_m, block_n = kernel.constant("kBlockM"), kernel.constant("kBlockN")
    key_heads = problem.num_heads_k * prod(problem.batch)
    blocks = ceil_div(problem.seqlen_q * packed_heads, block_m) * (group // packed_heads) * key_heads
    if num_splits is None:
        slots = device.num_sms * kernel.constant("kMinBlocks")
        num_splits = _num_splits(blocks, slots, _most_key_blocks(problem, packed_heads, block_m, block_n))
    key_bytes = problem.seqlen_k * (problem.head_dim + problem.head_dim_v) * problem.storage.itemsize
    return ForwardPlan(
        _launch(kernel, blocks * num_splits),
        _launch_rows(kernels.combine(variant), problem) if num_splits > 1 else None,
        num_splits,
        packed_heads,
        # Half the cache: queries and outputs pass through it too.
        min(key_heads, max(1, device.l2_bytes // 2 // max(1, key_bytes))),
    )


@functools.lru_cache(maxsize=1024)
def plan_backward(problem: AttentionProblem, device: Device, tiles: Tiles = PLANNED) -> BackwardPlan:
    """Choose the backward kernels; parameters and errors as in `plan_forward`.

    Notes
    -----
    One pass takes five matrix products and atomic additions to dQ; two passes take seven, four for dK and dV and three
    for dQ, and repeat bit for bit. Where determinism is not asked for, two passes are still taken if few keys meet
    many queries: with e the share of the device that the blocks of a pass fill, 5 / e_dkdv against
    4 / e_dkdv + 3 / e_dq. Before that, heads of a group that share keys are spread over blocks where this fills the
    device better.
    """
    variant, batches, group = _variant(problem), prod(problem.batch), problem.group_size
    deterministic = problem.deterministic
    dkdv = kernels.dkdv(variant, device, atomic_dq=not deterministic, tile=tiles.dkdv)
    block_n, key_heads = dkdv.constant("kBlockN"), problem.num_heads_k * batches
    key_blocks = ceil_div(problem.seqlen_k, block_n) * key_heads
    seen_blocks = _blocks_within(*problem.keys(0, problem.seqlen_q - 1), block_n) * key_heads
    slots, splits = device.num_sms * dkdv.constant("kMinBlocks"), 1
    if not deterministic and dkdv.family == "mma":
        splits = _num_splits(seen_blocks, slots, group)
    dq = None
    if deterministic or dkdv.family == "mma":
        kernel = kernels.dq(variant, device, tile=tiles.dq)
        block_m, query_heads = kernel.constant("kBlockM"), problem.num_heads_q * batches
        query_blocks = ceil_div(problem.seqlen_q, block_m) * query_heads
        seeing_blocks = _blocks_within(*problem.seeing, block_m) * query_heads
        filled, filled_dq = min(1, seen_blocks * splits / slots), min(1, seeing_blocks / device.num_sms)
        if deterministic or filled_dq > 3 * filled:
            dq = _launch(kernel, query_blocks)
            dkdv = kernels.dkdv(variant, device, atomic_dq=False, tile=tiles.dkdv)
    convert_dq = convert_dkdv = None
    if dq is None and problem.out_storage != problem.accumulator:
        convert_dq = _row_wise("backward_rows.cu", "attention_convert_dq", problem)
    if splits > 1:
        convert_dkdv = _row_wise("backward_rows.cu", "attention_convert_dkdv", problem, keys=True)
    return BackwardPlan(
        delta=_row_wise("backward_rows.cu", "attention_delta", problem, out=problem.out_storage.name),
        dkdv=_launch(dkdv, key_blocks * splits),
        dq=dq,
        convert_dq=convert_dq,
        convert_dkdv=convert_dkdv,
        num_splits=splits,
    )


@functools.lru_cache(maxsize=1024)
def plan_merge(problem: AttentionProblem) -> Launch:
    """The launch that merges two results: one in the dtype of the problem's output, one in that of its inputs."""
    return _row_wise("merge.cu", "attention_merge", problem, out=problem.out_storage.name)


@functools.lru_cache(maxsize=1024)
def plan_seal(problem: AttentionProblem, entry: str) -> Launch:
    """The launch of a kernel of attention/seal.cu, whose blocks have rows of queries or of keys."""
    kernel = kernels.row_wise("seal.cu", entry, problem.dtype)
    return _launch(kernel, sum(_row_blocks(kernel, problem, keys=keys) for keys in (False, True)))


def all_specializations(device: Device, options: Sequence[Mapping[str, Any]] = COMMON) -> Iterator[Specialization]:
    """Every kernel the planner can choose on `device` if D and Dv round to one size, for calls with these options."""
    for dtype in DTYPES:
        half = dtype in ("float16", "bfloat16")
        for out in (dtype, "float32") if half else (dtype,):
            yield kernels.row_wise("merge.cu", "attention_merge", dtype, out=out)
            yield kernels.row_wise("backward_rows.cu", "attention_delta", dtype, out=out)
        for entry in ("attention_seal", "attention_find_changed", "attention_spoil"):
            yield kernels.row_wise("seal.cu", entry, dtype)
        if half:
            yield kernels.row_wise("backward_rows.cu", "attention_convert_dq", dtype)
            yield kernels.row_wise("backward_rows.cu", "attention_convert_dkdv", dtype)
        sizes = kernels.head_dim_buckets(dtype, device)
        if any(family == "mma" for family, _ in sizes):
            yield from dict.fromkeys(kernels.combine(Variant.of(dtype, 1, **call)) for call in options)
        for call, (family, head_dim) in product(options, sizes):
            variant = Variant.of(dtype, head_dim, **call)
            yield kernels.forward(variant, device)
            if family == "mma":
                yield kernels.forward(variant, device, packed=True)
            for atomic_dq in (True, False):
                yield kernels.dkdv(variant, device, atomic_dq=atomic_dq)
            yield kernels.dq(variant, device)


def core_specializations(device: Device, options: Sequence[Mapping[str, Any]] = COMMON) -> Iterator[Specialization]:
    """The kernels compiled when the package is imported: half types, head dimensions 64 and 128, default mode."""
    for dtype in ("float16", "bfloat16"):
        yield kernels.row_wise("backward_rows.cu", "attention_delta", dtype)
        yield kernels.row_wise("backward_rows.cu", "attention_convert_dq", dtype)
        for call, head_dim in product(options, (64, 128)):
            variant = Variant.of(dtype, head_dim, **call)
            yield kernels.forward(variant, device)
            yield kernels.dkdv(variant, device, atomic_dq=True)


def _variant(problem: AttentionProblem) -> Variant:
    return Variant(problem.dtype, problem.head_dim, problem.head_dim_v, parts_of(problem.components))


def _fill(rows: int, block: int) -> float:
    """Share of the rows of whole blocks that are used."""
    return rows / max(1, ceil_div(rows, block) * block)


def _blocks_within(begin: int, end: int, block: int) -> int:
    """Over how many blocks these positions are spread."""
    return int(ceil_div(end, block) - begin // block)


def _most_key_blocks(problem: AttentionProblem, packed_heads: int, block_m: int, block_n: int) -> int:
    """The blocks of keys that a tile of queries sees, at most."""
    if not problem.masks or problem.seqlen_q == 0:
        return ceil_div(problem.seqlen_k, block_n)
    rows = np.arange(0, problem.seqlen_q * packed_heads, block_m)
    last = np.minimum(rows + block_m, problem.seqlen_q * packed_heads) - 1
    begin, end = problem.keys(rows // packed_heads, last // packed_heads)
    return int((ceil_div(end, block_n) - begin // block_n).max())


def _num_splits(blocks: int, slots: int, parts: int) -> int:
    """How many blocks share the parts (key blocks, heads) of one tile's work, where `slots` blocks run at a time."""
    if blocks >= 0.8 * slots:
        return 1
    # Several numbers give every block as many parts at most: the least of them wastes nothing.
    counts = [n for n in range(1, min(MAX_SPLITS, slots, max(1, parts)) + 1) if n == 1 or _shrinks(parts, n)]
    efficiency = {n: blocks * n / slots / max(1, ceil(blocks * n / slots)) for n in counts}
    return next(n for n in counts if efficiency[n] >= 0.85 * max(efficiency.values()))


def _shrinks(parts: int, splits: int) -> bool:
    return ceil_div(parts, splits) < ceil_div(parts, splits - 1)


def _launch(kernel: Specialization, grid: int) -> Launch:
    if grid > MAX_GRID:
        raise ValueError(f"{kernel.entry} needs {grid} thread blocks: a launch takes at most {MAX_GRID}")
    constants = dict(kernel.constants)
    return Launch(kernel, grid, 32 * constants["kNWarps"], constants.get("kSharedBytes", 0))


def _row_wise(
    source: str, entry: str, problem: AttentionProblem, *, keys: bool = False, out: str | None = None
) -> Launch:
    return _launch_rows(kernels.row_wise(source, entry, problem.dtype, out=out), problem, keys=keys)


def _launch_rows(kernel: Specialization, problem: AttentionProblem, *, keys: bool = False) -> Launch:
    return _launch(kernel, _row_blocks(kernel, problem, keys=keys))


def _row_blocks(kernel: Specialization, problem: AttentionProblem, *, keys: bool) -> int:
    heads, rows = (problem.num_heads_k, problem.seqlen_k) if keys else (problem.num_heads_q, problem.seqlen_q)
    return prod(problem.batch) * heads * ceil_div(rows, kernel.constant("kBlockRows"))


def ceil_div(a: _Number, b: int) -> _Number:
    return -(-a // b)
