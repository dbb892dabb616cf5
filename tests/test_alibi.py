"""alibi_slopes: what they take, and that they are a bias of the same numbers."""

import numpy as np
import pytest
from cases import Case, check, results, same_bits
from oracle import attention

from cupy_flash import attention_reference, flash_attention, flash_attention_vjp
from cupy_flash._src.problem import DTYPES

X = np.random.default_rng(0).standard_normal((3, 4, 5, 8))
CALLS = [flash_attention, flash_attention_vjp, attention_reference]
CASE = Case(batch=(2,), heads_k=2, group=2, sq=70, sk=90, d=16)
SLOPES = np.float32([0.5, 0.25, 0.01, -0.05])

# --- what they take ---


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("slopes", "message"), [
    (np.ones(4), "TypeError: alibi_slopes has dtype float64: expected float32"),
    (np.ones(4, np.float16), "TypeError: alibi_slopes has dtype float16: expected float32"),
    (np.ones(4, ">f4"), "TypeError: alibi_slopes has dtype >f4: expected float32"),
    (np.ones(3, np.float32),
     "ValueError: alibi_slopes has shape (3,): expected (3, 4), (..., heads), or one that broadcasts to it"),
    (np.ones((3, 1), np.float32),
     "ValueError: alibi_slopes has shape (3, 1): expected (3, 4), (..., heads), or one that broadcasts to it"),
    (np.float32([[1]] * 4),
     "ValueError: alibi_slopes has shape (4, 1): expected (3, 4), (..., heads), or one that broadcasts to it"),
    (np.array(1, np.float32),
     "ValueError: alibi_slopes has shape (): expected (3, 4), (..., heads), or one that broadcasts to it"),
], ids=str)  # fmt: skip
def test_slopes_are_float32_one_for_each_query_head(call, slopes, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call(X, X, X, alibi_slopes=slopes)
    assert f"{error.type.__name__}: {error.value}" == message


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("slopes", [0.5, [0.5] * 4, "slopes"], ids=repr)
def test_slopes_are_an_array(call, slopes):
    with pytest.raises(TypeError) as error:
        call(X, X, X, alibi_slopes=slopes)
    assert str(error.value).startswith(f"alibi_slopes is a {type(slopes).__name__}: expected a NumPy or CuPy array")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("q_offset", [2**29 + 1, -(10**30)])
def test_positions_are_numbers_that_distances_can_be_taken_from(call, q_offset):
    with pytest.raises(ValueError) as error:
        call(X, X, X, alibi_slopes=SLOPES, q_offset=q_offset)
    assert str(error.value) == f"q_offset is {q_offset}: with alibi_slopes expected at most {2**29} in size"


# --- what they equal ---


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (20, 4), "q_offset": 3}], ids=str)
def test_slopes_of_0_change_little(on, options):
    arrays = CASE.arrays()
    plain, flat = (results(on, arrays, **options, **more) for more in ({}, {"alibi_slopes": 0 * SLOPES}))
    for x, y in zip(flat, plain, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_forms_of_the_same_slopes(on):
    arrays = CASE.arrays()
    expected = results(on, arrays, alibi_slopes=SLOPES)
    apart = np.zeros((4, 3), np.float32)
    apart[:, 1] = SLOPES
    for slopes in (
        apart[:, 1],
        np.stack([SLOPES] * 2),
        SLOPES[None],
        np.broadcast_to(SLOPES, (2, 4)),
        SLOPES[::-1].copy()[::-1],
    ):
        same_bits(results(on, arrays, alibi_slopes=slopes), expected)


def test_each_head_has_its_own(on):
    arrays = CASE.arrays()
    out, lse, dq, *_ = results(on, arrays, alibi_slopes=SLOPES, causal=True)
    for head in range(4):
        q, k, v, dout, dlse = (x[:, [head // (4 // x.shape[1])]] if x.shape[1] == 2 else x[:, [head]] for x in arrays)
        one = attention(q, k, v, dout=dout, dlse=dlse, alibi_slopes=SLOPES[[head]], causal=True)
        for x, y in ((out, one.out), (lse, one.lse), (dq, one.dq)):
            np.testing.assert_allclose(x[:, [head]], y, atol=2e-5)


def test_a_query_far_away_sees_the_nearest_keys(on):
    """Where 24 bits do not hold positions, scores of neighbours are alike: the last few keys are the nearest."""
    q, k, v, *_ = Case(heads_k=1, group=1, sq=3, sk=40, d=8).arrays()
    out = on(flash_attention, q, k, v, alibi_slopes=np.float32([200.0]), q_offset=2**29, scale=0.0)
    assert np.isfinite(out).all()
    largest = np.abs(v[:, -8:]).max()
    v[:, :-8] = 1e6
    out = on(flash_attention, q, k, v, alibi_slopes=np.float32([200.0]), q_offset=2**25 + 1, scale=0.0)
    assert np.abs(out).max() <= largest
    v[:, :-8] = 0
    out = on(flash_attention, q, k, v, alibi_slopes=np.float32([200.0]), q_offset=60, scale=0.0)
    np.testing.assert_allclose(out, np.broadcast_to(v[:, -1:], out.shape), atol=1e-6)


# --- values ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [
    {}, {"causal": True}, {"q_offset": 30}, {"q_offset": -100, "window": (40, 60)}, {"softcap": 3.0, "scale": -0.4},
    {"sq": 1, "sk": 600, "group": 4, "causal": True}, {"sq": 5, "sk": 300, "group": 4, "alibi_slopes": (True, True)},
    {"k_lengths": "each", "q_lengths": "each"}, {"q_offset": "each32", "scale": 0.0},
], ids=str)  # fmt: skip
def test_every_backend_keeps_the_budget(on, dtype, options):
    shape = {"batch": (2, 2), "heads_k": 2, "group": 2, "sq": 80, "sk": 110, "d": 24, "dv": 16}
    check(Case(dtype=dtype, **{**shape, "alibi_slopes": (False, True), **options}), on)
