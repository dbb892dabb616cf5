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
    q, k, v, *, dout=None, dlse=None, causal=False, window=None, scale=None, softcap=None, q_offset=None
) -> Oracle:
    """Attention of arrays as for `flash_attention`, and gradients for `dout` (default 1) and `dlse` (0)."""
    shapes = [x.shape for x in (q, k, v)]
    q, k, v = (np.asarray(x if x.ndim > 2 else x[None]).astype(np.float64) for x in (q, k, v))
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in (q, k, v)))
    (hq, sq, d), (hk, sk, dv) = q.shape[-3:], v.shape[-3:]
    full = [np.broadcast_to(x, batch + x.shape[-3:]) for x in (q, k, v)]
    scale = 1 / math.sqrt(d) if scale is None else float(scale)
    seen = visible(sq, sk, causal=causal, window=window, q_offset=q_offset)

    out, lse = np.zeros((*batch, hq, sq, dv)), np.full((*batch, hq, sq), -np.inf)
    dout = np.ones_like(out) if dout is None else np.asarray(dout).astype(np.float64).reshape(out.shape)
    dlse = np.zeros_like(lse) if dlse is None else np.asarray(dlse).astype(np.float64).reshape(lse.shape)
    grads = [np.zeros(x.shape) for x in full]
    with np.errstate(all="ignore"):
        for index in np.ndindex(*batch, hq):
            key_index = (*index[:-1], index[-1] // (hq // hk))
            for i in range(sq):
                row, keys = (*index, i), seen[i]
                if keys.any():
                    operands = full[0][row], full[1][key_index][keys], full[2][key_index][keys]
                    out[row], lse[row], (gq, gk, gv) = _row(*operands, dout[row], dlse[row], scale, softcap)
                    grads[0][row] += gq
                    grads[1][key_index][keys] += gk
                    grads[2][key_index][keys] += gv
    if len(shapes[0]) == 2 and not batch:
        out, lse = out[0], lse[0]
    return Oracle(out, lse, *(_unbroadcast(g, s) for g, s in zip(grads, shapes, strict=True)))


def visible(sq, sk, *, causal=False, window=None, q_offset=None):
    """Which query (row) sees which key (column)."""
    offset = sk - sq if q_offset is None else q_offset
    left, right = window or (None, None)
    distance = np.arange(sk) - np.arange(sq)[:, None]  # the offset may be too large to add to an array
    seen = np.ones((sq, sk), bool)
    if causal:
        seen &= distance <= offset
    if left is not None:
        seen &= distance >= offset - left
    if right is not None:
        seen &= distance <= offset + right
    return seen


def _row(q, k, v, dout, dlse, scale, softcap):
    """Output, log-sum-exp and gradients of one query: out = p @ v with p = softmax(cap(scale * k @ q))."""
    s, slope = scale * (k @ q), 1.0
    if softcap is not None:
        s, slope = softcap * np.tanh(s / softcap), 1 / np.cosh(s / softcap) ** 2
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
