"""How far from float64 a result may be: the budget that the tests and `python -m cupy_flash check` hold kernels to."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray


@np.errstate(all="ignore")
def magnitudes(
    q: Array, k: Array, v: Array, dout: Array, dlse: Array | None, *, causal: bool, q_offset: Any, scale: Any
) -> dict[str, float]:
    """For each result, the sum of the absolute values of its terms, at its largest element; `spent` has it times eps.

    One rounding of one term moves a result by up to eps times this, however much the terms cancel. A score's own
    rounding moves p, and with it every term, by eps times the size of the score's terms: hence the factor. The
    terms of lse are the largest score and the logarithm of a sum, both rounded; the gradients make p = exp(s - lse).
    They also take sum(dout * out) from an out that was rounded in the type of the inputs. Its elements' roundings are
    independent of each other, so that their errors add up as the root of the sum of squares.
    """
    storage_eps, sum_eps = _eps(q.dtype)
    group = q.shape[-3] // k.shape[-3]
    q, k, v, dout = (x.astype(np.float64) for x in (q, k, v, dout))
    k, v = (np.repeat(x, group, axis=-3) for x in (k, v))
    sq, sk = q.shape[-2], k.shape[-2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seen = np.arange(sk) <= np.arange(sq)[:, None] + ((sk - sq if q_offset is None else q_offset) if causal else sk)
    s = np.where(seen, scale * q @ k.swapaxes(-1, -2), -np.inf)
    highest = np.where(seen.any(-1, keepdims=True), s.max(-1, keepdims=True, initial=-np.inf), 0)
    p = np.exp(s - highest)
    total = np.maximum(p.sum(-1, keepdims=True), 1)
    p /= total
    shared = group * math.prod(p.shape[:-2]) // math.prod(k.shape[:-2])  # terms that meet in one key's gradient
    delta = abs(scale) * storage_eps / sum_eps * np.linalg.norm(dout * (p @ v), axis=-1, keepdims=True)
    dq_by_delta = delta * np.abs(p @ k)
    dk_by_delta = np.sqrt(shared * ((p * delta) ** 2).swapaxes(-1, -2) @ q**2)
    q, k, v, dout, scale = map(np.abs, (q, k, v, dout, scale))
    dp = dout @ v.swapaxes(-1, -2)
    ds = scale * p * (dp + (p * dp).sum(-1, keepdims=True) + (0 if dlse is None else np.abs(dlse)[..., None]))
    rounded_scores = 1 + _largest(scale * q @ k.swapaxes(-1, -2))
    rounded_lse = rounded_scores + _largest(np.abs(highest) + np.log(total))
    return {
        "out": rounded_scores * _largest(p @ v),
        "lse": rounded_lse,
        "dq": _largest(rounded_lse * ds @ k + dq_by_delta),
        "dk": _largest(rounded_lse * shared * ds.swapaxes(-1, -2) @ q + dk_by_delta),
        "dv": rounded_lse * shared * _largest(p.swapaxes(-1, -2) @ dout),
    }


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
