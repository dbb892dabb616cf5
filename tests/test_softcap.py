"""softcap: what it takes, what it does to scores of any size, and its gradient by differences."""

import functools
import itertools

import numpy as np
import pytest
from cases import Case, check
from conftest import On
from oracle import attention

from cupy_flash import attention_reference, emulator, flash_attention, flash_attention_vjp
from cupy_flash._src import compile, kernels
from cupy_flash._src.components.softcap import Softcap
from cupy_flash._src.device import named
from cupy_flash._src.emulator.settings import ARITHMETICS
from cupy_flash._src.problem import DTYPES, AttentionProblem
from cupy_flash._src.specialization import Variant

X = np.random.default_rng(0).standard_normal((2, 5, 8))


@pytest.mark.parametrize("call", [flash_attention, attention_reference, flash_attention_vjp])
@pytest.mark.parametrize("value", [0, 0.0, -0.0, -3, float("nan"), float("inf"), np.float32(-1)])
def test_a_softcap_is_above_0(call, value):
    with pytest.raises(ValueError, match=f"softcap is {float(value)}: expected a "):
        call(X, X, X, softcap=value)


@pytest.mark.parametrize("value", ["5", np.ones(1), [5.0], True, 5j])
def test_a_softcap_is_a_number(value):
    with pytest.raises(TypeError, match=r"softcap is .*: expected a real number"):
        flash_attention(X, X, X, softcap=value)


def test_none_is_no_softcap_and_numbers_are_plain():
    assert len(AttentionProblem.from_arrays(X, X, X, softcap=None).components) == 1
    for value in (30, np.float32(30), np.array(30)):
        problem = AttentionProblem.from_arrays(X, X, X, softcap=value)
        assert problem.scores[1:] == (Softcap(30.0),) and type(problem.scores[1].cap) is float


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [
    {"softcap": 3.0, "causal": True}, {"softcap": 1e4, "scale": -0.4}, {"softcap": 0.1, "sq": 1, "sk": 300},
], ids=["about the cap", "far below", "far beyond"])  # fmt: skip
def test_every_backend_keeps_the_budget(on, dtype, options):
    """Scores about the cap, far below it and far beyond it."""
    check(Case(dtype=dtype, heads_k=1, group=2, magnitude=3.0, **{"sq": 40, "sk": 50, **options}), on)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_scores_keep_their_last_digits(on, dtype):
    """The lse of a row that sees one key is its score."""
    q = np.logspace(-2, 4, 27, dtype=dtype)[:, None]
    one = np.ones((1, 1), dtype)
    _, lse = on(flash_attention, q, one, one, scale=1.0, softcap=1e5, return_lse=True)
    eps = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(lse, 1e5 * np.tanh(q[:, 0].astype(float) / 1e5), rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cap", [1e-300, 1e300])
def test_a_cap_beyond_all_numbers_makes_scores_equal_or_changes_nothing(on, cap, dtype):
    q, k, v, *_ = Case(dtype=dtype, sq=9, sk=11).arrays()
    q[..., 0, :] = 0
    capped = on(flash_attention, q, k, v, softcap=cap, return_lse=True)
    plain = on(flash_attention, q, k, v, scale=0.0 if cap < 1 else None, return_lse=True)
    for x, y in zip(capped, plain, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "scale", "softcap"), [
    (1e15, 1e-30, 1e18), (1e12, None, 1e28), (1e15, 1e-36, 1e-9), (1.0, 1e30, 1e-20), (1e-3, None, 1e25),
])  # fmt: skip
def test_scores_of_any_size_meet_any_cap(on, dtype, size, scale, softcap):
    case = Case(dtype=dtype, sq=7, sk=9, d=4, magnitude=size, scale=scale, softcap=softcap)
    q, k, v, *_ = case.arrays()
    v /= size
    exact = attention(q, k, v, **case.options)
    out, lse = on(flash_attention, q, k, v, return_lse=True, **case.options)
    eps = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(lse, exact.lse, rtol=eps, atol=eps)
    np.testing.assert_allclose(out, exact.out, rtol=eps, atol=eps * (1 + np.abs(exact.lse).max()))


def test_scores_that_are_not_finite_are_capped_or_nan(on):
    q, k = np.ones((1, 3, 8), np.float32), np.zeros((1, 4, 8), np.float32)
    k[0, :3, 0] = np.inf, -np.inf, 8
    v = np.eye(4, dtype=np.float32)[None]
    q[0, 1] = np.nan
    out, lse = on(flash_attention, q, k, v, softcap=5.0, scale=1.0, return_lse=True)
    p = np.exp(5 * np.tanh([np.inf, -np.inf, 8 / 5, 0]))
    for i in (0, 2):
        np.testing.assert_allclose(out[0, i], p / p.sum(), rtol=1e-6)
        np.testing.assert_allclose(lse[0, i], np.log(p.sum()), rtol=1e-6)
    assert np.isnan(out[0, 1]).all() and np.isnan(lse[0, 1])


def test_gradients_are_those_of_differences(tier):
    rng = np.random.default_rng(1)
    weights, step = rng.standard_normal(X.shape), 1e-6
    inputs = [rng.standard_normal(X.shape) for _ in range(3)]
    for gradient, x in zip(flash_attention_vjp(*inputs, softcap=0.8)[1](weights), inputs, strict=True):
        for at in [(0, 0, 0), (1, 4, 7), (0, 2, 3)]:
            losses = []
            for change in (step, -step):
                x[at] += change
                losses.append((flash_attention(*inputs, softcap=0.8) * weights).sum())
                x[at] -= change
            assert gradient[at] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("arithmetic", ARITHMETICS[1:])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_a_gpu_may_answer_stays_in_the_budget(dtype, arithmetic):
    """The half types' tanh is an instruction, wrong in the twelfth bit."""
    case = Case(dtype=dtype, heads_k=1, group=2, sq=40, sk=50, softcap=20.0, scale=1.0, causal=True)
    with emulator.settings(arithmetic=arithmetic):
        check(case, On("emulator"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_ptx_is_checked_and_within_the_budget(dtype):
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs CuPy and NVRTC")
    with emulator.settings(path="ptx", mode="checked"):
        check(Case(dtype=dtype, sq=37, sk=45, d=20, softcap=2.0, causal=True), On("emulator"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
def test_no_kernel_spills(arch):
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs CuPy and NVRTC")
    kernels_of = [kernels.forward, kernels.dq, functools.partial(kernels.dkdv, atomic_dq=True)]
    for dtype, d, kernel in itertools.product(("float16", "float32"), (64, 128, 256), kernels_of):
        compiled = compile.to_cubin(kernel(Variant.of(dtype, d, softcap=30.0), named(arch)), arch)
        assert compiled.spill_bytes == 0, (dtype, d, kernel)
