"""The public calls on every backend: values against the float64 oracle, properties, and errors for bad input."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from cases import Case, cases, check, within_budget
from conftest import On
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from memory_layouts import Layout
from oracle import attention

from cupy_flash import (
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
)
from cupy_flash._src.problem import DTYPES

# Sums of equal terms round to the same side; those of three equal queries round alike.
EQUAL_VALUES = Case(
    sq=3, sk=120, d=4, scale=0.0, seed=1,
    layouts={"v": Layout(constant=frozenset({1}))},
)  # fmt: skip
EQUAL_ROWS = Case(sq=3, sk=9, d=128, scale=-0.2, seed=872227887, layouts={"q": Layout(constant=frozenset({1}))})
shared_backend = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@settings(shared_backend, max_examples=12)
@given(case=cases(arrays=True), deterministic=st.booleans(), dlse=st.booleans())
@example(case=EQUAL_VALUES, deterministic=False, dlse=False)
@example(case=EQUAL_ROWS, deterministic=False, dlse=False)
def test_within_error_budget(on, case, deterministic, dlse):
    check(case, on, deterministic=deterministic, dlse=dlse)


@pytest.mark.slow
@settings(shared_backend, max_examples=12)  # in the emulator each has seven kernels of its own to compile
@given(case=cases(max_seqlen=200, arrays=True), deterministic=st.booleans(), dlse=st.booleans())
def test_options_that_are_arrays_within_error_budget(on, case, deterministic, dlse):
    check(case, on, deterministic=deterministic, dlse=dlse)


@pytest.mark.slow
@pytest.mark.usefixtures("tier")
@settings(shared_backend, max_examples=150)
@given(case=cases(max_seqlen=400, arrays=True))
def test_options_that_are_arrays_within_error_budget_thoroughly(case):
    check(case, On("cpu"))


@pytest.mark.slow
@settings(shared_backend, max_examples=80)
@given(case=cases(max_seqlen=400), deterministic=st.booleans(), dlse=st.booleans())
@example(case=Case(dtype="float64", heads_k=2, sq=1, sk=219, d=65, seed=1), deterministic=False, dlse=False)
def test_within_error_budget_thoroughly(on, case, deterministic, dlse):
    check(case, on, deterministic=deterministic, dlse=dlse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "dv"), [(1, 512), (16, 16), (96, 96), (192, 128), (256, 256), (512, 3), (512, 512)])
def test_head_dims(on, dtype, d, dv):
    check(Case(dtype=dtype, heads_k=1, group=2, sq=37, sk=70, d=d, dv=dv, causal=True), on)


@pytest.mark.parametrize(
    ("sq", "sk"), [(0, 5), (5, 0), (0, 0), (1, 1), (1, 129), (129, 1), (64, 64), (65, 63), (200, 130)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_sequence_lengths(on, sq, sk, causal):
    check(Case(heads_k=2, sq=sq, sk=sk, causal=causal), on)


@pytest.mark.parametrize("q_offset", [None, 0, 7, -7, -64, 10**12, -(10**12)])
def test_causal_offsets(on, q_offset):
    check(Case(sq=64, sk=80, causal=True, q_offset=q_offset), on)


def test_row_that_sees_no_key_is_zero(on):
    q, k, v, dout, dlse = Case(sq=6, sk=4, d=8, causal=True).arrays()
    out, lse = on(flash_attention, q, k, v, causal=True, return_lse=True)
    dq, _, _ = on(flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, causal=True)
    assert (out[:, :2] == 0).all() and (dq[:, :2] == 0).all()
    assert np.isneginf(lse[:, :2]).all() and np.isfinite(lse[:, 2:]).all()


def test_batch_of_zero_and_no_heads(on):
    for shape in [(0, 2, 5, 8), (3, 0, 2, 5, 8)]:
        x = np.ones(shape, np.float32)
        out, lse = on(flash_attention, x, x, x, return_lse=True)
        assert out.shape == shape and lse.shape == shape[:-1]
        assert all(g.shape == shape for g in on(flash_attention_backward, out, x, x, x, out, lse))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.25, -3.7])
def test_scales_above_1(on, dtype, scale):
    check(Case(dtype=dtype, heads_k=2, group=2, sq=40, sk=600, d=24, causal=True, scale=scale, magnitude=0.5), on)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_scale_that_q_alone_could_not_bear(on, dtype, sign):
    """A feature that is huge in q and tiny in k (in float16, which has no such range, 0): the scores are of order 1."""
    huge, tiny, scale = {
        "float16": (6e4, 0.0, 1e35),
        "bfloat16": (3e37, 4e-38, 12.0),
        "float32": (3e37, 4e-38, 12.0),
        "float64": (3e307, 4e-308, 12.0),
    }[dtype]
    q, k, v, dout, dlse = Case(dtype=dtype, sq=40, sk=600, d=16, causal=True).arrays()
    q[..., 1:] *= 0 if tiny == 0 else 1 / 16
    q[..., 0], k[..., 0] = huge, tiny * (1 + abs(k[..., 0]) / 8)  # never subnormal: AVX512_BF16 takes that for 0
    dout, dlse, options = dout / 16, dlse / 16, {"scale": sign * scale, "causal": True}
    out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
    grads = on(flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, **options)
    info = ml_dtypes.finfo(dtype)
    for name, x, y in zip(
        ("out", "lse", "dq", "dk", "dv"),
        (out, lse, *grads),
        attention(q, k, v, dout=dout, dlse=dlse, **options)[:5],
        strict=True,
    ):
        if dtype == "float16" and name in ("dq", "dk"):  # scale * dS overflows float16
            continue
        bound = 64 * float(info.eps) * np.abs(y).max(axis=-2, keepdims=True) + float(info.tiny)  # of each feature
        assert (np.abs(x.astype(np.float64) - y) <= bound).all(), name


def test_two_dimensional_arrays(on):
    case = Case(sq=20, sk=30, d=16, causal=True)
    q, k, v, dout, dlse = (x[0] for x in case.arrays())
    out, lse = on(flash_attention, q, k, v, return_lse=True, causal=True)
    grads = on(flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, causal=True)
    exact = attention(q, k, v, dout=dout, dlse=dlse, causal=True)[:5]
    for x, expected in zip((out, lse, *grads), exact, strict=True):
        assert x.shape == expected.shape
        np.testing.assert_allclose(x, expected, atol=1e-5)


def test_leading_dimensions_broadcast(on):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((3, 1, 2, 20, 8), dtype=np.float32)
    k = rng.standard_normal((4, 2, 30, 8), dtype=np.float32)
    v = rng.standard_normal((3, 1, 2, 30, 8), dtype=np.float32)
    dout = rng.standard_normal((3, 4, 2, 20, 8), dtype=np.float32)
    out, lse = on(flash_attention, q, k, v, return_lse=True)
    grads = on(flash_attention_backward, dout, q, k, v, out, lse)
    for x, expected in zip((out, lse, *grads), attention(q, k, v, dout=dout)[:5], strict=True):
        assert x.shape == expected.shape
        np.testing.assert_allclose(x, expected, atol=2e-5)


@shared_backend
@given(case=cases(dtype="float64", layouts={}), shift=st.floats(-100, 100))
def test_a_constant_added_to_all_scores_only_shifts_lse(on, case, shift):
    """A constant feature in q and k adds scale * shift to every score."""
    case = dataclasses.replace(case, d=min(case.d, 127), batch_k=None)
    q, k, v, *_ = case.arrays()
    options = case.options | {"scale": 0.25, "softcap": None}
    q1 = np.concatenate([q, np.full((*q.shape[:-1], 1), shift)], axis=-1)
    k0, k1 = (np.concatenate([k, np.full((*k.shape[:-1], 1), c)], axis=-1) for c in (0.0, 1.0))
    out0, lse0 = on(flash_attention, q1, k0, v, return_lse=True, **options)
    out1, lse1 = on(flash_attention, q1, k1, v, return_lse=True, **options)
    np.testing.assert_allclose(out1, out0, atol=1e-10)
    np.testing.assert_allclose(lse1, lse0 + 0.25 * shift, atol=1e-10)


@shared_backend
@given(case=cases(dtype="float64", causal=False, window=None), data=st.data())
def test_permuting_keys_changes_nothing(on, case, data):
    q, k, v, *_ = case.arrays()
    order = data.draw(st.permutations(range(case.sk)))
    out = on(flash_attention, q, k, v, **case.options)
    permuted = on(flash_attention, q, k[..., order, :], v[..., order, :], **case.options)
    np.testing.assert_allclose(permuted, out, atol=1e-12)


@shared_backend
@given(case=cases(dtype="float64", group=3))
def test_grouped_heads_equal_repeated_keys(on, case):
    q, k, v, dout, _ = case.arrays()
    out, lse = on(flash_attention, q, k, v, return_lse=True, **case.options)
    repeated = [np.repeat(x, 3, axis=-3) for x in (k, v)]
    expected, lse_repeated = on(flash_attention, q, *repeated, return_lse=True, **case.options)
    np.testing.assert_allclose(out, expected, atol=1e-12)
    dq, dk, dv = on(flash_attention_backward, dout, q, k, v, out, lse, **case.options)
    grads = on(flash_attention_backward, dout, q, *repeated, expected, lse_repeated, **case.options)
    np.testing.assert_allclose(dq, grads[0], atol=1e-11)
    for x, g in zip((dk, dv), grads[1:], strict=True):
        grouped = g.reshape(*g.shape[:-3], case.heads_k, 3, *g.shape[-2:]).sum(-3)
        np.testing.assert_allclose(x, grouped, atol=1e-11)


@shared_backend
@given(case=cases(dtype="float64", causal=True, q_offset=0), data=st.data())
def test_a_causal_prefix_does_not_see_what_follows(on, case, data):
    case = dataclasses.replace(case, sk=case.sq)
    q, k, v, *_ = case.arrays()
    n = data.draw(st.integers(0, case.sq))
    out = on(flash_attention, q, k, v, **case.options)
    prefix = on(flash_attention, *(x[..., :n, :] for x in (q, k, v)), **case.options)
    np.testing.assert_allclose(prefix, out[..., :n, :], atol=1e-12)


@shared_backend
@given(case=cases(dtype="float64", causal=False, window=None), data=st.data())
def test_split_and_merge(on, case, data):
    """Attention over two parts of the keys, merged by their log-sum-exp, is attention over all."""
    q, k, v, *_ = case.arrays()
    n = data.draw(st.integers(0, case.sk))
    out, lse = on(flash_attention, q, k, v, return_lse=True, **case.options)
    parts = [(k[..., :n, :], v[..., :n, :]), (k[..., n:, :], v[..., n:, :])]
    (out_a, lse_a), (out_b, lse_b) = (on(flash_attention, q, *part, return_lse=True, **case.options) for part in parts)
    merged_lse = np.logaddexp(lse_a, lse_b)
    with np.errstate(invalid="ignore"):
        weights = [np.nan_to_num(np.exp(x - merged_lse)) for x in (lse_a, lse_b)]
    np.testing.assert_allclose(merged_lse, lse, atol=1e-11)
    np.testing.assert_allclose(weights[0][..., None] * out_a + weights[1][..., None] * out_b, out, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_match_finite_differences(on, causal):
    case = Case(dtype="float64", heads_k=1, group=2, sq=5, sk=6, d=4, dv=3, causal=causal, q_offset=-1)
    q, k, v, dout, dlse = case.arrays()

    def loss(*inputs):
        out, lse = on(flash_attention, *inputs, return_lse=True, **case.options)
        return (out * dout).sum() + np.where(np.isfinite(lse), lse * dlse, 0).sum()

    out, lse = on(flash_attention, q, k, v, return_lse=True, **case.options)
    grads = on(flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, **case.options)
    step = 1e-6
    for which, grad in enumerate(grads):
        for index in np.ndindex(grad.shape):
            moved = []
            for sign in (1, -1):
                inputs = [x.copy() for x in (q, k, v)]
                inputs[which][index] += sign * step
                moved.append(loss(*inputs))
            assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(grad[index], abs=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vjp_equals_backward(on, dtype):
    case = Case(dtype=dtype, heads_k=2, sq=33, sk=40, d=16, causal=True)
    q, k, v, dout, dlse = case.arrays()
    if on.name == "cuda":
        import cupy

        q, k, v, dout, dlse = map(cupy.asarray, (q, k, v, dout, dlse))
    options = {"causal": True, "deterministic": True, "backend": on.name}
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, **options)
    only_out, _ = flash_attention_vjp(q, k, v, **options)
    expected = flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    assert (only_out == out).all()
    for x, y in zip(vjp(dout, dlse), expected, strict=True):
        assert (x == y).all()


def test_deterministic_backward_repeats_bit_for_bit(on):
    case = Case(dtype="float16", heads_k=2, group=2, sq=150, sk=170, causal=True)
    first = check(case, on, deterministic=True)
    for _ in range(3):
        for x, y in zip(first, check(case, on, deterministic=True), strict=True):
            assert np.array_equal(x.view(np.uint8), y.view(np.uint8))


def test_arrays_that_are_not_numpy_come_in_by_dlpack():
    class Foreign:
        def __init__(self, x):
            self.x = x

        def __dlpack__(self, **options):
            return self.x.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    out = flash_attention(Foreign(x), Foreign(x), Foreign(x))
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, flash_attention(x, x, x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sk", [28, 150, 400])
def test_a_rounded_log_sum_exp_is_in_the_budget(on, dtype, sk):
    """Equal scores: the rounding of log(sk) goes into every probability of the backward in the same direction."""
    check(Case(dtype=dtype, sq=28, sk=sk, d=64, scale=0.0, seed=1), on)


def test_the_budget_rejects_a_wrong_result():
    q, k, v, dout, _ = Case(dtype="bfloat16").arrays()
    exact = attention(q, k, v, dout=dout).out
    good = exact.astype(ml_dtypes.bfloat16)
    within_budget("out", good, good, exact)
    wrong = good.copy()
    wrong[0, 0, 0] += ml_dtypes.bfloat16(0.1)
    with pytest.raises(AssertionError, match="out: error"):
        within_budget("out", wrong, good, exact)
