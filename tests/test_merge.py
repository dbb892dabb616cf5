"""merge_attention: chunks of keys, forward and backward, on every backend."""

import itertools
from functools import reduce

import ml_dtypes
import numpy as np
import pytest
from cases import Case, cases, magnitudes, within_budget
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import attention

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    merge_attention,
)
from cupy_flash._src.problem import DTYPES, AttentionProblem

HALF = np.zeros((2, 4, 8), np.float16)


def chunks_of(case, bounds):
    """(k, v, options) of each chunk of keys, which keeps its place under all that hides keys or biases scores; the
    first has the sinks.
    """
    q, k, v, *_ = case.arrays()
    whole = dict(case.options)
    offset = whole.get("q_offset")
    if offset is None:
        offset = whole.get("k_lengths", case.sk) - whole.get("q_lengths", case.sq)
    placed = AttentionProblem.from_arrays(q, k, v, **whole).uses_offset
    for begin, end in itertools.pairwise((0, *bounds, case.sk)):
        options = whole | ({"q_offset": offset - begin} if placed else {})
        for name in {"k_lengths", "k_starts"} & whole.keys():
            options[name] = (whole[name] - np.int32(begin)).clip(0, end - begin)
        for name in {"bias", "mask"} & whole.keys():
            if whole[name].shape[-1] > 1:
                options[name] = whole[name][..., begin:end]
        yield k[..., begin:end, :], v[..., begin:end, :], options
        whole.pop("sinks", None)


def over_chunks(case, bounds, on, order=None, **backward_options):
    """out, lse, dq, dk and dv as README has them: merges one after another, in this order, and the sum of dq."""
    q, _, _, dout, dlse = case.arrays()
    chunks = list(chunks_of(case, bounds))
    results = [on(flash_attention, q, k, v, return_lse=True, **options) for k, v, options in chunks]
    results = [results[i] for i in (range(len(chunks)) if order is None else order)]
    out, lse = reduce(lambda a, b: on(merge_attention, *a, *b), results)
    grads = [
        on(flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, **options, **backward_options)
        for k, v, options in chunks
    ]
    dk, dv = (np.concatenate(x, axis=-2) for x in list(zip(*grads, strict=True))[1:])
    return out, lse, sum(dq for dq, *_ in grads), dk, dv


def even_bounds(case, chunks):
    return np.linspace(0, case.sk, chunks + 1).astype(int)[1:-1].tolist()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_chunks_merge_into_attention_over_all_keys(on, data):
    case = data.draw(cases(max_seqlen=120, arrays=True))
    bounds = sorted(data.draw(st.lists(st.integers(0, case.sk), max_size=4)))
    q, k, v, *_ = case.arrays()
    parts = [on(flash_attention, q, *x, return_lse=True, **options) for *x, options in chunks_of(case, bounds)]
    out, lse = reduce(lambda a, b: on(merge_attention, *a, *b), data.draw(st.permutations(parts)))
    exact = attention(q, k, v, **case.options)
    naive = attention_reference(q, k, v, return_lse=True, **case.options)
    assert out.dtype == (lse.dtype if len(parts) > 1 else q.dtype)
    size = magnitudes(*case.arrays(), **case.options)
    # Every key is in one chunk, the output of which was rounded once to the type of the inputs, however many merges.
    size["out"] *= 1 + float(ml_dtypes.finfo(q.dtype).eps) / 2 / np.finfo(lse.dtype).eps
    for name, x, reference, truth in zip(("out", "lse"), (out.astype(q.dtype), lse), naive, exact, strict=False):
        within_budget(name, x, reference, truth, size[name])


def check_chunks(case, results, on):
    """The error is within the budget of one call, and for the results of q's dtype about as large as one call's."""
    q, k, v, dout, dlse = case.arrays()
    out, lse, dq, dk, dv = results
    assert out.dtype == dq.dtype == lse.dtype
    assert dk.dtype == dv.dtype == q.dtype
    exact = attention(q, k, v, dout=dout, dlse=dlse, **case.options)[:5]
    naive = (
        *attention_reference(q, k, v, return_lse=True, **case.options),
        *attention_reference_backward(dout, q, k, v, dlse=dlse, **case.options),
    )
    (whole_out, whole_lse) = whole = on(flash_attention, q, k, v, return_lse=True, **case.options)
    whole += on(flash_attention_backward, dout, q, k, v, whole_out, whole_lse, dlse=dlse, **case.options)
    results = out.astype(q.dtype), lse, dq.astype(q.dtype), dk, dv
    for (name, size), x, *references in zip(
        magnitudes(q, k, v, dout, dlse, **case.options).items(), results, naive, exact, whole, strict=True
    ):
        within_budget(name, x, *references[:2], size)
        if name != "lse":
            # The output is rounded twice, once in its chunk and once in the end.
            error, of_one_call = (np.std(y - references[1], dtype=np.float64) for y in (x, references[2]))
            assert error <= 1.6 * of_one_call, f"{name}: {error:.3g}, one call has {of_one_call:.3g}"


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("chunks", "deterministic"),
    [pytest.param(2, False, marks=pytest.mark.slow), pytest.param(7, True, marks=pytest.mark.slow), (64, False)],
)
def test_half_types_keep_the_error_of_one_call(on, chunks, deterministic, causal, dtype):
    case = Case(dtype=dtype, heads_k=1, group=2, sq=60, sk=256, d=32, causal=causal)
    check_chunks(case, over_chunks(case, even_bounds(case, chunks), on, deterministic=deterministic), on)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_order_of_merges_does_not_matter(on, dtype):
    case = Case(dtype=dtype, sq=60, sk=256, d=32, causal=True)
    order = np.random.default_rng(0).permutation(20)
    check_chunks(case, over_chunks(case, even_bounds(case, 20), on, order), on)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("dtype", "d"), [("float16", 264), ("bfloat16", 264), ("float32", 24), ("float64", 24)])
def test_kernels_on_cuda_cores(on, dtype, d, deterministic):
    """Half types have more columns than tensor-core kernels take."""
    case = Case(dtype=dtype, heads_k=1, group=2, sq=30, sk=50, d=d, dv=24, causal=True)
    check_chunks(case, over_chunks(case, [20], on, deterministic=deterministic), on)


def test_a_wide_dout_is_rounded_and_every_dtype_has_its_plan(on):
    """The same arrays with out of either dtype, one call after another: nothing remembered is taken for the other."""
    q, k, v, dout, _ = Case(dtype="float16", sq=40, sk=70, d=32).arrays()
    out, lse = on(flash_attention, q, k, v, return_lse=True)
    wide, wide_dout = out.astype(np.float32), dout.astype(np.float32) * (1 + 2**-13)
    for deterministic in (False, True):
        narrow = on(flash_attention_backward, dout, q, k, v, out, lse, deterministic=deterministic)
        for d in (dout, wide_dout):
            grads = on(flash_attention_backward, d, q, k, v, wide, lse, deterministic=deterministic)
            assert [x.dtype for x in grads] == ["float32", "float16", "float16"]
            np.testing.assert_array_equal(grads[0].astype(np.float16), narrow[0])
            assert (grads[0] != narrow[0]).any()
            np.testing.assert_array_equal(grads[1:], narrow[1:])


def test_queries_that_broadcast(on):
    """dq of chunks is summed over the batch in float32."""
    case = Case(dtype="float16", batch=(1,), batch_k=(5,), sq=30, sk=40, d=16)
    check_chunks(case, over_chunks(case, [15], on), on)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_merged_and_new_results_mix(on, half):
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal((2, 9, 8)).astype(DTYPES[half]) for _ in range(2))
    lse_a, lse_b = (rng.standard_normal((2, 9)).astype(np.float32) for _ in range(2))
    wide_a, wide_b = a.astype(np.float32), b.astype(np.float32)
    expected, lse = on(merge_attention, wide_a, lse_a, wide_b, lse_b)
    weight = np.exp(lse_a - np.logaddexp(lse_a, lse_b))[..., None]
    np.testing.assert_allclose(expected, weight * wide_a + (1 - weight) * wide_b, atol=1e-6)
    for x, y in ((a, b), (a, wide_b), (wide_a, b)):
        for merged in (on(merge_attention, x, lse_a, y, lse_b), on(merge_attention, y, lse_b, x, lse_a)):
            assert [z.dtype for z in merged] == ["float32", "float32"]
            np.testing.assert_allclose(merged[0], expected, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(merged[1], lse, rtol=1e-6)


def test_rows_without_keys(on):
    rng = np.random.default_rng(0)
    out_a, out_b = (rng.standard_normal((2, 5, 8)).astype(np.float32) for _ in range(2))
    lse_a, lse_b = (rng.standard_normal((2, 5)).astype(np.float32) for _ in range(2))
    out_a[:, :2], lse_a[:, :2] = 0, -np.inf
    out_b[:, 1:3], lse_b[:, 1:3] = 0, -np.inf
    out, lse = on(merge_attention, out_a, lse_a, out_b, lse_b)
    np.testing.assert_allclose(out[:, 0], out_b[:, 0], rtol=1e-6)
    np.testing.assert_allclose(out[:, 2], out_a[:, 2], rtol=1e-6)
    assert not out[:, 1].any() and np.isneginf(lse[:, 1]).all()
    assert np.isfinite(lse[:, [0, 2, 3, 4]]).all()


def test_two_dimensions_are_one_head(on):
    rng = np.random.default_rng(1)
    out_a, out_b = (rng.standard_normal((3, 20, 12)) for _ in range(2))
    lse_a, lse_b = (rng.standard_normal((3, 20)) for _ in range(2))
    expected = on(merge_attention, out_a, lse_a, out_b, lse_b)
    single = on(merge_attention, out_a[0], lse_a[0], out_b[0], lse_b[0])
    for x, y in zip(expected, single, strict=True):
        np.testing.assert_array_equal(x[0], y)


def test_equal_halves_and_far_apart(on):
    out = np.ones((1, 4, 4))
    lse = np.array([[0.0, 1e4, -1e4, 700.0]])
    same, total = on(merge_attention, out, lse, out, lse)
    np.testing.assert_allclose(same, out)
    np.testing.assert_allclose(total, lse + np.log(2), rtol=1e-15)
    left, _ = on(merge_attention, out, lse, 2 * out, lse - 2000)
    np.testing.assert_array_equal(left, out)


@pytest.mark.parametrize("other", [-np.inf, 0.0, np.nan])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_reaches_its_row_or_element_only(on, dtype, other):
    """In a log-sum-exp its row, whatever the other one is; in an output its element."""
    out, lse = np.ones((2, 3, 40), dtype), np.zeros((2, 3), dtype)
    broken, beside, broken_out = lse.copy(), lse.copy(), out.copy()
    broken[1, 1], beside[1, 1], broken_out[1, 2, 35] = np.nan, other, np.nan
    row, element = np.isnan(broken), np.isnan(broken_out)
    for pair in ((broken_out, broken, out, beside), (out, beside, broken_out, broken)):
        merged, total = on(merge_attention, *pair)
        np.testing.assert_allclose(merged, np.where(element | row[..., None], np.nan, 1), rtol=1e-6)
        np.testing.assert_allclose(total, np.where(row, np.nan, np.log(2)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outputs_near_the_largest_number(on, dtype):
    out = np.full((1, 2, 4), 0.9 * np.finfo(dtype).max, dtype)
    lse = np.array([[0.0, 0.5]], dtype)
    merged, _ = on(merge_attention, out, lse, out, lse[:, ::-1])
    np.testing.assert_allclose(merged, out, rtol=1e-6)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"out_b": np.zeros((2, 4, 9))}, ValueError, r"out_b has shape \(2, 4, 9\): expected \(2, 4, 8\)"),
    ({"lse_a": np.zeros((2, 5))}, ValueError, r"lse_a has shape \(2, 5\): expected \(2, 4\)"),
    ({"lse_b": np.zeros((2, 4), np.float32)}, TypeError, "lse_b has dtype float32: expected float64"),
    ({"out_b": np.zeros((2, 4, 8), np.float32)}, TypeError, "out_b has dtype float32: expected float64"),
    ({"out_a": np.zeros((2, 4, 8), np.int32)}, TypeError, "out_a has dtype int32"),
    ({"out_a": HALF}, TypeError, "out_b has dtype float64: expected float16 or float32"),
    ({"out_a": HALF, "out_b": HALF.astype(DTYPES["bfloat16"])}, TypeError,
     "out_b has dtype bfloat16: expected float16 or float32"),
    ({"out_a": HALF.astype(np.float32)}, TypeError,
     "out_b has dtype float64: expected float32 or float16 or bfloat16"),
    ({"out_a": HALF, "out_b": HALF}, TypeError, "lse_a has dtype float64: expected float32"),
    ({"out_a": np.zeros((2, 4, 513))}, ValueError, "out_a has head_dim 513: expected 1 to 512"),
    ({"out_a": np.zeros(4)}, ValueError, r"out_a has shape \(4,\)"),
])  # fmt: skip
def test_merges_of_what_does_not_fit_are_refused(change, error, message):
    arrays = {"out_a": np.zeros((2, 4, 8)), "lse_a": np.zeros((2, 4))}
    arrays |= {"out_b": np.zeros((2, 4, 8)), "lse_b": np.zeros((2, 4))}
    with pytest.raises(error, match=message):
        merge_attention(**{**arrays, **change})


@pytest.mark.parametrize(("change", "message"), [
    ({"out": np.zeros((2, 4, 8))}, "out has dtype float64: expected float16 or float32"),
    ({"out": HALF.astype(DTYPES["bfloat16"])}, "out has dtype bfloat16: expected float16 or float32"),
    ({"dout": HALF.astype(np.float32)}, "dout has dtype float32: expected float16$"),
    ({"dout": np.zeros((2, 4, 8)), "out": HALF.astype(np.float32)},
     "dout has dtype float64: expected float16 or float32"),
])  # fmt: skip
def test_gradients_of_what_does_not_fit_are_refused(change, message):
    arrays = dict.fromkeys(("dout", "q", "k", "v", "out"), HALF) | {"lse": np.zeros((2, 4), np.float32)}
    with pytest.raises(TypeError, match=message):
        flash_attention_backward(**{**arrays, **change})
