"""Float64 attention and its gradients, one query at a time over exactly the keys it sees.

Written from the definition and independently of `cupy_flash._src.reference`: no mask, no broadcasting of scores
and no online softmax, so a value that a row must not see cannot reach it even as 0 * nan.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Results(NamedTuple):
    """In float64, in the shapes that the public calls return."""

    out: np.ndarray
    lse: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


class Oracle(Results):
    """The same, and gradients of the options that have them."""

    terms: dict

    def of(self, name):
        """The gradient that `wrt` calls so."""
        return self.terms[name] if name in self.terms else getattr(self, f"d{name}")


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
    bias=None,
    mask=None,
    k_lengths=None,
    q_lengths=None,
    k_starts=None,
    q_offset=None,
    sinks=None,
) -> Oracle:
    """Attention of arrays as for `flash_attention`, and gradients for `dout` (default 1) and `dlse` (0)."""
    shapes = [x.shape for x in (q, k, v)]
    q, k, v = (np.asarray(x if x.ndim > 2 else x[None]).astype(np.float64) for x in (q, k, v))
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in (q, k, v)))
    (hq, sq, d), (hk, sk, dv) = q.shape[-3:], v.shape[-3:]
    full = [np.broadcast_to(x, batch + x.shape[-3:]) for x in (q, k, v)]
    scale = 1 / math.sqrt(d) if scale is None else float(scale)
    learned = {"alibi_slopes": alibi_slopes, "bias": bias, "sinks": sinks}
    shape_of = {"alibi_slopes": (*batch, hq), "bias": (*batch, hq, sq, sk), "sinks": (*batch, hq)}
    learned = {name: np.broadcast_to(x, shape_of[name]) for name, x in learned.items() if x is not None}
    terms = {name: np.zeros(x.shape) for name, x in learned.items()}
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
            queries = sq if q_lengths is None else int(np.broadcast_to(q_lengths, batch)[index[:-1]])
            sink = float(learned["sinks"][index]) if sinks is not None else -np.inf
            for i in range(queries):
                row, keys = (*index, i), seen[i]
                far = abs(i + offset - np.flatnonzero(keys)).astype(float) if alibi_slopes is not None else 0.0
                added = np.zeros(np.count_nonzero(keys))
                if alibi_slopes is not None:
                    added -= float(learned["alibi_slopes"][index]) * far
                if bias is not None:
                    added += learned["bias"][row][keys].astype(np.float64)
                if not (added > -np.inf).any() and sink == -np.inf:
                    continue
                operands = full[0][row], full[1][key_index][keys], full[2][key_index][keys]
                out[row], lse[row], (gq, gk, gv), dscore, dsink = _row(
                    *operands, dout[row], dlse[row], scale, softcap, added, sink
                )
                grads[0][row] += gq
                grads[1][key_index][keys] += gk
                grads[2][key_index][keys] += gv
                if alibi_slopes is not None:
                    terms["alibi_slopes"][index] -= (dscore * far).sum()
                if bias is not None:
                    terms["bias"][row][keys] += dscore
                if sinks is not None:
                    terms["sinks"][index] += dsink
    if len(shapes[0]) == 2 and not batch:
        out, lse = out[0], lse[0]
    given = {"alibi_slopes": alibi_slopes, "bias": bias, "sinks": sinks}
    found = Oracle(out, lse, *(_unbroadcast(g, s) for g, s in zip(grads, shapes, strict=True)))
    found.terms = {name: _summed(x, given[name].shape) for name, x in terms.items()}
    return found


def seen_in(
    index, full, *, mask=None, mask_mod=None, mask_args=(), k_lengths=None, q_lengths=None, k_starts=None,
    q_offset=None, **rules,
):  # fmt: skip
    """`visible` of the head `index` of scores of shape `full`, (*batch, Hq, Sq, Sk), and its `position`."""
    own = {"k_length": k_lengths, "q_length": q_lengths, "k_start": k_starts, "q_offset": q_offset}
    own = {name: None if x is None else int(np.broadcast_to(x, full[:-3])[index[:-1]]) for name, x in own.items()}
    own["q_offset"] = position(*full[-2:], own["q_offset"], own["k_length"], own["q_length"])
    mask = None if mask is None else np.broadcast_to(mask, full)[index]
    seen = visible(*full[-2:], mask=mask, **own, **rules)
    if mask_mod is not None and seen.size:
        queries, keys = np.indices(seen.shape, sparse=True)
        batch = np.ravel_multi_index(index[:-1], full[:-3]) if full[:-3] else 0
        seen = seen & mask_mod(batch, index[-1], queries, keys, *mask_args)
    return seen, own["q_offset"]


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


def _row(q, k, v, dout, dlse, scale, softcap, bias, sink):
    """Output, log-sum-exp and gradients of one query: out = p @ v with p = softmax(cap(scale * k @ q) + bias), where
    the sum has exp(sink) too. The gradients are those of q, k and v, of the bias, and of the sink.
    """
    s, slope = scale * (k @ q), 1.0
    if softcap is not None:
        s, slope = softcap * np.tanh(s / softcap), 1 / np.cosh(s / softcap) ** 2
    s = s + bias
    m = max(s.max(initial=-np.inf), sink)
    e = np.exp(s - m)
    total = e.sum() + np.exp(sink - m)
    p, of_sink = e / total, np.exp(sink - m) / total
    out = p @ v
    dp = v @ dout
    dscore = p * (dp - p @ dp) + p * dlse  # Jacobian of softmax is diag(p) - p p^T; gradient of lse is p
    ds, dsink = slope * dscore, of_sink * (0 - p @ dp) + of_sink * dlse
    return out, m + np.log(total), (scale * (ds @ k), scale * np.outer(ds, q), np.outer(p, dout)), dscore, dsink


def _unbroadcast(grad, shape):
    return _summed(grad, shape if len(shape) > 2 else (1, *shape)).reshape(shape)


def _summed(grad, shape3):
    lead = grad.ndim - len(shape3)
    grad = grad.sum(axis=tuple(range(lead)))
    axes = tuple(i for i, n in enumerate(shape3) if n == 1 and grad.shape[i] != 1)
    return grad.sum(axis=axes, keepdims=True)
