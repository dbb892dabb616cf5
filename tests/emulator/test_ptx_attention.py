"""The attention kernels give the same through translated PTX as through the host headers.

NVRTC and the host compiler contract a * b + c to fma in different places, so results differ by rounding.
"""

from itertools import product

import ml_dtypes
import numpy as np
import pytest

from cupy_flash import emulator, flash_attention, flash_attention_backward

DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}


def attend(path: str, dtype: str, arch: str, causal: bool, deterministic: bool, **settings) -> dict[str, np.ndarray]:
    """Forward and backward on ragged sizes, grouped heads and a value dimension of its own."""
    rng = np.random.default_rng(7)
    shapes = {"q": (2, 4, 37, 20), "k": (2, 2, 45, 20), "v": (2, 2, 45, 24), "dout": (2, 4, 37, 24)}
    q, k, v, dout = (rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes.values())
    backend = f"emulator:{arch}"
    with emulator.settings(path=path, **settings):
        out, lse = flash_attention(q, k, v, causal=causal, return_lse=True, backend=backend)
        gradients = flash_attention_backward(
            dout, q, k, v, out, lse, causal=causal, deterministic=deterministic, backend=backend
        )
    return {"out": out, "lse": lse} | dict(zip(("dq", "dk", "dv"), gradients, strict=True))


def assert_close(host: dict[str, np.ndarray], ptx: dict[str, np.ndarray], dtype: str) -> None:
    accumulator = np.finfo(np.float64 if dtype == "float64" else np.float32).eps
    rounding = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    for name, value in host.items():
        value, other = value.astype(np.float64), ptx[name].astype(np.float64)
        # A half result may round to its neighbour, and so may P and dS on their way into a product of half types:
        # one entry of P, at most 1 and mostly far less, then moves the sum by up to an eps.
        slack = 0 if name == "lse" else rounding
        moved = slack / 4 if rounding > accumulator else 0
        atol = 64 * accumulator + moved
        np.testing.assert_allclose(other, value, rtol=slack + 16 * accumulator, atol=atol, err_msg=name)


@pytest.mark.slow  # each compiles for half a minute; test_ptx_conformance has what the kernels are made of
@pytest.mark.parametrize(
    ("dtype", "arch", "causal"), list(product(DTYPES, ("sm_75", "sm_80", "sm_90a"), (False, True)))
)
def test_both_paths_agree(dtype, arch, causal):
    # One way of making dQ with each mask covers both with fewer kernels.
    results = [attend(path, dtype, arch, causal, deterministic=causal) for path in ("host", "ptx")]
    assert_close(*results, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_checked_mode_finds_no_fault_on_the_ptx_path(dtype):
    checked = attend("ptx", dtype, "sm_80", True, True, mode="checked", seed=2)
    fast = attend("ptx", dtype, "sm_80", True, True)
    for name, value in checked.items():
        np.testing.assert_array_equal(value, fast[name], err_msg=name)
