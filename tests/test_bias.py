"""bias: what it takes, what it equals, where it may lie, and the gradient that is summed where it is broadcast."""

import inspect
import itertools
import math
import tracemalloc
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cases import ERROR, Case, check, close, results, same_bits
from memory_layouts import any_layout, lay_out
from oracle import attention, position
from processes import python
from test_option_arrays_cpu import GUARDED

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
)
from cupy_flash._src import api
from cupy_flash._src.backends import native
from cupy_flash._src.device import NAMED
from cupy_flash._src.plan import plan_term
from cupy_flash._src.problem import DTYPES, AttentionProblem

X = np.random.default_rng(0).standard_normal((3, 4, 5, 8), np.float32)
CALLS = [flash_attention, flash_attention_vjp, attention_reference]
CASE = Case(batch=(2,), heads_k=1, group=2, sq=70, sk=90, d=16)
FULL = (2, 2, 70, 90)
WRT = ("q", "k", "v", "bias")
as_strided = np.lib.stride_tricks.as_strided


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# --- what it takes ---


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("bias", "message"), [
    (np.ones((5, 5), int), "TypeError: bias has dtype int64: expected float16 or bfloat16 or float32 or float64"),
    (np.ones((5, 5), np.int8), "TypeError: bias has dtype int8: expected float16 or bfloat16 or float32 or float64"),
    (np.ones((5, 5), ">f4"), "TypeError: bias has dtype >f4: expected float16 or bfloat16 or float32 or float64"),
    (np.ones((5, 5), bool),
     "TypeError: bias has dtype bool: expected numbers that are added to scores; booleans are a mask"),
    (np.ones((5, 5)), "TypeError: bias has dtype float64: expected float32, as q has"),
    (np.ones((5, 5), np.float16), "TypeError: bias has dtype float16: expected float32, as q has"),
    (numbers(5, 4), "ValueError: bias has shape (5, 4): expected (3, 4, 5, 5), (..., heads, queries, keys), "
                    "or one that broadcasts to it"),
    (numbers(2, 1, 5, 5), "ValueError: bias has shape (2, 1, 5, 5): expected (3, 4, 5, 5), "
                          "(..., heads, queries, keys), or one that broadcasts to it"),
    (numbers(1, 3, 4, 5, 5), "ValueError: bias has shape (1, 3, 4, 5, 5): expected (3, 4, 5, 5), "
                             "(..., heads, queries, keys), or one that broadcasts to it"),
    (np.ma.ones((5, 5), np.float32),
     "TypeError: bias is a masked array: masks are not supported, expected a plain array"),
], ids=str)  # fmt: skip
def test_a_bias_is_an_array_of_numbers_that_broadcasts(call, bias, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call(X, X, X, bias=bias)
    assert f"{error.type.__name__}: {error.value}" == message


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("dtype", "other"), [
    ("float16", "bfloat16"), ("bfloat16", "float16"), ("float16", "float64"), ("float64", "float16"),
])  # fmt: skip
def test_its_dtype_is_that_of_q_or_float32(call, dtype, other):
    x = X.astype(DTYPES[dtype])
    for taken in (dtype, "float32"):
        call(x, x, x, bias=numbers(5, 5, dtype=DTYPES[taken]))
    with pytest.raises(TypeError) as error:
        call(x, x, x, bias=numbers(5, 5, dtype=DTYPES[other]))
    assert str(error.value) == f"bias has dtype {other}: expected {dtype}, as q has, or float32"


# --- what it equals ---


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("options", [{}, {"causal": True, "softcap": 5.0}, {"sinks": np.float32([0.5, -1])}], ids=str)
def test_0_and_minus_infinity_are_a_mask(on, options, dtype):
    """Rows that see nothing among them; and a hidden key has no gradient."""
    arrays = replace(CASE, dtype=dtype).arrays()
    mask = np.random.default_rng(1).random(FULL[1:]) < 0.5
    mask[0, 20:30], mask[:, :, 40] = False, False
    wrt = ("q", "k", "v", *(name for name in options if name == "sinks"))
    for kind in (dtype, "float32"):
        bias = np.where(mask, 0, -np.inf).astype(kind)
        *found, dbias = results(on, arrays, wrt=(*wrt, "bias"), bias=bias, **options)
        close(found, results(on, arrays, wrt=wrt, mask=mask, **options), ERROR[dtype])
        out, lse, dq, dk, dv = found[:5]
        assert not out[:, 0, 20:30].any() and not dq[:, 0, 20:30].any() and not dk[:, :, 40].any()
        assert (lse[:, 0, 20:30] == (0.5 if options.get("sinks") is not None else -np.inf)).all()
        assert np.isfinite(dbias).all() and not dbias[~mask].any() and dbias[mask].any() and not dv[:, :, 40].any()


def test_one_of_0_changes_little_and_one_constant_only_lse(on):
    arrays = CASE.arrays()
    plain = results(on, arrays, causal=True)
    close(results(on, arrays, causal=True, bias=np.zeros(1, np.float32)), plain)
    for shift in (3.0, -100.0):
        out, lse, *grads = results(on, arrays, causal=True, bias=np.float32([shift]))
        close((out, lse - np.float32(shift), *grads), plain, 1e-4)


def test_numbers_beyond_all_scores(on):
    """What the scores are is lost where all have the bias; where some have it they are all that is seen."""
    arrays = CASE.arrays()
    v = arrays[2]
    out, lse, *grads = results(on, arrays, wrt=WRT, bias=np.float32([2e30]))
    close((out, lse), (np.broadcast_to(v.mean(axis=-2, keepdims=True), out.shape), np.full_like(lse, 2e30)))
    assert all(np.isfinite(x).all() for x in grads)
    for high, low in ((2e38, -2e38), (1e30, 0), (0, np.finfo(np.float32).min)):
        bias = np.full((90,), low, np.float32)
        bias[5] = high
        out, lse, *grads = results(on, arrays, bias=bias)
        close((out, lse), (np.broadcast_to(v[..., 5:6, :], out.shape), lse))
        assert all(np.isfinite(x).all() for x in (lse, *grads))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_no_number_reaches_its_row_only(on, value):
    arrays = CASE.arrays()
    clean = results(on, arrays, wrt=WRT, bias=numbers(*FULL))
    bias = numbers(*FULL)
    bias[1, 0, 33, 7] = value
    for i in (0, 1, 2):
        x, y = (found[i] for found in (results(on, arrays, wrt=WRT, bias=bias), clean))
        assert np.isnan(x[1, 0, 33]).all() or (i == 1 and x[1, 0, 33] == value)
        x[1, 0, 33] = y[1, 0, 33]
        close([x], [y])


@pytest.mark.parametrize(("dtype", "options"), [
    ("float64", {"causal": True, "softcap": 4.0}), ("float16", {}), ("bfloat16", {"causal": True}),
    ("float32", {"q_offset": -30, "q_lengths": np.array([70, 33])}),
], ids=str)  # fmt: skip
def test_alibi_is_a_bias_of_its_numbers(on, dtype, options):
    """And the gradient of slopes is that of the bias contracted with the distances."""
    arrays = replace(CASE, dtype=dtype).arrays()
    accumulator = arrays[-1].dtype
    offsets = np.array([position(70, 90, options.get("q_offset"), None, n) for n in options.get("q_lengths", [70, 70])])
    distances = abs(np.arange(70)[:, None] + offsets[:, None, None, None] - np.arange(90)).astype(float)
    placed = {name: x for name, x in options.items() if name != "q_offset"}  # which matters to no bias
    for slopes in (np.float32([0.25, -0.0625]), np.float32([[0.5, 0.125], [0.0, 0.25]])):
        bias = (-slopes[..., None, None] * distances).astype(accumulator)
        wide = np.broadcast_to(bias, FULL)
        *found, dslopes = results(on, arrays, wrt=("q", "k", "v", "alibi_slopes"), alibi_slopes=slopes, **options)
        *expected, dbias = results(on, arrays, wrt=WRT, bias=wide.astype(accumulator), **placed)
        close(found, expected, ERROR[dtype])
        terms = dbias * distances
        contracted, size = (-x.sum((-2, -1)) for x in (terms, -abs(terms)))
        if slopes.ndim == 1:
            contracted, size = contracted.sum(0), size.sum(0)
        assert (abs(dslopes - contracted) <= max(ERROR[dtype] / 40, 2e-7) * size).all()
        if dtype == "float64":  # whose slopes are float32, and so is their gradient
            np.testing.assert_allclose(dslopes, contracted.astype(np.float32), rtol=3e-7)


# --- where it may lie ---


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_any_memory(on, dtype):
    """In place, whatever the layout: constant along axes, reversed, with holes, elements far apart."""
    arrays = replace(CASE, dtype=dtype).arrays()

    def same(bias, expected):
        found = results(on, arrays, wrt=WRT, bias=bias)
        assert found[-1].shape == bias.shape and found[-1].dtype == bias.dtype
        same_bits(found, expected)

    for kind in {dtype, "float32"}:
        bias = numbers(*FULL, dtype=kind)
        bias[bias > 1.5] = -np.inf
        expected = results(on, arrays, wrt=WRT, bias=bias)
        apart = np.full((2, 2, 140, 181), np.nan, kind)[..., 1::2, 1::2][..., :90]
        apart[...] = bias
        for laid_out in (
            np.asfortranarray(bias), bias.swapaxes(-1, -2).copy().swapaxes(-1, -2),
            bias[:, ::-1, ::-1].copy()[:, ::-1, ::-1], bias[..., ::-1].copy()[..., ::-1], apart,
            *(lay_out(bias, any_layout(f"bias {seed}", bias.shape, constant=False)) for seed in range(3)),
        ):  # fmt: skip
            same(laid_out, expected)


SHAPES = [(1,), (90,), (70, 1), (2, 1, 1), (2, 1, 90), (2, 1, 1, 90), (2, 2, 70, 1), (1, 2, 70, 90), (2, 1, 1, 1)]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_broadcast_axes_are_never_expanded_and_summed_in_the_gradient(on, dtype):
    """The results are those of copies; elements of a gradient are the sums of theirs."""
    arrays = replace(CASE, dtype=dtype).arrays()
    for shape in SHAPES:
        bias = numbers(*shape)
        whole = np.broadcast_to(bias, FULL)
        *expected, gradient = results(on, arrays, wrt=WRT, bias=whole.copy(), causal=True)
        assert gradient.shape == FULL
        same_bits(results(on, arrays, wrt=WRT, bias=whole, causal=True), (*expected, gradient))
        *found, dbias = results(on, arrays, wrt=WRT, bias=bias, causal=True)
        same_bits(found, expected)
        assert dbias.shape == shape and dbias.dtype == bias.dtype
        lead = (1,) * (4 - len(shape)) + shape
        axes = tuple(i for i in range(4) if lead[i] == 1)
        exact, size = (x.sum(axis=axes, dtype=np.float64).reshape(shape) for x in (gradient, abs(gradient)))
        assert (abs(dbias - exact) <= 1e-6 * size).all()


def test_a_table_of_distances(on):
    """A Toeplitz view, whose rows overlap in memory, of which each element has a gradient of its own."""
    arrays, table = CASE.arrays(), numbers(2, 159)
    size = table.itemsize
    bias = as_strided(table[:, 69:], FULL[1:], (table.strides[0], -size, size))
    assert bias[1, 3, 8] == table[1, 69 + 8 - 3]
    same_bits(results(on, arrays, wrt=WRT, bias=bias), results(on, arrays, wrt=WRT, bias=bias.copy()))


@pytest.mark.parametrize("batch", [(), (2, 3), (2, 1, 2, 3), (2, 1, 3, 1, 2)], ids=str)
def test_batches(on, batch):
    """Of any number of dimensions, also where those that are broadcast alternate with the others."""
    case = Case(batch=batch, heads_k=1, group=2, sq=9, sk=20, d=8)
    q, k, v, dout, dlse = arrays = case.arrays()
    for own in (True, False):
        shape = (*(n if (i % 2 == 0) == own else 1 for i, n in enumerate(batch)), 2, 9, 20)
        bias = numbers(*shape)
        exact = attention(q, k, v, dout=dout, dlse=dlse, bias=bias)
        found = results(on, arrays, wrt=WRT, bias=bias)
        assert [x.shape for x in found[2:]] == [q.shape, k.shape, v.shape, shape]
        close(found, (*exact[:5], exact.of("bias")))


def test_two_dimensions_are_one_head(on):
    arrays = tuple(x[0, 0] for x in CASE.arrays())
    for shape in ((70, 90), (90,), (70, 1), (1, 70, 90)):
        bias = numbers(*shape)
        exact = attention(*arrays[:3], dout=arrays[3], dlse=arrays[4], bias=bias)
        close(results(on, arrays, wrt=WRT, bias=bias), (*exact[:5], exact.of("bias")))


@pytest.mark.parametrize(("sq", "sk", "batch"), [(0, 5, ()), (5, 0, ()), (5, 5, (0,))])
def test_nothing_to_add(on, sq, sk, batch):
    arrays = Case(batch=batch, heads_k=1, group=2, sq=sq, sk=sk, d=8).arrays()
    for shape in ((*batch, 2, sq, sk), (2, 1, 1), (sq, 1), (1,)):
        out, lse, *_, dbias = results(on, arrays, wrt=WRT, bias=numbers(*shape))
        assert not out.any() and np.isneginf(lse).all()
        assert dbias.shape == shape and not dbias.any()


def test_one_without_axes(on):
    arrays, expected = CASE.arrays(), None
    for bias in (np.array([0.5], np.float32), np.array(0.5, np.float32)):
        found = results(on, arrays, wrt=WRT, bias=bias)
        assert found[-1].shape == bias.shape
        same_bits(found, expected or found)
        expected = found


@pytest.mark.parametrize("value", [0.5, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_without_axes_keeps_its_value_on_its_way_to_a_gpu(value, dtype):
    """Where a kernel makes it, of a module that has another kind of arrays."""
    space = SimpleNamespace(ndarray=tuple, full=np.full)
    module = SimpleNamespace(namespace=space, placed=lambda **_: nullcontext())
    x, bias = X.astype(DTYPES[dtype]), np.array(value, DTYPES[dtype])
    defaults = {name: p.default for name, p in inspect.signature(flash_attention).parameters.items()}
    _, made = api._problem(module, x, x, x, defaults | {"bias": bias})
    same_bits([made["bias"]], [bias])


BEHIND = """
sizes, dtypes = ((2, 100), (9, 130), (70, 101), (70, 7)), (np.float16, np.float32, np.float64)
for (sq, sk), dtype in itertools.product(sizes, dtypes):
    size = sq * sk * dtype().itemsize
    bias = guarded(16 * page, 0, 15 * page)[15 * page - size : 15 * page].view(dtype).reshape(sq, sk)
    bias[...] = rng.standard_normal((sq, sk))
    inputs = [rng.standard_normal((n, 64)).astype(dtype) for n in (sq, sk, sk)]
    for x, y in zip(attend(*inputs, bias=bias), attend(*inputs, bias=bias.copy())):
        assert np.array_equal(x, y)
print("clean")
"""


def test_nothing_behind_the_last_key_is_read():
    """A process that does is ended."""
    out, _ = python("import itertools" + GUARDED + BEHIND, CUPY_FLASH_CPU_TIER="native")
    assert out.strip() == "clean"


# --- values ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [
    {"causal": True, "bias": (False, True, True)}, {"window": (30, 9), "softcap": 2.0, "bias": (True, False)},
    {"bias": (True, False, False, False, True), "k_lengths": "each"}, {"sq": 1, "sk": 600, "group": 4, "seed": 4},
    {"sq": 5, "sk": 300, "group": 4, "bias": (True,) * 5, "alibi_slopes": (True, True)},
    {"q_lengths": "each", "bias": (True, False, True, True, False), "sinks": (False, True), "seed": 3},
], ids=str)  # fmt: skip
def test_every_backend_keeps_the_budget(on, dtype, options):
    shape = {"batch": (2, 2), "heads_k": 2, "group": 2, "sq": 80, "sk": 110, "d": 24, "dv": 16}
    check(Case(dtype=dtype, **{**shape, "bias": (True, True, True), **options}), on)


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("shape", [(2, 300, 1100), (2, 1, 1100), (2, 300, 1), (1,)], ids=str)
def test_a_gradient_of_many_blocks(shape):
    """In a pass of its own."""
    q, k, v, dout, dlse = Case(batch=(2,), heads_k=1, group=2, sq=300, sk=1100, d=16).arrays()
    options = {"bias": numbers(*shape), "wrt": ("bias",), "causal": True}
    out, lse = flash_attention(q, k, v, return_lse=True, causal=True, bias=options["bias"], backend="cpu")
    found = flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, backend="cpu", **options)
    close(found, attention_reference_backward(dout, q, k, v, dlse=dlse, compute_dtype=np.float64, **options), 1e-5)


# --- repeatable, and in the memory of its own size ---


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_gradient_repeats_whatever_the_number_of_threads(tier, deterministic, monkeypatch):
    monkeypatch.setattr(native, "INLINE_WORK", 0)
    q, k, v, dout, dlse = Case(batch=(3,), heads_k=2, group=2, sq=300, sk=280, d=16, causal=True).arrays()
    for shape in ((3, 4, 300, 280), (280,), (4, 300, 1), (3, 1, 1, 1), (1,)):
        bias, found = numbers(*shape), []
        for number in ("1", "4", "4"):
            monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", number)
            out, lse = flash_attention(q, k, v, return_lse=True, bias=bias, backend="cpu")
            options = {"bias": bias, "wrt": ("bias",), "deterministic": deterministic, "backend": "cpu"}
            found.append(flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options))
        same_bits(found[0], found[1])
        same_bits(found[1], found[2])


PAIR = Case(batch=(24,), heads_k=2, sq=96, sk=96, d=16)  # rows of an alignment, that share the bias of pairs


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_bias_of_pairs_that_all_rows_share(on, dtype):
    """As AlphaFold has it: the gradient is right, and repeats."""
    q, k, v, dout, dlse = arrays = replace(PAIR, dtype=dtype).arrays()
    for kind in (dtype, "float32"):
        bias = numbers(1, 2, 96, 96, dtype=kind)
        first = results(on, arrays, wrt=WRT, bias=bias)
        same_bits(results(on, arrays, wrt=WRT, bias=bias), first)
        exact = attention(q, k, v, dout=dout, dlse=dlse, bias=bias)
        close(first, (*exact[:5], exact.of("bias")), ERROR[dtype])


def extra_memory(measured, *arrays, **options):
    """By how much a backward's most memory grows with the gradient of its bias."""
    q, k, v, dout, dlse = arrays
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    most = []
    for wrt in (("q", "k", "v"), WRT):
        flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, wrt=wrt, **options)  # what is kept is there
        most.append(measured(lambda wrt=wrt: flash_attention_backward(
            dout, q, k, v, out, lse, dlse=dlse, wrt=wrt, **options
        )))  # fmt: skip
    return most[1] - most[0]


def peak(call):
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_its_gradient_takes_the_memory_of_its_own_size(dtype, tier):
    """In float32, and 10 MB: of 24 rows of pairs, of which the scores have 28 MB."""
    arrays = replace(PAIR, dtype=dtype, sq=384, sk=384).arrays()
    bias = numbers(1, 2, 384, 384, dtype=dtype)
    gradient = 4 * bias.size + bias.nbytes * (dtype == "float16")
    assert extra_memory(peak, *arrays, bias=bias, backend="cpu") <= gradient + 10e6
    assert extra_memory(peak, *arrays, bias=bias[..., :1, :].copy(), backend="cpu") <= 10e6


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_its_sums_take_10_mb_on_any_gpu(dtype):
    """Where few blocks have elements of their own, several share them: alignments of 500 rows, and one bias for all."""
    split = 0
    for rows, heads, seqlen in itertools.product((1, 500), (1, 4, 32), (64, 300, 1024, 4096)):
        x = np.broadcast_to(DTYPES[dtype].type(0), (rows, heads, seqlen, 32))
        for shape in ((1, heads, seqlen, seqlen), (heads, 1, seqlen), (heads, seqlen, 1), (1,)):
            bias = np.broadcast_to(np.float32(0), shape)
            problem = AttentionProblem.from_arrays(x, x, x, bias=bias, wrt=("bias",))
            for device in NAMED.values():
                plan = plan_term(problem, device, *problem.terms)
                parts = 0 if plan.num_splits == 1 else plan.num_splits * math.prod(shape)
                assert problem.accumulator.itemsize * parts <= 10e6, (device.arch, rows, heads, seqlen, shape)
                split += plan.num_splits > 1
    assert split > 100
