"""Where NaN, hidden keys, padding and the number of blocks could leave a trace: results that must not have one."""

import dataclasses
import functools

import ml_dtypes
import numpy as np
import pytest
from cases import Case
from oracle import attention

from cupy_flash import flash_attention, flash_attention_backward
from cupy_flash._src.plan import plan_forward
from cupy_flash._src.problem import DTYPES

NAN = Case(heads_k=2, group=2, sq=40, sk=70)
KINDS = [("float32", 24, 33), ("float16", 24, 33), ("bfloat16", 264, 24)]  # the last on CUDA cores, as the first
RESULTS = ("out", "lse", "dq", "dk", "dv")


def reach(q, k, v, dout, out, lse, dlse, q_offset, hidden):
    """Which elements of out, lse, dq, dk and dv are NaN by the formulas, the backward's of this out and lse.

    Terms of keys that a query does not see are left out, or, with `hidden`, multiplied by 0.
    """
    groups = len(q) // len(k)
    q, k, v, dout, out, lse, dlse = (np.isnan(x.astype(np.float64)) for x in (q, k, v, dout, out, lse, dlse))
    k, v = (np.repeat(x, groups, axis=0) for x in (k, v))
    seen = np.tri(q.shape[1], k.shape[1], k.shape[1] if q_offset is None else q_offset, dtype=bool)
    terms = np.ones_like(seen) if hidden else seen
    s = seen & (q.any(-1)[:, :, None] | k.any(-1)[:, None])
    p = s | seen & lse[:, :, None]
    row = dout.any(-1) | out.any(-1) | dlse
    ds = p | seen & (row[:, :, None] | v.any(-1)[:, None])

    def sums_of(terms, score, x):
        """Sums over the last axis of score, each term times an element of x."""
        return score.any(-1, keepdims=True) | terms @ x

    dk, dv = (sums_of(terms.T, x.swapaxes(1, 2), y) for x, y in ((ds, q), (p, dout)))
    dk, dv = (x.reshape(-1, groups, *x.shape[1:]).any(1) for x in (dk, dv))
    return sums_of(terms, s, v), s.any(-1), sums_of(terms, ds, k), dk, dv


def run(on, arrays, changes, options, deterministic):
    """The results where NaN stands in `changes`, in out and lse for the second call only; and what that was given."""
    arrays = {name: x.copy() for name, x in arrays.items()}
    for name in arrays.keys() & changes.keys():
        arrays[name][changes[name]] = np.nan
    q, k, v, dout, dlse = arrays.values()
    out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
    given = {"out": out.copy(), "lse": lse.copy()}
    for name in given.keys() & changes.keys():
        given[name][changes[name]] = np.nan
    grads = on(
        flash_attention_backward, dout, q, k, v, *given.values(), dlse=dlse, deterministic=deterministic, **options
    )
    return (out, lse, *grads), (q, k, v, dout, *given.values(), dlse)


@pytest.mark.parametrize("q_offset", [None, pytest.param(-8, marks=pytest.mark.slow), 25])
@pytest.mark.parametrize(("dtype", "d", "dv"), KINDS)
def test_nan_reaches_what_it_must_and_nothing_else(on, dtype, d, dv, q_offset):
    """One NaN in one array; a CUDA block takes keys that some of its queries see times 0 for the others."""
    case = dataclasses.replace(NAN, dtype=dtype, d=d, dv=dv, causal=q_offset is not None, q_offset=q_offset)
    arrays = dict(zip(("q", "k", "v", "dout", "dlse"), case.arrays(), strict=True))
    deterministic = q_offset == 25
    clean, _ = run(on, arrays, {}, case.options, deterministic)
    tolerance = max(1e-5, 8 * float(ml_dtypes.finfo(arrays["q"].dtype).eps))
    for name in ("q", "k", "v", "dout", "out", "lse", "dlse"):
        place = (1, 20, 3)[: 2 if name in ("lse", "dlse") else 3] if name not in ("k", "v") else (1, 12, 3)
        results, given = run(on, arrays, {name: place}, case.options, deterministic)
        least, most = (reach(*given, q_offset, hidden) for hidden in (False, on.name != "cpu"))
        for what, x, usual, low, high in zip(RESULTS, results, clean, least, most, strict=True):
            message, x = f"NaN in {name}: {what}", x.astype(np.float64)
            nan = np.isnan(x)
            assert (low <= nan).all() and (nan <= high).all(), message
            np.testing.assert_allclose(x[~nan], usual[~nan].astype(np.float64), tolerance, tolerance, err_msg=message)


@pytest.mark.parametrize("q_offset", [-30, 25])
@pytest.mark.parametrize(("dtype", "d", "dv"), KINDS)
def test_what_nobody_sees_may_be_nan(on, dtype, d, dv, q_offset):
    """Queries without keys, keys without queries: they are 0 in the results, and leave the others as they are."""
    case = dataclasses.replace(NAN, sq=100, dtype=dtype, d=d, dv=dv, causal=True, q_offset=q_offset)
    case = dataclasses.replace(case, heads_k=1, sk=130)
    arrays = dict(zip(("q", "k", "v", "dout", "dlse"), case.arrays(), strict=True))
    first, end = max(0, -q_offset), case.sq + q_offset
    rows, keys = np.s_[:, :first], np.s_[:, end:]
    changes = {"q": rows, "k": keys, "v": keys, "dout": rows, "out": rows, "dlse": rows}
    for deterministic in (False, True):
        clean, _ = run(on, arrays, {}, case.options, deterministic)
        results, _ = run(on, arrays, changes, case.options, deterministic)
        out, lse, dq, dk, dv_ = results
        assert np.isneginf(lse[rows]).all() and np.isfinite(lse[:, first:]).all()
        assert all(not x[rows].any() for x in (out, dq)) and all(not x[keys].any() for x in (dk, dv_))
        for x, usual in zip(results, clean, strict=True):
            np.testing.assert_array_equal(x, usual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_padding_never_wins_the_maximum(on, dtype, causal):
    """All scores are equal and far below 0, which is what the keys that fill up a block would have."""
    rng = np.random.default_rng(0)
    eps = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    for score, sk in ((-1e4, 1), (-1e4, 65), (-1e8, 33), (-1e30, 129), (-1e30, 63)):
        q, k, v, dout = (rng.standard_normal((1, n, 24)).astype(DTYPES[dtype]) for n in (3, sk, sk, 3))
        q[...], k[...] = 0, 0
        q[..., 0], k[..., 0] = -100, 100
        options = {"scale": -score / 1e4, "causal": causal}
        exact = attention(q, k, v, dout=dout, **options)
        out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
        np.testing.assert_allclose(out.astype(np.float64), exact.out, atol=4 * eps + 1e-6)
        np.testing.assert_allclose(lse, exact.lse, rtol=3e-7)
        if score == -1e4:  # the backward has the score and lse rounded: 1e-3
            *_, dv = on(flash_attention_backward, dout, q, k, v, out, lse, **options)
            np.testing.assert_allclose(dv.astype(np.float64), exact.dv, rtol=2e-3 + 2 * eps, atol=1e-3)


@pytest.mark.parametrize("q_offset", [-1, 0, 1, 62, 63, 64, 126, 127, 128])
def test_every_offset_around_the_edge_of_a_block(on, q_offset):
    """Two blocks of queries and of keys with more than there are, so that every kind of block meets every edge."""
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float16"):
        for sk in (127, 128):
            q, k, v, dout = (rng.standard_normal((1, n, 24)).astype(DTYPES[dtype]) for n in (66, sk, sk, 66))
            options = {"causal": True, "q_offset": q_offset}
            exact = attention(q, k, v, dout=dout, **options)
            out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
            grads = on(flash_attention_backward, dout, q, k, v, out, lse, **options)
            for x, truth in zip((out, lse, *grads), exact, strict=True):
                tolerance = 16 * float(ml_dtypes.finfo(x.dtype).eps)
                np.testing.assert_allclose(x.astype(np.float64), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "q_offset"), [("float16", None), ("bfloat16", 4990), ("float16", -2)])
def test_more_splits_than_a_warp_has_lanes(on, replan, dtype, q_offset):
    """The largest scores come first, last, or are all low; one row is NaN, and in the last case two have no key."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 24)).astype(DTYPES[dtype]) for n in (5, 5000, 5000))
    q[..., 1:], k[..., 1:] = q[..., 1:] / 8, k[..., 1:] / 8
    q[..., 0] = 16
    q[0, 2, 1] = np.nan
    options = {"causal": q_offset is not None, "q_offset": q_offset, "scale": 1.0}
    rising, eps = np.linspace(0, 60, 5000), float(ml_dtypes.finfo(q.dtype).eps)
    for heights in (rising, rising[::-1], np.full(5000, -600.0)):
        k[..., 0] = heights
        exact = attention(q, k, v, **options)
        with replan(plan_forward=functools.partial(plan_forward, num_splits=40)):
            out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
        np.testing.assert_allclose(out.astype(np.float64), exact.out, atol=16 * eps)
        np.testing.assert_allclose(lse, exact.lse, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(("sq", "packed", "splits"), [(3, 2, 1), (250, 1, 2)])
def test_key_heads_need_not_divide_into_sections(replan, sq, packed, splits):
    """Nor does their order within a batch whose dimensions the arrays stride through in their own ways."""
    case = Case(dtype="float16", batch=(2, 3), batch_k=(3,), heads_k=2, group=2, sq=sq, sk=150, d=24, causal=True)
    q, k, v, *_ = case.arrays()
    results = []
    for n, sections in enumerate((12, 5, 7)):

        def plan(*args, sections=sections):
            planned = plan_forward(*args, num_splits=splits)
            assert planned.packed_heads == packed
            return dataclasses.replace(planned, section_heads=sections)

        with replan(plan_forward=plan):
            results.append(flash_attention(q, k, 2**n * v, causal=True, return_lse=True, backend="emulator"))
    exact = attention(q, k, v, causal=True)
    np.testing.assert_allclose(results[0][0].astype(np.float64), exact.out, atol=4e-3)
    for n, (out, lse) in enumerate(results):  # other values each time than what memory has left
        np.testing.assert_allclose(out, 2**n * results[0][0], rtol=0, atol=1e-6)  # of subnormals
        np.testing.assert_array_equal(lse, results[0][1])


@pytest.mark.parametrize("sign", [1, -1])
def test_zeros_of_either_sign_give_the_mean(on, sign):
    """Scale 0, or queries 0, beside hidden keys: every key that a query sees weighs the same, however large it is."""
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        q, k, v, dout = (rng.standard_normal((1, n, 24)).astype(DTYPES[dtype]) for n in (40, 70, 70, 40))
        zeros = np.where(rng.random(q.shape) < 0.5, 0.0, -0.0).astype(q.dtype)
        for queries, scale in ((q, sign * 0.0), (zeros, sign * 0.5)):
            options = {"causal": True, "q_offset": 3, "scale": scale}
            exact = attention(queries, 1e3 * k.astype(float), v, dout=dout, **options)
            keys = (1e3 * k.astype(float)).astype(k.dtype)
            out, lse = on(flash_attention, queries, keys, v, return_lse=True, **options)
            dq, dk, dv = on(flash_attention_backward, dout, queries, keys, v, out, lse, **options)
            eps = float(ml_dtypes.finfo(q.dtype).eps)
            np.testing.assert_allclose(out.astype(float), exact.out, atol=4 * eps)
            np.testing.assert_allclose(lse, np.log(np.arange(4, 44))[None], rtol=1e-6)
            np.testing.assert_allclose(dv.astype(float), exact.dv, atol=16 * eps)
            assert not dk.any() and (scale or not dq.any())
