"""How far from float64 a result may be: the budget that the tests and `python -m cupy_flash check` hold kernels to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cupy_flash._src.analysis.rounding import captured_floats, gathered_parts, of_score, of_slope
from cupy_flash._src.broadcast import sum_to_shape
from cupy_flash._src.components import arrays_among
from cupy_flash._src.components.component import Region
from cupy_flash._src.components.mods import Mod, captured_name
from cupy_flash._src.emulator.settings import current
from cupy_flash._src.problem import AttentionProblem

Array = np.ndarray
IN_ORDER = 128  # about the longest side of a tile: sums of tiles are added as such


class Approximations(NamedTuple):
    """What a kernel's instructions are off by beside roundings to nearest, in eps of the sums.

    Attributes
    ----------
    ex2 : float
        Of a 2^x, relative.
    lg2 : float
        Of a logarithm: absolute where it is less than 1 in log2 units, relative elsewhere.
    headroom, lag : float
        By how much the exponents of the forward are lowered, and by how much its reference may stay behind the maximum,
        in natural units: so much larger, or at most so much smaller, is what is added to the logarithm of the sum.
    sums : float
        Of a sum by tensor cores, relative to the sum of its terms' absolute values, for each term.
    in_order : float
        Of a running sum that is rounded to nearest, relative to itself, for each term.
    tanh : float
        Of a tanh in a function of scores, relative.
    """

    ex2: float = 0.0
    lg2: float = 0.0
    headroom: float = 0.0
    lag: float = 0.0
    sums: float = 0.0
    in_order: float = 1 / 8
    tanh: float = 0.0


def approximations(dtype: Any) -> Approximations:
    """Of the CUDA kernels for this type of inputs, on a GPU.

    ex2 and lg2 of float32 are instructions. The PTX ISA bounds ex2 by 2 ulp from the correctly rounded result, which is
    half an ulp off itself; an ulp is at most an eps. It bounds lg2 by 2^-22, two eps. Tensor cores cut all terms of a
    block of b, and what was summed before, to the last of the largest one's 24 bits, and then their sum, each by less
    than an eps of the sum of all absolute values; the largest itself loses nothing, so that b + 1 errors remain for b
    terms. b is 4 on Turing and 8 or more on later ones (Fasi, Higham, Mikaitis and Pranesh 2021).

    numeric.cuh gives bfloat16 a headroom, to which an exponent near 0 is rounded: by half an eps of it. Its slack is
    how far the reference of the tensor-core forward may stay behind. tanh.approx is off by 2^-11.
    """
    if dtype == np.float64:
        return Approximations()
    if dtype == np.float32:
        return Approximations(ex2=2.5, lg2=2.0)
    headroom = 38 * math.log(2) if dtype == ml_dtypes.bfloat16 else 0.0
    return Approximations(
        ex2=2.5 + headroom / 2, lg2=2.0, headroom=headroom, lag=8 * math.log(2), sums=5 / 4, in_order=0.0, tanh=2.0**12
    )


def approximate_on(backend: str) -> bool:
    """Whether calls on this backend compute as a GPU does: on one, and in the emulator where its settings say so."""
    return backend == "cuda" or (backend.startswith("emulator") and current().arithmetic != "exact")


@np.errstate(all="ignore")
def magnitudes(
    q: Array,
    k: Array,
    v: Array,
    dout: Array,
    dlse: Array | None,
    *,
    approximate: bool = False,
    **options: Any,
) -> dict[str, float]:
    """For each result, the sum of the absolute values of its terms, at its largest element; `spent` has it times eps.

    Of gradients those with respect to q, k and v, and to what else ``wrt`` names among the options.

    One rounding of one term moves a result by up to eps times this, however much the terms cancel. A score's own
    rounding moves p, and with it every term, by eps times the size of the score's terms: hence the factor. A step after
    the scale rounds once more, and so does its derivative. The terms of lse are the largest score and the logarithm of
    a sum, both rounded; the gradients make p = exp(s - lse), of scores that such a step makes again, perhaps too large
    where it was too small before; a sink's share, exp(sink - lse), has none. They also take sum(dout * out) from an out
    that was rounded in the type of the inputs. Its elements' roundings are independent of each other, so that their
    errors add up as the root of the sum of squares.

    Values that are alike are added to running sums that grow to the whole. Each is rounded by up to half an eps of it,
    on average of half the whole, and often to the same side: half of what that makes, an eighth of an eps a term,
    counts for as many terms as are added in order. A score and out are sums that may cancel, and theirs is the whole
    that counts; the gradients' terms count with their absolute values. Tensor cores, which cut, have `sums` instead.

    With `approximate` the size has what `approximations` adds on a GPU. A weight of the forward is a 2^x, times another
    for each rise of the row's maximum after it. Where weights are off by e, the row's out is off by at most the sum of
    e p (|v| + |out|), and the sum under the logarithm, relative to itself, by that of e p. The gradients' p is off by a
    2^x of its own and by all that lse is, and their sum(dout * out) by what out is. Sinks join a row by its rounded
    log-sum-exp, whose size counts once more, and by two 2^x and a logarithm.

    A function of scores has the error of the score that it is given times its slope, and what its operations round
    (`rounding`); so have its slope, and the derivatives that gradients of captured arrays are sums of.
    """
    arrays = arrays_among(options)
    problem = AttentionProblem.from_arrays(q, k, v, **options)
    rows, cols = slice(0, problem.seqlen_q), slice(0, problem.seqlen_k)
    region = Region(problem.place(problem.expanded(np, arrays)), rows, cols)
    storage_eps, sum_eps = _eps(q.dtype)
    off = approximations(q.dtype) if approximate else Approximations()
    group = q.shape[-3] // k.shape[-3]
    q, k, v, dout = (x.astype(np.float64) for x in (q, k, v, dout))
    k, v = (np.repeat(x, group, axis=-3) for x in (k, v))
    sq, sk = q.shape[-2], k.shape[-2]
    s, slope = q @ k.swapaxes(-1, -2), np.float64(1)  # of a score by q . k
    largest_product = _largest(np.abs(problem.scale * s))
    for step in problem.scores:
        given, slope_given = s, slope
        s, slope = step.forward(np, s, region), step.backward(np, slope, s, region)
    largest_score = _largest(np.abs(s[np.isfinite(s)]))  # a bias of -inf hides a key
    seen = problem.seen(np, region)
    s = np.where(seen, s, -np.inf)
    sinks = np.full((*s.shape[:-1], 1), -np.inf)
    if problem.sinks is not None:
        sinks[:] = problem.sinks.of_queries(np, region.queries(np), region.place)
    highest = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), sinks)
    highest = np.where(highest == -np.inf, 0, highest)
    p, of_sinks = np.exp(s - highest), np.exp(sinks - highest)
    total = np.maximum(p.sum(-1, keepdims=True) + of_sinks, 1)
    p /= total
    weights = off.ex2 * (1 + _rises(s)) * p
    off_sum = weights.sum(-1, keepdims=True)
    weights += off_sum * p
    logarithms = np.log(total) - off.headroom + np.array([0, off.lag])
    off_lse = off_sum + off.lg2 * np.maximum(np.abs(logarithms).max(-1, keepdims=True), math.log(2))
    shared = group * math.prod(p.shape[:-2]) // math.prod(k.shape[:-2])  # terms that meet in one key's gradient
    out = p @ v
    delta = storage_eps / sum_eps * np.linalg.norm(dout * out, axis=-1, keepdims=True)
    dq_by_delta = delta * np.abs(slope * p @ k)
    dk_by_delta = np.sqrt(shared * ((slope * p * delta) ** 2).swapaxes(-1, -2) @ q**2)
    q, k, v, dout, slope, scale = map(np.abs, (q, k, v, dout, slope, problem.scale))
    dp = dout @ v.swapaxes(-1, -2)
    of_row = (p * dp).sum(-1, keepdims=True) + (0 if dlse is None else np.abs(dlse)[..., None])
    dscore, off_dscore = p * (dp + of_row), p * (weights * dp).sum(-1, keepdims=True)
    ds, off_ds = slope * dscore, slope * off_dscore
    steps = 0.0
    if len(problem.scores) > 1:
        steps = 2.0  # roundings of what a step makes, and of its derivative, a difference from 1
        if approximate and storage_eps > sum_eps:
            steps += max(step.error for step in problem.scores[1:]) / sum_eps
        off_ds = off_ds + 2 * steps * scale * dscore
        off_dscore = off_dscore + 2 * steps * dscore
    by_d, by_dv, by_keys, by_queries = (off.sums * n for n in (q.shape[-1], v.shape[-1], sk, shared * sq))
    in_order_d, in_order_dv, in_order_keys, in_order_queries = (
        off.in_order * min(n, IN_ORDER) for n in (q.shape[-1], v.shape[-1], sk, shared * sq)
    )
    rounded_scores = 1 + (1 + by_d) * _largest(scale * q @ k.swapaxes(-1, -2)) + in_order_d * largest_product
    rounded_scores += steps * largest_score
    again = steps * largest_score
    if isinstance(function := problem.scores[-1], Mod):
        of_given = rounded_scores + 2 * _largest(np.abs(given[seen & np.isfinite(given)]))
        given = np.where(seen, given, 0.0)
        made, made_slope = (of(function, given, region, off.tanh) for of in (of_score, of_slope))
        rounded_scores = 1 + again + _largest(seen * (made.own + made.by_score * of_given))
        again += _largest(seen * made.own)
        turned = np.abs(function.backward(np, np.ones_like(given), given, region))
        off_turned = made_slope.own + made_slope.by_score * of_given
        off_ds = off_ds + np.abs(slope_given) * off_turned * dscore
    largest_lse = _largest(np.abs(highest) + np.log(total))
    joined = 0.0 if problem.sinks is None else largest_lse + 2 * off.ex2 + off.lg2
    rounded_lse = rounded_scores + largest_lse + joined
    in_share = rounded_lse + off.ex2 + off_lse
    in_p = in_share + again
    in_dq, in_dk = by_keys + in_order_keys, by_queries + in_order_queries
    in_ds = in_p + by_dv + in_order_dv + in_dq
    terms = {}
    for term in problem.terms:
        if term.keyword == "sinks":
            share = of_sinks / total
            part, off_part, by_delta = share * of_row, share * (weights * dp).sum(-1, keepdims=True), share * delta
            in_part = in_share
        else:
            step = next(step for step in problem.scores if step.keyword == term.keyword)
            factor = np.abs(step.term(np, np.ones_like(dscore), region))
            part, off_part, by_delta = factor * dscore, factor * off_dscore, factor * p * delta
            in_part = in_p
            if isinstance(function, Mod):  # which comes after the step
                part, off_part, by_delta = turned * part, turned * off_part + off_turned * part, turned * by_delta
        added = off.in_order * min(part.size // max(1, math.prod(term.shape)), IN_ORDER)
        errors = sum_to_shape((in_part + by_dv + in_order_dv + added) * part + off_part, term.shape)
        terms[f"d{term.keyword}"] = _largest(errors + np.sqrt(sum_to_shape(by_delta**2, term.shape)))
    if isinstance(function, Mod) and function.captured in problem.wrt:
        captured = captured_floats(function.arguments)
        sizes, deltas = ({n: np.zeros(x.shape) for n, x in captured.items()} for _ in range(2))
        for n, factor, off_factor, places in gathered_parts(function, given, region, off.tanh):
            of_factor = off_factor.own + off_factor.by_score * of_given
            added = off.in_order * min(factor.size // max(1, sizes[n].size), IN_ORDER)
            parts = factor * ((in_p + by_dv + in_order_dv + added) * dscore + off_dscore) + of_factor * dscore
            np.add.at(sizes[n], places, parts)
            np.add.at(deltas[n], places, (factor * p * delta) ** 2)
        for n, size in sizes.items():
            terms[f"d{captured_name(function.captured, n)}"] = _largest(size + np.sqrt(deltas[n]))
    return {
        "out": _largest((rounded_scores + joined + by_keys) * p @ v + weights @ v + in_order_keys * np.abs(out)),
        "lse": rounded_lse + _largest(off_lse),
        "dq": _largest(((in_ds + in_dq) * ds + off_ds) @ k + dq_by_delta),
        "dk": _largest(shared * ((in_ds + in_dk) * ds + off_ds).swapaxes(-1, -2) @ q + dk_by_delta),
        "dv": shared * _largest(((in_p + in_dk) * p).swapaxes(-1, -2) @ dout),
        **terms,
    }


def _rises(s: Array) -> Array:
    """How often the row's maximum may still rise after each key: over tiles of 16, the fewest keys that a forward takes
    at once, in either order. A part of the keys that begins before a key has not more of them, as a maximum of its own.
    """
    *rows, keys = s.shape
    count = -(-keys // 16)
    padded = np.full((*rows, 16 * count), -np.inf)
    padded[..., :keys] = s
    tiles = padded.reshape(*rows, count, 16).max(-1)
    rises = np.zeros((2, *tiles.shape))
    for order, found in zip((tiles, tiles[..., ::-1]), (rises[0], rises[1, ..., ::-1]), strict=True):
        for i in range(count - 1):
            found[..., i] = (order[..., i + 1 :] > np.maximum.accumulate(order[..., i:-1], axis=-1)).sum(-1)
    return np.repeat(rises.max(0), 16, axis=-1)[..., :keys]


def _eps(dtype: Any) -> tuple[float, float]:
    """Of the type that results are stored in and of the one that they are summed in."""
    return float(ml_dtypes.finfo(dtype).eps), float(np.finfo(np.result_type(dtype, np.float32)).eps)


def _largest(x: Array) -> float:
    return float(x.max(initial=0))


@np.errstate(all="ignore")
def spent(x: Array, naive: Array, exact: Array, size: float = 1.0) -> tuple[float, float]:
    """The largest error of `x` and the budget for it: at most twice the error of naive attention in the same dtype,
    plus eps times the size of the result's terms.

    In float64 the exact result is rounded as the naive one is, so that their difference says nothing: there eps times
    the size counts twice. A result in a half type is also rounded once itself. What is no finite number, as the lse of
    a row that sees no key, must be the same in both; where naive attention alone has none, that excuses nothing.
    """
    if x.shape != exact.shape:
        return math.inf, 0.0
    storage_eps, sum_eps = _eps(x.dtype)
    x, naive, exact = (np.asarray(a).astype(np.float64) for a in (x, naive, exact))
    finite = np.isfinite(exact)
    if not np.array_equal(x[~finite], exact[~finite], equal_nan=True):
        return math.inf, 0.0
    if not finite.any():
        return 0.0, 0.0
    x, naive, exact = x[finite], naive[finite], exact[finite]
    error, naive_error = float(np.abs(x - exact).max()), _largest(np.abs(naive - exact)[np.isfinite(naive)])
    roundings = 2 if sum_eps == np.finfo(np.float64).eps else 1
    return error, float(2 * naive_error + roundings * sum_eps * size + storage_eps * np.abs(exact).max())
