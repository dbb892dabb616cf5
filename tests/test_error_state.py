"""No result and no exception depends on the caller's np.errstate or warnings: roundings to 0 and inf are results."""

import warnings

import numpy as np
import pytest

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
    merge_attention,
)
from cupy_flash._src.analysis.budget import magnitudes, spent
from cupy_flash._src.problem import DTYPES


def arrays(dtype):
    """q, k, v, dout, dlse with numbers from a type's least to its largest, k and v without the batch of q."""
    rng = np.random.default_rng(0)
    least, largest = {"float16": (1e-7, 6e4), "bfloat16": (1e-38, 3e38), "float32": (1e-38, 3e38)}.get(
        dtype, (1e-300, 1.7e308)
    )
    shapes = (3, 4, 20, 16), (2, 70, 16), (2, 70, 16), (3, 4, 20, 16), (3, 4, 20)
    q, k, v, dout, dlse = (rng.standard_normal(shape) for shape in shapes)
    q[0, :, :4] *= 1e3  # scores far apart: most probabilities are 0
    v[0, ::3], v[1, 1::3] = least, -largest
    dout[0, 0], dout[1, 1], dout[2, :, ::4] = least, largest, 1e-3 * largest
    dlse[0, 1], dlse[1, 0] = least, 1e-3 * largest
    q, k, v, dout = (x.astype(DTYPES[dtype]) for x in (q, k, v, dout))
    return q, k, v, dout, dlse.astype(np.float64 if dtype == "float64" else np.float32)


def attend(on, q, k, v, dout, dlse, **options):
    out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
    grads = on(flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, deterministic=True, **options)
    return out, lse, *grads


def attend_in_two_dimensions(on, q, k, v, dout, dlse):
    return attend(on, q[0, 0], k[0], v[0], dout[0, 0], dlse[0, 0])


def attend_into_out(on, q, k, v, dout, dlse):
    out = np.empty_like(dout)
    return flash_attention(q, k, v, out=out, backend=on.name), out


def vjp(on, q, k, v, dout, dlse):
    out, gradients = flash_attention_vjp(q, k, v, causal=True, backend=on.name)
    return out, *gradients(dout), *gradients(dout, dlse)


def merge(on, q, k, v, dout, dlse):
    parts = (on(flash_attention, q, k[:, rows], v[:, rows], return_lse=True) for rows in (slice(30), slice(30, 70)))
    (out_a, lse_a), (out_b, lse_b) = parts
    lse_a[0], lse_b[0, 0] = -np.inf, -1e4
    return on(merge_attention, out_a, lse_a, out_b, lse_b)


def materialise(on, q, k, v, dout, dlse):
    results = []
    for compute_dtype in (None, np.float32, np.float64):
        options = {"scale": 1.5, "compute_dtype": compute_dtype}
        results += attention_reference(q, k, v, return_lse=True, **options)
        results += attention_reference_backward(dout, q, k, v, dlse=dlse, **options)
    return results


def judge(on, q, k, v, dout, dlse):
    out, exact = np.full_like(dout, 1), np.full(dout.shape, 1e300)
    sizes = magnitudes(q, k, v, dout, dlse, causal=True, q_offset=None, scale=None)
    return [*map(np.array, sizes.values()), *map(np.array, spent(out, out, exact, sizes["out"]))]


CALLS = [attend, attend_in_two_dimensions, attend_into_out, vjp, merge, materialise, judge]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_the_callers_error_state_does_not_matter(on, call, dtype):
    if on.name == "cuda" and call in (attend_into_out, vjp):
        pytest.skip("takes NumPy arrays")
    inputs = arrays(dtype)
    with np.errstate(all="ignore"):
        expected = call(on, *inputs)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        results = call(on, *inputs)
    for x, y in zip(results, expected, strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_calm_caller_hears_nothing(on, dtype):
    """By default NumPy warns of what it overflows."""
    inputs = arrays(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, _, *grads = attend(on, *inputs, scale=1.5)
    numbers = np.concatenate([x.ravel() for x in grads]).astype(np.float64)
    assert np.isfinite(numbers).any() and not np.isfinite(numbers).all()
