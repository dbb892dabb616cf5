"""merge_attention: chunks of keys, forward and backward, on every backend."""

import itertools
from functools import reduce

import ml_dtypes
import numpy as np
import pytest
from cases import Case, cases, lay_out, magnitudes, within_budget
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import attention

from cupy_flash import (
    attention_reference,
    flash_attention,
    flash_attention_backward,
    merge_attention,
)


def chunks_of(case, bounds, on):
    """(out, lse) of attention over each chunk of keys; causal chunks keep their place by q_offset."""
    q, k, v, *_ = case.arrays()
    results = []
    for begin, end in itertools.pairwise((0, *bounds, case.sk)):
        options = dict(case.options)
        if case.causal:
            offset = case.sk - case.sq if case.q_offset is None else case.q_offset
            options["q_offset"] = offset - begin
        results.append(on(flash_attention, q, k[..., begin:end, :], v[..., begin:end, :], return_lse=True, **options))
    return results


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_chunks_merge_into_attention_over_all_keys(on, data):
    case = data.draw(cases(max_seqlen=120))
    bounds = sorted(data.draw(st.lists(st.integers(0, case.sk), max_size=4)))
    results = data.draw(st.permutations(chunks_of(case, bounds, on)))
    out, lse = reduce(lambda a, b: on(merge_attention, *a, *b), results)
    q, k, v, *_ = case.arrays()
    exact = attention(q, k, v, **case.options)
    naive = attention_reference(q, k, v, return_lse=True, **case.options)
    assert out.dtype == q.dtype
    # Every chunk and every merge rounds the output once more.
    size = magnitudes(*case.arrays(), **case.options)
    size["out"] *= 2 * len(results) * float(ml_dtypes.finfo(out.dtype).eps) / np.finfo(lse.dtype).eps
    size["lse"] *= len(results)
    for name, x, reference, truth in zip(("out", "lse"), (out, lse), naive, exact, strict=False):
        within_budget(name, x, reference, truth, size[name])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_chunks_add_up(on, causal, dtype):
    """As ring attention does it: every chunk's backward with the merged output and log-sum-exp."""
    case = Case(dtype=dtype, heads_k=1, group=2, sq=60, sk=90, d=16, causal=causal)
    q, k, v, dout, dlse = case.arrays()
    results = chunks_of(case, (40,), on)
    out, lse = on(merge_attention, *results[0], *results[1])
    grads = []
    for begin, end in ((0, 40), (40, 90)):
        options = {"causal": causal, "q_offset": 30 - begin if causal else None}
        rows = np.s_[..., begin:end, :]
        grads.append(on(flash_attention_backward, dout, q, k[rows], v[rows], out, lse, dlse=dlse, **options))
    dq, dk, dv = grads[0][0] + grads[1][0], *(np.concatenate(x, axis=-2) for x in list(zip(*grads, strict=True))[1:])
    exact = attention(q, k, v, dout=dout, dlse=dlse, **case.options)[2:]
    sizes, eps = magnitudes(q, k, v, dout, dlse, **case.options), np.finfo(dtype).eps
    for name, x, y in zip(("dq", "dk", "dv"), (dq, dk, dv), exact, strict=True):
        assert np.abs(x - y).max() <= 4 * eps * sizes[name], name


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


@pytest.mark.parametrize("layout", ["bshd", "reversed", "strided_cols", "offset"])
def test_any_strides_and_two_dimensions(on, layout):
    rng = np.random.default_rng(1)
    out_a, out_b = (rng.standard_normal((3, 20, 12)) for _ in range(2))
    lse_a, lse_b = (rng.standard_normal((3, 20)) for _ in range(2))
    expected = on(merge_attention, out_a, lse_a, out_b, lse_b)
    strided = on(merge_attention, lay_out(out_a, layout), lse_a, lay_out(out_b, layout), lse_b)
    single = on(merge_attention, out_a[0], lse_a[0], out_b[0], lse_b[0])
    for x, y, z in zip(expected, strided, single, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(x[0], z)


def test_equal_halves_and_far_apart(on):
    out = np.ones((1, 4, 4))
    lse = np.array([[0.0, 1e4, -1e4, 700.0]])
    same, total = on(merge_attention, out, lse, out, lse)
    np.testing.assert_allclose(same, out)
    np.testing.assert_allclose(total, lse + np.log(2), rtol=1e-15)
    left, _ = on(merge_attention, out, lse, 2 * out, lse - 2000)
    np.testing.assert_array_equal(left, out)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"out_b": np.zeros((2, 4, 9))}, ValueError, r"out_b has shape \(2, 4, 9\): expected \(2, 4, 8\)"),
    ({"lse_a": np.zeros((2, 5))}, ValueError, r"lse_a has shape \(2, 5\): expected \(2, 4\)"),
    ({"lse_b": np.zeros((2, 4), np.float32)}, TypeError, "lse_b has dtype float32: expected float64"),
    ({"out_b": np.zeros((2, 4, 8), np.float32)}, TypeError, "out_b has dtype float32: expected float64"),
    ({"out_a": np.zeros((2, 4, 8), np.int32)}, TypeError, "out_a has dtype int32"),
    ({"out_a": np.zeros((2, 4, 513))}, ValueError, "out_a has head_dim 513: expected 1 to 512"),
    ({"out_a": np.zeros(4)}, ValueError, r"out_a has shape \(4,\)"),
])  # fmt: skip
def test_bad_input_is_refused(change, error, message):
    arrays = {"out_a": np.zeros((2, 4, 8)), "lse_a": np.zeros((2, 4))}
    arrays |= {"out_b": np.zeros((2, 4, 8)), "lse_b": np.zeros((2, 4))}
    with pytest.raises(error, match=message):
        merge_attention(**{**arrays, **change})
