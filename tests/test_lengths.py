"""k_lengths, q_lengths, k_starts and q_offset of each batch element: what they take, equal, and keep out."""

import itertools

import numpy as np
import pytest
from cases import Case, check, results, same_bits
from conftest import On
from oracle import attention

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
)
from cupy_flash._src.backends import numpy_
from cupy_flash._src.problem import DTYPES

X = np.random.default_rng(0).standard_normal((3, 2, 5, 8))
CALLS = [flash_attention, flash_attention_vjp, attention_reference]
LENGTHS = ["k_lengths", "q_lengths", "k_starts"]
CASE = Case(batch=(3,), heads_k=1, group=2, sq=70, sk=90, d=16)
OPTIONS = [{}, {"causal": True}, {"window": (20, 3)}, {"window": (9, None), "softcap": 5.0}]

# --- what they take ---


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [*LENGTHS, "q_offset"])
@pytest.mark.parametrize(("array", "message"), [
    (np.ones(3, np.float32), "TypeError: {} has dtype float32: expected int32 or int64"),
    (np.ones(3, np.uint8), "TypeError: {} has dtype uint8: expected int32 or int64"),
    (np.ones(3, np.bool_), "TypeError: {} has dtype bool: expected int32 or int64"),
    (np.ones(3, ">i4"), "TypeError: {} has dtype >i4: expected int32 or int64"),
    (np.ones(2, int), "ValueError: {} has shape (2,): expected (3,), (...), or one that broadcasts to it"),
    (np.ones((3, 1), int), "ValueError: {} has shape (3, 1): expected (3,), (...), or one that broadcasts to it"),
    (np.ones((2, 3), int), "ValueError: {} has shape (2, 3): expected (3,), (...), or one that broadcasts to it"),
    (np.ma.ones(3, int), "TypeError: {} is a masked array: masks are not supported, expected a plain array"),
], ids=str)  # fmt: skip
def test_an_array_has_an_integer_for_each_batch_element(call, name, array, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call(X, X, X, causal=True, **{name: array})
    assert f"{error.type.__name__}: {error.value}" == message.format(name)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("value", [2.0, "2", [1, 2, 3], (2,), True, None.__class__, 1j], ids=repr)
def test_a_number_is_an_integer(call, name, value):
    with pytest.raises(TypeError) as error:
        call(X, X, X, **{name: value})
    assert str(error.value) == f"{name} is {value!r}: expected an int"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("number", [-1, 6, 2**31, -(2**40), 2**62])
def test_a_length_is_between_nothing_and_all(call, name, number):
    for value in (number, np.int64(number), np.array([2, number, 0])):
        with pytest.raises(ValueError) as error:
            call(X, X, X, **{name: value})
        assert str(error.value) == f"{name} has {number}: expected 0 to 5, the sequence length"
    with pytest.raises(ValueError, match=f"{name} is {10**30}: expected a number of rows"):
        call(X, X, X, **{name: 10**30})


@pytest.mark.parametrize("call", CALLS)
def test_positions_that_matter_to_nothing_are_refused(call):
    for value, seen in ((np.arange(3), "an array"), (4, "4")):
        with pytest.raises(ValueError) as error:
            call(X, X, X, q_offset=value, k_lengths=3)
        others = "alibi_slopes or causal or window"
        assert str(error.value) == f"q_offset is {seen}: expected none without {others}, for it matters to nothing else"


# --- what they equal ---


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LENGTHS)
def test_forms_of_the_same_numbers(on, name, options):
    """A number, one in an array, 32 bits, a stride of 0, columns of another array."""
    arrays, n = CASE.arrays(), 37
    expected = results(on, arrays, **options, **{name: n})
    wide = np.full((3, 2), n)
    for value in (
        np.int32(n), np.array(n), np.array([n]), np.full(3, n), np.full(3, n, np.int32), wide[:, 1],
        np.broadcast_to(np.array([n]), 3),
    ):  # fmt: skip
        same_bits(results(on, arrays, **options, **{name: value}), expected)


@pytest.mark.parametrize("name", [*LENGTHS, "q_offset"])
def test_numbers_of_a_library_that_has_dlpack_alone(name):
    numbers = np.array([5, 60, 33])

    class Exported:
        __dlpack__, __dlpack_device__ = numbers.__dlpack__, numbers.__dlpack_device__

    arrays = CASE.arrays()
    found, expected = (results(On("cpu"), arrays, causal=True, **{name: x}) for x in (Exported(), numbers))
    same_bits(found, expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_lengths_are_shorter_arrays(on, options):
    """Of each batch element; the rest of its gradients is 0."""
    arrays, k_lengths, q_lengths = CASE.arrays(), np.array([90, 41, 0]), np.array([33, 70, 7])
    out, lse, dq, dk, dv = results(on, arrays, **options, k_lengths=k_lengths, q_lengths=q_lengths)
    for i, (sk, sq) in enumerate(zip(k_lengths, q_lengths, strict=True)):
        q, k, v, dout, dlse = (x[i] for x in arrays)
        short = q[:, :sq], k[:, :sk], v[:, :sk], dout[:, :sq], dlse[:, :sq]
        whole = (out, sq), (lse, sq), (dq, sq), (dk, sk), (dv, sk)
        for (x, n), expected in zip(whole, results(on, short, **options), strict=True):
            np.testing.assert_allclose(x[i][:, :n], expected, atol=2e-5)
            assert (x[i][:, n:] == (-np.inf if x is lse else 0)).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_starts_are_arrays_that_begin_later(on, options):
    arrays, starts = CASE.arrays(), np.array([0, 33, 90])
    out, lse, dq, dk, dv = results(on, arrays, **options, k_starts=starts)
    for i, start in enumerate(starts):
        q, k, v, dout, dlse = (x[i] for x in arrays)
        later = q, k[:, start:], v[:, start:], dout, dlse
        whole = (out, 0), (lse, 0), (dq, 0), (dk, start), (dv, start)
        for (x, n), expected in zip(whole, results(on, later, **options), strict=True):
            np.testing.assert_allclose(x[i][:, n:], expected, atol=2e-5)
            assert not x[i][:, :n].any()


@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
def test_an_array_of_positions_is_each_of_them(on, options):
    arrays, positions = CASE.arrays(), np.array([-20, 25, 90])
    found = results(on, arrays, **options, q_offset=positions)
    for i, position in enumerate(positions.tolist()):
        expected = results(on, [x[i] for x in arrays], **options, q_offset=position)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x[i], y, atol=2e-5)


@pytest.mark.parametrize("options", [*OPTIONS[1:], {"window": (10**30, 10**30)}], ids=str)
def test_positions_are_by_default_those_of_the_last(on, options):
    """Of the queries that exist, at the last key that does, however many of either there are."""
    arrays, k_lengths, q_lengths = CASE.arrays(), np.array([90, 41, 12]), np.array([33, 70, 7], np.int32)
    for lengths in (
        {"k_lengths": k_lengths},
        {"q_lengths": q_lengths},
        {"k_lengths": k_lengths, "q_lengths": q_lengths},
    ):
        positions = lengths.get("k_lengths", 90) - lengths.get("q_lengths", 70)
        same_bits(
            results(on, arrays, **options, **lengths), results(on, arrays, **options, **lengths, q_offset=positions)
        )


@pytest.mark.parametrize("positions", [[-(2**29), 0, 2**29], [-(2**62), 7, 2**62], [2**31, -(2**31), -(2**31) - 1]])
@pytest.mark.parametrize("options", [{"causal": True}, {"window": (7, None)}, {"window": (2**40, 3)}], ids=str)
def test_positions_in_an_array_are_clamped(on, options, positions):
    arrays = [x[:, :, :20] for x in CASE.arrays()]
    found = results(on, arrays, **options, q_offset=np.array(positions))
    for i, position in enumerate(positions):
        expected = results(on, [x[i] for x in arrays], **options, q_offset=min(max(position, -(2**29)), 2**29))
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x[i], y, atol=2e-5)


# --- values ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [
    {"k_lengths": "each"}, {"q_lengths": "each32", "k_starts": "one"}, {"k_lengths": 0, "causal": True},
    {"k_lengths": "each32", "q_lengths": "each", "k_starts": "each", "window": (25, 4)},
    {"k_lengths": "each", "sq": 1, "sk": 700, "causal": True}, {"q_offset": "each", "causal": True, "sk": 60},
], ids=str)  # fmt: skip
def test_every_backend_keeps_the_budget(on, dtype, options):
    check(Case(dtype=dtype, **{"batch": (2, 2), "group": 3, "sq": 80, "sk": 130, "d": 24, "dv": 16, **options}), on)


@pytest.mark.slow
@pytest.mark.parametrize(("sq", "sk"), [(64, 128), (239, 1), (255, 256), (799, 3), (384, 256), (1023, 1024)])
def test_flash_attentions_lengths(on, sq, sk):
    for options in ({}, {"causal": True}, {"window": (sk // 3, 5), "softcap": 15.0}):
        shape = {"batch": (3,), "heads_k": 1, "group": 3, "sq": sq, "sk": sk, "d": 64, "dtype": "float16"}
        check(Case(**shape, k_lengths="each", q_lengths="each", **options), on)


@pytest.mark.usefixtures("tier")
def test_lengths_may_cut_blocks_anywhere(monkeypatch):
    """NumPy's blocks are made small, that there be many."""
    monkeypatch.setattr(numpy_, "QUERY_BLOCK", 16)
    monkeypatch.setattr(numpy_, "KEY_BLOCK", 32)
    case = Case(dtype="float64", batch=(2,), heads_k=1, group=2, sq=50, sk=130, d=8)
    q, k, v, dout, dlse = case.arrays()
    for keys, starts, queries in itertools.product((0, 1, 64, 97, 130), (0, 31, 96, 130), (0, 15, 16, 50)):
        lengths = {"k_lengths": np.array([keys, 100]), "k_starts": np.array([starts, 5]), "q_lengths": [queries, 41]}
        options = {**lengths, "q_lengths": np.array(lengths["q_lengths"]), "causal": bool(keys % 2)}
        exact = attention(q, k, v, dout=dout, dlse=dlse, **options)
        for x, y in zip(results(On("cpu"), case.arrays(), **options), exact, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-11, err_msg=str(options))


# --- what is not seen ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (40, 3), "sq": 3}], ids=str)
def test_padding_may_hold_anything(on, dtype, value, options):
    case = Case(dtype=dtype, batch=(3,), heads_k=1, group=2, d=24, dv=40, **{"sq": 90, "sk": 170, **options})
    k_lengths, k_starts = np.array([170, 100, 0]), np.array([0, 30, 0])
    q_lengths = np.array([case.sq, case.sq // 2, case.sq])
    options = {**case.options, "k_lengths": k_lengths, "k_starts": k_starts, "q_lengths": q_lengths}
    clean = results(on, case.arrays(), **options)
    q, k, v, dout, dlse = case.arrays()
    for i in range(3):
        for x in (k, v):
            x[i, :, k_lengths[i] :] = x[i, :, : k_starts[i]] = value
        for x in (q, dout, dlse):
            x[i, :, q_lengths[i] :] = value
    # NumPy sums in another order what a tile with such rows has beside them.
    for x, y in zip(results(on, (q, k, v, dout, dlse), **options), clean, strict=True):
        np.testing.assert_allclose(x.astype(float), y.astype(float), atol=1e-2 if x.itemsize == 2 else 1e-5)


def test_a_batch_without_rows_is_all_0(on):
    nothing = {name: np.zeros(3, int) for name in ("k_lengths", "q_lengths")}
    for options in ({"k_lengths": 0}, {"q_lengths": 0}, {"k_starts": 90}, {"k_lengths": 20, "k_starts": 20}, nothing):
        for mask in OPTIONS:
            out, lse, *grads = results(on, CASE.arrays(), **options, **mask)
            assert np.isneginf(lse).all() and not any(x.any() for x in (out, *grads))


# --- the calls ---


def test_a_vjp_knows_them(on):
    arrays, options = CASE.arrays(), {"k_lengths": np.array([90, 41, 5]), "q_lengths": 60, "causal": True}
    expected = results(on, arrays, **options)
    q, k, v, dout, dlse = arrays

    def gradients(q, k, v, dout, dlse, **options):
        (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, deterministic=True, **options)
        return out, lse, *vjp(dout, dlse)

    same_bits(on(gradients, q, k, v, dout, dlse, **options), expected)


def test_the_same_problem_with_other_numbers(on):
    """What is kept of a call does not keep its numbers."""
    arrays, lengths = CASE.arrays(), np.array([90, 41, 5])
    results(on, arrays, k_lengths=lengths, causal=True)
    lengths[...] = 90, 90, 20
    same_bits(
        results(on, arrays, k_lengths=lengths, causal=True), results(on, arrays, k_lengths=lengths.copy(), causal=True)
    )
    np.testing.assert_allclose(
        on(flash_attention, *arrays[:3], k_lengths=lengths), attention(*arrays[:3], k_lengths=lengths).out, atol=1e-5
    )


def test_the_reference_agrees_with_the_definition():
    case = Case(dtype="float64", batch=(2, 2), batch_k=(2,), heads_k=2, group=2, sq=9, sk=12, d=5)
    q, k, v, dout, dlse = case.arrays()
    k_lengths, q_lengths = np.array([[12, 5], [0, 9]]), np.array([4, 9])
    for options in OPTIONS:
        options = {**options, "k_lengths": k_lengths, "q_lengths": q_lengths, "k_starts": np.array([[1], [3]])}
        found = attention_reference(q, k, v, return_lse=True, **options)
        found += attention_reference_backward(dout, q, k, v, dlse=dlse, **options)
        for x, y in zip(found, attention(q, k, v, dout=dout, dlse=dlse, **options), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)


def test_lengths_of_a_backward_may_broadcast_too():
    q, k, v, dout, dlse = CASE.arrays()
    options = {"k_lengths": np.array([50])}
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    grads = flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    for x, y in zip(grads, attention(q, k, v, dout=dout, dlse=dlse, **options)[2:], strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)
