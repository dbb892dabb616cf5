"""Float64 attention and its gradients, one query at a time over exactly the keys it sees.

Written from the definition and independently of `cupy_flash._src.reference`: no mask, no broadcasting of scores
and no online softmax, so a value that a row must not see cannot reach it even as 0 * nan.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Oracle(NamedTuple):
    """Results in float64, in the shapes that the public calls return."""

    out: np.ndarray
    lse: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


def attention(
    q,
    k,
    v,
    *,
    dout=None,
    dlse=None,
    causal=False,
    window=None,
    scale=None,
    softcap=None,
    alibi_slopes=None,
    mask=None,
    k_lengths=None,
    q_lengths=None,
    k_starts=None,
    q_offset=None,
) -> Oracle:
    """Attention of arrays as for `flash_attention`, and gradients for `dout` (default 1) and `dlse` (0)."""
    shapes = [x.shape for x in (q, k, v)]
    q, k, v = (np.asarray(x if x.ndim > 2 else x[None]).astype(np.float64) for x in (q, k, v))
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in (q, k, v)))
    (hq, sq, d), (hk, sk, dv) = q.shape[-3:], v.shape[-3:]
    full = [np.broadcast_to(x, batch + x.shape[-3:]) for x in (q, k, v)]
    scale = 1 / math.sqrt(d) if scale is None else float(scale)
    slopes = None if alibi_slopes is None else np.broadcast_to(alibi_slopes, (*batch, hq))
    hiding = {"causal": causal, "window": window, "mask": mask, "q_offset": q_offset}
    hiding |= {"k_lengths": k_lengths, "q_lengths": q_lengths, "k_starts": k_starts}

    out, lse = np.zeros((*batch, hq, sq, dv)), np.full((*batch, hq, sq), -np.inf)
    dout = np.ones_like(out) if dout is None else np.asarray(dout).astype(np.float64).reshape(out.shape)
    dlse = np.zeros_like(lse) if dlse is None else np.asarray(dlse).astype(np.float64).reshape(lse.shape)
    grads = [np.zeros(x.shape) for x in full]
    with np.errstate(all="ignore"):
        for index in np.ndindex(*batch, hq):
            key_index = (*index[:-1], index[-1] // (hq // hk))
            seen, offset = seen_in(index, (*batch, hq, sq, sk), **hiding)
            for i in range(sq):
                row, keys = (*index, i), seen[i]
                if keys.any():
                    operands = full[0][row], full[1][key_index][keys], full[2][key_index][keys]
                    bias = 0.0
                    if slopes is not None:
                        bias = -float(slopes[index]) * abs(i + offset - np.flatnonzero(keys)).astype(float)
                    out[row], lse[row], (gq, gk, gv) = _row(*operands, dout[row], dlse[row], scale, softcap, bias)
                    grads[0][row] += gq
                    grads[1][key_index][keys] += gk
                    grads[2][key_index][keys] += gv
    if len(shapes[0]) == 2 and not batch:
        out, lse = out[0], lse[0]
    return Oracle(out, lse, *(_unbroadcast(g, s) for g, s in zip(grads, shapes, strict=True)))


def seen_in(index, full, *, mask=None, k_lengths=None, q_lengths=None, k_starts=None, q_offset=None, **rules):
    """`visible` of the head `index` of scores of shape `full`, (*batch, Hq, Sq, Sk), and its `position`."""
    own = {"k_length": k_lengths, "q_length": q_lengths, "k_start": k_starts, "q_offset": q_offset}
    own = {name: None if x is None else int(np.broadcast_to(x, full[:-3])[index[:-1]]) for name, x in own.items()}
    own["q_offset"] = position(*full[-2:], own["q_offset"], own["k_length"], own["q_length"])
    mask = None if mask is None else np.broadcast_to(mask, full)[index]
    return visible(*full[-2:], mask=mask, **own, **rules), own["q_offset"]


def position(sq, sk, q_offset=None, k_length=None, q_length=None):
    """Where query 0 stands among the keys."""
    if q_offset is not None:
        return q_offset
    return (sk if k_length is None else k_length) - (sq if q_length is None else q_length)


def visible(sq, sk, *, causal=False, window=None, mask=None, k_length=None, q_length=None, k_start=None, q_offset=None):
    """Which query (row) sees which key (column), of one head."""
    offset = position(sq, sk, q_offset, k_length, q_length)
    left, right = window or (None, None)
    distance = np.arange(sk) - np.arange(sq)[:, None]  # the offset may be too large to add to an array
    seen = np.ones((sq, sk), bool)
    if causal:
        seen &= distance <= offset
    if left is not None:
        seen &= distance >= offset - left
    if right is not None:
        seen &= distance <= offset + right
    if mask is not None:
        seen &= mask
    if k_length is not None:
        seen &= np.arange(sk) < k_length
    if k_start is not None:
        seen &= np.arange(sk) >= k_start
    if q_length is not None:
        seen &= np.arange(sq)[:, None] < q_length
    return seen


def _row(q, k, v, dout, dlse, scale, softcap, bias):
    """Output, log-sum-exp and gradients of one query: out = p @ v with p = softmax(cap(scale * k @ q) + bias)."""
    s, slope = scale * (k @ q), 1.0
    if softcap is not None:
        s, slope = softcap * np.tanh(s / softcap), 1 / np.cosh(s / softcap) ** 2
    s = s + bias
    m = s.max()
    e = np.exp(s - m)
    p = e / e.sum()
    out = p @ v
    dp = v @ dout
    ds = slope * (p * (dp - p @ dp) + p * dlse)  # Jacobian of softmax is diag(p) - p p^T; gradient of lse is p
    return out, m + np.log(e.sum()), (scale * (ds @ k), scale * np.outer(ds, q), np.outer(p, dout))


def _unbroadcast(grad, shape):
    shape3 = shape if len(shape) > 2 else (1, *shape)
    lead = grad.ndim - len(shape3)
    grad = grad.sum(axis=tuple(range(lead)))
    axes = tuple(i for i, n in enumerate(shape3) if n == 1 and grad.shape[i] != 1)
    return grad.sum(axis=axes, keepdims=True).reshape(shape)
