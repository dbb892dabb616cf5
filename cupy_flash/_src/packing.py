"""What kernels are told of a problem and of its plan: the fields of Shape and Schedule in cuda_src/params.cuh."""

from __future__ import annotations

import math
from typing import Any

from cupy_flash._src.params import BATCH_DIMS
from cupy_flash._src.plan import BackwardPlan, ForwardPlan, TermPlan, ceil_div, term_axes
from cupy_flash._src.problem import AttentionProblem


def shape(problem: AttentionProblem) -> tuple[Any, ...]:
    """Shape, in the order of its fields; the batch of `problem` has at most `BATCH_DIMS` dimensions."""
    batch = (1,) * (BATCH_DIMS - len(problem.batch)) + problem.batch
    return (
        [divisor(n) for n in batch],
        *map(divisor, (problem.num_heads_q, problem.num_heads_k, problem.group_size)),
        *(problem.seqlen_q, problem.seqlen_k, problem.head_dim, problem.head_dim_v, problem.q_offset),
        problem.first_batch,
    )


def forward_schedule(problem: AttentionProblem, plan: ForwardPlan) -> dict[str, Any]:
    """Schedule, as far as the forward kernels read it."""
    query_blocks = ceil_div(problem.seqlen_q * plan.packed_heads, plan.forward.kernel.constant("kBlockM"))
    members, key_heads = problem.group_size // plan.packed_heads, problem.num_heads_k * math.prod(problem.batch)
    section_heads = min(plan.section_heads, key_heads)
    last_section = ceil_div(key_heads, section_heads) - 1
    return {
        "query_blocks": divisor(query_blocks),
        "num_splits": divisor(plan.num_splits),
        "packed_heads": divisor(plan.packed_heads),
        "members": divisor(members),
        "section_heads": divisor(section_heads),
        "last_section_heads": divisor(key_heads - last_section * section_heads),
        "section_blocks": divisor(query_blocks * members * plan.num_splits * section_heads),
        "last_section": last_section,
        "num_spans": plan.num_spans,
    }


def backward_schedule(problem: AttentionProblem, plan: BackwardPlan) -> dict[str, Any]:
    """The same of the backward kernels."""
    key_blocks = 1 if plan.dkdv is None else ceil_div(problem.seqlen_k, plan.dkdv.kernel.constant("kBlockN"))
    query_blocks = 1 if plan.dq is None else ceil_div(problem.seqlen_q, plan.dq.kernel.constant("kBlockM"))
    return {
        "query_blocks": divisor(query_blocks),
        "key_blocks": divisor(key_blocks),
        "num_splits": divisor(plan.num_splits),
    }


def term_schedule(problem: AttentionProblem, plan: TermPlan, *, is_added: bool) -> dict[str, Any]:
    """TermSchedule."""
    *batch, heads, queries, keys = term_axes(problem, plan.term, plan.kernel.kernel)
    batch = [(1, 1)] * (BATCH_DIMS - len(batch)) + batch
    axes = {"heads": heads, "query_blocks": queries, "key_blocks": keys}
    own, summed = ({f"{kind}_{name}": divisor(axis[i]) for name, axis in axes.items()} for i, kind in enumerate(_KINDS))
    return {
        "own_batch": [divisor(n) for n, _ in batch],
        "summed_batch": [divisor(n) for _, n in batch],
        **own,
        **summed,
        "num_splits": divisor(plan.num_splits),
        "own_rows": int(plan.term.shape[-2] > 1),
        "own_cols": int(plan.term.shape[-1] > 1),
        "split_stride": math.prod(plan.term.shape),
        "is_added": int(is_added),
    }


_KINDS = ("own", "summed")


def divisor(n: int) -> tuple[int, int, int]:
    """A Divisor: n, and what gives quotients by it for dividends from 0 to 2^31 - 1.

    Examples
    --------
    >>> _, multiplier, shift = divisor(7)
    >>> [2 * n * multiplier >> 32 >> shift for n in (6, 7, 13, 14, 2**31 - 1)]
    [0, 1, 1, 2, 306783378]
    """
    shift = (n - 1).bit_length()
    return n, -(-(2 ** (31 + shift)) // n), shift
