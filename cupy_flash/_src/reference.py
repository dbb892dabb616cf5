"""The standard attention, materialised: what the tiled backends are compared with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cupy_flash._src.arrays import check_like, check_plain
from cupy_flash._src.broadcast import sum_to_shape
from cupy_flash._src.components import ARRAYS, CAPTURED, INPUTS, Options, arrays_among
from cupy_flash._src.components.component import Region
from cupy_flash._src.names import answered
from cupy_flash._src.options import boolean
from cupy_flash._src.problem import DTYPES, AttentionProblem

Array = Any  # numpy.ndarray or cupy.ndarray


@answered
def attention_reference(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
    bias: Array | None = None,
    mask: Array | None = None,
    k_lengths: Array | int | None = None,
    q_lengths: Array | int | None = None,
    k_starts: Array | int | None = None,
    q_offset: Array | int | None = None,
    sinks: Array | None = None,
    score_mod: Callable[..., Any] | None = None,
    score_args: tuple[Any, ...] | list[Any] = (),
    mask_mod: Callable[..., Any] | None = None,
    mask_args: tuple[Any, ...] | list[Any] = (),
    return_lse: bool = False,
    compute_dtype: Any = None,
) -> Any:
    r"""Attention by its definition, with the whole score matrix in memory (Algorithm 0 of [1]_).

    Parameters
    ----------
    q : array, shape (..., Hq, Sq, D)
        Queries, float16, bfloat16, float32 or float64, NumPy or CuPy.
    k : array, shape (..., Hk, Sk, D)
        Keys, of the same kind.
    v : array, shape (..., Hk, Sk, Dv)
        Values, of the same kind.
    causal, window, scale, softcap, alibi_slopes, bias, mask, k_lengths, q_lengths, k_starts, q_offset, sinks
        As in `flash_attention`, as is `return_lse`. Here a hidden key takes part with weight 0, so that an inf or NaN
        in its value spreads, in padding too.
    score_mod, score_args, mask_mod, mask_args
        As in `flash_attention`; here functions are computed of whole arrays, by NumPy or CuPy. Of a `BlockMask` only
        the function counts.
    compute_dtype : dtype, optional
        None computes as a naive framework does: every intermediate is rounded to the dtype of q (products and
        sums of float16 and bfloat16 run in float32 before they are rounded). ``numpy.float64`` makes the
        result an oracle.

    Returns
    -------
    out : array, shape (..., Hq, Sq, Dv)
        In the dtype of q, or in `compute_dtype` where given. A row that sees no key is 0.
    lse : array, shape (..., Hq, Sq)
        Only with ``return_lse=True``. float32 (float64 for float64), or `compute_dtype` where given.

    Raises
    ------
    TypeError
        If an argument has the wrong type, dtypes differ, or `compute_dtype` is not float32 or float64.
    ValueError
        If shapes do not fit together or an option is out of range.
    IndexError
        As `flash_attention`.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022,
       Algorithm 0.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_flash import attention_reference, flash_attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((8, 100, 64), dtype=np.float32) for _ in range(3))
    >>> exact = attention_reference(q, k, v, causal=True, compute_dtype=np.float64)
    >>> bool(abs(flash_attention(q, k, v, causal=True) - exact).max() < 1e-5)
    True
    """
    return_lse = boolean("return_lse", return_lse)
    arrays = arrays_among(locals())
    xp = _namespace(q=q, k=k, v=v, **arrays)
    problem = AttentionProblem.of(q, k, v, Options.among(locals() | arrays))
    region = _region(xp, problem, arrays)
    math = _Arithmetic(xp, problem, compute_dtype)
    with np.errstate(all="ignore"):
        _, lse, out = _forward(math, problem, region, *_by_key_head(math, problem, q, k, v))
        shape = problem.out_shape if q.ndim > 2 or problem.batch else problem.out_shape[1:]
        out, lse = out.reshape(shape).astype(math.out_dtype), lse.reshape(shape[:-1]).astype(math.lse_dtype)
    return (out, lse) if return_lse else out


@answered
def attention_reference_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    *,
    dlse: Array | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Array | None = None,
    bias: Array | None = None,
    mask: Array | None = None,
    k_lengths: Array | int | None = None,
    q_lengths: Array | int | None = None,
    k_starts: Array | int | None = None,
    q_offset: Array | int | None = None,
    sinks: Array | None = None,
    score_mod: Callable[..., Any] | None = None,
    score_args: tuple[Any, ...] | list[Any] = (),
    mask_mod: Callable[..., Any] | None = None,
    mask_args: tuple[Any, ...] | list[Any] = (),
    wrt: tuple[str, ...] | list[str] = INPUTS,
    compute_dtype: Any = None,
) -> tuple[Array, ...]:
    r"""Gradients of `attention_reference` with the whole score matrix in memory (Algorithm 3 of [1]_).

    Parameters
    ----------
    dout : array, shape (..., Hq, Sq, Dv)
        Gradient of the loss with respect to the output, in any supported dtype.
    q, k, v : array
        The inputs of the forward pass; what else is needed is computed again.
    dlse : array, shape (..., Hq, Sq), optional
        Gradient of the loss with respect to the log-sum-exp, in any supported dtype.
    causal, window, scale, softcap, alibi_slopes, bias, mask, k_lengths, q_lengths, k_starts, q_offset, sinks
        As in `attention_reference`, as is `compute_dtype`.
    score_mod, score_args, mask_mod, mask_args
        As in `attention_reference`.
    wrt : tuple or list of str
        As in `flash_attention_backward`.

    Returns
    -------
    dq, dk, dv : array
        Or the gradients that `wrt` names, in its order: in the shapes of the arrays, and in their dtype or in
        `compute_dtype` where given; "score_args" as in `flash_attention_backward`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `attention_reference`; also if `dout` or `dlse` does not have a shape or dtype as above.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022,
       Appendix B.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_flash import attention_reference_backward
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((2, 16, 8)) for _ in range(3))
    >>> dq, dk, dv = attention_reference_backward(np.ones_like(q), q, k, v)
    >>> bool(np.allclose(dv.sum(axis=1), 16))  # each of the 16 rows of probabilities sums to 1
    True
    """
    arrays = arrays_among(locals())
    xp = _namespace(q=q, k=k, v=v, dout=dout, **({} if dlse is None else {"dlse": dlse}), **arrays)
    problem = AttentionProblem.of(q, k, v, Options.among(locals() | arrays))
    region = _region(xp, problem, arrays)
    math = _Arithmetic(xp, problem, compute_dtype)
    shape = problem.out_shape if q.ndim > 2 or problem.batch else problem.out_shape[1:]
    check_like("dout", dout, shape, *DTYPES.values())
    if dlse is not None:
        check_like("dlse", dlse, shape[:-1], *DTYPES.values())

    with np.errstate(all="ignore"):
        qg, kg, vg = _by_key_head(math, problem, q, k, v)
        inputs: list[Array] = []
        p, lse, out = _forward(math, problem, region, qg, kg, vg, inputs)
        do = math.load(dout).reshape(out.shape)
        delta = math.round((do * out).sum(axis=-1, keepdims=True))
        if dlse is not None:
            delta = math.round(delta - math.load(dlse).reshape(delta.shape))
        grads = {}
        if problem.sinks is not None:
            queries = region.queries(xp)
            share = xp.exp(problem.sinks.of_queries(xp, queries, region.place).astype(math.working) - lse)
            grads["sinks"] = -math.round(xp.where(lse == -xp.inf, 0, share * delta))
        dp = math.matmul(do, _transpose(vg))
        ds = math.round(p * math.round(dp - delta))
        for step, s in zip(problem.scores[::-1], inputs[::-1], strict=True):
            if step.learns:
                grads[step.keyword] = step.term(xp, ds, region)
            if step.captured in problem.wrt:
                grads[step.captured] = step.new_gradients(xp, s.dtype)
                step.gather(xp, ds, s, region, grads[step.captured])
            ds = math.round(step.backward(xp, ds, s, region))
        grads |= {
            "q": math.matmul(ds, kg),
            "k": math.matmul(_transpose(ds), qg),
            "v": math.matmul(_transpose(p), do),
        }
        shapes = {"q": qg.shape, "k": kg.shape, "v": vg.shape}
        shapes |= {term.keyword: _by_group(problem, term.shape) for term in problem.terms}
        given = {"q": q, "k": k, "v": v, **arrays}

        def finished(name: str) -> Any:
            if name in CAPTURED:
                return tuple(
                    None if x is None else x.astype(math.out_dtype if compute_dtype is not None else of.dtype)
                    for x, of in zip(grads[name], problem.captured(name), strict=True)
                )
            x = sum_to_shape(grads[name], shapes[name]).reshape(given[name].shape)
            return x.astype(math.out_dtype if compute_dtype is not None else given[name].dtype)

        return tuple(map(finished, problem.wrt))


class _Arithmetic:
    """Which array module computes, in which dtype, and how intermediates are rounded."""

    def __init__(self, xp: Any, problem: AttentionProblem, compute_dtype: Any) -> None:
        self.xp = xp
        if compute_dtype is None:
            self.stored = self.out_dtype = problem.storage
            self.lse_dtype = problem.accumulator
        else:
            self.stored = self.out_dtype = self.lse_dtype = np.dtype(compute_dtype)
            if self.stored not in (np.float32, np.float64):
                raise TypeError(f"compute_dtype is {self.stored}: expected None, float32 or float64")
        self.working = np.dtype(np.float32) if self.stored.itemsize == 2 else self.stored

    def load(self, x: Array) -> Array:
        return x.astype(self.working)

    def round(self, x: Array) -> Array:
        """Round to what a framework would have stored; arithmetic goes on in the working dtype."""
        return x.astype(self.stored, copy=False).astype(self.working, copy=False)

    def matmul(self, a: Array, b: Array) -> Array:
        return self.round(self.xp.matmul(a, b))


def _namespace(**arrays: Array) -> Any:
    """numpy or cupy: where all the arrays belong. A CuPy array exists only where cupy is already imported."""
    names = {}
    for name, x in arrays.items():
        if isinstance(x, np.ndarray):
            check_plain(name, x)
            names[name] = "numpy"
        elif type(x).__module__.partition(".")[0] == "cupy":
            names[name] = "cupy"
        else:
            raise TypeError(f"{name} is a {type(x).__name__}: expected a NumPy or CuPy array")
        if names[name] != names["q"] and not (isinstance(x, np.ndarray) and x.ndim == 0):  # as numbers are
            raise TypeError(f"{name} is a {names[name]} array, q is a {names['q']} array: expected one kind")
    return sys.modules[names["q"]]


def _by_key_head(math: _Arithmetic, problem: AttentionProblem, q: Array, k: Array, v: Array) -> tuple[Array, ...]:
    """q as (..., Hk, group, Sq, D); k and v as (..., Hk, 1, Sk, D): matmul broadcasts over the group."""
    hk, group = problem.num_heads_k, problem.group_size
    q, k, v = (math.load(x) for x in (q, k, v))
    return (
        q.reshape(*q.shape[:-3], hk, group, *q.shape[-2:]),
        k.reshape(*k.shape[:-3], hk, 1, *k.shape[-2:]),
        v.reshape(*v.shape[:-3], hk, 1, *v.shape[-2:]),
    )


def _region(xp: Any, problem: AttentionProblem, arrays: dict[str, Array]) -> Region:
    """All scores, as (..., Hk, group, Sq, Sk)."""
    problem.check_values(arrays)
    views = problem.expanded(xp, arrays)
    views |= {name: views[name].reshape(_by_group(problem, views[name].shape)) for name in ARRAYS if name in views}
    place = problem.place(views)
    batch, head = place.batch[..., None], place.head.reshape(problem.num_heads_k, problem.group_size, 1, 1)
    place = place._replace(batch=xp.asarray(batch), head=xp.asarray(head))
    return Region(place, slice(0, problem.seqlen_q), slice(0, problem.seqlen_k))


def _by_group(problem: AttentionProblem, shape: tuple[int, ...]) -> tuple[int, ...]:
    """(..., Hq, rows, cols) as (..., Hk, group, rows, cols)."""
    heads = (1, 1) if shape[-3] == 1 else (problem.num_heads_k, problem.group_size)
    return (*shape[:-3], *heads, *shape[-2:])


def _forward(
    math: _Arithmetic,
    problem: AttentionProblem,
    region: Region,
    q: Array,
    k: Array,
    v: Array,
    inputs: list[Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Probabilities, log-sum-exp with a last axis of 1, and output; into `inputs` what each step of the scores took."""
    xp = math.xp
    s = math.matmul(q, _transpose(k))
    seen = problem.seen(xp, region) if problem.masks else True
    for step in problem.scores:
        step.check_indices(xp, seen, region)
        if inputs is not None:
            inputs.append(s)
        s = math.round(step.forward(xp, s, region))
    if problem.masks:
        s = xp.where(seen, s, -xp.inf)
    m = s.max(axis=-1, keepdims=True) if problem.seqlen_k else xp.full((*s.shape[:-1], 1), -xp.inf, s.dtype)
    sinks = None
    if problem.sinks is not None:
        sinks = problem.sinks.of_queries(xp, region.queries(xp), region.place).astype(s.dtype)
        m = xp.maximum(m, sinks)
    m = xp.where(m == -xp.inf, 0, m)  # a row that sees no key: exp(-inf - 0) = 0
    p = math.round(xp.exp(math.round(s - m)))
    total = math.round(p.sum(axis=-1, keepdims=True))
    if sinks is not None:
        total = math.round(total + xp.exp(sinks - m))
    lse = math.round(m + math.round(xp.log(total)))
    p = math.round(p / xp.where(total == 0, 1, total))
    # Where v alone has more leading dimensions, p has fewer than the output, and lse follows the output.
    out = math.matmul(p, v)
    return p, xp.broadcast_to(lse, (*out.shape[:-1], 1)), out


def _transpose(x: Array) -> Array:
    return x.swapaxes(-1, -2)
