"""The public calls. Validation is in `problem`, computation in `backends`; this file only connects them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cupy_flash._src import backends
from cupy_flash._src.arrays import check_like, check_plain
from cupy_flash._src.broadcast import sum_to_shape
from cupy_flash._src.components import CAPTURED, INPUTS, Options, arrays_among
from cupy_flash._src.names import answered
from cupy_flash._src.operands import Cotangents, Merge, Operands
from cupy_flash._src.options import boolean
from cupy_flash._src.problem import AttentionProblem

Array = Any  # numpy.ndarray or cupy.ndarray


@answered
def flash_attention(
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
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    r"""Exact attention ``softmax(scale * q @ k.T) @ v`` in memory linear in the sequence length.

    Parameters
    ----------
    q : array, shape (..., Hq, Sq, D)
        Queries, float16, bfloat16, float32 or float64. 2-D ``(Sq, D)`` means one head. Of arrays (..., S, H, D), as
        flash-attn and JAX have them, pass ``x.swapaxes(-3, -2)``, a view, and swap `out` back: else positions are
        taken for heads.
    k : array, shape (..., Hk, Sk, D)
        Keys. ``Hq % Hk == 0``: query head h reads key head ``h // (Hq // Hk)`` (MQA, GQA).
    v : array, shape (..., Hk, Sk, Dv)
        Values. D and Dv may differ, each from 1 to 512. Leading dimensions broadcast as in `numpy.matmul`;
        any strides are taken as they are, without copies.
    causal : bool
        If true, query i sees key j only when ``j <= i + q_offset``.
    window : pair of int or None, optional
        ``(left, right)``, numbers of keys, None for all: with ``p = i + q_offset``, query i sees key j only when
        ``p - left <= j <= p + right``. With `causal` both rules hold, so that right counts as 0. By default there is no
        window. A query whose window lies before all keys or behind them sees none: its rows of `out` and of its
        gradient are 0, that of `lse` is -inf without `sinks`, and it adds nothing to the gradients of keys and values.
    scale : float, optional
        Factor on the scores, by default ``1 / sqrt(D)``. Any real number, also a 0-d array or tensor, that is finite
        times ``log2(e)`` in the type that sums are taken in: at most 2.36e38 in size (1.25e308 for float64).
    softcap : float, optional
        A bound above 0 that scores approach: ``softcap * tanh(s / softcap)`` takes the place of each scaled score s, as
        in Gemma 2, before any key is hidden; gradients pass with the factor
        ``1 - tanh(s / softcap) ** 2``. By default there is none. For half types on a GPU tanh is an instruction with a
        relative error of 2^-11, as in FlashAttention. Beyond 2^-100 and 2^100 (2^-900 and 2^900 for float64) it counts
        as these.
    alibi_slopes : array of float32, shape (Hq,) or (..., Hq), optional
        Linear biases [2]_: from the score of query i and key j, scaled and capped, ``slope * |p - j|`` is taken, where
        ``p = i + q_offset`` and the slope is that of the query head. What is far away makes scores large, which lose
        digits: 1e-7 of their size in float32. Slopes are finite times ``log2(e)``, as `scale` is.
    bias : array, optional
        Of a shape that broadcasts to (..., Hq, Sq, Sk), in the dtype of q or float32: it is added to the scores, scaled
        and capped, before any key is hidden. -inf hides a key, and a row of nothing else sees none. It is read in
        place, whatever its strides, and never expanded: a bias of distances may be a view of a table. Numbers are
        finite times ``log2(e)``, as `scale` is: on a GPU the least of float32 and bfloat16 hides a key as -inf does.
    mask : array of bool, optional
        Of a shape that broadcasts to (..., Hq, Sq, Sk): query i sees key j only where it is true. It is read in place,
        whatever its strides, and never expanded.
    k_lengths : int or array of int, optional
        Key j exists only when ``j < k_lengths``: a number for each batch element, as an int32 or int64 array that
        broadcasts to the leading dimensions, or one for all. Padding is not read, so it may hold anything.
    q_lengths : int or array of int, optional
        Query i exists only when ``i < q_lengths``, likewise. The other rows see no key.
    k_starts : int or array of int, optional
        Key j exists only when ``j >= k_starts``, likewise: padding on the left.
    q_offset : int or array of int, optional
        Position of the first query among the keys, only with `causal`, `window` or `alibi_slopes`; an array has one for
        each batch element. By default ``k_lengths - q_lengths``, with Sk and Sq where these are not given: the last
        query stands at the last key (bottom-right alignment). 0 aligns top-left, as torch and JAX do. A number is at
        most 2^29 in size where there are `alibi_slopes`.
    sinks : array, shape (Hq,) or (..., Hq), optional
        Attention sinks [3]_, in the dtype of q or float32: one more logit in the softmax of each row of the head, which
        has no value, so that a row's weights add up to less than 1. ``lse`` is ``log(exp(sink) + sum(exp(s)))``. A
        query that sees no key has an output of 0 and the sink as `lse`; one that does not exist, -inf.
    score_mod : callable, optional
        A Python function ``score_mod(s, b, h, i, j, *score_args)`` of what takes the place of the score s of query i
        and key j: the last step, after `scale`, `softcap`, `alibi_slopes` and `bias` and before any key is hidden; -inf
        hides one as in `bias`. b counts the batch elements through all leading dimensions, h is the query head; i and j
        count from 0, whatever `q_offset` is. It is called once, with symbols, and becomes a part of the kernels, and so
        does its derivative; the notes say what it may do. `cupy_flash.mods` has ready ones.
    score_args : tuple or list, optional
        What `score_mod` captures: numbers, and arrays of bool, of ints but uint64, or of floats, of any shape, which
        lie where q does and are read in place. Numbers and what arrays hold may be others at each call, and nothing is
        compiled for it.
    mask_mod : callable or BlockMask, optional
        A Python function ``mask_mod(b, h, i, j, *mask_args)`` that is true where query i sees key j, of the same
        arguments: one more rule beside the others that hide keys. Blocks that it hides are neither read nor computed,
        and those that it shows whole are not tested. What `block_mask` returns has found them before.
    mask_args : tuple or list, optional
        What `mask_mod` captures, as `score_args`; a `BlockMask` has its own.
    return_lse : bool
        Also return the log-sum-exp of each row's scores, after all options that change them.
    out : array, shape (..., Hq, Sq, Dv), optional
        Where to write the result: the dtype of q, any strides, no memory shared with the inputs.
    backend : str, optional
        None chooses by array type: CuPy arrays run on their GPU, NumPy arrays on the CPU. ``"cpu"``, ``"emulator"``,
        ``"emulator:sm_80"`` and other architectures take NumPy arrays; ``"cuda"`` takes CuPy arrays.

    Returns
    -------
    out : array, shape (..., Hq, Sq, Dv)
        In the dtype of q; sums are taken in float32 (float64 for float64). A row that sees no key is 0. A NumPy or
        CuPy array, whatever q is: of a tensor that DLPack brought, ``torch.from_dlpack(out)`` makes one again.
    lse : array, shape (..., Hq, Sq)
        Only with ``return_lse=True``. Natural logarithm, float32 (float64 for float64), without `sinks` -inf for a row
        that sees no key.

    Raises
    ------
    TypeError
        If an argument has the wrong type, an unsupported dtype, or arrays of different dtypes or devices meet; if a
        function of the caller does what it may not, takes other arguments than it is given, or returns none of what is
        expected.
    ValueError
        If shapes do not fit, an option is out of range, `q_offset` is given where positions do not matter, or `out`
        overlaps an input.
    IndexError
        If a function of the caller looks up what an array does not have. What is wrong with a function names it and the
        line.
    RuntimeError
        If the backend asked for is not available on this machine; the message says what to install.

    Notes
    -----
    The schedule is FlashAttention-2's [1]_: query blocks outside, key blocks inside, an online softmax with
    one rescale per block and a single division at the end.

    Numbers of `k_lengths`, `q_lengths` and `k_starts` lie between 0 and the sequence length: on a CPU others raise, on
    a GPU, which would have to be waited for, they count as the nearest. Positions in an array `q_offset` that are more
    than 2^29 in size count as that. A key that is hidden from a query takes no part in that row, whatever hides it but
    a `bias` or a score of -inf, which is a weight of 0: blocks of keys that no query of a block sees by `causal`,
    `window`, lengths, `k_starts` or `mask_mod` are not even read.

    The functions `score_mod` and `mask_mod` are called with symbols, once for each combination of dtypes and shapes
    that they capture, and compiled at the first call, in seconds, which later processes find on disk. What they read
    elsewhere, as closures do, are constants, of which others make another function. They may use Python's operators,
    ``abs``, loops and other functions, NumPy's ``where``, ``minimum``, ``maximum``, ``clip``, ``abs``, ``sign``,
    ``floor``, ``exp``, ``exp2``, ``log``, ``log2``, ``log1p``, ``tanh``, ``sqrt``, ``square``, ``power``, ``sin``,
    ``cos``, ``isfinite`` and ``logical_*``, ``.astype`` to bool, int and float, and index what they capture with ints
    along all axes. What would ask for a value, ``if``, ``and``, ``or``, ``not``, ``a < b < c`` and ``bool()``, is a
    TypeError: ``np.where``, ``&``, ``|`` and ``~`` do the same.

    Negative indices count from an array's end. Intervals [4]_ prove that most indices stay inside, at no cost. Where
    they cannot, as of an index that was looked up itself, each call first looks whether one leaves its array for a
    query and a key that it sees; this takes time, and on a GPU it waits, so that it cannot be captured into a graph. An
    index that is made of the score must be clipped.

    Which blocks `mask_mod` hides or shows whole is found at each call, for its arrays may have changed: by intervals of
    positions and of what arrays of ints hold for them. A block is skipped where these prove that no query sees a key,
    and looked at key by key where they prove nothing, as of floats that are captured: they count as any.

    Functions compute in float32 (float64 for float64) and in whole numbers of 64 bits. In compiled ones a score that is
    divided by what all keys of its row have in common is multiplied by the reciprocal, and ``tanh`` in `score_mod` is
    for half types on a GPU the instruction that `softcap` has. There are at most 2^24 batch elements, 2^16 heads and
    2^29 queries and keys.

    Scores of any size up to 2e38 (1e308 in float64) give what standard attention gives. With so late a division a sum
    of values may overflow though their mean does not: in float32 and float64 on a GPU, ``|v| * Sk`` must stay below the
    largest number.

    Memory on a GPU, beyond the results and for B batch elements: where few queries meet many keys, whose blocks are
    then spread over the device, ``4 * B * Hq * Sq * (Dv + 2)`` bytes for each part of the keys; the same once with more
    than 32768 keys, whose parts follow one another, in kernels on CUDA cores that add up in float32 (float32, half
    types with D or Dv above 256 or without tensor cores for them). With `mask_mod` 4 bytes for each block of queries
    and keys that kernels take together, and of each 32 neighbours in its arrays of ints 16. Otherwise none.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023,
       Algorithm 1.
    .. [2] O. Press, N. A. Smith and M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input
       Length Extrapolation", 2021, section 3.
    .. [3] OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv:2508.10925, 2025; with a sink of 0 what E. Miller
       proposed in "Attention Is Off By One", 2023.
    .. [4] R. E. Moore, "Interval Analysis", 1966.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_flash import flash_attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((2, 8, 128, 64), dtype=np.float32) for _ in range(3))
    >>> out, lse = flash_attention(q, k, v, causal=True, return_lse=True)
    >>> out.shape, lse.shape
    ((2, 8, 128, 64), (2, 8, 128))

    Documents one after another in a sequence, of which each sees itself:

    >>> def documents(b, h, i, j, ids):
    ...     return (ids[b, i] == ids[b, j]) & (j <= i)
    >>> ids = np.repeat([[0, 1], [5, 5]], 64, axis=1)  # two of 64 positions, and one of 128
    >>> out = flash_attention(q, k, v, mask_mod=documents, mask_args=(ids,))
    >>> second = flash_attention(q[0, :, 64:], k[0, :, 64:], v[0, :, 64:], causal=True)
    >>> bool(np.allclose(out[0, :, 64:], second, atol=1e-6))
    True
    """
    return_lse = boolean("return_lse", return_lse)
    module, (q, k, v) = backends.select(backend, q=q, k=k, v=v)
    problem, arrays = _problem(module, q, k, v, locals())
    operands = _forward(module, problem, q, k, v, out, arrays)
    return (operands.out, operands.lse) if return_lse else operands.out


@answered
def flash_attention_backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
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
    deterministic: bool = False,
    backend: str | None = None,
) -> tuple[Array, ...]:
    r"""Gradients of `flash_attention` by recomputation, in memory linear in the sequence length.

    Parameters
    ----------
    dout : array, shape (..., Hq, Sq, Dv)
        Gradient of the loss with respect to `out`, in the dtype of q or of `out`; it is rounded to the dtype of q.
    q, k, v : array
        The inputs of the forward pass.
    out, lse : array, shape (..., Hq, Sq, Dv) and (..., Hq, Sq)
        What ``flash_attention(q, k, v, ..., return_lse=True)`` returned, or `merge_attention` of several chunks of
        keys, to which k and v belong. `out` is in the dtype of q, or float32 where that is a half type.
    dlse : array, shape (..., Hq, Sq), optional
        Gradient of the loss with respect to `lse`, in the dtype of `lse`.
    causal, window, scale, softcap, alibi_slopes, bias, mask, k_lengths, q_lengths, k_starts, q_offset, sinks, backend
        As in the forward pass.
    score_mod, score_args, mask_mod, mask_args
        As in the forward pass.
    wrt : tuple or list of str
        What to compute gradients of: "q", "k", "v" and, where they were passed, "bias", "sinks", "alibi_slopes" and
        "score_args". What only the others need is not computed, but for one product on a GPU where "v" is alone.
    deterministic : bool
        If true, the same inputs give the same bits every time; on a GPU dq is then computed in a pass of its own, in
        seven matrix products rather than five, instead of by atomic additions, and the gradients of `score_args`, which
        atomic additions make too, in whole numbers, whose sum has no order, in two passes. Those of other options
        repeat in any case.

    Returns
    -------
    dq, dk, dv : array
        In the shapes of q, k and v: summed over query heads that share a key head and over broadcast leading
        dimensions. dk and dv are in the dtype of k; dq is in the dtype of `out`, so that the parts of several chunks
        of keys add up in float32. Rows that see no key have gradient 0. With `wrt` the gradients that it names, in its
        order; those of options in their shapes and dtypes, added up in float32 (float64 for float64) over the axes
        along which they are broadcast. "score_args" is a tuple with a gradient for each array of floats, and None for
        what else was captured.

    Raises
    ------
    TypeError, ValueError, IndexError, RuntimeError
        As `flash_attention`; also if `dout`, `out`, `lse` or `dlse` do not have the shape or dtype above, or `wrt` has
        a name that is unknown or was not passed.

    Notes
    -----
    With ``P = exp(S - lse)`` and ``delta = rowsum(dout * out) - dlse``, the gradient of the scores is
    ``dS = P * (dout @ v.T - delta)`` [1]_ (Algorithm 2), times the factor of `softcap` where there is one; then
    ``dq = scale * dS @ k``, ``dk = scale * dS.T @ q``, ``dv = P.T @ dout``. Of options, each element has the sum over
    all scores that it is part of:

    - `bias`, which is added to the score: dS before the factor of `softcap`.
    - `alibi_slopes`, from ``-slope * |p - j|``: ``-|p - j| * dS``, before that factor too.
    - `sinks`: a sink's share ``exp(sink - lse)`` of a row has no value, so that in ``P * (dout @ v.T - delta)`` only
      ``-exp(sink - lse) * delta`` is left of it.
    - `score_args`: dS times the derivative of what `score_mod` returns with respect to the element that was looked up.

    `softcap`'s factor is the derivative ``1 - tanh(s / softcap) ** 2`` of ``softcap * tanh(s / softcap)``. `score_mod`
    comes after all but `sinks`, so that for what stands before it dS has its derivative with respect to s as a factor.
    Both derivatives are made of its expression by the chain rule [2]_. Where a function chooses, as ``where``,
    ``minimum`` and ``clip`` do, it is that of what was chosen, of equal numbers the first; of ``floor``, ``//``,
    ``sign`` and comparisons it is 0, and so is that of ``abs`` at 0. What a hidden key looks up has none.

    P is as accurate as the difference of a score and `lse`, two rounded numbers: its relative error is about 1e-7 times
    the largest ``|score|`` (2e-16 in float64), 1e-4 at 1000. Beyond 1e6 that is an error of its whole size, which P,
    held to 1, does not exceed.

    Memory on a GPU, beyond the results and for B batch elements: ``4 * B * Hq * Sq`` bytes for delta (8 in float64).
    The half types take ``4 * B * Hq * Sq * D`` more for a float32 accumulator of dq, unless dq is itself float32 or has
    a pass of its own: when `deterministic`, or where few keys meet many queries. Where a group's query heads are spread
    over the GPU because key heads are few, ``4 * B * Hk * Sk * (D + Dv)`` more for float32 accumulators of dk and dv.
    Grouped heads never expand keys or values. A float32 `dout` of a half type's problem is copied, rounded.
    The gradient of an option takes two more matrix products and no memory but its own size, on a CPU in float32
    (float64 for float64); where few of its elements have all scores, at most 10 MB more, for parts of their sums. On a
    GPU, of more than four batch dimensions that strides do not let be taken together, the outer ones add to it one
    after the other, in its own dtype. Those of `score_args` take two more products too, and as much memory as the
    arrays in float32 (float64 for float64): on a CPU once more for each thread, on a GPU, where `deterministic`, 16
    bytes (24) more for each element. `mask_mod` takes what it does in the forward.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023.
    .. [2] A. Griewank and A. Walther, "Evaluating Derivatives", 2nd edition, 2008, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_flash import flash_attention, flash_attention_backward
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((8, 128, 64), dtype=np.float32) for _ in range(3))
    >>> out, lse = flash_attention(q, k, v, return_lse=True)
    >>> dq, dk, dv = flash_attention_backward(np.ones_like(out), q, k, v, out, lse)
    >>> dq.shape, dk.shape, dv.shape
    ((8, 128, 64), (8, 128, 64), (8, 128, 64))
    """
    rest = {"dout": dout} if dlse is None else {"dout": dout, "dlse": dlse}
    module, (q, k, v, out, lse, *given) = backends.select(backend, q=q, k=k, v=v, out=out, lse=lse, **rest)
    problem, arrays = _problem(module, q, k, v, locals())
    return _backward(module, problem, Operands(q, k, v, out, lse, arrays), Cotangents(*given))


@answered
def flash_attention_vjp(
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
    wrt: tuple[str, ...] | list[str] = INPUTS,
    deterministic: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
) -> tuple[Any, Vjp]:
    """Attention and the function that maps a gradient of its output to gradients of its inputs.

    Parameters
    ----------
    q, k, v
        As in `flash_attention`.
    causal, window, scale, softcap, alibi_slopes, bias, mask, k_lengths, q_lengths, k_starts, q_offset, sinks
        As in `flash_attention`, as are `return_lse` and `backend`.
    score_mod, score_args, mask_mod, mask_args
        As in `flash_attention`.
    wrt, deterministic
        As in `flash_attention_backward`.

    Returns
    -------
    out : array, or (out, lse) with ``return_lse=True``
        As `flash_attention` returns.
    vjp : Vjp
        ``vjp(dout, dlse=None) -> (dq, dk, dv)``, or the gradients that `wrt` names, as often as wanted; keeps q, k, v,
        out and lse, the options that are arrays and what functions capture, without copies.

    Raises
    ------
    TypeError, ValueError, IndexError, RuntimeError
        As `flash_attention` and `flash_attention_backward`.

    Notes
    -----
    Until `vjp` has been called for the last time all these must hold what they do: ``x = out + residual`` is right,
    ``out += residual`` is not, and neither is a buffer of q that serves the next layer. A change of q, k, v, `out` or
    `lse` does not pass in silence: `vjp` raises a ValueError that names the arrays. On a GPU that would mean to wait
    for it; there the gradients are NaN, and ``vjp.changed()``, which waits, returns the names.

    The price: each of these arrays is read once more in each of the two calls (of the time of both, on a Zen 3 in
    float32 with d 64, 2% at 1024 positions and 7% at 256), once for each element of a batch that it broadcasts over. A
    GPU keeps 12 bytes for each row of queries and 8 for each row of keys, a CPU at most 40 for each head.
    `flash_attention` and `flash_attention_backward`, whose caller keeps the arrays, do not pay it.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_flash import flash_attention_vjp
    >>> x = np.random.default_rng(0).standard_normal((8, 128, 64), dtype=np.float32)
    >>> out, vjp = flash_attention_vjp(x, x, x, causal=True)
    >>> dq, dk, dv = vjp(2 * out)  # gradient of sum(out ** 2)
    >>> dq.shape
    (8, 128, 64)
    >>> sinks, bias = np.zeros(8, np.float32), np.zeros((128, 128), np.float32)  # the same bias for all heads
    >>> out, vjp = flash_attention_vjp(x, x, x, sinks=sinks, bias=bias, wrt=("sinks", "bias"))
    >>> dsinks, dbias = vjp(2 * out)
    >>> dsinks.shape, dbias.shape
    ((8,), (128, 128))

    A bias for each head and distance, which is learned:

    >>> def relative(s, b, h, i, j, table):
    ...     return s + table[h, np.clip(i - j + 32, 0, 64)]
    >>> out, vjp = flash_attention_vjp(
    ...     x, x, x, score_mod=relative, score_args=(np.zeros((8, 65), np.float32),), wrt=("q", "score_args")
    ... )
    >>> dq, (dtable,) = vjp(2 * out)
    >>> dtable.shape
    (8, 65)
    """
    return_lse = boolean("return_lse", return_lse)
    module, (q, k, v) = backends.select(backend, q=q, k=k, v=v)
    problem, arrays = _problem(module, q, k, v, locals())
    operands = _forward(module, problem, q, k, v, None, arrays, differentiated=True)
    vjp = Vjp(backend, module, problem, operands)
    return ((operands.out, operands.lse) if return_lse else operands.out), vjp


class Vjp:
    """What `flash_attention_vjp` returns: the map from a gradient of its output to gradients of its inputs."""

    def __init__(
        self, backend: str | None, module: backends.Backend, problem: AttentionProblem, operands: Operands
    ) -> None:
        self._backend, self._module, self._problem, self._operands = backend, module, problem, operands
        with module.placed(q=operands.q):
            self._seal = module.seal(problem, _canonical(module.namespace, problem, operands))

    def __call__(self, dout: Array, dlse: Array | None = None) -> tuple[Array, ...]:
        """Return (dq, dk, dv), or what `wrt` names, for the gradient of the loss with respect to out, and to lse."""
        rest = {"dout": dout} if dlse is None else {"dout": dout, "dlse": dlse}
        _, (_, *given) = backends.select(self._backend, q=self._operands.q, **rest)
        cotangents = Cotangents(*given)
        return _backward(self._module, self._problem, self._operands, cotangents, self._seal)

    def changed(self) -> tuple[str, ...]:
        """Names of the arrays among q, k, v, out and lse that no longer hold what they did; on a GPU this waits."""
        with self._module.placed(q=self._operands.q):
            return self._seal.changed()


@answered
def merge_attention(
    out_a: Array, lse_a: Array, out_b: Array, lse_b: Array, *, backend: str | None = None
) -> tuple[Array, Array]:
    r"""Attention over two disjoint sets of keys, from the attention over each.

    What attention in chunks of keys is made of, on one device or, as ring attention, on several: run each chunk with
    ``return_lse=True`` and merge the results, in any order.

    Parameters
    ----------
    out_a, out_b : array, shape (..., H, Sq, Dv)
        Outputs of `flash_attention`, or of earlier merges, for the same queries: float16, bfloat16, float32 or
        float64, of one dtype or one float32 and the other of a half type. 2-D ``(Sq, Dv)`` means one head.
    lse_a, lse_b : array, shape (..., H, Sq)
        Their log-sum-exps, float32 (float64 for float64); without `sinks` -inf for a row that saw no key.
    backend : str, optional
        As in `flash_attention`.

    Returns
    -------
    out : array, shape (..., H, Sq, Dv)
        In the dtype of `lse`: float32 for half types too, since a result that is still to be merged must not be
        rounded each time. `flash_attention_backward` takes it so; ``out.astype(q.dtype)`` finishes it. A row that saw
        no key in either set is 0.
    lse : array, shape (..., H, Sq)
        Natural logarithm, float32 (float64 for float64).

    Raises
    ------
    TypeError
        If an argument is no array, has an unsupported dtype, or the dtypes do not fit together.
    ValueError
        If the shapes do not fit together.
    RuntimeError
        If the backend asked for is not available on this machine.

    Notes
    -----
    ``lse = log(exp(lse_a) + exp(lse_b))`` and ``out = exp(lse_a - lse) * out_a + exp(lse_b - lse) * out_b``, as
    Flash-Decoding merges its splits [1]_. For gradients no rule of its own is needed: `flash_attention_backward` of
    each chunk, given the merged `out` and `lse`, returns that chunk's dk and dv and its share of dq [2]_.

    `sinks` belong to a row, not to its keys: pass them with one of the chunks, whichever, and to the backward of that
    one. Its `lse` has them, and so has that of the merged result.

    References
    ----------
    .. [1] T. Dao, D. Haziza, F. Massa and G. Sizov, "Flash-Decoding for long-context inference", 2023.
    .. [2] H. Liu, M. Zaharia and P. Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context",
       2023, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_flash import flash_attention, merge_attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((8, 128, 64), dtype=np.float32) for _ in range(3))
    >>> first = flash_attention(q, k[:, :50], v[:, :50], return_lse=True)
    >>> second = flash_attention(q, k[:, 50:], v[:, 50:], return_lse=True)
    >>> out, lse = merge_attention(*first, *second)
    >>> np.allclose(out, flash_attention(q, k, v), atol=1e-5)
    True
    """
    arrays = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b}
    module, (out_a, lse_a, out_b, lse_b) = backends.select(backend, **arrays)
    xp, problem, shape = module.namespace, AttentionProblem.of_outputs(out_a, out_b), tuple(out_a.shape)
    check_like("lse_a", lse_a, shape[:-1], problem.accumulator)
    check_like("lse_b", lse_b, shape[:-1], problem.accumulator)
    with module.placed(out_a=out_a, lse_a=lse_a, out_b=out_b, lse_b=lse_b):
        out, lse = xp.empty(shape, problem.accumulator), xp.empty(shape[:-1], problem.accumulator)
        if out_b.dtype != problem.storage:  # backends take the wider first
            out_a, lse_a, out_b, lse_b = out_b, lse_b, out_a, lse_a
        parts = out_a, lse_a, out_b, lse_b, out, lse
        module.merge(problem, Merge(*[_with_head(x, shape) for x in parts]))
    return out, lse


def _problem(
    module: backends.Backend, q: Array, k: Array, v: Array, arguments: dict[str, Any]
) -> tuple[AttentionProblem, dict[str, Array]]:
    """The problem, and the arrays among the options."""
    arrays = arrays_among(arguments)
    if not arrays:
        return AttentionProblem.of(q, k, v, Options.among(arguments)), arrays
    arrays = backends.take(module, arrays)
    problem = AttentionProblem.of(q, k, v, Options.among(arguments | arrays))
    problem.check_values(arrays)
    xp = module.namespace
    with module.placed(q=q):  # numbers become arrays there, by a kernel: a copy would not do in a graph
        arrays = {
            name: x if isinstance(x, xp.ndarray) else xp.full((), x.item(), x.dtype) for name, x in arrays.items()
        }
    return problem, arrays


def _forward(
    module: backends.Backend,
    problem: AttentionProblem,
    q: Array,
    k: Array,
    v: Array,
    out: Array | None,
    arrays: dict[str, Array],
    differentiated: bool = False,
) -> Operands:
    """Attention, written into `out` if given; the arrays in the shapes that the caller knows."""
    xp = module.namespace
    shape = _out_shape(problem, q)
    if out is not None:
        _check_out(xp, out, shape, problem, q=q, k=k, v=v, **arrays)
    with module.placed(q=q, k=k, v=v, **arrays, **({} if out is None else {"out": out})):
        if out is None:
            out = xp.empty(shape, problem.storage)
        operands = Operands(q, k, v, out, xp.empty(shape[:-1], problem.accumulator), arrays)
        if differentiated:
            module.expect(problem)
        module.forward(problem, _canonical(xp, problem, operands))
    return operands


def _backward(
    module: backends.Backend,
    problem: AttentionProblem,
    operands: Operands,
    cotangents: Cotangents,
    seal: backends.Seal | None = None,
) -> tuple[Array, ...]:
    q, k, v, out, lse, arrays = operands
    dout, dlse = cotangents
    shape = _out_shape(problem, q)
    check_like("out", out, shape, problem.storage, problem.accumulator)
    if out.dtype != problem.storage:
        problem = problem.with_wide_out
    check_like("dout", dout, shape, problem.storage, problem.out_storage)
    check_like("lse", lse, shape[:-1], problem.accumulator)
    if dlse is not None:
        check_like("dlse", dlse, shape[:-1], problem.accumulator)
    rest = {} if dlse is None else {"dlse": dlse}
    with module.placed(q=q, k=k, v=v, dout=dout, out=out, lse=lse, **rest, **arrays):
        operands = _canonical(module.namespace, problem, operands)
        dout = _with_head(dout.astype(problem.storage, copy=False), shape)
        cotangents = Cotangents(dout, None if dlse is None else _with_head(dlse, shape))
        found = seal.check() if seal else None
        gradients = module.backward(problem, operands, cotangents)
        if seal:
            seal.spoil(found, gradients)
        given = {"q": q, "k": k, "v": v, **arrays, **{mod.captured: mod.arguments for mod in problem.mods}}
        return tuple(_reduced(name, gradients.of(name), given[name]) for name in problem.wrt)


def _reduced(name: str, gradient: Any, x: Any) -> Any:
    """A gradient in the shape of the array; of an option's also in its dtype. Of what a function captures each."""
    if name in CAPTURED:
        return tuple(None if g is None else g.astype(of.dtype, copy=False) for g, of in zip(gradient, x, strict=True))
    shape = x.shape
    if name not in INPUTS:
        return gradient.reshape(shape).astype(x.dtype, copy=False)
    if gradient.shape == shape:
        return gradient
    return sum_to_shape(gradient, shape if len(shape) > 2 else (1, *shape)).reshape(shape)


def _out_shape(problem: AttentionProblem, q: Array) -> tuple[int, ...]:
    """Shape of the output: without a head axis where q is 2-D and nothing broadcasts over it."""
    return problem.out_shape[1:] if q.ndim == 2 and not problem.batch else problem.out_shape


def _with_head(x: Array, out_shape: tuple[int, ...]) -> Array:
    """A view with a head axis: of an output of `out_shape`, or of what belongs to one."""
    return x[None] if len(out_shape) == 2 else x


def _canonical(xp: Any, problem: AttentionProblem, operands: Operands) -> Operands:
    """Views as backends take them, whatever axes the caller's arrays lack."""
    if operands.arrays:
        operands = operands._replace(arrays=problem.expanded(xp, operands.arrays))
    q, k, v, out, lse, arrays = operands
    if (q.shape, k.shape, v.shape, out.shape) == problem.shapes:
        return operands
    q, k, v = (
        xp.broadcast_to(_with_head(x, x.shape), shape)
        for x, shape in zip(operands[:3], problem.shapes[:3], strict=True)
    )
    return Operands(q, k, v, _with_head(out, out.shape), _with_head(lse, out.shape), arrays)


def _check_out(xp: Any, out: Array, shape: tuple[int, ...], problem: AttentionProblem, **inputs: Array) -> None:
    if not isinstance(out, xp.ndarray):
        raise TypeError(f"out is a {type(out).__name__}: expected a {xp.__name__}.ndarray")
    if isinstance(out, np.ndarray):
        check_plain("out", out)
    check_like("out", out, shape, problem.storage)
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out is read-only: expected a writable array")
    if _may_self_overlap(out):
        raise ValueError(f"out has strides {out.strides} for shape {shape}: its elements overlap in memory")
    for name, x in inputs.items():
        if _overlap(out, x):
            raise ValueError(f"out overlaps {name} in memory: expected memory of its own")


def _may_self_overlap(x: Array) -> bool:
    """Whether two elements may share memory: some axis steps by less than the extent of all finer axes."""
    if x.size == 0:  # NumPy gives such an array strides of 0
        return False
    extent = x.itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride < extent:
            return True
        extent += (n - 1) * stride
    return False


def _overlap(a: Array, b: Array) -> bool:
    """Whether two arrays share an element, wherever they lie: only addresses and strides are looked at."""
    try:
        return np.shares_memory(_shadow(a), _shadow(b), max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:  # as hard as integer programming, for exotic strides
        return True


def _shadow(x: Array) -> np.ndarray:
    """A NumPy array with the addresses of x, which must never be read: x may be on a GPU."""
    if isinstance(x, np.ndarray):
        return x

    class Addresses:
        __array_interface__ = {  # noqa: RUF012
            "version": 3,
            "shape": x.shape,
            "strides": x.strides,
            "typestr": f"|V{x.itemsize}",
            "data": (x.data.ptr, True),
        }

    return np.asarray(Addresses())
