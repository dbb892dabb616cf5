"""window: what it takes, what it equals, and which keys it keeps out."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from cases import Case, check, results, same_bits
from conftest import On
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import attention, visible

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    emulator,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
)
from cupy_flash._src.backends import numpy_
from cupy_flash._src.components.causal import Causal
from cupy_flash._src.components.window import Window
from cupy_flash._src.device import named
from cupy_flash._src.plan import plan_backward, plan_forward
from cupy_flash._src.problem import DTYPES, AttentionProblem

X = np.random.default_rng(0).standard_normal((2, 5, 8))
CALLS = [flash_attention, flash_attention_vjp, attention_reference]


def windowed(on, case, **options):
    """Results of a case, its mask replaced by these options."""
    return results(on, case.arrays(), scale=case.scale, softcap=case.softcap, **options)


# --- what it takes ---


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("window", [(-1, 0), (0, -1), (None, -3), (-(10**30), None), [2, -2], (np.int8(-1), None)])
def test_sides_are_not_negative(call, window):
    with pytest.raises(ValueError) as error:
        call(X, X, X, window=window)
    assert str(error.value) == f"window is {window!r}: expected numbers of keys, at least 0, or None for all"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("window", [
    3, 0, "34", (), (1,), (1, 2, 3), {1: 2, 3: 4}, {1, 2}, True, False, np.array([3, 4]), np.ones((2, 2)), range(2),
], ids=repr)  # fmt: skip
def test_a_window_is_a_pair(call, window):
    with pytest.raises(TypeError) as error:
        call(X, X, X, window=window)
    assert str(error.value) == f"window is {window!r}: expected a pair (left, right) of int or None"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("side", [1.0, np.float32(2), "1", True, np.True_, [1], np.ones(1, int), float("inf"), 1j])
def test_sides_are_integers(call, side):
    for window in ((side, 0), (None, side)):
        with pytest.raises(TypeError) as error:
            call(X, X, X, window=window)
        assert str(error.value) == f"window is {side!r}: expected an int"


def test_sides_of_any_kind_of_integer_are_plain():
    for window in ((2, 1), [2, 1], (np.int64(2), np.uint8(1)), (np.array(2), True + 0)):
        (mask,) = AttentionProblem.from_arrays(X, X, X, window=window).masks
        assert mask == Window(2, 1) and type(mask.left) is type(mask.right) is int


def test_an_offset_needs_a_mask_that_it_moves():
    for window in (None, (None, None)):
        for q_offset, seen in ((1, "1"), (np.array([1, 2]), "an array")):
            with pytest.raises(
                ValueError, match=f"^q_offset is {seen}: expected none without alibi_slopes or causal or "
            ):
                flash_attention(*[np.stack([X, X])] * 3, window=window, q_offset=q_offset)


def test_what_hides_nothing_or_is_causal_is_no_window():
    def masks(**options):
        return AttentionProblem.from_arrays(X, X, X, **options).masks

    assert masks(window=None) == masks(window=(None, None)) == ()
    for options in ({"causal": True}, {"window": (None, 0)}, {"causal": True, "window": (None, 7)}):
        assert masks(**options) == (Causal(),)
    assert masks(causal=True, window=(2, 7)) == masks(window=(2, 0)) == (Window(2, 0),)


def test_sides_and_offsets_are_of_at_most_the_sizes_sum():
    """And never negative: kernels take them as they are."""
    sizes, large = (0, 1, 5, 9), (None, 0, 3, 40, 10**30)
    for sq, sk, left, right in itertools.product(sizes, sizes, large, large):
        arrays = [np.zeros((1, n, 4)) for n in (sq, sk, sk)]
        for q_offset in (None, 0, 4, -4, 60, -60, 10**30, -(10**30)) if (left, right) != (None, None) else ():
            problem = AttentionProblem.from_arrays(*arrays, window=(left, right), q_offset=q_offset)
            assert -sq <= problem.q_offset <= sk
            assert all(0 <= side <= sq + sk for x in problem.masks for side in vars(x).values() if side is not None)


# --- what it equals ---

MANY = Case(heads_k=1, group=2, sq=70, sk=90, d=16)


@pytest.mark.parametrize("q_offset", [None, -8, 37])
def test_no_key_behind_is_causal_bit_for_bit(on, q_offset):
    causal = windowed(on, MANY, causal=True, q_offset=q_offset)
    for options in ({"window": (None, 0)}, {"causal": True, "window": (None, 5)}):
        same_bits(windowed(on, MANY, q_offset=q_offset, **options), causal)


def test_causal_is_the_right_side_of_a_window_bit_for_bit(on):
    narrow = windowed(on, MANY, window=(9, 0))
    for right in (None, 0, 6):
        same_bits(windowed(on, MANY, causal=True, window=(9, right)), narrow)


def test_a_window_beyond_all_keys_changes_no_bit(on):
    plain = windowed(on, MANY)
    for options in ({"window": (89, 69)}, {"window": (10**30, 10**30)}, {"window": (10**30, None), "q_offset": -5}):
        same_bits(windowed(on, MANY, **options), plain)
    same_bits(windowed(on, MANY, causal=True, window=(10**30, 0)), windowed(on, MANY, causal=True))


@pytest.mark.parametrize("q_offset", [0, 20, -20])
def test_a_query_that_sees_one_key_has_its_value(on, q_offset):
    q, k, v, *_ = MANY.arrays()
    out, lse = on(flash_attention, q, k, v, window=(0, 0), q_offset=q_offset, scale=0.0, return_lse=True)
    queries = np.arange(max(0, -q_offset), min(70, 90 - q_offset))
    np.testing.assert_array_equal(out[:, queries], np.repeat(v[:, queries + q_offset], 2, axis=0))
    np.testing.assert_allclose(lse[:, queries], 0, atol=1e-30)  # kernels take a scale of 0 for about the least number
    blind = np.setdiff1d(np.arange(70), queries)
    assert not out[:, blind].any() and np.isneginf(lse[:, blind]).all()


@pytest.mark.parametrize("options", [
    {"window": (10**30, 10**30), "q_offset": 10**30}, {"window": (10**30 + 3, 10**30), "q_offset": -(10**30) + 4},
    {"window": (10**30 + 3, None), "q_offset": 10**30 + 20}, {"window": (None, 10**30), "q_offset": -(10**30) - 9},
    {"window": (3, 10**30), "q_offset": -(10**30)}, {"window": (5, 4), "q_offset": -(10**30)},
    {"window": (5, None), "q_offset": 10**30}, {"causal": True, "window": (10**30, 2), "q_offset": 10**30 + 20},
], ids=str)  # fmt: skip
def test_positions_and_sides_of_any_size(on, options):
    check(Case(sq=33, sk=40, d=8, **options), on)


# --- values ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [
    {"window": (20, 5)}, {"window": (0, 0)}, {"window": (3, None), "q_offset": 2}, {"window": (None, 30)},
    {"window": (40, 60), "causal": True}, {"window": (7, 1), "q_offset": -60}, {"window": (7, 1), "q_offset": 70},
    {"window": (9, 2), "sq": 1, "sk": 300, "q_offset": 150},
], ids=str)  # fmt: skip
def test_every_backend_keeps_the_budget(on, dtype, options):
    check(Case(dtype=dtype, heads_k=2, group=2, d=24, dv=16, **{"sq": 90, "sk": 110, **options}), on)


# FlashAttention's grid of lengths.
SHORT = [(1, 1), (3, 3), (64, 32), (64, 128), (64, 1), (128, 192), (239, 1), (113, 203), (128, 217), (113, 211)]
LONG = [(255, 256), (799, 3), (108, 256), (384, 256), (640, 128), (1023, 1024), (1024, 1023)]
HEADS = [(2, 1), (2, 3), (1, 4)]  # of keys, and of queries to each


def check_windows(on, **case):
    """One of few keys, and two of about a third of them."""
    left, right = case["sk"] // 3, case["sq"] // 4
    for window, causal in (((5, 2), False), ((left, None), True), ((left, right), False)):
        check(Case(**case, window=window, causal=causal, softcap=15.0), on)


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize(("sq", "sk", "heads_k", "group"), [(*x, *HEADS[i % 3]) for i, x in enumerate(SHORT)])
def test_flash_attentions_lengths(sq, sk, heads_k, group):
    check_windows(On("cpu"), heads_k=heads_k, group=group, sq=sq, sk=sk, d=32)


@pytest.mark.slow
@pytest.mark.parametrize(("sq", "sk", "heads_k", "group", "dtype"), [
    (*x, *HEADS[i % 3], ("float16", "float32", "bfloat16")[i // 3 % 3]) for i, x in enumerate(SHORT + LONG)
])  # fmt: skip
def test_flash_attentions_lengths_on_every_backend(on, sq, sk, heads_k, group, dtype):
    check_windows(on, dtype=dtype, heads_k=heads_k, group=group, sq=sq, sk=sk, d=64)


@pytest.mark.usefixtures("tier")
def test_a_window_may_cut_blocks_anywhere(monkeypatch):
    """NumPy's blocks are made small, that there be many."""
    monkeypatch.setattr(numpy_, "QUERY_BLOCK", 16)
    monkeypatch.setattr(numpy_, "KEY_BLOCK", 32)
    case = Case(dtype="float64", heads_k=1, group=2, sq=70, sk=130, d=8)
    q, k, v, dout, dlse = case.arrays()
    for window, q_offset in itertools.product(
        [(0, 0), (1, None), (None, 1), (15, 0), (31, 33), (64, 17), (100, 100)], (-70, -40, -1, 0, 15, 16, 60, 100, 190)
    ):
        options = {"window": window, "q_offset": q_offset}
        exact = attention(q, k, v, dout=dout, dlse=dlse, **options)
        out, lse = flash_attention(q, k, v, return_lse=True, **options)
        grads = flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
        for x, y in zip((out, lse, *grads), exact, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-11, err_msg=str(options))


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sq=st.integers(1, 40), sk=st.integers(1, 40), left=st.integers(0, 9), right=st.integers(0, 9), data=st.data())
def test_a_shift_of_the_queries_is_one_of_the_window(on, sq, sk, left, right, data):
    """p - left and p + right are all that counts."""
    case, shift = Case(sq=sq, sk=sk, d=4), data.draw(st.integers(-left, right))
    expected = windowed(on, case, window=(left, right), q_offset=2)
    same_bits(windowed(on, case, window=(left + shift, right - shift), q_offset=2 + shift), expected)


# --- what is visited ---


def visits(replan, case):
    """Of each kernel of a call, forward, with atomics and without: its blocks, pairs of blocks seen, and report."""
    q, k, v, dout, _ = case.arrays()
    options = case.options | {"backend": "emulator:sm_80"}
    problem, device = AttentionProblem.from_arrays(q, k, v, **case.options), named("sm_80")
    whole = functools.partial(plan_forward, num_splits=1)
    with replan(plan_forward=whole), emulator.settings(mode="counted"):
        out, lse = flash_attention(q, k, v, return_lse=True, **options)
        runs = [(whole(problem, device), emulator.last_run())]
        for deterministic in (False, True):
            asked = dataclasses.replace(problem, deterministic=deterministic)
            flash_attention_backward(dout, q, k, v, out, lse, deterministic=deterministic, **options)
            runs.append((plan_backward(asked, device), emulator.last_run()))
    seen = visible(case.sq, case.sk, causal=case.causal, window=case.window)
    for plan, run in runs:
        for launch, report in zip(plan.launches, run.launches, strict=True):
            if launch.kernel.family != "attention":
                m, n = (launch.kernel.constant(name) for name in ("kBlockM", "kBlockN"))
                of_keys = np.logical_or.reduceat(seen, range(0, case.sk, n), axis=1)
                yield (m, n), int(np.logical_or.reduceat(of_keys, range(0, case.sq, m)).sum()), report


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("s", "left"), [(512, 100), pytest.param(4096, 256, marks=pytest.mark.slow)])
def test_hardly_more_is_read_than_blocks_that_are_seen_hold(replan, dtype, s, left):
    """What stays in a block of threads is read once, and what passes through it where it is seen."""
    for (m, n), pairs, report in visits(replan, Case(dtype=dtype, sq=s, sk=s, causal=True, window=(left, 0))):
        row = 2 * 64 * np.dtype(dtype).itemsize  # of q and dout, or of k and v
        read = sum(report.buffers[name].read for name in ("q", "k", "v", "dout") if name in report.buffers)
        passing, staying = (m, row) if report.kernel == "attention_dkdv" else (n, row)
        if report.kernel == "attention_forward":
            staying = row // 2
        assert 0.7 < read / (s * staying + pairs * passing * row) <= 1.15, report.kernel


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_each_block_that_is_seen_costs_the_same_and_others_nothing(replan, dtype):
    """Threads meet as often for each: counted with all keys, causal ones, and a window."""
    case = Case(dtype=dtype, sq=512, sk=512)
    masks = {"causal": False}, {"causal": True}, {"causal": True, "window": (100, 0)}
    for kernel in zip(*(visits(replan, dataclasses.replace(case, **mask)) for mask in masks), strict=True):
        blocks, pairs, reports = zip(*kernel, strict=True)
        assert len(set(blocks)) == len({report.kernel for report in reports}) == 1
        (first, other), (second, others) = (np.diff(x) for x in (pairs, [x.barriers for x in reports]))
        assert first < 0 and other < 0 and first * others == other * second, reports[0].kernel


# --- what is not seen ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_nobody_sees_never_shows(on, dtype, value):
    """Keys before and behind all windows, and queries without a key: out, lse and gradients are as without them."""
    case = Case(dtype=dtype, heads_k=1, group=2, sq=150, sk=170, d=24, dv=40)
    for options in ({"window": (9, 5), "q_offset": 90}, {"window": (30, 2), "q_offset": -70}, {"window": (6, 4)}):
        clean = windowed(on, case, **options)
        seen = visible(case.sq, case.sk, **{"q_offset": None, **options})
        q, k, v, dout, dlse = case.arrays()
        keys, queries = ~seen.any(axis=0), ~seen.any(axis=1)
        assert keys.any() or queries.any()
        for x in (k, v):
            x[:, keys] = value
        for x in (q, dout, dlse):
            x[:, queries] = value
        out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
        grads = on(flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, deterministic=True, **options)
        same_bits((out, lse, *grads), clean)
        assert not out[:, queries].any() and np.isneginf(lse[:, queries]).all() and not grads[0][:, queries].any()
        assert not grads[1][:, keys].any() and not grads[2][:, keys].any()


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_one_query_sees_shows_there_alone(value):
    q, k, v, dout, dlse = MANY.arrays()
    options = {"window": (5, 3), "q_offset": 10}
    clean = attention(q, k, v, dout=dout, dlse=dlse, **options)
    v[0, 40, 3] = value
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    queries = visible(70, 90, **options)[:, 40]
    assert not np.isfinite(out[:, queries, 3]).any()
    np.testing.assert_allclose(np.delete(out, 3, axis=-1), np.delete(clean.out, 3, axis=-1), atol=1e-5)
    np.testing.assert_allclose(out[:, ~queries], clean.out[:, ~queries], atol=1e-5)
    np.testing.assert_allclose(lse, clean.lse, atol=1e-5)


@pytest.mark.parametrize("q_offset", [-(10**30), -90, 95, 10**30])
def test_where_no_query_sees_a_key_all_is_0(on, q_offset):
    out, lse, *grads = windowed(on, MANY, window=(5, 8), q_offset=q_offset)
    assert np.isneginf(lse).all() and not any(x.any() for x in (out, *grads))


def test_the_reference_agrees_with_the_definition():
    q, k, v, dout, dlse = Case(dtype="float64", heads_k=2, group=2, sq=9, sk=12, d=5).arrays()
    sides = (None, 0, 2, 20)
    for left, right, causal, q_offset in itertools.product(sides, sides, (False, True), (None, -7, 0, 11)):
        if not causal and left is right is None:
            continue
        options = {"window": (left, right), "causal": causal, "q_offset": q_offset}
        found = attention_reference(q, k, v, return_lse=True, **options)
        found += attention_reference_backward(dout, q, k, v, dlse=dlse, **options)
        for x, y in zip(found, attention(q, k, v, dout=dout, dlse=dlse, **options), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)
