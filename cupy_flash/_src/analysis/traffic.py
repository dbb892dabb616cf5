"""Bytes that the kernels of a plan move to and from global memory, exactly as the emulator counts them.

Only what the tensor-core kernels and the row-wise kernels do is written down here; for the kernels on CUDA cores,
which may pass over the head dimension in slices, the emulator's count on a smaller problem has to serve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, prod
from types import MappingProxyType
from typing import Any

import numpy as np

from cupy_flash._src.analysis.roofline import visible_pairs
from cupy_flash._src.analysis.tiles import counts, mask_function, tile_shares
from cupy_flash._src.components import ARRAYS
from cupy_flash._src.components.component import Interval, Mask
from cupy_flash._src.components.mods import Mod, captured_name
from cupy_flash._src.expressions.blocks import NONE
from cupy_flash._src.plan import BackwardPlan, ForwardPlan, Launch, TermPlan, ceil_div, term_axes
from cupy_flash._src.problem import DTYPES, AttentionProblem

_LANES, _QUAD, _FLOAT = 32, 4, 4
_NO_ARRAYS: Mapping[str, np.ndarray] = MappingProxyType({})


def launch_bytes(
    problem: AttentionProblem,
    plan: ForwardPlan | BackwardPlan,
    launch: Launch,
    arrays: Mapping[str, np.ndarray] = _NO_ARRAYS,
) -> int | None:
    """Bytes read and written by one launch of the plan, or None where no formula is known.

    Atomic additions count as bytes written, and every lane's load counts, whatever caches would save. Options that are
    arrays count as if they hid no key; what is read of them is in `array_bytes`, but for the sinks that the kernel of
    their gradient reads. A mask's function, which captures some of the `arrays`, lets kernels skip tiles; of its own
    lists, and of the kernels that make them, nothing counts.
    """
    kernel = launch.kernel.family, launch.kernel.entry
    if (term := _term_of(plan, launch)) is not None:
        known = kernel in _TERM_COUNTS and (mask_function(problem) is None or not launch.kernel.parts)
        return _TERM_COUNTS[kernel](problem, term, launch) if known else None
    count = _COUNTS.get(kernel)
    return None if count is None else count(problem, plan, launch, arrays)


def array_bytes(
    problem: AttentionProblem, plan: ForwardPlan | BackwardPlan, arrays: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """Bytes that the launches of a plan read of options that are arrays, by their keywords.

    Of one with an element for each score, in each kernel that computes scores: those of blocks that are met, of a mask
    at most, and in the forward on CUDA cores those of pairs that are seen. Of the others a number for each block of
    threads, or for each head that the block has, whose threads count as one; where a block walks over the scores that
    add up to the gradient of an option, for each tile of them at most. Of sinks in the forward's last kernel alone. Of
    what a function captures an element wherever it is looked up for a score, of a mask in tiles that are tested; what
    is looked up for a query is not counted.
    """
    launches = [launch for launch in plan.launches if launch.kernel.family != "attention"]
    blocks, heads = sum(_places(problem, plan, launch) for launch in launches), _packed_heads(plan)
    kernels = {launch.kernel: launch for launch in launches}.values()

    looked_up = _looked_up(problem)

    def count(name: str) -> int:
        if name == "sinks":
            return _sinks_read(plan)
        if name not in ARRAYS:
            times, of_mask = looked_up[name]
            met = sum(_scores_of_tiles(problem, plan, launch, arrays, tested=of_mask) for launch in kernels)
            return times * met if times else 0
        if ARRAYS[name].lacks:
            return blocks * (heads if ARRAYS[name].lacks == 2 else 1)
        return sum(_scores(problem, plan, launch, seen=name == "mask") for launch in kernels)

    return {name: x.itemsize * count(name) for name, x in arrays.items()}


def block_pairs(
    problem: AttentionProblem,
    plan: ForwardPlan | BackwardPlan,
    launch: Launch,
    arrays: Mapping[str, np.ndarray] = _NO_ARRAYS,
) -> tuple[int, int]:
    """Blocks of keys that the blocks of queries of one head meet, and how many that would be if they saw all.

    Of heads and batch elements that a mask's function tells apart, which captures some of the arrays, those of all.
    """
    if mask_function(problem) is not None:
        shares = _shares(problem, plan, launch, arrays)
        return int((shares != NONE).sum()), shares.size
    block_m, block_n = launch.kernel.constant("kBlockM"), launch.kernel.constant("kBlockN")
    every = ceil_div(problem.seqlen_q * _packed_heads(plan), block_m) * ceil_div(problem.seqlen_k, block_n)
    return _size(_met(problem, plan, launch)[1]), every


def _shares(
    problem: AttentionProblem, plan: ForwardPlan | BackwardPlan, launch: Launch, arrays: Mapping[str, np.ndarray]
) -> np.ndarray:
    tile = launch.kernel.constant("kBlockM"), launch.kernel.constant("kBlockN")
    return tile_shares(problem, tile, arrays, _packed_heads(plan))


def _looked_up(problem: AttentionProblem) -> dict[str, tuple[int, bool]]:
    """Of arrays that functions capture how many elements a score needs, and whether a mask does."""
    found = {}
    for mod in problem.components:
        if isinstance(mod, Mod):
            graph, dependence = mod.graph, mod.graph.dependence()
            places = [graph.nodes[n].value for n in graph.find("element") if dependence[n] & {"j", "s"}]
            for n in range(len(mod.arguments)):
                found[captured_name(mod.captured, n)] = places.count(n), isinstance(mod, Mask)
    return found


def _scores_of_tiles(
    problem: AttentionProblem,
    plan: ForwardPlan | BackwardPlan,
    launch: Launch,
    arrays: Mapping[str, np.ndarray],
    *,
    tested: bool,
) -> int:
    """Scores of all heads in tiles that the launch's kernel meets, or of those that it tests: of whole tiles, for what
    lies beyond the last row has its elements too.
    """
    area = launch.kernel.constant("kBlockM") * launch.kernel.constant("kBlockN")
    heads = prod(problem.batch) * problem.num_heads_q // _packed_heads(plan)
    if mask_function(problem) is None:
        return heads * block_pairs(problem, plan, launch)[0] * area
    shares = _shares(problem, plan, launch, arrays)
    _, whole, some = counts(shares)
    return heads // prod(shares.shape[:2]) * (some if tested else whole + some) * area


def _alike(problem: AttentionProblem, shares: np.ndarray, packed_heads: int) -> int:
    """How many batch elements and heads each of the shares is of."""
    return prod(problem.batch) * problem.num_heads_q // packed_heads // prod(shares.shape[:2])


def _rows_read(
    problem: AttentionProblem,
    plan: ForwardPlan | BackwardPlan,
    launch: Launch,
    arrays: Mapping[str, np.ndarray],
    *,
    whole: bool = False,
) -> int:
    """Keys that blocks of queries read, of all heads; of dkdv queries that blocks of keys read.

    Those that any of the block's rows sees, in blocks that are met; with `whole` all of these blocks.
    """
    block_m, block_n = launch.kernel.constant("kBlockM"), launch.kernel.constant("kBlockN")
    packed, of_keys = _packed_heads(plan), launch.kernel.entry == "attention_dkdv"
    if of_keys:
        found, block, size = problem.queries(*_blocks(problem.seqlen_k, block_n)), block_m, problem.seqlen_q
    else:
        found, block, size = problem.keys(*_query_blocks(problem, plan, block_m)), block_n, problem.seqlen_k
    begin, end = (np.atleast_1d(x) for x in found)
    if whole:
        last = np.where(begin < end, np.minimum(-(-end // block) * block, size), 0)
        begin = begin // block * block
        end = np.maximum(begin, last)
    if mask_function(problem) is None:
        return prod(problem.batch) * (problem.num_heads_q // packed) * _size(Interval(begin, end))
    first, last = _blocks(size, block)
    shares = _shares(problem, plan, launch, arrays)
    widths = np.minimum(last + 1, end[:, None]) - np.maximum(first, begin[:, None])
    met = (shares.swapaxes(-1, -2) if of_keys else shares) != NONE
    return _alike(problem, shares, packed) * int((met * np.maximum(widths, 0)).sum())


def _places(problem: AttentionProblem, plan: ForwardPlan | BackwardPlan, launch: Launch) -> int:
    """How often blocks of the launch ask for what is true of all their scores."""
    if launch.kernel.entry != "attention_dterm":
        return launch.grid
    of = _term_of(plan, launch)
    return 0 if of is None else prod(own * summed for own, summed in term_axes(problem, of.term, launch.kernel))


def _term_of(plan: ForwardPlan | BackwardPlan, launch: Launch) -> TermPlan | None:
    """The plan that the launch belongs to, of an option's gradient; the launches of two may be equal."""
    terms = plan.terms if isinstance(plan, BackwardPlan) else ()
    return next((term for term in terms if any(launch is step for step in term.launches)), None)


def _sinks_read(plan: ForwardPlan | BackwardPlan) -> int:
    if isinstance(plan, BackwardPlan):
        return 0
    return plan.forward.grid * plan.packed_heads if plan.combine is None else plan.combine.grid


def _scores(problem: AttentionProblem, plan: ForwardPlan | BackwardPlan, launch: Launch, *, seen: bool) -> int:
    """Those that the launch's kernel looks at, of all heads; with `seen` it looks where the masks in effect let it."""
    if seen and (launch.kernel.family, launch.kernel.entry) == ("simt", "attention_forward"):
        return visible_pairs(problem)
    sizes, blocks, (block, rows) = _met(problem, plan, launch)
    met = np.minimum(blocks.end * block, rows) - np.minimum(blocks.begin * block, rows)
    return prod(problem.batch) * problem.num_heads_q // _packed_heads(plan) * int((sizes * met).sum())


def _met(
    problem: AttentionProblem, plan: ForwardPlan | BackwardPlan, launch: Launch
) -> tuple[np.ndarray, Interval, tuple[int, int]]:
    """The rows of each block of queries of a head, and which blocks of keys it meets, of how many of how many keys.

    Of dkdv likewise the blocks of keys, and the blocks of queries that they meet.
    """
    block_m, block_n = launch.kernel.constant("kBlockM"), launch.kernel.constant("kBlockN")
    if launch.kernel.entry == "attention_dkdv":
        first, last = _blocks(problem.seqlen_k, block_n)
        found, others = problem.queries(first, last), (block_m, problem.seqlen_q)
    else:
        first, last = _blocks(problem.seqlen_q * _packed_heads(plan), block_m)
        found, others = problem.keys(*_query_blocks(problem, plan, block_m)), (block_n, problem.seqlen_k)
    begin = found.begin // others[0]
    end = np.where(found.begin < found.end, ceil_div(found.end, others[0]), begin)
    return last - first + 1, Interval(begin, end), others


def _packed_heads(plan: ForwardPlan | BackwardPlan) -> int:
    return plan.packed_heads if isinstance(plan, ForwardPlan) else 1


def _blocks(size: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last row of each block."""
    first = np.arange(0, size, block)
    return first, np.minimum(first + block, size) - 1


def _query_blocks(
    problem: AttentionProblem, plan: ForwardPlan | BackwardPlan, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last query of each block of rows, which are of packed heads."""
    packed = _packed_heads(plan)
    first, last = (row // packed for row in _blocks(problem.seqlen_q * packed, block))
    return first, last


def _size(interval: Interval) -> int:
    """Of an interval, or of all in an array of them together."""
    return int(np.sum(interval.end - interval.begin))


def _forward(problem: AttentionProblem, plan: ForwardPlan, launch: Launch, arrays: Mapping[str, np.ndarray]) -> int:
    """Q once a split, K and V once a block of queries that sees them, the results once a split."""
    itemsize, query_rows = problem.storage.itemsize, prod(problem.lse_shape)
    keys = _rows_read(problem, plan, launch, arrays)
    out_size = itemsize if plan.num_splits == 1 else _FLOAT
    row_size = _FLOAT if plan.num_splits == 1 else 2 * _FLOAT  # lse, or maximum and sum
    split = query_rows * (problem.head_dim * itemsize + problem.head_dim_v * out_size + row_size)
    return keys * (problem.head_dim + problem.head_dim_v) * itemsize + plan.num_splits * split


def _combine(problem: AttentionProblem, plan: ForwardPlan, *_: Any) -> int:
    """Of each split a maximum, and what makes its weight: for the sum, and by two lanes for each pass over columns."""
    splits, cols = plan.num_splits, problem.head_dim_v
    passes = ceil(cols / _LANES / (4 if cols % 4 == 0 else 1))
    reads = splits * _FLOAT * (1 + 2 + 4 * passes + cols)
    return prod(problem.lse_shape) * (reads + cols * problem.storage.itemsize + _FLOAT)


def _delta(problem: AttentionProblem, *_: Any) -> int:
    columns = problem.head_dim_v * (problem.storage.itemsize + problem.out_storage.itemsize)
    row = columns + problem.accumulator.itemsize
    return prod(problem.lse_shape) * row


def _dkdv(problem: AttentionProblem, plan: BackwardPlan, launch: Launch, arrays: Mapping[str, np.ndarray]) -> int:
    """K and V once a split; Q, dO and their row statistics once a block of keys that they see; the gradients."""
    d, dv, itemsize = problem.head_dim, problem.head_dim_v, problem.storage.itemsize
    queries = _rows_read(problem, plan, launch, arrays)
    atomics = _rows_read(problem, plan, launch, arrays, whole=True) * d * _FLOAT if plan.atomic_dq else 0
    seen = _size(problem.keys(0, problem.seqlen_q - 1))
    gradient = itemsize if plan.num_splits == 1 else _FLOAT
    read, written = (d + dv) * seen * itemsize, _key_columns(problem) * problem.seqlen_k * gradient
    keys = plan.num_splits * prod(problem.batch) * problem.num_heads_k * (read + written)
    return queries * ((d + dv) * itemsize + 2 * _FLOAT) + atomics + keys


def _dq(problem: AttentionProblem, plan: BackwardPlan, launch: Launch, arrays: Mapping[str, np.ndarray]) -> int:
    """Q, dO and dQ once, row statistics by each lane of a quad, K and V once a block of queries that sees them."""
    itemsize = problem.storage.itemsize
    keys = _rows_read(problem, plan, launch, arrays) * (problem.head_dim + problem.head_dim_v)
    dq = problem.head_dim * problem.out_storage.itemsize
    row = (problem.head_dim + problem.head_dim_v) * itemsize + dq + _QUAD * 2 * _FLOAT
    return keys * itemsize + prod(problem.lse_shape) * row


def _convert_dq(problem: AttentionProblem, *_: Any) -> int:
    return prod(problem.q_shape) * (_FLOAT + problem.storage.itemsize)


def _convert_dkdv(problem: AttentionProblem, *_: Any) -> int:
    return prod(problem.k_shape[:-1]) * _key_columns(problem) * (_FLOAT + problem.storage.itemsize)


def _key_columns(problem: AttentionProblem) -> int:
    """Of the gradients of keys and values that are wanted."""
    return problem.head_dim * ("k" in problem.wrt) + problem.head_dim_v * ("v" in problem.wrt)


def _dterm(problem: AttentionProblem, plan: TermPlan, launch: Launch) -> int:
    """Of each tile of scores that is met: Q and dO of its queries that see any of its keys, with the row statistics of
    all by each lane of a quad, K and V of its keys that any of its queries sees; what adds up to an element once.
    """
    block_m, block_n = launch.kernel.constant("kBlockM"), launch.kernel.constant("kBlockN")
    first_key, last_key = _blocks(problem.seqlen_k, block_n)
    seeing, total = problem.queries(first_key, last_key), 0
    for first, last in zip(*_blocks(problem.seqlen_q, block_m), strict=True):
        seen = problem.keys(first, last)
        met = np.maximum(first_key, seen.begin) < np.minimum(first_key + block_n, seen.end)
        queries = np.minimum(last + 1, seeing.end) - np.maximum(first, seeing.begin)
        keys = np.minimum(last_key + 1, seen.end) - np.maximum(first_key, seen.begin)
        moved = int((np.maximum(queries, 0) + keys)[met].sum())
        total += moved * (problem.head_dim + problem.head_dim_v) * problem.storage.itemsize
        total += int(met.sum() * (last - first + 1)) * _QUAD * 2 * _FLOAT
    return prod(problem.batch) * problem.num_heads_q * total + _sums_written(problem, plan)


def _dsinks(problem: AttentionProblem, plan: TermPlan, launch: Launch) -> int:
    """The statistics of a row once, the sink by each lane for each block of rows."""
    blocks = prod(own * summed for own, summed in term_axes(problem, plan.term, launch.kernel))
    sinks = blocks * _LANES * DTYPES[plan.term.dtype].itemsize
    return prod(problem.lse_shape) * 2 * problem.accumulator.itemsize + sinks + _sums_written(problem, plan)


def _sums_written(problem: AttentionProblem, plan: TermPlan) -> int:
    itemsize = DTYPES[plan.term.dtype].itemsize if plan.num_splits == 1 else problem.accumulator.itemsize
    return plan.num_splits * prod(plan.term.shape) * itemsize


def _sum_splits(problem: AttentionProblem, plan: TermPlan, launch: Launch) -> int:
    return _sums_written(problem, plan) + prod(plan.term.shape) * DTYPES[plan.term.dtype].itemsize


_COUNTS: dict[tuple[str, str], Callable[..., int]] = {
    ("mma", "attention_forward"): _forward,
    ("mma", "attention_dkdv"): _dkdv,
    ("mma", "attention_dq"): _dq,
    ("attention", "attention_combine"): _combine,
    ("attention", "attention_delta"): _delta,
    ("attention", "attention_convert_dq"): _convert_dq,
    ("attention", "attention_convert_dkdv"): _convert_dkdv,
}
_TERM_COUNTS: dict[tuple[str, str], Callable[[AttentionProblem, TermPlan, Launch], int]] = {
    ("mma", "attention_dterm"): _dterm,
    ("attention", "attention_dsinks"): _dsinks,
    ("attention", "attention_sum_splits"): _sum_splits,
}
