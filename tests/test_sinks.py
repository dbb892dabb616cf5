"""sinks: what they take, that each is one more key without a value, and their gradient."""

from dataclasses import replace

import numpy as np
import pytest
from cases import ERROR, Case, check, close, results, same_bits
from oracle import attention

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
    merge_attention,
)
from cupy_flash._src.backends import host_terms, native
from cupy_flash._src.problem import DTYPES

X = np.random.default_rng(0).standard_normal((3, 4, 5, 8), np.float32)
CALLS = [flash_attention, flash_attention_vjp, attention_reference]
CASE = Case(batch=(2,), heads_k=2, group=2, sq=70, sk=90, d=16)
SINKS = np.float32([0.5, -1.25, 3.0, -np.inf])
WRT = ("q", "k", "v", "sinks")


# --- what they take ---


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("sinks", "message"), [
    (np.ones(4, int), "TypeError: sinks has dtype int64: expected float16 or bfloat16 or float32 or float64"),
    (np.ones(4, bool), "TypeError: sinks has dtype bool: expected float16 or bfloat16 or float32 or float64"),
    (np.ones(4, ">f4"), "TypeError: sinks has dtype >f4: expected float16 or bfloat16 or float32 or float64"),
    (np.ones(4), "TypeError: sinks has dtype float64: expected float32, as q has"),
    (np.ones(4, np.float16), "TypeError: sinks has dtype float16: expected float32, as q has"),
    (np.ones(3, np.float32), "ValueError: sinks has shape (3,): expected (3, 4), (..., heads), or one that broadcasts "
                             "to it"),
    (np.ones((3, 1), np.float32), "ValueError: sinks has shape (3, 1): expected (3, 4), (..., heads), or one that "
                                  "broadcasts to it"),
    (np.ones((), np.float32), "ValueError: sinks has shape (): expected (3, 4), (..., heads), or one that broadcasts "
                              "to it"),
    (np.ma.ones(4, np.float32), "TypeError: sinks is a masked array: masks are not supported, expected a plain array"),
], ids=str)  # fmt: skip
def test_sinks_are_numbers_one_for_each_query_head(call, sinks, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call(X, X, X, sinks=sinks)
    assert f"{error.type.__name__}: {error.value}" == message


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("sinks", [0.0, [0.0] * 4], ids=repr)
def test_sinks_are_an_array(call, sinks):
    with pytest.raises(TypeError) as error:
        call(X, X, X, sinks=sinks)
    assert str(error.value).startswith(f"sinks is a {type(sinks).__name__}: expected a NumPy or CuPy array")


# --- what they equal ---


@pytest.mark.parametrize(("dtype", "options"), [
    ("float16", {"causal": True}), ("float32", {}), ("float64", {"softcap": 3.0, "bias": (True, True)}),
    ("bfloat16", {"mask": (True, True), "k_lengths": 40, "q_lengths": "each"}),
    ("float32", {"mask": (True, True), "k_lengths": 40, "q_lengths": "each"}),
], ids=str)  # fmt: skip
def test_a_sink_is_one_more_key_without_a_value(on, dtype, options):
    """In front of the others, k and v 0, and its score the bias; whose gradient, added up, is the sink's."""
    case = replace(CASE, dtype=dtype, **options)
    q, k, v, dout, dlse = arrays = case.arrays()
    of_heads = SINKS.astype(dlse.dtype)
    for sinks in (of_heads, np.stack([of_heads, of_heads[::-1]])):
        more = dict(case.options)
        column = np.broadcast_to(sinks[..., None, None], (*sinks.shape, 1, 1))
        bias = np.broadcast_to(more.pop("bias", np.zeros((1, 1))), (2, 4, 70, 90)).astype(np.float64)
        bias = np.concatenate([np.broadcast_to(column, (2, 4, 70, 1)), bias], axis=-1).astype(dlse.dtype)
        if "mask" in more:
            more["mask"] = np.insert(more["mask"], 0, True, axis=-1)
        if "k_lengths" in more:
            more["k_lengths"] += 1
        longer = (q, *(np.insert(x, 0, 0, axis=-2) for x in (k, v)), dout, dlse)
        out, lse, dq, dk, dv, dbias = results(on, longer, wrt=("q", "k", "v", "bias"), bias=bias, **more)
        dsinks = dbias[..., 0].sum(axis=-1, dtype=np.float64)
        dsinks = dsinks if sinks.ndim == 2 else dsinks.sum(axis=0)
        found = results(on, arrays, wrt=WRT, sinks=sinks, **case.options)
        assert found[-1].shape == sinks.shape and found[-1].dtype == sinks.dtype
        close(found, (out, lse, dq, dk[..., 1:, :], dv[..., 1:, :], dsinks), ERROR[dtype])


def test_none_is_minus_infinity(on):
    """In the last bits; and its gradient is 0."""
    arrays = CASE.arrays()
    *found, dsinks = results(on, arrays, wrt=WRT, sinks=np.full(4, -np.inf, np.float32), causal=True)
    close(found, results(on, arrays, causal=True), 1e-6)
    assert not dsinks.any()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_forms_of_the_same_sinks(on, dtype):
    case = replace(CASE, dtype=dtype)
    arrays, sinks = case.arrays(), SINKS.astype(dtype)
    expected = results(on, arrays, wrt=WRT, sinks=SINKS)
    apart = np.zeros((4, 3), dtype)
    apart[:, 1] = sinks
    for same in (sinks, apart[:, 1], sinks[::-1].copy()[::-1], np.stack([sinks] * 2), sinks[None],
                 np.broadcast_to(sinks, (2, 4))):  # fmt: skip
        *found, dsinks = results(on, arrays, wrt=WRT, sinks=same)
        same_bits(found, expected[:-1])
        assert dsinks.shape == same.shape and dsinks.dtype == same.dtype
        of_all = dsinks.astype(np.float64).sum(axis=0) if same.shape == (2, 4) else dsinks.reshape(4)
        close([of_all], expected[-1:], ERROR[dtype] / 4)


def test_a_large_sink_takes_all_and_a_small_one_nothing(on):
    arrays = CASE.arrays()
    dlse = arrays[-1]
    out, lse, dq, dk, dv, dsinks = results(on, arrays, wrt=WRT, sinks=np.full(4, 1e30, np.float32))
    assert not any(x.any() for x in (out, dq, dk, dv)) and (lse == np.float32(1e30)).all()
    np.testing.assert_allclose(dsinks, dlse.sum(axis=(0, 2), dtype=np.float64), rtol=1e-4)
    *found, dsinks = results(on, arrays, wrt=WRT, sinks=np.full(4, -1e30, np.float32))
    close(found, results(on, arrays), 1e-6)
    assert not dsinks.any()


# --- rows without keys, and rows that there are not ---


@pytest.mark.parametrize("keys", [
    {"k_lengths": 0}, {"mask": np.zeros((), bool)}, {"bias": np.float32([-np.inf])}, {"causal": True, "q_offset": -80},
    {"k_starts": np.array([90, 90])}, {"causal": True, "q_offset": np.array([-80, -200])},
], ids=str)  # fmt: skip
def test_a_row_without_keys_has_the_sink_as_lse(on, keys):
    """And exp(sink - lse) = 1 passes dlse to it; those that do not exist have no sink, whatever they hold."""
    q, k, v, dout, dlse = CASE.arrays()
    expected = np.broadcast_to(SINKS[:, None], (2, 4, 70)).copy()
    for lengths in (None, np.array([70, 33])):
        options = {"sinks": SINKS, **keys} | ({} if lengths is None else {"q_lengths": lengths})
        if lengths is not None:
            expected[1, :, 33:] = -np.inf
            q[1, :, 33:], dout[1, :, 33:], dlse[1, :, 33:] = np.nan, np.nan, np.nan
        out, lse, *grads, dsinks = results(on, (q, k, v, dout, dlse), wrt=WRT, **options)
        np.testing.assert_array_equal(lse, expected)
        assert not any(x.any() for x in (out, *grads))
        of_rows = np.where(np.isfinite(expected), dlse, 0).sum(axis=(0, 2), dtype=np.float64)
        np.testing.assert_allclose(dsinks, of_rows, rtol=1e-5)
        found = attention_reference(q, k, v, return_lse=True, **options)
        np.testing.assert_array_equal(found[1], expected)


def test_rows_that_see_no_key_beside_others_that_do(on):
    """Those before the first key, and those that a mask shows nothing."""
    case = Case(batch=(2,), heads_k=1, group=4, sq=150, sk=40, d=16, causal=True)
    mask = np.arange(150)[:, None] % 7 != 3
    q, k, v, dout, dlse = arrays = case.arrays()
    out, lse, *grads = results(on, arrays, wrt=WRT, sinks=SINKS, causal=True, mask=mask)
    np.testing.assert_array_equal(lse[..., :110], np.broadcast_to(SINKS[:, None], (2, 4, 110)))
    np.testing.assert_array_equal(lse[..., 115], np.broadcast_to(SINKS, (2, 4)))
    exact = attention(q, k, v, dout=dout, dlse=dlse, sinks=SINKS, causal=True, mask=mask)
    close((out, lse, *grads), (*exact[:5], exact.of("sinks")))


@pytest.mark.parametrize(("sq", "sk", "batch"), [(0, 5, ()), (5, 0, ()), (5, 0, (2,)), (5, 5, (0,)), (0, 0, ())])
def test_no_rows_or_no_keys(on, sq, sk, batch):
    q, k, v, dout, dlse = arrays = Case(batch=batch, heads_k=2, group=2, sq=sq, sk=sk, d=8).arrays()
    out, lse, dq, dk, dv, dsinks = results(on, arrays, wrt=WRT, sinks=SINKS)
    assert not any(x.any() for x in (out, dq, dk, dv))
    if sk == 0:
        np.testing.assert_array_equal(lse, np.broadcast_to(SINKS[:, None], (*batch, 4, sq)))
    axes = (*range(len(batch)), -1)
    expected = np.where(np.isfinite(SINKS), dlse.sum(axis=axes), 0) if sk == 0 else np.zeros(4)
    np.testing.assert_allclose(dsinks, expected, rtol=1e-5)
    found = attention_reference_backward(dout, q, k, v, dlse=dlse, wrt=WRT, sinks=SINKS)
    np.testing.assert_allclose(found[-1], expected, rtol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "emulator"])
def test_a_changed_output_of_rows_without_keys_is_noticed(backend):
    q, k, v, *_ = Case(heads_k=2, group=2, sq=5, sk=0, d=8).arrays()
    out, vjp = flash_attention_vjp(q, k, v, sinks=SINKS, wrt=("sinks",), backend=backend)
    assert vjp.changed() == ()
    out += 1
    assert vjp.changed() == ("out",)
    with pytest.raises(ValueError, match="out"):
        vjp(out)


@pytest.mark.parametrize("tier", ["native", "numpy"], indirect=True)
def test_no_heads(tier, monkeypatch):
    """Nor where the pass of other gradients would add a bias up."""
    monkeypatch.setattr(native.threads, "num_threads", lambda: 1)
    q, k = np.ones((0, 5, 8), np.float32), np.ones((1, 2000, 8), np.float32)
    options = {"bias": np.ones((5, 2000), np.float32), "sinks": np.ones(0, np.float32)}
    out, lse = flash_attention(q, k, k, return_lse=True, backend="cpu", **options)
    wrt = ("q", "k", "v", "bias", "sinks")
    grads = flash_attention_backward(out, q, k, k, out, lse, wrt=wrt, backend="cpu", **options)
    assert [x.shape for x in grads] == [(0, 5, 8), (1, 2000, 8), (1, 2000, 8), (5, 2000), (0,)]
    assert not any(x.any() for x in grads)


# --- values ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [
    {"causal": True, "sinks": (True, False)}, {"window": (30, 9), "softcap": 2.0, "sinks": (True, True), "seed": 4},
    {"k_lengths": "each", "q_lengths": "each32"}, {"q_lengths": "each", "seed": 1},
    {"sq": 5, "sk": 300, "group": 4, "alibi_slopes": (True, True), "mask": (True, True)},
], ids=str)  # fmt: skip
def test_every_backend_keeps_the_budget(on, dtype, options):
    shape = {"batch": (2, 2), "heads_k": 2, "group": 2, "sq": 80, "sk": 110, "d": 24, "dv": 16}
    check(Case(dtype=dtype, **{**shape, "sinks": (False, True), **options}), on)


@pytest.mark.parametrize("batch", [(2, 3), (2, 1, 2, 3), (2, 1, 3, 1, 2)], ids=str)
def test_batches(on, batch):
    """Of any number of dimensions, also where those that are broadcast alternate with the others."""
    q, k, v, dout, dlse = arrays = Case(batch=batch, heads_k=1, group=2, sq=9, sk=20, d=8).arrays()
    for own in (True, False):
        shape = (*(n if (i % 2 == 0) == own else 1 for i, n in enumerate(batch)), 2)
        sinks = np.random.default_rng(0).standard_normal(shape, np.float32)
        exact = attention(q, k, v, dout=dout, dlse=dlse, sinks=sinks)
        found = results(on, arrays, wrt=WRT, sinks=sinks)
        assert found[-1].shape == shape
        close(found, (*exact[:5], exact.of("sinks")))


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_gradient_repeats_whatever_the_number_of_threads_and_blocks_of_rows(tier, deterministic, monkeypatch):
    monkeypatch.setattr(native, "INLINE_WORK", 0)
    q, k, v, dout, dlse = Case(batch=(3,), heads_k=2, group=2, sq=300, sk=280, d=16, causal=True).arrays()
    for sinks in (SINKS, np.stack([SINKS, SINKS + 1, SINKS - 1])):
        options, found = {"sinks": sinks, "backend": "cpu"}, []
        for number, rows in (("1", host_terms.ROWS), ("4", host_terms.ROWS), ("1", 70)):
            monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", number)
            monkeypatch.setattr(host_terms, "ROWS", rows)
            out, lse = flash_attention(q, k, v, return_lse=True, **options)
            options["deterministic"] = deterministic
            found.append(flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, wrt=("sinks",), **options))
            del options["deterministic"]
        same_bits(found[0], found[1])
        close(found[2], found[0], 1e-6)


# --- chunks of keys ---


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_they_belong_to_one_chunk_of_keys_whichever(on, which, dtype):
    """Merged results and the gradients of chunks are those of one call; the chunk that has them has their gradient."""
    q, k, v, dout, dlse = arrays = replace(CASE, dtype=dtype).arrays()
    chunks = [(k[..., at, :], v[..., at, :]) for at in (slice(0, 30), slice(30, 31), slice(31, 90))]
    options = [{"sinks": SINKS} if i == which else {} for i in range(3)]
    parts = [on(flash_attention, q, *kv, return_lse=True, **own) for kv, own in zip(chunks, options, strict=True)]
    out, lse = on(merge_attention, *on(merge_attention, *parts[0], *parts[1]), *parts[2])
    wrt = [WRT if own else WRT[:3] for own in options]
    grads = [
        on(flash_attention_backward, dout, q, *kv, out, lse, dlse=dlse, wrt=names, **own)
        for kv, names, own in zip(chunks, wrt, options, strict=True)
    ]
    dk, dv = (np.concatenate([of_chunk[i] for of_chunk in grads], axis=-2) for i in (1, 2))
    merged = out, lse, sum(of_chunk[0] for of_chunk in grads), dk, dv, grads[which][3]
    close(merged, results(on, arrays, wrt=WRT, sinks=SINKS), ERROR[dtype])
