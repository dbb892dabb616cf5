"""Gradients of arrays that are broadcast: summed over the batch once, in float32 where they are of a half type."""

import ml_dtypes
import numpy as np
import pytest
from conftest import On
from oracle import attention

from cupy_flash import flash_attention, flash_attention_backward
from cupy_flash._src.broadcast import sum_to_shape
from cupy_flash._src.problem import DTYPES

ENTRIES = 300


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (4,), (), (1, 3, 4), (2, 1, 4), (2, 1, 1), (1, 1), (3, 1)])
def test_sums_are_numpys_broadcast_turned_around(shape, dtype):
    """<broadcast(a), x> = <a, sum(x)> for every a of the shape: small integers, so that all is exact."""
    rng = np.random.default_rng(0)
    x, a = (rng.integers(-3, 4, size) for size in ((2, 3, 4), shape))
    found = sum_to_shape(x.astype(DTYPES[dtype]), shape)
    assert found.shape == shape and found.dtype == DTYPES[dtype]
    assert (np.broadcast_to(a, x.shape) * x).sum() == (a * found.astype(int)).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_terms_are_rounded_once(dtype):
    """4097 ones: float16 knows no 2049, bfloat16 no 257."""
    x = np.ones((4097, 1, 2), DTYPES[dtype])
    np.testing.assert_array_equal(sum_to_shape(x, (1, 2)), np.full((1, 2), 4097).astype(DTYPES[dtype]))


def check(on, dtype, single, options):
    """Two keys, the second of larger elements: every term of a gradient's element has the same sign. The error is that
    of one rounding, 1/2 eps; the roundings of the terms themselves mean out.
    """
    rng = np.random.default_rng(0)
    sizes = {name: 1 if name in single else ENTRIES for name in "qkv"}
    q, k, v = (rng.uniform(0.5, 1, (sizes[name], 1, 2, 16)) for name in "qkv")
    k[:, :, 1] += 1
    v[:, :, 1] += 1
    dout = rng.uniform(0.5, 1, (ENTRIES, 1, 2, 16))
    dout, q, k, v = (x.astype(DTYPES[dtype]) for x in (dout, q, k, v))
    exact = attention(q, k, v, dout=dout, **options)
    out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
    grads = dict(zip("qkv", on(flash_attention_backward, dout, q, k, v, out, lse, **options), strict=True))
    for name in single:
        error = np.abs(grads[name].astype(np.float64) / getattr(exact, f"d{name}") - 1).max()
        assert grads[name].dtype == q.dtype and error < 0.7 * float(ml_dtypes.finfo(q.dtype).eps), name


KINDS = [("float16", {}), ("bfloat16", {"causal": True, "q_offset": 2})]


@pytest.mark.parametrize(("dtype", "options"), KINDS)
def test_gradients_over_a_batch_are_rounded_once(tier, dtype, options):
    for single in ("q", "kv"):
        check(On("cpu"), dtype, single, options)


@pytest.mark.slow  # 300 entries of a batch take an emulator 10 s
@pytest.mark.parametrize(("dtype", "options"), KINDS)
@pytest.mark.parametrize("single", ["q", "kv"])
def test_gradients_over_a_batch_are_rounded_once_on_every_backend(on, dtype, options, single):
    check(on, dtype, single, options)
