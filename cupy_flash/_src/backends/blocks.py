"""Blocks of queries and keys, and what the causal mask lets them see: shared by the CPU tiers."""

from __future__ import annotations

from cupy_flash._src.problem import AttentionProblem


def blocks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Ranges of `size` from `start` on, the last one shorter."""
    return [(i, min(i + size, stop)) for i in range(start, stop, size)]


def end_key(problem: AttentionProblem, i: int) -> int:
    """Query `i` sees the keys before this one."""
    return min(i + problem.q_offset + 1, problem.seqlen_k) if problem.causal else problem.seqlen_k


def first_query(problem: AttentionProblem) -> int:
    """The first query that sees a key."""
    if problem.seqlen_k == 0:
        return problem.seqlen_q
    return max(-problem.q_offset, 0) if problem.causal else 0
