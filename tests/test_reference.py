"""The materialised reference against the row-by-row oracle and against finite differences."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import oracle
import pytest

from cupy_flash import attention_reference, attention_reference_backward

CASES = {
    "one head, 2-D": ((7, 5), (9, 5), (9, 3), {}),
    "grouped heads": ((4, 6, 5), (2, 8, 5), (2, 8, 5), {"scale": -0.7}),
    "causal, rows that see nothing": ((2, 9, 4), (2, 5, 4), (2, 5, 4), {"causal": True}),
    "causal, top-left": ((2, 5, 4), (1, 9, 4), (1, 9, 6), {"causal": True, "q_offset": 0}),
    "every leading dimension broadcast": ((3, 1, 4, 5, 2), (2, 2, 6, 2), (1, 1, 2, 6, 1), {"causal": True}),
    "v alone has a batch": ((2, 5, 4), (2, 6, 4), (3, 2, 6, 4), {}),
    "no keys": ((2, 3, 4), (2, 0, 4), (2, 0, 4), {}),
    "no queries": ((2, 0, 4), (2, 3, 4), (2, 3, 4), {"causal": True}),
    "batch of 0": ((0, 2, 3, 4), (2, 3, 4), (2, 3, 4), {}),
}


def make(q_shape, k_shape, v_shape, options, dtype=np.float64):
    """Inputs and gradients of outputs for one case."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in (q_shape, k_shape, v_shape))
    shapes = oracle.attention(q, k, v, **options)
    return q, k, v, rng.standard_normal(shapes.out.shape).astype(dtype), rng.standard_normal(shapes.lse.shape)


def run(q, k, v, dout, dlse, options, compute_dtype):
    out, lse = attention_reference(q, k, v, return_lse=True, compute_dtype=compute_dtype, **options)
    grads = attention_reference_backward(dout, q, k, v, dlse=dlse, compute_dtype=compute_dtype, **options)
    return out, lse, *grads


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_float64_inside_equals_the_oracle(name, dtype):
    *shapes, options = CASES[name]
    q, k, v, dout, dlse = make(*shapes, options, dtype)
    expected = oracle.attention(q, k, v, dout=dout, dlse=dlse, **options)
    for x, y in zip(run(q, k, v, dout, dlse, options, np.float64), expected, strict=True):
        assert x.dtype == np.float64
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11)  # also the shape, and -inf where y has it


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_naive_arithmetic_rounds_to_the_dtype_of_the_inputs(dtype):
    shapes = (2, 40, 16), (2, 50, 16), (2, 50, 8)
    q, k, v, dout, dlse = make(*shapes, {}, dtype)
    eps = float(ml_dtypes.finfo(dtype).eps)
    results = run(q, k, v, dout, dlse, {}, None)
    lse_dtype = np.float64 if dtype is np.float64 else np.float32
    for x, expected_dtype in zip(results, (dtype, lse_dtype, dtype, dtype, dtype), strict=True):
        assert x.dtype == expected_dtype
    for x, y in zip(results, oracle.attention(q, k, v, dout=dout, dlse=dlse), strict=True):
        error = np.abs(x.astype(np.float64) - y).max()
        assert error < 20 * eps * max(1, np.abs(y).max())
        if np.dtype(dtype).itemsize == 2:  # intermediates are rounded, so rounding the result alone is better
            assert error > np.abs(y.astype(dtype).astype(np.float64) - y).max()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_intermediate_is_rounded(dtype):
    """Bit for bit what a framework stores between its operations."""
    q, k, v, dout, dlse = make((20, 16), (30, 16), (30, 8), {}, dtype)
    f = [x.astype(np.float32) for x in (q, k, v, dout)]

    def stored(x):
        return x.astype(dtype).astype(np.float32)

    s = stored(stored(f[0] @ f[1].T) * np.float32(0.3))
    m = s.max(1, keepdims=True)
    e = stored(np.exp(stored(s - m)))
    total = stored(e.sum(1, keepdims=True))
    p = stored(e / total)
    out, lse = stored(p @ f[2]), stored(m + stored(np.log(total)))[:, 0]
    delta = stored(stored((f[3] * out).sum(1)) - dlse.astype(np.float32))[:, None]
    ds = stored(stored(p * stored(stored(f[3] @ f[2].T) - delta)) * np.float32(0.3))
    expected = out, lse, ds @ f[1], ds.T @ f[0], p.T @ f[3]
    for x, y in zip(run(q, k, v, dout, dlse, {"scale": 0.3}, None), expected, strict=True):
        np.testing.assert_array_equal(x, y.astype(x.dtype))


@pytest.mark.parametrize("name", ["grouped heads", "causal, rows that see nothing", "v alone has a batch"])
def test_gradients_are_finite_differences(name):
    *shapes, options = CASES[name]
    q, k, v, dout, dlse = make(*shapes, options)

    def loss(inputs):
        out, lse = attention_reference(*inputs, return_lse=True, **options)
        return (out * dout).sum() + (lse * dlse)[lse > -np.inf].sum()

    grads = attention_reference_backward(dout, q, k, v, dlse=dlse, **options)
    rng, step = np.random.default_rng(2), 1e-6
    for position, grad in enumerate(grads):
        direction = rng.standard_normal(grad.shape)
        up, down = [q, k, v], [q, k, v]
        up[position] = up[position] + step * direction
        down[position] = down[position] - step * direction
        slope = (loss(up) - loss(down)) / (2 * step)
        assert slope == pytest.approx((grad * direction).sum(), rel=1e-7, abs=1e-7)


def test_numpy_needs_no_cupy():
    code = (
        "import sys; sys.modules['cupy'] = None; import numpy as np; import cupy_flash;"
        "assert (cupy_flash.attention_reference(*[np.ones((2, 3))] * 3) == 1).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bad_input():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match="compute_dtype is float16"):
        attention_reference(x, x, x, compute_dtype=np.float16)
    with pytest.raises(TypeError, match="v is a list: expected a NumPy or CuPy array"):
        attention_reference(x, x, [[1.0]])
    with pytest.raises(ValueError, match="k has head_dim 2"):
        attention_reference(x, x[:, :2], x)
    with pytest.raises(ValueError, match=r"dout has shape \(3, 3\): expected \(2, 3\)"):
        attention_reference_backward(np.ones((3, 3), np.float32), x, x, x)
    with pytest.raises(ValueError, match=r"dlse has shape \(3,\): expected \(2,\)"):
        attention_reference_backward(x, x, x, x, dlse=np.ones(3, np.float32))
