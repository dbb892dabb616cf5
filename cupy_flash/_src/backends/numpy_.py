"""The CPU backend's tier in NumPy: tiled online softmax, and a backward by recomputation, in O(S) memory.

Forward, one work item per (head, block of queries): for each tile of keys

    S = score((scale * Q) K^T);  P = exp(S - m);  l += P 1;  O += P V

and at the end O / l and lse = m + log l. The reference m of a row is any number near its scores, not their
maximum: it is 0 until a row sum of P leaves [SMALL, LARGE], so that most inputs need no pass over S for
maxima and none to subtract them. Where O overflows, the block is computed again with P = exp(S - m - HEADROOM).
Backward, one work item per (key head, block of keys): for each block of
queries, with delta = rowsum(dO * O) - dlse,

    P  = exp(min([scale * Q, -lse] [K, 1]^T, 0))
    dS = P * ([dO, -delta] [V, 1]^T)
    dV += P^T dO;  dK += dS^T (scale * Q);  dQ += dS K

and at the end scale * dQ: the augmented products subtract the row statistics without a pass over S. Of a scale above
1 a power of 2 is left out of all this, and multiplies S and dK instead. Steps of the scores after the scale take passes
over S and dS of their own.

Source: FlashAttention-2, https://arxiv.org/abs/2307.08691, Algorithms 1 and 2.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cupy_flash._src.backends import threads
from cupy_flash._src.backends.host_terms import clear_unseeing, dsinks, heads_of, sinks_of
from cupy_flash._src.components.block_mask import BLOCK, blocks_of
from cupy_flash._src.components.component import Interval, Place, Region, Score
from cupy_flash._src.expressions.blocks import NONE
from cupy_flash._src.operands import Cotangents, Gradients, Merge, Operands
from cupy_flash._src.problem import AttentionProblem, Term

# A float32 score tile of 256 x 512 takes 512 KiB, the size of an L2; other sizes change the time under 5%.
QUERY_BLOCK = 256
KEY_BLOCK = 512
SMALL, LARGE = 2.0**-20, 2.0**20
HEADROOM = 21.0  # exp(-21) times as many values as a row has keys at most, 2^29, is less than the largest of them

Array = np.ndarray
Index = tuple[int, ...]  # of a head: (*batch, head)
Item = tuple[Index, int, int]  # a head and a range of rows

_scratch = threads.Scratch()


def blocks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Ranges of `size` from `start` on, the last one shorter."""
    return [(i, min(i + size, stop)) for i in range(start, stop, size)]


def forward(problem: AttentionProblem, operands: Operands) -> None:
    """Write attention into `out` and `lse`."""
    q, k, v, out, lse, arrays = operands
    clear_unseeing(problem, operands)
    hidden = _HiddenBlocks(problem, arrays)

    def query_block(item: Item) -> None:
        head, i0, i1 = item
        key_head = (*head[:-1], head[-1] // problem.group_size)
        rows, place = slice(i0, i1), problem.place(arrays, head)
        of_head = q[head][rows], k[key_head], v[key_head], out[head][rows], lse[head][rows]
        _forward_block(problem, place, hidden, i0, *of_head)

    # The last queries first: when causal they see the most keys.
    query_blocks = blocks(*problem.seeing, QUERY_BLOCK)[::-1]
    threads.run(query_block, [(head, i0, i1) for i0, i1 in query_blocks for head in np.ndindex(out.shape[:-2])])


def _forward_block(
    problem: AttentionProblem,
    place: Place,
    hidden: _HiddenBlocks,
    i0: int,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    headroom: float = 0,
) -> None:
    """A block of queries, the first of which is `i0`, against all keys of its head that it sees."""
    n, dtype = len(q), problem.accumulator
    on_q, on_scores = _factors(problem)
    q_scaled = np.multiply(_operand("q", q, dtype), on_q, out=_scratch("q", q.shape, dtype))
    o, o_tile = (_scratch(name, out.shape, dtype) for name in ("o", "o_tile"))
    m, m_old, total, tile_total = (_scratch(name, (n,), dtype) for name in ("m", "m_old", "total", "tile_total"))
    m[:] = total[:] = o[:] = 0
    shifted = False  # whether any m is not 0

    for j0, j1 in blocks(*_keys(problem, place, i0, i0 + n - 1), KEY_BLOCK):
        if hidden.covers(place, i0, i0 + n, j0, j1):
            continue
        tile = _Tile(problem, Region(place, slice(i0, i0 + n), slice(j0, j1)), on_scores)
        k_tile, v_tile = _operand("k", k[j0:j1], dtype), _operand("v", v[j0:j1], dtype)
        p, _ = tile.scores(q_scaled, k_tile)
        follow = headroom > 0
        if not follow:
            _exp_less(p, m if shifted else None, 0, tile_total)
            # fmax and fmin pass over nan: a row that is nan stays so, whatever its reference.
            follow = not (np.fmax.reduce(tile_total) <= LARGE and np.fmin.reduce(total + tile_total) >= SMALL)
            if follow:
                p, _ = tile.scores(q_scaled, k_tile)
        if follow:
            m_old[:] = m
            p.max(axis=1, out=m)
            # A row that has nothing yet takes any reference, one that sees nothing here keeps its own.
            np.maximum(m, m_old, out=m, where=total != 0)
            m[m == -np.inf] = 0
            m_old -= m
            np.exp(m_old, out=m_old)
            m_old[total == 0] = 1
            total *= m_old
            o *= m_old[:, None]
            shifted = True
            _exp_less(p, m, headroom, tile_total)
        total += tile_total
        o += tile.matmul(p, v_tile, out=o_tile)

    if not headroom and not np.isfinite(o.sum()):  # p v may have overflowed before its division
        _forward_block(problem, place, hidden, i0, q, k, v, out, lse, HEADROOM)
        return
    np.log(total, out=tile_total)
    tile_total += headroom
    m += tile_total
    total[total == 0] = 1  # all scores -inf
    o /= total[:, None]
    if problem.sinks is not None:
        joined = np.logaddexp(m, sinks_of(problem, place, i0, i0 + n))
        m -= joined
        m[joined == -np.inf] = 0
        o *= np.exp(m, out=m)[:, None]
        m[:] = joined
    lse[:] = m
    out[...] = o


def _keys(problem: AttentionProblem, place: Place, first: int, last: int) -> Interval:
    """Where the keys lie that queries from `first` to `last` of a head see."""
    return Interval(*(int(x) for x in problem.keys(first, last, place)))


class _HiddenBlocks:
    """What a function of the caller is known to hide."""

    def __init__(self, problem: AttentionProblem, arrays: Mapping[str, Array]) -> None:
        self.shares = None if problem.mask_mod is None else blocks_of(problem.mask_mod, arrays)

    def covers(self, place: Place, i0: int, i1: int, j0: int, j1: int) -> bool:
        """Whether no query of a block sees a key of another."""
        if self.shares is None:
            return False
        batches, heads = self.shares.shape[:2]  # 1 where they are alike
        of_head = self.shares[place.batch % batches, place.head % heads]
        return bool((of_head[i0 // BLOCK : -(-i1 // BLOCK), j0 // BLOCK : -(-j1 // BLOCK)] == NONE).all())


def _exp_less(s: Array, m: Array | None, headroom: float, sums: Array) -> None:
    """Replace `s` by ``exp(s - m - headroom)`` (None: m is 0) and write its row sums into `sums`."""
    if m is not None:
        s -= m[:, None]
    if headroom:  # on its own: beside a large m it would be lost to rounding
        s -= headroom
    np.exp(s, out=s)
    np.dot(s, _ONES[s.dtype][: s.shape[1]], out=sums)


def backward(problem: AttentionProblem, operands: Operands, cotangents: Cotangents) -> Gradients:
    """Return new arrays."""
    grads = _Backward(problem, operands, cotangents)
    grads.all_deltas()
    # All heads of one key block, then of the next: threads then rarely meet in one head, where the order of
    # the sums in dq would make them wait. When causal, the most queries see the first key blocks.
    if problem.wants_inputs:
        items = [(head, j0, j1) for j0, j1 in grads.key_blocks for head in np.ndindex(operands.k.shape[:-2])]
        threads.run(grads.turns.guard(grads.key_block), items)
    dq = grads.dq
    if dq is not None:
        dq *= problem.accumulator.type(problem.scale)
        dq = dq.astype(problem.out_storage, copy=False)
    terms = {term.keyword: grads.term(term) for term in problem.terms}
    return Gradients(dq, grads.dk, grads.dv, terms, captured(problem, operands, cotangents, grads))


def captured(
    problem: AttentionProblem, operands: Operands, cotangents: Cotangents, grads: _Backward | None = None
) -> dict[str, tuple[Array | None, ...]]:
    """The gradients with respect to what functions capture."""
    mods = [step for step in problem.scores if step.captured in problem.wrt]
    if not mods:
        return {}
    if grads is None:
        grads = _Backward(replace(problem, wrt=(), terms=()), operands, cotangents)
        grads.all_deltas()
    return {mod.captured: grads.gathered(mod) for mod in mods}


class _Backward:
    """The arrays of one backward pass, None where they are not wanted, and its kinds of work item."""

    def __init__(self, problem: AttentionProblem, operands: Operands, cotangents: Cotangents) -> None:
        self.problem, self.operands, self.cotangents = problem, operands, cotangents
        self.q, self.k, self.v, self.out, self.lse, self.arrays = operands
        self.dout, self.dlse = cotangents
        self.delta = np.empty(problem.lse_shape, problem.accumulator)
        self.dq = np.zeros(problem.q_shape, problem.accumulator) if "q" in problem.wrt else None
        self.dk = np.zeros(problem.k_shape, problem.storage) if "k" in problem.wrt else None
        self.dv = np.zeros(problem.v_shape, problem.storage) if "v" in problem.wrt else None
        self.query_blocks = blocks(*problem.seeing, QUERY_BLOCK)
        self.key_blocks = blocks(0, problem.seqlen_k, KEY_BLOCK)
        self.turns = threads.Turns()
        self.hidden = _HiddenBlocks(problem, self.arrays)

    def all_deltas(self) -> None:
        heads = list(np.ndindex(self.lse.shape[:-1]))
        threads.run(self.delta_block, [(head, i0, i1) for i0, i1 in self.query_blocks for head in heads])

    def delta_block(self, item: Item) -> None:
        """delta = rowsum(dout * out) - dlse for one block of queries."""
        head, i0, i1 = item
        dtype = self.problem.accumulator
        o = _operand("o", self.out[head][i0:i1], dtype)
        do = _operand("do", self.dout[head][i0:i1], dtype)
        delta = self.delta[head][i0:i1]
        np.einsum("nd,nd->n", do, o, out=delta)
        if self.dlse is not None:
            delta -= self.dlse[head][i0:i1]

    def key_block(self, item: Item) -> None:
        """dk and dv of one block of keys, and its part of dq."""
        key_head, j0, j1 = item
        problem, dtype = self.problem, self.problem.accumulator
        keys = self.keys(key_head, j0, j1)
        dk, dk_tile = (_scratch(name, (j1 - j0, problem.head_dim), dtype) for name in ("dk", "dk_tile"))
        dv, dv_tile = (_scratch(name, (j1 - j0, problem.head_dim_v), dtype) for name in ("dv", "dv_tile"))
        dk[:] = dv[:] = 0
        group = problem.group_size
        for h in range(key_head[-1] * group, (key_head[-1] + 1) * group):
            head = (*key_head[:-1], h)
            place = problem.place(self.arrays, head)
            for i0, i1 in self.query_blocks:
                part = self.scores(place, head, i0, i1, keys, j0, j1)
                if part is None:
                    continue
                seen = part.seen
                if self.dv is not None:
                    dv[seen] += part.tile.matmul(part.p, part.dout, out=dv_tile[seen], transpose=True)
                if self.dq is None and self.dk is None:
                    continue
                ds = part.ds
                for step, s in zip(problem.scores[:0:-1], part.inputs[::-1], strict=True):
                    ds = step.backward(np, ds, s, part.tile.region)
                if self.dk is not None:
                    dk[seen] += part.tile.matmul(ds, part.q, out=dk_tile[seen], transpose=True)
                if self.dq is not None:
                    dq_tile = _scratch("dq_tile", (i1 - i0, problem.head_dim), dtype)
                    part.tile.matmul(ds, keys.k[seen, :-1], out=dq_tile)
                    # From its first key block on, of which some are left out.
                    earlier = range(part.first_key // KEY_BLOCK * KEY_BLOCK, j0, KEY_BLOCK)
                    left_out = (self.hidden.covers(place, i0, i1, j, j + KEY_BLOCK) for j in earlier)
                    self.turns.wait((head, i0), len(earlier) - sum(left_out))
                    self.dq[head][i0:i1] += dq_tile
                    self.turns.done((head, i0))
        on_scores = _factors(problem)[1]
        if self.dk is not None:
            if on_scores != 1:
                dk *= on_scores
            self.dk[key_head][j0:j1] = dk
        if self.dv is not None:
            self.dv[key_head][j0:j1] = dv

    def term(self, term: Term) -> Array:
        """The gradient with respect to an option."""
        problem, (rows, cols) = self.problem, term.shape[-2:]
        if term.keyword == "sinks":
            return dsinks(problem, self.operands, self.cotangents, term)
        gradient = np.zeros(term.shape, problem.accumulator)
        # What an element is constant along is summed up in one item, in order.
        own_rows = [[block] for block in self.query_blocks] if rows > 1 else [self.query_blocks]
        own_cols = [[block] for block in self.key_blocks] if cols > 1 else [self.key_blocks]
        items = itertools.product(own_rows, own_cols, np.ndindex(term.shape[:-2]))
        threads.run(lambda item: self.term_block(term, gradient, *item), list(items))
        return gradient

    def gathered(self, mod: Score) -> tuple[Array | None, ...]:
        """The gradients with respect to what a function captures: of each head in order."""
        sums, turns = mod.new_gradients(np, self.problem.accumulator), threads.Turns()
        heads = list(np.ndindex(self.operands.lse.shape[:-1]))

        def of_head(number: int) -> None:
            own = mod.new_gradients(np, self.problem.accumulator)
            for part in self.parts(heads[number], self.query_blocks, self.key_blocks):
                mod.gather(np, part.ds, part.inputs[-1], part.tile.region, own)
            turns.wait(None, number)
            for total, x in zip(sums, own, strict=True):
                if total is not None:
                    total += x
            turns.done(None)

        threads.run(turns.guard(of_head), list(range(len(heads))))
        return sums

    def parts(
        self, head: Index, query_blocks: list[tuple[int, int]], key_blocks: list[tuple[int, int]]
    ) -> Iterator[_Part]:
        """What these queries and keys of a head have in common, where they have."""
        key_head, place = (*head[:-1], head[-1] // self.problem.group_size), self.problem.place(self.arrays, head)
        for j0, j1 in key_blocks:
            keys = self.keys(key_head, j0, j1)
            for i0, i1 in query_blocks:
                part = self.scores(place, head, i0, i1, keys, j0, j1)
                if part is not None:
                    yield part

    def term_block(
        self,
        term: Term,
        gradient: Array,
        query_blocks: list[tuple[int, int]],
        key_blocks: list[tuple[int, int]],
        index: Index,
    ) -> None:
        """Those elements of it that belong to these queries and keys."""
        problem, shape = self.problem, term.shape[-2:]
        summed = tuple(axis for axis in (0, 1) if shape[axis] == 1)
        for head in heads_of(problem, term, index):
            for part in self.parts(head, query_blocks, key_blocks):
                region, ds = part.tile.region, part.ds
                for step, s in zip(problem.scores[:0:-1], part.inputs[::-1], strict=True):
                    if step.keyword == term.keyword:
                        ds = step.term(np, ds, region)
                        break
                    ds = step.backward(np, ds, s, region)
                at = tuple(slice(None) if n == 1 else x for n, x in zip(shape, region[1:], strict=True))
                gradient[index][at] += ds.sum(axis=summed, keepdims=True)

    def keys(self, key_head: Index, j0: int, j1: int) -> _Keys:
        """Operands for `scores`."""
        ka = _augmented("ka", self.k[key_head][j0:j1], self.problem.accumulator)
        va = _augmented("va", self.v[key_head][j0:j1], self.problem.accumulator)
        ka[:, -1] = va[:, -1] = 1
        return _Keys(ka, va)

    def scores(self, place: Place, head: Index, i0: int, i1: int, keys: _Keys, j0: int, j1: int) -> _Part | None:
        """P and dS of a block of queries and those keys of a block that it sees; None if there is none."""
        problem, dtype = self.problem, self.problem.accumulator
        begin, end = _keys(problem, place, i0, i1 - 1)
        low, high = max(j0, begin), min(j1, end)
        if low >= high or self.hidden.covers(place, i0, i1, j0, j1):
            return None
        on_q, on_scores = _factors(problem)
        linear = len(problem.scores) == 1  # the scale alone: lse can be subtracted in the product
        region = Region(place, slice(i0, i1), slice(low, high))
        tile, seen = _Tile(problem, region, on_scores), slice(low - j0, high - j0)
        qa = _augmented("qa", self.q[head][i0:i1], dtype)
        qa *= on_q
        minus_lse = np.multiply(self.lse[head][i0:i1], -1)  # NumPy 2.4's negative errs with some strides
        minus_lse[minus_lse == np.inf] = -np.inf  # a row without finite score: exp(-inf) = 0
        qa[:, -1] = minus_lse / on_scores if linear else 0
        doa = _augmented("doa", self.dout[head][i0:i1], dtype)
        np.multiply(self.delta[head][i0:i1], -1, out=doa[:, -1])

        p, inputs = tile.scores(qa, keys.k[seen])
        if not linear:
            p += minus_lse[:, None]
        np.minimum(p, 0, out=p)  # the difference of two rounded numbers, of millions by whole units
        np.exp(p, out=p)
        ds = np.matmul(doa, keys.v[seen].T, out=_scratch("ds", p.shape, dtype))
        ds *= p
        return _Part(tile, seen, begin, qa[:, :-1], doa[:, :-1], p, ds, inputs)


class _Keys(NamedTuple):
    """A block of keys and values in scratch, with a column of ones."""

    k: Array
    v: Array


class _Part(NamedTuple):
    """What a block of queries and a block of keys have in common in the backward.

    Attributes
    ----------
    tile : _Tile
        Where the scores lie.
    seen : slice
        Its keys within the block.
    first_key : int
        The first key that these queries see anywhere.
    q, dout : array
        Of the queries; q is scaled but for `_Tile.on_scores`.
    p, ds : array
        exp(s - lse), and the gradient of the scores that the softmax takes.
    inputs : list of array
        As `_Tile.scores` returns them.
    """

    tile: _Tile
    seen: slice
    first_key: int
    q: Array
    dout: Array
    p: Array
    ds: Array
    inputs: list[Array]


class _Tile(NamedTuple):
    """A block of queries against a block of keys."""

    problem: AttentionProblem
    region: Region
    on_scores: np.floating

    def scores(self, q: Array, k: Array) -> tuple[Array, list[Array]]:
        """Scores, -inf where a query does not see a key, and what each step after the scale had made them of.

        The step that both directions share; `q` is scaled already but for `on_scores`.
        """
        s = np.matmul(q, k.T, out=_scratch("s", (len(q), len(k)), q.dtype))
        if self.on_scores != 1:
            s *= self.on_scores
        inputs = []
        for step in self.problem.scores[1:]:
            inputs.append(s)
            s = step.forward(np, s, self.region)
        if self._is_cut():
            if self.problem.elementwise:
                np.copyto(s, -np.inf, where=~self._seen())
                return s, inputs
            begin, end, keys = self._ends()
            cut = slice(max(begin[-1, 0] - self.j0, 0))  # no begin is greater than the last query's
            np.copyto(s[:, cut], -np.inf, where=keys[cut] < begin)
            cut = slice(max(end[0, 0] - self.j0, 0), None)
            np.copyto(s[:, cut], -np.inf, where=keys[cut] >= end)
        return s, inputs

    @property
    def j0(self) -> int:
        """The first key."""
        return self.region.cols.start

    def _ends(self) -> tuple[Array, Array, Array]:
        """Where the keys of each query begin and end, as columns; and the tile's keys."""
        begin, end = self.problem.keys(self.region.queries(np), place=self.region.place)
        return begin, end, self.region.keys(np)

    def _seen(self) -> Array:
        return np.broadcast_to(self.problem.seen(np, self.region), self._shape())

    def matmul(self, a: Array, b: Array, *, out: Array, transpose: bool = False) -> Array:
        """``a @ b`` or ``a.T @ b``, in which an inf or nan of `b` reaches only rows that see it.

        `a` has the shape of the scores and is 0 (or, like dS, nan) where they are hidden. The plain product
        is right if it is finite.
        """
        np.matmul(a.T if transpose else a, b, out=out)
        if self._is_cut() and not np.isfinite(out.sum()):
            seen = self._seen()
            a = np.where(seen, a, 0)
            if transpose:
                a, seen = a.T, seen.T
            np.matmul(a, b, out=out)
            finite = np.isfinite(b).all(axis=1)
            untouched = ~seen[:, ~finite].any(axis=1)
            out[untouched] = a[untouched][:, finite] @ b[finite]
        return out

    def _shape(self) -> tuple[int, int]:
        rows, cols = self.region.rows, self.region.cols
        return rows.stop - rows.start, cols.stop - cols.start

    def _is_cut(self) -> bool:
        """Whether a key may be hidden from a query."""
        place, rows, cols = self.region
        first, last = (self.problem.keys(i, place=place) for i in (rows.start, rows.stop - 1))
        inside = last.begin <= cols.start and first.end >= cols.stop
        return not inside or self.problem.elementwise


def merge(problem: AttentionProblem, parts: Merge) -> None:
    """Write into `out` and `lse` the attention over the keys of both results."""
    out_a, lse_a, out_b, lse_b, out, lse = parts

    def query_block(item: Item) -> None:
        head, i0, i1 = item
        rows = slice(i0, i1)
        a, b = (x[head][rows].astype(problem.accumulator) for x in (out_a, out_b))
        log_a, log_b = lse_a[head][rows], lse_b[head][rows]
        high = np.maximum(log_a, log_b)
        base = np.where(np.isneginf(high), 0, high)  # a row without keys has -inf in both
        weight_a, weight_b = np.exp(log_a - base), np.exp(log_b - base)
        total = weight_a + weight_b
        lse[head][rows] = base + np.log(total)
        total[total == 0] = 1
        out[head][rows] = (weight_a / total)[:, None] * a + (weight_b / total)[:, None] * b

    query_blocks = blocks(0, problem.seqlen_q, QUERY_BLOCK)
    threads.run(query_block, [(head, i0, i1) for i0, i1 in query_blocks for head in np.ndindex(out.shape[:-2])])


def digest(problem: AttentionProblem, operands: Operands) -> Array:
    """What the arrays hold, in 32 bits for each head of q (rows) and array (columns)."""
    heads = list(np.ndindex(operands.lse.shape[:-1]))
    digests = np.zeros((len(heads), 5), np.uint32)

    def of_head(n: int) -> None:
        *batch, head = heads[n]
        key_head = (*batch, head // problem.group_size)
        places = (heads[n], key_head, key_head, heads[n], heads[n])
        for i, (x, place) in enumerate(zip(operands.kept.values(), places, strict=True)):
            digests[n, i] = zlib.crc32(np.ascontiguousarray(x[place]).view(np.uint8).data)

    threads.run(of_head, range(len(heads)))
    return digests


def _factors(problem: AttentionProblem) -> tuple[np.floating, np.floating]:
    """Two factors that make the scale: one for q, the other for the scores, 1 unless the scale is larger.

    A scale above 1 might overflow q where k makes up for it. The second factor is a power of 2, so that
    what is divided by it to be multiplied again, -lse in the augmented product, loses nothing.
    """
    number = problem.accumulator.type
    exponent = min(math.frexp(problem.scale)[1], np.finfo(number).maxexp - 1) if abs(problem.scale) > 1 else 0
    return number(math.ldexp(problem.scale, -exponent)), number(math.ldexp(1.0, exponent))


_ONES = {dtype: np.ones(KEY_BLOCK, dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}


def _augmented(name: str, x: Array, dtype: np.dtype) -> Array:
    """A copy of `x` in scratch with one more column, uninitialised."""
    xa = _scratch(name, (len(x), x.shape[1] + 1), dtype)
    xa[:, :-1] = x
    return xa


def _operand(name: str, x: Array, dtype: np.dtype) -> Array:
    """`x` itself where BLAS takes it as it is, else a copy in scratch."""
    row, column = x.strides
    if x.dtype == dtype and column == dtype.itemsize and row % column == 0 and row >= x.shape[1] * column:
        return x
    copy = _scratch(name, x.shape, dtype)
    copy[:] = x
    return copy
