"""Scores and values at the ends of the range of numbers, and sums of very many terms: standard attention's results."""

import ml_dtypes
import numpy as np
import pytest
from oracle import attention

from cupy_flash import flash_attention, flash_attention_backward, flash_attention_vjp
from cupy_flash._src.problem import DTYPES

BFLOAT16 = ml_dtypes.bfloat16
LARGEST = {name: float(ml_dtypes.finfo(dtype).max) for name, dtype in DTYPES.items()}


def as_float(*arrays):
    return [x.astype(np.float64) for x in arrays]


# --- large scores ---


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("bfloat16", 133120), ("bfloat16", 1e17), ("float16", 60000), ("float32", 1e10), ("float32", -1e17),
     ("float64", 1e40), ("float64", 1e150)],
)  # fmt: skip
def test_one_key_gives_its_value(on, dtype, value):
    x = np.full((1, 1, 64), value, DTYPES[dtype])
    out, lse = on(flash_attention, x, x, x, return_lse=True)
    np.testing.assert_array_equal(out, x)
    np.testing.assert_allclose(lse, np.square(x[..., 0].astype(np.float64)) * 8, rtol=1e-6)


def far_scores(dtype, rows, keys, seed=0):
    """q, k, v and a scale: score[i, j] is about sign[i] * height[j], far apart or equal but for small integers times 4.

    These grow along the keys of one head and fall along the other's. Everything is exact in float32, the scores and
    their products with the scale too. Heights are 0 or 2^25 in natural units: a row of positive sign meets keys that
    are 2^25 higher later on, one of negative sign loses them.
    """
    rng = np.random.default_rng(seed)
    q, k = np.zeros((2, rows, 8)), np.zeros((2, keys, 8))
    q[..., 0] = 2.0**15 * rng.choice([1, -1, 0], (2, rows))
    q[..., 1] = 2.0**7
    k[:, keys // 3 :, 0] = 2.0**15
    k[..., 1] = rng.integers(-2, 3, (2, keys)) + np.outer([1, -1], np.arange(keys) // 50)
    v = rng.standard_normal((2, keys, 8))
    return *(x.astype(DTYPES[dtype]) for x in (q, k, v)), 2.0**-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "keys"), [(1, 90), (3, 400), (70, 150), pytest.param(9, 1500, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_large_scores_give_what_standard_attention_gives(on, dtype, rows, keys, causal):
    q, k, v, scale = far_scores(dtype, rows, keys)
    exact = attention(*as_float(q, k, v), scale=scale, causal=causal)
    out, lse = on(flash_attention, q, k, v, scale=scale, causal=causal, return_lse=True)
    eps = float(ml_dtypes.finfo(q.dtype).eps)
    np.testing.assert_allclose(out.astype(float), exact.out, atol=max(4 * eps, 4e-6))
    np.testing.assert_allclose(lse, exact.lse, rtol=3e-7, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("exponent", range(20, 120, 12))
def test_scores_of_every_size(on, dtype, exponent):
    """Three keys whose scores are 2^exponent, the same and half of it: the first two share the row."""
    q = np.full((1, 1, 1), 2.0 ** (exponent // 2), DTYPES[dtype])
    k = (np.array([1, 1, 0.5]) * 2.0 ** (exponent - exponent // 2)).astype(DTYPES[dtype]).reshape(1, 3, 1)
    v = np.array([1, 2, 3], DTYPES[dtype]).reshape(1, 3, 1)
    for sign in (1, -1):
        out = on(flash_attention, DTYPES[dtype].type(sign) * q, k, v, scale=1.0)
        assert float(out[0, 0, 0]) == (1.5 if sign > 0 else 3)


def test_probabilities_of_the_backward_never_exceed_1(on):
    """Their exponents are off by an ulp of the score; standard attention's dv would be 0.01 everywhere."""
    rng = np.random.default_rng(0)
    for score in (5e6, 5e8, 5e10, 5e15):
        q = (np.sqrt(score / 8) * np.ones((1, 100, 64))).astype(np.float32)
        v, dout = rng.standard_normal((2, 1, 100, 64)).astype(np.float32)
        out, lse = on(flash_attention, q, q, v, return_lse=True, scale=0.125)
        *_, dv = on(flash_attention_backward, np.abs(dout), q, q, v, out, lse, scale=0.125)
        assert np.isfinite(dv).all()
        assert (dv >= 0).all() and (dv <= np.abs(dout).sum(axis=1, keepdims=True) * 1.0001).all()


def test_gradients_keep_their_accuracy_as_far_as_the_docstring_says(on):
    """Relative error 2e-7 times the largest score, beside that of standard attention."""
    rng = np.random.default_rng(0)
    q, k, v, dout = rng.standard_normal((4, 1, 64, 64), dtype=np.float32)
    for size in (1, 10, 100, 1000):
        exact = attention(*as_float(size * q, k, v), dout=dout.astype(float))
        out, lse = on(flash_attention, size * q, k, v, return_lse=True)
        *_, dv = on(flash_attention_backward, dout, size * q, k, v, out, lse)
        score = np.abs(size * q[0] @ k[0].T / 8).max()
        assert np.abs(dv - exact.dv).max() <= 2e-7 * (1 + score) * np.abs(exact.dv).max()


def test_a_nan_score_stays_nan_in_the_backward(on):
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 1, 40, 16), dtype=np.float32)
    q[0, 7, 3] = np.nan
    out, lse = on(flash_attention, q, k, v, return_lse=True)
    dq, dk, dv = on(flash_attention_backward, dout, q, k, v, out, lse)
    assert np.isnan(dq[0, 7]).all() and np.isfinite(np.delete(dq[0], 7, axis=0)).all()
    assert np.isnan(dk).all() and np.isnan(dv).all()


# --- rows of NaN, keys in splits ---


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_row_of_nan_is_no_row_without_keys(on, dtype, rows):
    """9 queries and 700 keys are few enough to be split in every backend that splits keys."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, n, 64)).astype(DTYPES[dtype]) for n in (rows, 700, 700))
    q[0, rows // 2, 5] = np.nan
    out, lse = on(flash_attention, q, k, v, return_lse=True)
    expected = np.arange(rows) == rows // 2
    np.testing.assert_array_equal(np.isnan(lse[0]), expected)
    np.testing.assert_array_equal(np.isnan(out[0].astype(float)), np.broadcast_to(expected[:, None], (rows, 64)))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_splits_of_nan_beside_splits_of_hidden_scores(on, dtype):
    """Scores -inf in the first half of the keys, NaN in the second: NaN, as exp(-inf) + exp(NaN) is."""
    q = np.ones((1, 4, 8), DTYPES[dtype])
    k = np.ones((1, 700, 8), DTYPES[dtype])
    k[:, :350], k[:, 350:] = -np.inf, np.nan
    out, lse = on(flash_attention, q, k, np.ones_like(k), return_lse=True)
    assert np.isnan(lse).all() and np.isnan(out.astype(float)).all()


def test_keys_that_only_later_rows_see_leave_a_low_row_alone(on):
    """Scores of -200, and of 30 for keys that half of the rows do not see."""
    q, k, v = np.ones((1, 256, 4), np.float32), np.zeros((1, 768, 4), np.float32), np.ones((1, 768, 4), np.float32)
    k[:, :512, 0], k[:, 512:, 0] = -200, 30
    v += np.arange(768, dtype=np.float32)[:, None] / 768
    options = {"causal": True, "q_offset": 384, "scale": 1.0}
    out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
    exact = attention(*as_float(q, k, v), **options)
    np.testing.assert_allclose(out, exact.out, rtol=1e-5)
    np.testing.assert_allclose(lse, exact.lse, rtol=1e-6)


def test_low_scores_after_scores_of_minus_infinity(on):
    q, k, v = np.ones((1, 4, 8), np.float32), np.full((1, 1200, 8), -25, np.float32), np.ones((1, 1200, 8), np.float32)
    k[:, :600] = -np.inf
    out, lse = on(flash_attention, q, k, v, return_lse=True, scale=1.0)
    np.testing.assert_allclose(out, 1, rtol=1e-6)
    np.testing.assert_allclose(lse, np.log(600) - 200, rtol=1e-6)


# --- large values ---


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("keys", [256, 700])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_equal_keys_give_their_value_however_large(on, dtype, keys, rows):
    if on.name != "cpu" and dtype in ("float32", "float64"):
        pytest.skip("README, Limits: |v| times the keys must stay below the largest number there")
    v = np.full((1, keys, 16), LARGEST[dtype] / 100).astype(DTYPES[dtype])
    q, k = np.ones((1, rows, 16), v.dtype), np.ones((1, keys, 16), v.dtype)
    k[:, 2:] *= 2  # scores of 8: from the first reference, 0, the sum is just below what makes it move
    k[:, :2] = 0
    expected = float(v[0, 0, 0])
    out = on(flash_attention, q, k, v).astype(np.float64)
    np.testing.assert_allclose(out, expected, rtol=4 * float(ml_dtypes.finfo(v.dtype).eps) + 4e-6)


@pytest.mark.parametrize("score", [1e5, 3e7, 1e20])
def test_values_and_scores_may_both_be_large(on, score):
    """v = 2e38 in bfloat16, for which every backend has headroom, in rows of every reference."""
    q, k, v = (np.full((1, 64, 8), x).astype(BFLOAT16) for x in (np.sqrt(score / 8), np.sqrt(score / 8), 2e38))
    out = on(flash_attention, q[:, :1], k, v, scale=1.0).astype(np.float64)
    np.testing.assert_allclose(out, float(v[0, 0, 0]), rtol=0.01)


def test_partial_results_near_the_largest_number_meet(on):
    """What each split of the keys gives is near the largest number; so is their mean, but not their sum."""
    v = np.full((1, 2000, 64), LARGEST["bfloat16"] * 0.9).astype(BFLOAT16)
    q, k = np.ones((1, 1, 64), BFLOAT16), np.ones((1, 2000, 64), BFLOAT16)
    out = on(flash_attention, q, k, v).astype(np.float64)
    np.testing.assert_allclose(out, float(v[0, 0, 0]), rtol=0.02)


# --- sums of many terms ---

MILLION = pytest.param(2**20, marks=pytest.mark.slow)


@pytest.mark.parametrize("keys", [10240, MILLION])
def test_many_equal_keys_add_up(on, keys):
    """Every term is the same, so that rounding errors add up instead of cancelling out."""
    q, k, v = (np.full((1, n, 8), x, np.float32) for n, x in ((1, 0), (keys, 0), (keys, 0.1)))
    out, lse = on(flash_attention, q, k, v, return_lse=True)
    np.testing.assert_allclose(out, 0.1, rtol=3e-6 if keys == 10240 else 2e-5 if on.name == "cpu" else 8e-6)
    np.testing.assert_allclose(lse, np.log(keys), rtol=1e-6)


@pytest.mark.parametrize("keys", [10240, MILLION])
def test_many_unequal_weights_add_up(on, keys):
    """One key outweighs each of the others: their weights, 0.3, are no sums of powers of 2."""
    k = np.full((1, keys, 8), np.log(np.float32(0.3)), np.float32)
    k[0, 0] = 0
    q, v = np.full((1, 1, 8), 1 / 8, np.float32), np.full((1, keys, 8), 0.1, np.float32)
    out, lse = on(flash_attention, q, k, v, return_lse=True, scale=1.0)
    np.testing.assert_allclose(out, 0.1, rtol=3e-6 if keys == 10240 else 2e-5 if on.name == "cpu" else 8e-6)
    np.testing.assert_allclose(lse, np.log1p(0.3 * (keys - 1)), rtol=3e-6)


@pytest.mark.parametrize("keys", [10240, MILLION])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradients_of_many_equal_keys_add_up(on, keys, deterministic):
    """Additions to dq by atomics have two levels only, the keys of a block and the blocks."""
    q, k, v = (np.full((1, n, 8), x, np.float32) for n, x in ((1, 0), (keys, 0.1), (keys, 0)))
    _, vjp = flash_attention_vjp(q, k, v, scale=1.0, deterministic=deterministic, backend=on.name)
    dq, *_ = vjp(np.zeros((1, 1, 8), np.float32), dlse=np.ones((1, 1), np.float32))
    atomic = on.name != "cpu" and not deterministic
    np.testing.assert_allclose(dq, 0.1, rtol=3e-6 if keys == 10240 else 2e-4 if atomic else 2e-5)


@pytest.mark.parametrize("queries", [10240, MILLION])
def test_gradients_of_many_queries_add_up(on, queries):
    q, k = np.zeros((1, queries, 8), np.float32), np.zeros((1, 1, 8), np.float32)
    out, lse = on(flash_attention, q, k, k, return_lse=True)
    *_, dv = on(flash_attention_backward, np.full_like(out, 0.1), q, k, k, out, lse)
    np.testing.assert_allclose(dv, 0.1 * queries, rtol=3e-6 if queries == 10240 else 2e-4)
