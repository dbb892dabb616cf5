"""Memory of any kind for every array of every public call: strides, gaps, offsets, each array's its own."""

import dataclasses
from random import Random

import numpy as np
import pytest
from cases import Case, cases, check
from conftest import to_gpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_layouts import LAYOUTS, Layout, any_layout, lay_out

from cupy_flash import flash_attention, flash_attention_backward, flash_attention_vjp, merge_attention
from cupy_flash._src.problem import DTYPES

# Kernels that are compiled for other tests too.
COMPILED = {"dtypes": st.sampled_from(["float16", "float64"]), "d": 64, "dv": None, "causal": True, "window": None}
few = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_layouts_that_people_use(on, dtype, layout):
    check(Case(dtype=dtype, batch=(2,), heads_k=2, sq=40, sk=50, causal=True).all_in(layout), on)


@pytest.mark.parametrize("seed", range(24))
def test_layouts_of_any_kind(on, seed):
    """One tile takes the few queries of a group of heads together; for more, a block of keys goes through the heads."""
    rng = Random(seed)
    sizes = {"batch": rng.choice([(), (2,)]), "group": rng.choice([1, 3, 8]), "sq": rng.choice([1, 4, 20])}
    case = Case(("float16", "float64")[seed % 2], heads_k=2, sk=21, causal=True, **sizes)
    check(case.laid_out_by(seed), on, deterministic=rng.choice([False, True]))


@few
@given(data=st.data())
def test_more_batch_dimensions_than_the_kernels_stride(on, data):
    """Kernels take four; each part of what is left begins somewhere else, on a 16-byte boundary or not."""
    batch = data.draw(st.permutations([2, 2, 2, 2, 2, 1]))
    batch_k = tuple(data.draw(st.sampled_from([n, 1])) for n in batch)
    case = data.draw(cases(batch=tuple(batch), batch_k=batch_k, heads_k=1, sq=3, sk=5, **COMPILED))
    check(case, on)


FAR = 2**31 + 8  # elements: an index of 32 bits would wrap


@pytest.mark.parametrize("axis", ["batch", "heads", "rows"])
def test_elements_past_2_to_31(on, axis):
    if on.name == "cuda":
        pytest.skip("these arrays span 60 GB, which only the host's memory leaves untouched")
    case = Case(dtype="float16", batch=(2,), heads_k=2, sq=2, sk=2, d=16)
    i = ["batch", "heads", "rows"].index(axis)

    def far(ndim):
        return Layout(order=(i, *(j for j in range(ndim) if j != i)), gaps=(0,) * i + (FAR,))

    layouts = {name: far(len(shape)) for name, shape in case.shapes().items()}
    check(dataclasses.replace(case, layouts=layouts), on)


@few
@given(case=cases(max_seqlen=70, **COMPILED), data=st.data())
def test_a_vjp_keeps_arrays_of_any_layout(on, case, data):
    """It gives what flash_attention_backward gives, and notices a change of any one element."""
    arrays = case.arrays()
    q, k, v, dout, dlse = map(to_gpu, arrays) if on.name == "cuda" else arrays
    options = case.options | {"deterministic": True, "backend": on.name}
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, **options)
    expected = flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    for x, y in zip(vjp(dout, dlse), expected, strict=True):
        assert (x == y).all()
    kept = {"q": q, "k": k, "v": v, "out": out, "lse": lse}
    name = data.draw(st.sampled_from(sorted(kept)))
    x = kept[name]
    if q.size and k.size:
        index = tuple(data.draw(st.integers(0, n - 1)) for n in x.shape)
        x[index] = 0.0 if x[index] != 0 else 1.0
        assert vjp.changed() == (name,)


@few
@given(data=st.data())
def test_merge_attention_takes_any_layout(on, data):
    dtype, other = data.draw(
        st.sampled_from([(x, y) for x in DTYPES for y in (x, "float32") if x != "float64" or x == y])
    )
    lead = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))
    shape = (*lead, data.draw(st.integers(1, 70)), data.draw(st.sampled_from([1, 8, 33, 64])))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    accumulator = np.float64 if dtype == "float64" else np.float32
    plain = [
        rng.standard_normal(s).astype(t)
        for s, t in (
            (shape, DTYPES[dtype]),
            (shape[:-1], accumulator),
            (shape, DTYPES[other]),
            (shape[:-1], accumulator),
        )
    ]
    arrays = [lay_out(x, any_layout(f"{seed} {i}", x.shape)) for i, x in enumerate(plain)]
    out, lse = on(merge_attention, *arrays)
    out_a, lse_a, out_b, lse_b = (x.astype(np.float64) for x in arrays)
    exact = np.logaddexp(lse_a, lse_b)
    weighted = np.exp(lse_a - exact)[..., None] * out_a + np.exp(lse_b - exact)[..., None] * out_b
    rounding = 16 * np.finfo(accumulator).eps
    np.testing.assert_allclose(lse, exact, rtol=rounding, atol=rounding)
    np.testing.assert_allclose(out, weighted, rtol=rounding, atol=4 * rounding)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_results_that_are_constant_along_an_axis(on, dtype, axes):
    """Of one query for all, out and lse may come as one, at stride 0; as may each gradient."""
    case = Case(dtype=dtype, batch=(3,), heads_k=2, sq=5, sk=40, d=16)
    single = [x[tuple(slice(1) if i in axes else slice(None) for i in range(x.ndim))] for x in case.arrays()]
    out, lse = on(flash_attention, *single[:3], return_lse=True)
    dout, dlse = single[3:]

    def repeated(x):
        return np.broadcast_to(x, tuple((3, 2)[i] if i in axes else n for i, n in enumerate(x.shape)))

    everywhere = [repeated(x) for x in (dout, *single[:3], out, lse, dlse)]
    grads = on(flash_attention_backward, *everywhere[:-1], dlse=everywhere[-1], deterministic=True)
    expected = on(flash_attention_backward, dout, *single[:3], out, lse, dlse=dlse, deterministic=True)
    for x, y in zip(grads, expected, strict=True):
        np.testing.assert_array_equal(x, repeated(y))
