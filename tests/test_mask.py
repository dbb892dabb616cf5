"""mask: what it takes, what it equals, and what it keeps out."""

import numpy as np
import pytest
from cases import Case, check, results, same_bits
from conftest import On
from memory_layouts import any_layout, lay_out
from oracle import attention, visible

from cupy_flash import attention_reference, flash_attention, flash_attention_vjp
from cupy_flash._src.problem import DTYPES

X = np.random.default_rng(0).standard_normal((3, 4, 5, 8))
CALLS = [flash_attention, flash_attention_vjp, attention_reference]
CASE = Case(batch=(2,), heads_k=1, group=2, sq=70, sk=90, d=16)

# --- what it takes ---


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("mask", "message"), [
    (np.ones((5, 5), np.int8), "TypeError: mask has dtype int8: expected bool"),
    (np.ones((5, 5), np.uint8), "TypeError: mask has dtype uint8: expected bool"),
    (np.ones((5, 4), bool), "ValueError: mask has shape (5, 4): expected (3, 4, 5, 5), (..., heads, queries, keys), "
                            "or one that broadcasts to it"),
    (np.ones((2, 1, 5, 5), bool), "ValueError: mask has shape (2, 1, 5, 5): expected (3, 4, 5, 5), "
                                  "(..., heads, queries, keys), or one that broadcasts to it"),
    (np.ones((1, 3, 4, 5, 5), bool), "ValueError: mask has shape (1, 3, 4, 5, 5): expected (3, 4, 5, 5), "
                                     "(..., heads, queries, keys), or one that broadcasts to it"),
    (np.ma.ones((5, 5), bool), "TypeError: mask is a masked array: masks are not supported, expected a plain array"),
], ids=str)  # fmt: skip
def test_a_mask_is_bool_and_broadcasts(call, mask, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call(X, X, X, mask=mask)
    assert f"{error.type.__name__}: {error.value}" == message


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, DTYPES["bfloat16"]], ids=str)
def test_numbers_to_add_are_a_bias(call, dtype):
    with pytest.raises(TypeError) as error:
        call(X, X, X, mask=np.zeros((5, 5), dtype))
    assert str(error.value) == (
        f"mask has dtype {np.dtype(dtype)}: expected bool, true where a key is seen; numbers that are added to scores "
        "are a bias"
    )


# --- what it equals ---


@pytest.mark.parametrize(
    "options", [{"causal": True}, {"window": (9, 4)}, {"k_lengths": 33}, {"q_lengths": 20}], ids=str
)
def test_a_mask_of_the_same_keys(on, options):
    arrays = CASE.arrays()
    own = {name.replace("lengths", "length"): value for name, value in options.items()}
    mask = visible(70, 90, **own)
    for x, y in zip(results(on, arrays, mask=mask), results(on, arrays, **options), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_one_that_is_all_true_changes_no_bit(on):
    arrays = CASE.arrays()
    for options in ({}, {"causal": True}, {"window": (9, 4)}):
        plain = results(on, arrays, **options)
        for shape in ((), (90,), (70, 1), (70, 90), (2, 2, 70, 90)):
            same_bits(results(on, arrays, **options, mask=np.ones(shape, bool)), plain)


def test_any_memory(on):
    """In place, whatever the layout: constant along axes, reversed, with holes, elements far apart."""
    arrays, rng = CASE.arrays(), np.random.default_rng(3)
    mask = rng.random((2, 2, 70, 90)) < 0.6
    expected = results(on, arrays, mask=mask)
    same_bits(results(on, arrays, mask=np.asfortranarray(mask)), expected)
    same_bits(results(on, arrays, mask=mask.swapaxes(-1, -2).copy().swapaxes(-1, -2)), expected)
    for seed in range(4):
        laid_out = lay_out(mask, any_layout(f"mask {seed}", mask.shape, constant=False))
        same_bits(results(on, arrays, mask=laid_out), expected)
    for axes in ((1, 1, 70, 90), (2, 1, 1, 90), (2, 2, 70, 1), (1, 2, 1, 1)):
        small = rng.random(axes) < 0.7
        spread = results(on, arrays, mask=np.broadcast_to(small, mask.shape).copy())
        same_bits(results(on, arrays, mask=small), spread)
        same_bits(results(on, arrays, mask=np.broadcast_to(small, mask.shape)), spread)


# --- values ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [
    {}, {"causal": True}, {"window": (30, 9), "softcap": 2.0}, {"mask": (False, True)}, {"mask": (True, False)},
    {"mask": (False, True, False, False, True), "k_lengths": "each"}, {"sq": 1, "sk": 600, "group": 4},
    {"sq": 5, "sk": 300, "group": 4, "mask": (True, True, True, True, True), "alibi_slopes": (True, True)},
], ids=str)  # fmt: skip
def test_every_backend_keeps_the_budget(on, dtype, options):
    shape = {"batch": (2, 2), "heads_k": 2, "group": 2, "sq": 80, "sk": 110, "d": 24, "dv": 16}
    check(Case(dtype=dtype, **{**shape, "mask": (True, True, True), **options}), on)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tiles_that_are_empty_or_full(on, dtype):
    """Documents one after another: most tiles are either; and stripes, where some rows see nothing at all."""
    case = Case(dtype=dtype, heads_k=1, group=2, sq=300, sk=300, d=32)
    documents = np.searchsorted([40, 200, 210], np.arange(300), side="right")
    for mask in (documents[:, None] == documents, (np.arange(300)[:, None] // 70 % 2 == 0) & (np.arange(300) < 130)):
        q, k, v, dout, dlse = arrays = case.arrays()
        exact = attention(q, k, v, dout=dout, dlse=dlse, mask=mask)
        for x, y in zip(results(on, arrays, mask=mask), exact, strict=True):
            np.testing.assert_allclose(x.astype(float), y, atol=4e-3 if dtype == "float16" else 1e-5)


# --- what is not seen ---


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_query_does_not_see_does_not_reach_it(dtype, value):
    case = Case(dtype=dtype, heads_k=1, group=2, sq=150, sk=170, d=24, dv=40)
    mask = np.random.default_rng(1).random((150, 170)) < 0.5
    mask[:, 40], mask[20:30] = False, False
    q, k, v, dout, dlse = arrays = case.arrays()
    clean = results(On("cpu"), arrays, mask=mask)
    k[:, 40], v[:, 40], q[:, 20:30], dout[:, 20:30], dlse[:, 20:30] = value, value, value, value, value
    for x, y in zip(results(On("cpu"), (q, k, v, dout, dlse), mask=mask), clean, strict=True):
        np.testing.assert_allclose(x.astype(float), y.astype(float), atol=1e-2 if x.itemsize == 2 else 1e-5)


def test_where_no_query_sees_a_key_all_is_0(on):
    for mask in (np.zeros((), bool), np.zeros((70, 1), bool), np.arange(90) >= 70):
        out, lse, *grads = results(on, CASE.arrays(), mask=mask, k_lengths=70)
        assert np.isneginf(lse).all() and not any(x.any() for x in (out, *grads))
