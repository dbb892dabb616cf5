"""From a problem and a device to the kernels to run: pure functions, no GPU needed."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod
from typing import Any, TypeVar

import numpy as np

from cupy_flash._src import kernels
from cupy_flash._src.components import FLOATS, GATHERED, INPUTS, LEARNING, Options
from cupy_flash._src.components.block_mask import LISTS
from cupy_flash._src.components.component import Sizes
from cupy_flash._src.components.mods import SUMMARIZED, Mod, captured_name
from cupy_flash._src.device import Device
from cupy_flash._src.params import layout
from cupy_flash._src.problem import DTYPES, AttentionProblem, Term
from cupy_flash._src.specialization import Specialization, Variant, parts_of
from cupy_flash._src.tiles import PLANNED, Tiles

MAX_GRID = 2**31 - 1
MAX_SPLITS = 128
PARTS_BYTES = 10**7  # of a gradient's partial results, at most
SPAN_KEYS = 2**15
COMMON: Sequence[Mapping[str, Any]] = ({}, {"causal": True})  # options of calls that kernels are compiled ahead for
ADD, SIZES, ADD_WHOLE = 1, 2, 3  # kGather of attention/gather.cuh
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
class SummaryPlan:
    """The launch that looks through an array of ints that a mask's function captures (attention/summaries.cu).

    Attributes
    ----------
    name : str
        Of the array.
    axis : int
        Along which neighbours have a minimum and a maximum together.
    rows : tuple of int
        Sizes of the other axes.
    chunks : int
        How many there are of such neighbours.
    """

    name: str
    axis: int
    rows: tuple[int, ...]
    chunks: int
    launch: Launch


@dataclass(frozen=True)
class ListPlan:
    """The launch that lists the blocks that a traced mask shows to another (`BlockLists`, attention/block_lists.cuh).

    `name` is one of `LISTS`. There is a list for each of `rows`, of `columns` blocks at most.
    """

    name: str
    batches: int
    heads: int
    rows: int
    columns: int
    packed_heads: int
    launch: Launch


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
    summaries: tuple[SummaryPlan, ...] = ()
    lists: tuple[ListPlan, ...] = ()

    @property
    def launches(self) -> list[Launch]:
        spans = [replace(self.forward, span=span) for span in range(self.num_spans)]
        return spans if self.combine is None else [*spans, self.combine]

    @property
    def all_launches(self) -> list[Launch]:
        """These after what a traced mask needs."""
        return [*(of.launch for of in self.summaries), *(of.launch for of in self.lists), *self.launches]


@dataclass(frozen=True)
class TermPlan:
    """Launches of the gradient of an option, in order.

    With `num_splits` above 1 what adds up to an element is shared by as many blocks, whose results `sum_splits` adds.
    """

    term: Term
    kernel: Launch
    sum_splits: Launch | None
    num_splits: int
    lists: tuple[ListPlan, ...] = ()

    @property
    def launches(self) -> list[Launch]:
        return [self.kernel] if self.sum_splits is None else [self.kernel, self.sum_splits]


@dataclass(frozen=True)
class BackwardPlan:
    """Launches of one backward, in order; those that a schedule does without are None.

    One pass: dkdv adds dQ up by atomics, into dQ itself when there is no `convert_dq`. Two passes: `dq` computes it.
    With `num_splits` above 1 the query heads of a group are shared by as many blocks, which add dK and dV up by
    atomics. Options have kernels of their own, and so has what functions capture: `gathers`.
    """

    delta: Launch
    dkdv: Launch | None
    dq: Launch | None
    convert_dq: Launch | None
    convert_dkdv: Launch | None = None
    num_splits: int = 1
    terms: tuple[TermPlan, ...] = ()
    gathers: tuple[TermPlan, ...] = ()
    summaries: tuple[SummaryPlan, ...] = ()
    lists: tuple[ListPlan, ...] = ()

    @property
    def atomic_dq(self) -> bool:
        return self.dkdv is not None and self.dkdv.kernel.constant("kAtomicDq") == 1

    @property
    def launches(self) -> list[Launch]:
        steps = (self.delta, self.dkdv, self.dq, self.convert_dq, self.convert_dkdv)
        return [step for step in steps if step is not None] + [step for term in self.terms for step in term.launches]

    @property
    def all_launches(self) -> list[Launch]:
        """These, and what functions need beside."""
        lists = [*self.lists, *(of for term in (*self.terms, *self.gathers) for of in term.lists)]
        before = [*(of.launch for of in self.summaries), *(of.launch for of in lists)]
        return [*before, *self.launches, *(step for term in self.gathers for step in term.launches)]


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
        return ForwardPlan(
            _launch(kernel, blocks * prod(problem.batch)),
            num_spans=num_spans,
            summaries=plan_summaries(problem),
            lists=_lists(problem, kernel),
        )

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
        summaries=plan_summaries(problem),
        lists=_lists(problem, kernel, packed_heads),
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
    variant, batches, group = _variant(problem).backward, prod(problem.batch), problem.group_size
    wants_dq, wants_dk, wants_dv = (name in problem.wrt for name in INPUTS)
    dkdv, dq, splits, atomic_dq = None, None, 1, False
    if wants_dq:
        of_queries = kernels.dq(variant, device, tile=tiles.dq)
        block_m, query_heads = of_queries.constant("kBlockM"), problem.num_heads_q * batches
    if wants_dk or wants_dv:
        of_keys = functools.partial(
            kernels.dkdv, variant, device, wants_dk=wants_dk, wants_dv=wants_dv, tile=tiles.dkdv
        )
        atomic_dq = wants_dq and not problem.deterministic
        kernel = of_keys(atomic_dq=atomic_dq)
        block_n, key_heads = kernel.constant("kBlockN"), problem.num_heads_k * batches
        seen_blocks = _blocks_within(*problem.keys(0, problem.seqlen_q - 1), block_n) * key_heads
        slots = device.num_sms * kernel.constant("kMinBlocks")
        if not problem.deterministic and kernel.family == "mma":
            splits = _num_splits(seen_blocks, slots, group)
        if atomic_dq and kernel.family == "mma":
            seeing_blocks = _blocks_within(*problem.seeing, block_m) * query_heads
            filled, filled_dq = min(1, seen_blocks * splits / slots), min(1, seeing_blocks / device.num_sms)
            if filled_dq > 3 * filled:
                kernel, atomic_dq = of_keys(atomic_dq=False), False
        dkdv = _launch(kernel, ceil_div(problem.seqlen_k, block_n) * key_heads * splits)
    if wants_dq and not atomic_dq:
        dq = _launch(of_queries, ceil_div(problem.seqlen_q, block_m) * query_heads)
    convert_dq = convert_dkdv = None
    if atomic_dq and problem.out_storage != problem.accumulator:
        convert_dq = _row_wise("backward_rows.cu", "attention_convert_dq", problem)
    if splits > 1:
        convert_dkdv = _row_wise("backward_rows.cu", "attention_convert_dkdv", problem, keys=True)
    return BackwardPlan(
        delta=_row_wise("backward_rows.cu", "attention_delta", problem, out=problem.out_storage.name),
        dkdv=dkdv,
        dq=dq,
        convert_dq=convert_dq,
        convert_dkdv=convert_dkdv,
        num_splits=splits,
        terms=tuple(plan_term(problem, device, term) for term in problem.terms),
        gathers=tuple(plan_term(problem, device, term) for term in gathered(problem)),
        summaries=plan_summaries(problem),
        lists=tuple(made for step in (dq, dkdv) if step for made in _lists(problem, step.kernel)),
    )


@functools.lru_cache(maxsize=1024)
def plan_term(problem: AttentionProblem, device: Device, term: Term, num_splits: int | None = None) -> TermPlan:
    """Choose the kernels of the gradient of one of the problem's terms; errors as in `plan_forward`.

    Notes
    -----
    Blocks that have elements of their own need no atomics. Where they are too few to fill the device, what adds up to
    an element is split, as keys are in the forward, into `MAX_SPLITS` at most and as far as `PARTS_BYTES` hold them.
    """
    if term.keyword == "sinks":
        kernel = kernels.row_wise("backward_terms.cu", "attention_dsinks", problem.dtype, out=term.dtype)
        slots = device.num_sms * 16
    else:
        steps = [score.keyword for score in problem.scores]
        step = steps.index(term.keyword) if term.gather == 0 else len(steps)
        kernel = kernels.term(_variant(problem).backward, device, step, term.dtype, gather=term.gather)
        slots = device.num_sms * kernel.constant("kMinBlocks")
    axes = term_axes(problem, term, kernel)
    blocks, parts = (prod(axis[i] for axis in axes) for i in (0, 1))
    if parts > MAX_GRID:
        raise ValueError(
            f"an element of {term.keyword} is part of {parts} tiles of scores: expected at most {MAX_GRID}"
        )
    if num_splits is None:
        most = MAX_SPLITS if term.gather else PARTS_BYTES // (max(1, prod(term.shape)) * problem.accumulator.itemsize)
        num_splits = _num_splits(blocks, slots, parts, min(max(1, most), MAX_SPLITS))
    sum_splits = None
    if num_splits > 1 and term.gather == 0:
        sum_splits = _by_elements("attention_sum_splits", problem, term)
    return TermPlan(term, _launch(kernel, blocks * num_splits), sum_splits, num_splits, _lists(problem, kernel))


def gathered(problem: AttentionProblem) -> list[Term]:
    """What of captured arrays' gradients a launch makes, one after another (attention/gather.cuh)."""
    return [
        Term(score.captured, (*problem.lse_shape, 1), problem.accumulator.name, gather)
        for score in problem.scores
        if score.captured in problem.wrt
        for gather in _gathers(problem.deterministic)
    ]


def _gathers(deterministic: bool) -> tuple[int, ...]:
    return (SIZES, ADD_WHOLE) if deterministic else (ADD,)


@functools.lru_cache(maxsize=1024)
def plan_summaries(problem: AttentionProblem) -> tuple[SummaryPlan, ...]:
    """Of arrays of ints that a traced mask looks up by positions."""
    return _summaries(problem.mask_mod)


def _summaries(mod: Mod | None) -> tuple[SummaryPlan, ...]:
    most, made = layout("SummaryParams")["sizes"].shape[0], []
    for number, x in mod.arrays if mod and not mod.has_table else ():
        axis = mod.summary_axis(number)  # type: ignore[union-attr]
        rows = tuple(n for along, n in enumerate(x.shape) if along != axis)
        if axis is not None and 0 not in x.shape and len(rows) <= most:
            chunks = ceil_div(x.shape[axis], SUMMARIZED)
            launch = _launch(kernels.summaries(x.dtype.name), ceil_div(prod(rows) * chunks, 32))
            name = captured_name(mod.captured, number)  # type: ignore[union-attr]
            made.append(SummaryPlan(name, axis, rows, chunks, launch))
    return tuple(made)


def _lists(problem: AttentionProblem, kernel: Specialization, packed_heads: int = 1) -> tuple[ListPlan, ...]:
    """What makes a kernel's lists of blocks; nothing without a mask that has them."""
    mod = problem.mask_mod
    if mod is None or not kernel.parts:
        return ()
    known, lister = mod.graph.symbols, kernels.block_lists(kernel, from_table=mod.has_table)
    by_keys = lister.constant("kByKeys")
    blocks = (
        ceil_div(problem.seqlen_q * packed_heads, kernel.constant("kBlockM")),
        ceil_div(problem.seqlen_k, kernel.constant("kBlockN")),
    )
    rows, columns = blocks[::-1] if by_keys else blocks
    # What other parts of the mask hide may differ from one batch element to the next.
    batches = prod(problem.batch) if "b" in known or len(problem.masks) > 1 else 1
    heads = problem.num_heads_q // packed_heads if "h" in known else 1
    launch = _launch(lister, batches * heads * rows)
    return (ListPlan(LISTS[by_keys], batches, heads, rows, columns, packed_heads, launch),)


def plan_spoil_term(problem: AttentionProblem, term: Term) -> Launch:
    """The launch that makes the gradient of an option NaN where a vjp's arrays have changed."""
    return _by_elements("attention_spoil_term", problem, term)


def term_axes(problem: AttentionProblem, term: Term, kernel: Specialization) -> list[tuple[int, int]]:
    """How many positions, or blocks of them, along (*batch, heads, queries, keys): own ones, and ones that add up."""
    if kernel.entry == "attention_dsinks":
        blocks = ceil_div(problem.seqlen_q, kernel.constant("kBlockRows")), 1
    else:
        sizes = (problem.seqlen_q, kernel.constant("kBlockM")), (problem.seqlen_k, kernel.constant("kBlockN"))
        blocks = ceil_div(*sizes[0]), ceil_div(*sizes[1])
    full = (*problem.batch, problem.num_heads_q, *blocks)
    return [(1, n) if own == 1 else (n, 1) for n, own in zip(full, term.shape, strict=True)]


@functools.lru_cache(maxsize=1024)
def plan_merge(problem: AttentionProblem) -> Launch:
    """The launch that merges two results: one in the dtype of the problem's output, one in that of its inputs."""
    return _row_wise("merge.cu", "attention_merge", problem, out=problem.out_storage.name)


@functools.lru_cache(maxsize=1024)
def plan_seal(problem: AttentionProblem, entry: str) -> Launch:
    """The launch of a kernel of attention/seal.cu, whose blocks have rows of queries or of keys."""
    kernel = kernels.row_wise("seal.cu", entry, problem.dtype)
    return _launch(kernel, sum(_row_blocks(kernel, problem, keys=keys) for keys in (False, True)))


def all_specializations(
    device: Device,
    options: Sequence[Mapping[str, Any]] = COMMON,
    wrt: Collection[str] = (*INPUTS, *LEARNING, *GATHERED),
) -> Iterator[Specialization]:
    """Every kernel the planner can choose on `device` if D and Dv round to one size, for calls with these options.

    Of a backward those for gradients of what `wrt` names, as far as a call has it. Numbers that calls have in float32
    may be of the dtype of q instead.
    """
    wants_dq, wants_dk, wants_dv = (name in wrt for name in INPUTS)
    wants_keys = wants_dk or wants_dv
    learning = {name for call in options for name in LEARNING if name in wrt and call.get(name) is not None}
    for dtype in DTYPES:
        half = dtype in ("float16", "bfloat16")
        for out in (dtype, "float32") if half else (dtype,):
            yield kernels.row_wise("merge.cu", "attention_merge", dtype, out=out)
            yield kernels.row_wise("backward_rows.cu", "attention_delta", dtype, out=out)
        for entry in ("attention_seal", "attention_find_changed", "attention_spoil"):
            yield kernels.row_wise("seal.cu", entry, dtype)
        outs = dict.fromkeys((dtype, "float32"))
        entries = ["attention_sum_splits", "attention_spoil_term"] if learning else []
        for entry, out in product([*entries, *["attention_dsinks"] * ("sinks" in learning)], outs):
            yield kernels.row_wise("backward_terms.cu", entry, dtype, out=out)
        if half and wants_keys:
            if wants_dq:
                yield kernels.row_wise("backward_rows.cu", "attention_convert_dq", dtype)
            yield kernels.row_wise("backward_rows.cu", "attention_convert_dkdv", dtype)
        sizes = kernels.head_dim_buckets(dtype, device)
        calls = list(_typed(options, dtype))
        if any(family == "mma" for family, _ in sizes):
            yield from dict.fromkeys(kernels.combine(Variant.of(dtype, 1, **call)) for call in calls)
        for call, size in product(calls, sizes):
            yield from _with_lists(_composed(device, call, dtype, size, wrt, outs))
    composed = (part for call in options for part in Options.of(**call).components(Sizes("float32", 1)))
    masks = (part for part in composed if isinstance(part, Mod) and part.concept == "Mask")
    yield from (made.launch.kernel for mask in masks for made in _summaries(mask))


def _composed(
    device: Device,
    call: Mapping[str, Any],
    dtype: str,
    size: tuple[str, int],
    wrt: Collection[str],
    outs: Iterable[str],
) -> Iterator[Specialization]:
    """Those that are made of what the call's options put into effect."""
    family, head_dim = size
    wants_dq, wants_dk, wants_dv = (name in wrt for name in INPUTS)
    wants_keys = wants_dk or wants_dv
    variant = Variant.of(dtype, head_dim, **call)
    yield kernels.forward(variant, device)
    if family == "mma":
        yield kernels.forward(variant, device, packed=True)
    variant = variant.backward
    if wants_keys:
        for atomic_dq in (True, False) if wants_dq else (False,):
            yield kernels.dkdv(variant, device, atomic_dq=atomic_dq, wants_dk=wants_dk, wants_dv=wants_dv)
    if wants_dq:
        yield kernels.dq(variant, device)
    scores = [part.component for part in variant.parts if part.component.concept == "Score"]
    learned = [step for step, score in enumerate(scores) if score.learns and score.keyword in wrt]
    yield from (kernels.term(variant, device, step, out) for step, out in product(learned, outs))
    if any(name in wrt and call.get(name) for name in GATHERED):
        out = "float64" if dtype == "float64" else "float32"
        for gather in (*_gathers(deterministic=False), *_gathers(deterministic=True)):
            yield kernels.term(variant, device, len(scores), out, gather=gather)


def core_specializations(device: Device, options: Sequence[Mapping[str, Any]] = COMMON) -> Iterator[Specialization]:
    """The kernels compiled when the package is imported: half types, head dimensions 64 and 128, default mode."""
    for dtype in ("float16", "bfloat16"):
        yield kernels.row_wise("backward_rows.cu", "attention_delta", dtype)
        yield kernels.row_wise("backward_rows.cu", "attention_convert_dq", dtype)
        for call, head_dim in product(_typed(options, dtype), (64, 128)):
            variant = Variant.of(dtype, head_dim, **call)
            made = kernels.forward(variant, device), kernels.dkdv(variant.backward, device, atomic_dq=True)
            yield from _with_lists(made)


def _with_lists(made: Iterable[Specialization]) -> Iterator[Specialization]:
    """Kernels, and those that list the blocks of a traced mask for them."""
    for kernel in made:
        yield kernel
        if any(issubclass(part.component, Mod) and part.component.concept == "Mask" for part in kernel.parts):
            yield kernels.block_lists(kernel, from_table=False)


def _typed(options: Sequence[Mapping[str, Any]], dtype: str) -> Iterator[Mapping[str, Any]]:
    """Of each call two, if it has numbers in float32: with these, and with numbers of the dtype of q."""
    for call in options:
        yield call
        numbers = {name: call[name].astype(DTYPES[dtype]) for name in FLOATS if call.get(name) is not None}
        if numbers and dtype != "float32":
            yield {**call, **numbers}


def _by_elements(entry: str, problem: AttentionProblem, term: Term) -> Launch:
    kernel = kernels.row_wise("backward_terms.cu", entry, problem.dtype, out=term.dtype)
    return _launch(kernel, ceil_div(prod(term.shape), 32 * kernel.constant("kNWarps")))


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


def _num_splits(blocks: int, slots: int, parts: int, most: int = MAX_SPLITS) -> int:
    """How many blocks, at most `most`, share the parts (key blocks, heads) of one tile's work, where `slots` run at a
    time.
    """
    if blocks >= 0.8 * slots:
        return 1
    # Several numbers give every block as many parts at most: the least of them wastes nothing.
    counts = [n for n in range(1, min(most, slots, max(1, parts)) + 1) if n == 1 or _shrinks(parts, n)]
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
