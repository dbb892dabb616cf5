"""What a vjp keeps between its two calls: a change is never silent."""

import dataclasses

import numpy as np
import pytest
from cases import Case
from memory_layouts import LAYOUTS

from cupy_flash import emulator, flash_attention_backward, flash_attention_vjp
from cupy_flash._src import launch
from cupy_flash._src.backends.device_seal import DeviceSeal
from cupy_flash._src.backends.emulator import EmulatorBackend
from cupy_flash._src.operands import KEPT, Gradients, Operands
from cupy_flash._src.problem import DTYPES


@pytest.fixture(params=["cpu", "cpu-numpy", "emulator"])
def backend(request, monkeypatch):
    name, _, tier = request.param.partition("-")
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", tier or "native")
    return name


def kept(case, backend):
    """The arrays that a vjp keeps, by name, the vjp, and a dout."""
    q, k, v, dout, _ = case.arrays()
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, backend=backend, **case.options)
    return Operands(q, k, v, out, lse).kept, vjp, dout


def add(x):
    x += 1


def double(x):
    x *= 2


def negate(x):
    x *= -1


def roll_rows(x):
    x[...] = np.roll(x, 1, axis=2)


def swap_two(x):
    x[-1, -1, -1], x[0, 0, 0] = x[0, 0, 0].copy(), x[-1, -1, -1].copy()


def swap_neighbours(x):
    line = x[-1, -1] if x.ndim == 3 else x[-1, -1, -1]
    line[-2:] = line[-2:][::-1].copy()


def swap_halves(x):
    line = x[-1, -1] if x.ndim == 3 else x[-1, -1, -1]
    line[...] = np.roll(line, line.size // 2)


def last_bit(x):
    x.view(f"u{x.itemsize}")[-1, -1, -1] ^= 1


CHANGES = (add, double, negate, roll_rows, swap_two, swap_neighbours, swap_halves, last_bit)
CASE = Case(batch=(2,), heads_k=2, group=2, sq=40, sk=50, d=24, dv=33)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_change_is_named(backend, dtype, change):
    arrays, vjp, dout = kept(dataclasses.replace(CASE, dtype=dtype), backend)
    grads = vjp(dout)
    for name, x in arrays.items():
        before = x.copy()
        change(x)
        assert vjp.changed() == (name,)
        with pytest.raises(ValueError, match=f"^{name} changed since flash_attention_vjp"):
            vjp(dout)
        x[...] = before
    assert vjp.changed() == ()
    for again, grad in zip(vjp(dout), grads, strict=True):
        np.testing.assert_array_equal(again, grad)


def test_changed_signs_of_one_short_row_are_noticed(backend):
    """A single row, so that its digest alone has to tell; there are 200 of them."""
    rng = np.random.default_rng(0)
    for d in (1, 8, 32, 33):
        q = rng.standard_normal((50, 1, 1, d), dtype=np.float32)
        q[-1, ..., 1:] = 0  # zeros have signs too
        _, vjp = flash_attention_vjp(q, q.copy(), q.copy(), backend=backend)
        seals = vjp._seal
        for row in q:
            row *= -1
            assert seals.changed() == ("q",)
            row *= -1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_lies_between_the_elements_does_not_matter(backend, layout):
    case = dataclasses.replace(CASE, dtype="float16").all_in(layout)
    arrays, vjp, dout = kept(case, backend)
    for x in arrays.values():
        if x.base is not None:
            copy = x.copy()
            whole = x.base if x.base.base is None else x.base.base
            whole[...] = 7
            x[...] = copy
    vjp(dout)
    arrays["k"][-1, -1, -1, -1] += 1
    assert vjp.changed() == ("k",)


def test_arrays_that_broadcast_or_are_one_another(backend):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((3, 1, 2, 10, 8)), rng.standard_normal((4, 2, 12, 8))
    out, vjp = flash_attention_vjp(q, k, k, backend=backend)
    dq, dk, dv = vjp(out)
    assert (dq.shape, dk.shape, dv.shape) == (q.shape, k.shape, k.shape)
    k[0, 1, 3] = 0
    assert vjp.changed() == ("k", "v")
    with pytest.raises(ValueError, match=r"^k and v changed"):
        vjp(out)


@pytest.mark.parametrize(("sq", "sk", "batch"), [(0, 5, ()), (5, 0, ()), (5, 5, (0,))])
def test_nothing_to_keep(backend, sq, sk, batch):
    arrays, vjp, dout = kept(dataclasses.replace(CASE, sq=sq, sk=sk, batch=batch), backend)
    assert [x.shape for x in vjp(dout)] == [arrays[name].shape for name in ("q", "k", "v")]


def test_more_batch_dimensions_than_the_kernels_stride(backend):
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 2, 3, 2, 1, 5, 8)).transpose(5, 4, 3, 2, 1, 0, 6, 7, 8)
    out, vjp = flash_attention_vjp(x, x, x.copy(), backend=backend)
    copy = np.ascontiguousarray(x)
    _, vjp_of_copy = flash_attention_vjp(copy, copy, copy, backend=backend)
    for grad, expected in zip(vjp(out), vjp_of_copy(out), strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-12)
    for index in ((0,) * 9, (1, 2, 0, 1, 2, 1, 0, 4, 7), (-1,) * 9):
        before, x[index] = x[index], 7
        assert vjp.changed() == ("q", "k")
        x[index] = before


def test_residual_added_in_place_and_not(backend):
    """The line that users write, and the one that the message tells them to write."""
    q, k, v, dout, _ = CASE.arrays()
    out, vjp = flash_attention_vjp(q, k, v, backend=backend)
    x = out + q[..., :1]
    np.testing.assert_array_equal(vjp(dout)[2], vjp(dout)[2])
    out += q[..., :1]
    with pytest.raises(ValueError, match=r"write x = out \+ residual"):
        vjp(dout)
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_gradients_become_nan(dtype):
    """There nothing raises: the same launches, on the emulator's arrays."""
    q, k, v, dout, _ = dataclasses.replace(CASE, dtype=dtype).arrays()
    gpu = EmulatorBackend("sm_90a")
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, backend="emulator:sm_90a")
    seal = DeviceSeal(gpu, vjp._problem, Operands(q, k, v, out, lse))
    grads = flash_attention_backward(dout, q, k, v, out, lse, backend="emulator:sm_90a")
    for x in (None, q, k, v, out, lse):
        spoilt = [y.copy() for y in grads]
        if x is not None:
            before, x[-1, -1, -1] = x[-1, -1, -1].copy(), 7
        seal.spoil(seal.check(), Gradients(*spoilt))
        for y, grad in zip(spoilt, grads, strict=True):
            np.testing.assert_array_equal(
                y.astype(float), grad.astype(float) if x is None else np.full(y.shape, np.nan)
            )
        if x is not None:
            x[-1, -1, -1] = before


WRT = ("bias", "v", "sinks", "alibi_slopes")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_gradients_of_options_repeat_and_a_change_is_named(backend, dtype):
    case = dataclasses.replace(CASE, dtype=dtype, bias=(True, False, True), sinks=(True,), alibi_slopes=(False,))
    q, k, v, dout, dlse = case.arrays()
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, backend=backend, wrt=WRT, **case.options)
    first, again = vjp(dout, dlse), vjp(dout, dlse)
    options = {"dlse": dlse, "backend": backend, "wrt": WRT, **case.options}
    expected = flash_attention_backward(dout, q, k, v, out, lse, **options)
    for x, y, z in zip(first, again, expected, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(x, z)
    k[-1, -1, -1] = 7
    with pytest.raises(ValueError, match=r"^k changed since flash_attention_vjp"):
        vjp(dout, dlse)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("wrt", [WRT, WRT[::-2], ("sinks",)], ids=str)
def test_on_a_gpu_gradients_of_options_become_nan_too(wrt, dtype):
    case = dataclasses.replace(CASE, dtype=dtype, bias=(True, False, True), sinks=(True,), alibi_slopes=(False,))
    q, k, v, dout, _ = case.arrays()
    gpu, options = EmulatorBackend("sm_90a"), {"backend": "emulator:sm_90a", "wrt": wrt, **case.options}
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, **options)
    problem = vjp._problem
    seal = DeviceSeal(gpu, problem, Operands(q, k, v, out, lse))
    grads = dict(zip(wrt, flash_attention_backward(dout, q, k, v, out, lse, **options), strict=True))
    shapes = {term.keyword: term.shape for term in problem.terms}
    for changed in (False, True):
        k[-1, -1, -1] += 7 * changed
        spoilt = {name: x.copy() for name, x in grads.items()}
        terms = {name: x.reshape(shapes[name]) for name, x in spoilt.items() if name in shapes}
        seal.spoil(seal.check(), Gradients(None, None, spoilt.get("v"), terms))
        for name, x in spoilt.items():
            expected = np.full(x.shape, np.nan) if changed else grads[name].astype(float)
            np.testing.assert_array_equal(x.astype(float), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_on_a_gpu_gradients_of_captured_arrays_become_nan_too(dtype):
    q, k, v, dout, _ = dataclasses.replace(CASE, dtype=dtype).arrays()
    captured = np.ones((q.shape[-3], 9), np.float32), np.arange(3), np.ones(1)
    options = {"score_mod": lambda s, b, h, i, j, x, n, y: s * x[h, n[j % 3]] + y[0], "score_args": captured}
    options |= {"backend": "emulator:sm_90a", "wrt": ("score_args",)}
    _, vjp = flash_attention_vjp(q, k, v, **options)
    seal = DeviceSeal(EmulatorBackend("sm_90a"), vjp._problem, vjp._operands)
    ((dx, _, dy),) = vjp(dout)
    for changed in (False, True):
        k[-1, -1, -1] += 7 * changed
        spoilt = dx.copy(), None, dy.astype(np.float32)
        seal.spoil(seal.check(), Gradients(None, None, None, {}, {"score_args": spoilt}))
        for x, whole in ((spoilt[0], dx), (spoilt[2], dy)):
            np.testing.assert_array_equal(x, np.full(x.shape, np.nan) if changed else whole.astype(np.float32))


def test_the_device_waits_for_nothing(monkeypatch):
    """check and spoil only launch; changed is what reads."""
    q, k, v, *_ = CASE.arrays()
    _, vjp = flash_attention_vjp(q, k, v, backend="emulator")
    launched = []
    monkeypatch.setattr(launch, "_run", lambda runtime, problem, prepare, tensors: launched.append(sorted(tensors)))
    seal = DeviceSeal(EmulatorBackend(), vjp._problem, vjp._operands)
    seal.spoil(seal.check(), Gradients(q.copy(), k.copy(), v.copy()))
    kept = sorted((*KEPT, "query_digests", "key_digests"))
    assert launched == [kept, sorted((*kept, "changed")), ["changed", "dk", "dq", "dv"]]


def test_the_emulator_reports_both_parts_of_the_call():
    q, k, v, dout, _ = CASE.arrays()
    _, vjp = flash_attention_vjp(q, k, v, backend="emulator")
    assert [x.kernel for x in emulator.last_run().launches] == ["attention_forward", "attention_seal"]
    vjp(dout)
    backward = [x.kernel for x in emulator.last_run().launches]
    assert "attention_dkdv" in backward and backward[-1] == "attention_spoil"
