"""A reference that follows the maximum of its row late: what the online softmax of the tensor-core kernels sums up."""

import functools
from itertools import product

import ml_dtypes
import numpy as np
import pytest
from oracle import attention

from cupy_flash import emulator, flash_attention
from cupy_flash._src.plan import plan_forward
from cupy_flash._src.problem import DTYPES

ROWS, KEYS, BLOCK = 40, 340, 64
SLACK = 8 * np.log(2)  # kSlack of cuda_src/numeric.cuh in natural units
LOW = ml_dtypes.bfloat16(-1e30)  # times 1e30 it is -inf in float32


def heights(kind):
    """Scores of the keys, all but small differences between the blocks of keys that a warp takes at a time."""
    blocks = np.arange(-(-KEYS // BLOCK))[::-1]  # the last keys come first
    by_block = {
        "rising": SLACK / 3 * blocks,  # the maximum stays within the slack of a reference, then leaves it
        "falling": -SLACK / 3 * blocks,
        "just within": 0.99 * SLACK * (blocks > 0),
        "just beyond": 1.01 * SLACK * (blocks > 0),
        "leaping": 3 * SLACK * blocks,
        "down and up": np.where(blocks % 2 == 0, -1, 1) * SLACK * (1 + blocks),
    }[kind]
    return np.repeat(by_block, BLOCK)[:KEYS] + 0.1 * np.sin(np.arange(KEYS))


KINDS = ("rising", "falling", "just within", "just beyond", "leaping", "down and up")


def values(rng):
    """Each block of keys has its own, which no sum over a block averages out."""
    return (np.repeat(rng.uniform(-1, 1, (6, 64)), BLOCK, axis=0) + rng.uniform(-1, 1, (6 * BLOCK, 64)))[None] / 2


def attend(replan, q, k, v, splits=1, arch="sm_80", **settings):
    """One head's out and lse, of keys in so many parts, beside those of the oracle."""
    with replan(plan_forward=functools.partial(plan_forward, num_splits=splits)), emulator.settings(**settings):
        found = flash_attention(q, k, v, scale=1.0, return_lse=True, backend=f"emulator:{arch}")
    exact = attention(q, k, v, scale=1.0)
    return (x.astype(np.float64) for x in (*found, exact.out, exact.lse))


def compare(kind, dtype, replan, splits=1, alone=False, **run):
    """Rows of every slope side by side; some far, some that meet scores of -inf, one of NaN. Or one rises alone."""
    rng = np.random.default_rng(0)
    q, k = np.zeros((1, ROWS, 64)), np.zeros((1, KEYS, 64))
    v = values(rng)[:, :KEYS]
    q[0, :, 0] = rng.choice([1, 1, 0.5, -1, 0, -0.25], ROWS)
    k[0, :, 0] = heights(kind)
    far = q[0, 3::11]  # scores of -2^26 and small multiples of 8, which float32 has
    far[:, :3], k[0, :, 1] = (0, 2.0**14, 8), -(2.0**12)
    k[0, :, 2] = rng.integers(0, 2, KEYS) + np.arange(KEYS) // BLOCK % 3
    if alone:
        q[0], q[0, 9, 0] = 0, 1
    q, k, v = (x.astype(DTYPES[dtype]) for x in (q, k, v))
    if dtype == "bfloat16" and not alone:
        q[0, 5::9, 3], k[0, 200:, 3] = -LOW, LOW
    q[0, 17, 5] = np.nan
    out, lse, exact_out, exact_lse = attend(replan, q, k, v, splits, **run)
    assert np.isnan(lse[0, 17]) and np.isnan(out[0, 17]).all()
    eps = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    np.testing.assert_allclose(out, exact_out, rtol=0, atol=eps)  # P's rounding and the result's, of values up to 1
    np.testing.assert_allclose(lse, exact_lse, rtol=2e-7, atol=3e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_reference_that_follows_the_maximum_late(kind, dtype, replan):
    for splits, alone in product((1, 3), (False, True)):
        compare(kind, dtype, replan, splits, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "arch", "path"),
    [
        x
        for x in product(KINDS, ("float16", "bfloat16"), ("sm_75", "sm_80", "sm_90a"), ("host", "ptx"))
        if x[1:3] != ("bfloat16", "sm_75")
    ],
)
def test_a_reference_that_follows_the_maximum_late_thoroughly(kind, dtype, arch, path, replan):
    for splits, alone in product((1, 2, 5), (False, True)):
        compare(kind, dtype, replan, splits, alone, arch=arch, path=path, mode="checked")


@pytest.mark.parametrize(("dtype", "headroom"), [("float16", 0), ("bfloat16", 38)])
def test_rows_that_become_far_or_near_again(dtype, headroom, replan):
    """Scores on either side of 2^24 in log2 units, headroom and all, that grow by less than the slack or by more."""
    q, k, v = np.zeros((1, ROWS, 64)), np.zeros((1, 6 * BLOCK, 64)), values(np.random.default_rng(0))
    q[0, :, :3] = np.where(np.arange(ROWS) % 2, 1, -1)[:, None] * (2.0**12, 2.0**6, 1)
    k[..., :2] = -2832, -456  # scores 24 less than 2^24 / log2(e), of either sign
    for sign, step, crossing in product((1, -1), (1, 7), range(1, 6)):
        edge = -24 - sign * round(headroom * np.log(2))
        k[..., 2] = edge + sign * step * (np.repeat([5, 4, 3, 2, 1, 0], BLOCK) - crossing)
        out, lse, exact_out, exact_lse = attend(replan, *(x.astype(DTYPES[dtype]) for x in (q, k, v)))
        np.testing.assert_allclose(out, exact_out, rtol=0, atol=float(ml_dtypes.finfo(DTYPES[dtype]).eps))
        np.testing.assert_allclose(lse, exact_lse, rtol=2e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_order_of_blocks_within_the_slack_is_rounding(dtype, replan):
    """The reference is the first block's maximum or the last's: what P is a multiple of, and nothing else."""
    rng = np.random.default_rng(1)
    q, k, v = rng.standard_normal((1, 16, 64)), rng.standard_normal((1, 256, 64)), rng.uniform(-1, 1, (1, 256, 64))
    q, k = q / 16, k / 16
    q[..., 0], k[..., 0] = 1, np.repeat([0, 1, 2, 3], BLOCK) * SLACK / 4
    q, k, v = (x.astype(DTYPES[dtype]) for x in (q, k, v))
    (out, lse, *exact), (other_out, other_lse, *_) = (attend(replan, q, k[:, ::step], v[:, ::step]) for step in (1, -1))
    eps = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    for x, y, tolerance in ((out, other_out, eps), (lse, other_lse, 2e-6), (out, exact[0], eps), (lse, exact[1], 2e-6)):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


@pytest.mark.parametrize("keys", [2000, pytest.param(2**17, marks=pytest.mark.slow)])
@pytest.mark.parametrize("value", [3e38, 65504])
def test_the_slack_leaves_room_for_the_largest_values(keys, value, replan):
    """All keys but the first block's are as high as its reference allows: 256 times as much is summed up."""
    dtype = DTYPES["bfloat16" if value > 65504 else "float16"]
    q, k, v = np.ones((1, 1, 64), dtype), np.zeros((1, keys, 64), dtype), np.full((1, keys, 64), value, dtype)
    k[:, :-BLOCK, :16] = dtype.type(SLACK / 16 * 0.99)
    out, lse, exact_out, exact_lse = attend(replan, q, k, v)
    np.testing.assert_allclose(out, exact_out, rtol=4 * float(ml_dtypes.finfo(dtype).eps))
    # A lane adds up a quarter of the keys, all rounded alike: by 2^-24 of a sum that is half of the last on average.
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-6, atol=keys / 4 * 2.0**-25)
