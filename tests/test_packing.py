"""What kernels are told of a problem: multipliers that stand for divisors, in Python and in the kernels."""

import math

import numpy as np
import pytest
from cases import every_component
from emulator.both_paths import run_path
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_flash._src import packing
from cupy_flash._src.components import ARRAYS
from cupy_flash._src.components.component import arrays_in, fill
from cupy_flash._src.device import named
from cupy_flash._src.params import layout
from cupy_flash._src.plan import plan_term
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.specialization import CONCEPTS, parts_of

LARGEST = 2**31 - 1
DIVISORS = st.one_of(
    st.integers(1, LARGEST),
    st.integers(1, 300),
    st.builds(lambda n, e: max(1, 2**n + e), st.integers(0, 30), st.integers(-1, 1)),
)


def dividends(n):
    """Numbers from 0 to 2^31 - 1 at which a quotient by n changes, and the last."""
    multiples = {m * n for m in (0, 1, 2, 3, LARGEST // n // 2, LARGEST // n - 1, LARGEST // n)}
    return sorted({x for m in multiples for x in (m - 1, m, m + 1) if 0 <= x <= LARGEST} | {LARGEST})


@settings(max_examples=100)
@given(n=DIVISORS, any_other=st.integers(0, LARGEST))
def test_a_divisor_gives_every_quotient(n, any_other):
    value, multiplier, shift = packing.divisor(n)
    assert value == n and 0 < multiplier < 2**32 and 0 <= shift < 32
    for x in (*dividends(n), any_other):
        assert 2 * x * multiplier >> 32 >> shift == x // n


DIVIDE = """
#include "params.cuh"
struct Params { const Divisor* divisors; const int* dividends; int* quotients; int* rests; int* values; };
extern "C" __global__ void divide(const __grid_constant__ Params p) {
  const int i = blockIdx.x * 32 + threadIdx.x;
  p.quotients[i] = p.dividends[i] / p.divisors[i];
  p.rests[i] = p.dividends[i] % p.divisors[i];
  p.values[i] = p.divisors[i];
}
"""


@pytest.mark.parametrize("path", ["host", "ptx"])
def test_kernels_divide_by_it(path):
    if path == "ptx":
        pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs CuPy and NVRTC")
    rng = np.random.default_rng(0)
    some = {1, 2, 3, 5, 7, 8, 64, 641, 2**16 + 1, 2**30, 2**30 + 1, LARGEST - 1, LARGEST}
    some |= {int(n) for n in 2 ** rng.uniform(0, 31, 50)}
    pairs = [(n, x) for n in sorted(some) for x in dividends(n)]
    pairs += [(1, 0)] * (-len(pairs) % 32)
    numbers, xs = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    arrays = {"divisors": np.array([packing.divisor(int(n)) for n in numbers], layout("Divisor")), "dividends": xs}
    arrays |= {name: np.zeros_like(xs) for name in ("quotients", "rests", "values")}
    found = run_path(
        path, "divide.cu", "divide", arrays, ("quotients", "rests", "values"), virtual={"divide.cu": DIVIDE},
        grid=(len(xs) // 32,),
    )  # fmt: skip
    np.testing.assert_array_equal(found["values"], numbers)
    np.testing.assert_array_equal(found["quotients"], xs // numbers)
    np.testing.assert_array_equal(found["rests"], xs % numbers)


@pytest.mark.parametrize(("dtype", "scale"), [("float16", 1e-40), ("float32", -1e-300), ("float64", 1e300)])
def test_a_scale_beyond_float32_raises_nothing_whatever_the_error_state(dtype, scale):
    q = np.zeros((1, 2, 8), dtype)
    problem = AttentionProblem.from_arrays(q, q, q, scale=scale)
    params = np.zeros((), layout("ForwardParams", parts_of(problem.components)))
    with np.errstate(all="raise"):
        fill(params["components"], problem.components)
    told = params["components"]["ScaleParams"]
    assert told["scale"] == scale and told["scale_f32"] == (np.inf if scale > 1 else np.float32(scale))
    assert told["unit"] == pytest.approx(abs(scale) / math.log(2), rel=1e-15)
    assert told["unit_f32"] >= np.finfo(np.float32).smallest_normal


@pytest.mark.parametrize("concepts", [CONCEPTS, ("Place", "Score"), ("Score",)])
def test_kernels_are_told_of_the_components_that_they_are_made_of(concepts):
    components = every_component(-1)
    parts = tuple(part for part in parts_of(components) if part.component.concept in concepts)
    params = np.zeros((), layout("ForwardParams", parts))
    told = params["components"]
    fill(told, components)
    values = {x.struct: x.params() for x in components if x.concept in concepts}
    assert "ScaleParams" in told.dtype.names and set(told.dtype.names) <= values.keys()
    tensors = {(struct, field) for (struct, field, *_), _ in arrays_in(told.dtype, components)}
    for struct in told.dtype.names:
        for name in told[struct].dtype.names:
            if (struct, name) in tensors:  # which every call fills in
                assert name not in ARRAYS or told.dtype[struct][name] == layout("Tensor")
                assert told[struct][name][told.dtype[struct][name].names[0]] == 0  # its address
            else:
                assert told[struct][name] == values[struct][name]
    of_arrays = {(x.struct, x.keyword) for x in components if x.concept in concepts and x.lacks is not None}
    assert tensors >= of_arrays


OWN = st.tuples(*[st.booleans()] * 5)  # of two batch dimensions, heads, queries, keys


@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(1, 200)] * 2), own=OWN, splits=st.integers(1, 5),
    dtype=st.sampled_from(["float16", "float32"]),
)  # fmt: skip
def test_of_each_axis_the_tiles_are_its_own_or_add_up(sizes, own, splits, dtype):
    *batch, heads, sq, sk = sizes
    q, k = np.zeros((*batch, heads, sq, 8), dtype), np.zeros((*batch, heads, sk, 8), dtype)
    shape = tuple(n if x else 1 for n, x in zip(sizes, own, strict=True))
    options = {"bias": np.zeros(shape, np.float32), "sinks": np.zeros(heads, np.float32), "wrt": ("bias", "sinks")}
    problem = AttentionProblem.from_arrays(q, k, k, **options)
    bias, sinks = problem.terms
    plan = plan_term(problem, named("sm_80"), bias, splits)
    found = packing.term_schedule(problem, plan, is_added=True)
    block_m, block_n = plan.kernel.kernel.constant("kBlockM"), plan.kernel.kernel.constant("kBlockN")
    tiles = {"heads": heads, "query_blocks": -(-sq // block_m), "key_blocks": -(-sk // block_n)}
    for (name, count), size, mine in zip(tiles.items(), sizes[2:], own[2:], strict=True):
        mine &= size > 1
        assert (found[f"own_{name}"][0], found[f"summed_{name}"][0]) == ((count, 1) if mine else (1, count))
    for i, (size, mine) in enumerate(zip((1, 1, *batch)[-4:], (False, False, *own[:2]), strict=True)):
        if len(found["own_batch"]) == 4:
            expected = (size, 1) if mine and size > 1 else (1, size)
            assert (found["own_batch"][i][0], found["summed_batch"][i][0]) == expected
    assert found["num_splits"][0] == splits and found["split_stride"] == math.prod(shape)
    assert (found["own_rows"], found["own_cols"]) == (shape[-2] > 1, shape[-1] > 1)
    assert found["is_added"] == 1
    plan = plan_term(problem, named("sm_80"), sinks, 1)
    found = packing.term_schedule(problem, plan, is_added=False)
    assert [found[f"own_{name}"][0] for name in tiles] == [heads, 1, 1] and found["is_added"] == 0
    assert [x[0] for x in found["summed_batch"]][-2:] == batch and found["split_stride"] == heads
