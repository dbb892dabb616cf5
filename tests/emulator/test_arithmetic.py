"""What a GPU may answer: ex2, lg2 and tanh as far off as the PTX ISA allows and no further, the same on both paths, and
attention with them within the error budget.
"""

import numpy as np
import pytest
from cases import Case, cases, check
from conftest import On
from emulator.both_paths import assert_same_bits, run_both, run_path
from golden.primitives import PRIMITIVES
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import attention

from cupy_flash import attention_reference, emulator, flash_attention
from cupy_flash._src.analysis import budget
from cupy_flash._src.analysis.budget import approximate_on
from cupy_flash._src.emulator.settings import ARITHMETICS
from cupy_flash._src.problem import DTYPES

APPROXIMATE = ARITHMETICS[1:]
BY_NAME = {primitive.name: primitive for primitive in PRIMITIVES}

FUNCTIONS = """
#include "platform.cuh"
#include "ptx/math.cuh"
struct Params {
  const float* x; const double* wide; float* ex2; float* lg2; float* tanh; double* wide_ex2; double* wide_lg2;
};
extern "C" __global__ void __launch_bounds__(32) kernel(const __grid_constant__ Params p) {
  for (int i = threadIdx.x; i < COUNT; i += 32) {
    p.ex2[i] = ptx::ex2(p.x[i]);
    p.lg2[i] = ptx::lg2(p.x[i]);
    p.tanh[i] = ptx::tanh_approx(p.x[i]);
    p.wide_ex2[i] = ptx::ex2(p.wide[i]);
    p.wide_lg2[i] = ptx::lg2(p.wide[i]);
  }
}
"""
SPECIAL = np.float32([0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan, 128, -127, -150, 1e30, -1e30])


WHOLE = np.arange(-126.0, 128)


def arguments():
    """Special ones, whole numbers and powers of two, what the kernels meet most, and any positive number."""
    rng = np.random.default_rng(5)
    near_one = np.concatenate([rng.uniform(0.5, 2, 30_000), 1 + rng.standard_normal(1000) * 1e-4])
    any_bits = rng.integers(0x00800000, 0x7F800000, 30_000).astype(np.uint32).view(np.float32)
    drawn = [WHOLE, 2.0**WHOLE, near_one, -30 * rng.random(30_000), rng.uniform(-126, 128, 30_000), any_bits]
    return np.concatenate([SPECIAL, *drawn]).astype(np.float32)


def functions_of(x, **settings):
    """The functions of x, in float32 and in float64, by both paths, which give the same bits in float32."""
    arrays = {"x": x, "wide": x.astype(np.float64)}
    outputs = {"ex2": x, "lg2": x, "tanh": x, "wide_ex2": arrays["wide"], "wide_lg2": arrays["wide"]}
    virtual = {"functions.cu": FUNCTIONS.replace("COUNT", str(x.size))}
    host, ptx = run_both("functions.cu", "kernel", arrays | outputs, list(outputs), virtual=virtual, **settings)
    for name in ("wide_ex2", "wide_lg2"):  # NVRTC's library, not the host's
        np.testing.assert_allclose(ptx[name], host[name], rtol=2.0**-50, atol=2.0**-50)
    assert_same_bits(*({name: found[name] for name in ("ex2", "lg2", "tanh")} for found in (host, ptx)))
    return host


@pytest.fixture(scope="module", params=ARITHMETICS)
def answers(request):
    """An arithmetic's name, arguments, and what it makes of them."""
    x = arguments()
    return request.param, x, functions_of(x, arithmetic=request.param)


def rounded_ex2(x):
    y = np.exp2(x.astype(np.float64)).astype(np.float32)
    return np.where(y < 2.0**-126, np.float32(0), y)


@np.errstate(all="ignore")
def test_ex2_is_at_most_two_ulp_off(answers):
    """And as far, by each number of ulp as often."""
    arithmetic, x, found = answers
    rounded = rounded_ex2(x)
    usual = (rounded > 2.0**-125) & np.isfinite(rounded) & (np.abs(x) >= 2.0**-126)
    off = found["ex2"].view(np.int32)[usual].astype(int) - rounded.view(np.int32)[usual]
    counts = {int(n): int(c) for n, c in zip(*np.unique(off, return_counts=True), strict=True)}
    if arithmetic == "hardware":
        assert counts.keys() == {-2, -1, 0, 1, 2} and max(counts.values()) < 1.1 * min(counts.values())
    elif arithmetic == "exact":
        assert max(counts, key=counts.get) == 0 and counts.keys() <= {-1, 0, 1}
    else:
        assert counts.keys() == {2 if arithmetic == "hardware-high" else -2}


@np.errstate(all="ignore")
def test_lg2_is_as_far_off_as_documented(answers):
    arithmetic, x, found = answers
    x, y = (a[(x >= 2.0**-126) & (x < np.inf)].astype(np.float64) for a in (x, found["lg2"]))
    exact = np.log2(x)
    near = (x > 0.5) & (x < 2)
    share = (y - exact) / (2.0**-22 * np.where(near, 1, np.abs(exact)))
    for part in (share[near], share[~near]):
        if arithmetic == "exact":
            assert np.abs(part).max() < 0.3
        else:
            assert 0.99 < np.abs(part).max() <= 1
            assert (part.max() > 0.99) == (arithmetic != "hardware-low")
            assert (part.min() < -0.99) == (arithmetic != "hardware-high")
    if arithmetic == "hardware":
        assert abs(share.mean()) < 0.01 and abs(share.std() - 3**-0.5) < 0.01  # drawn evenly


@np.errstate(all="ignore")
def test_tanh_is_as_far_off_as_documented_and_never_beyond_1(answers):
    arithmetic, x, found = answers
    x, y = (a[np.abs(a0) >= 2.0**-126].astype(np.float64) for a, a0 in ((x, x), (found["tanh"], x)))
    assert np.abs(y).max() == 1
    share = (np.abs(y) / np.abs(np.tanh(x)) - 1) * 2.0**11
    if arithmetic == "exact":
        assert np.abs(share).max() < 2.0**-11
        return
    assert np.abs(share).max() <= 1
    inner = (share * np.sign(x))[np.abs(x) < 3]  # 1 is at hand beyond
    assert (inner.max() > 0.99) == (arithmetic != "hardware-low")
    assert (inner.min() < -0.99) == (arithmetic != "hardware-high")


@np.errstate(all="ignore")
def test_what_the_isa_lists_is_exact(answers):
    arithmetic, x, found = answers
    special = slice(SPECIAL.size)
    np.testing.assert_array_equal(found["tanh"][[0, 1, 4, 5, 6]], [0, -0.0, 1, -1, np.nan])
    np.testing.assert_array_equal(found["ex2"][special], [1, 1, 1, 1, np.inf, 0, np.nan, np.inf, 0, 0, np.inf, 0])
    expected = [*[-np.inf] * 4, np.inf, np.nan, np.nan, None, np.nan, np.nan, None, np.nan]
    for value, y in zip(expected, found["lg2"][special], strict=True):
        assert value is None or np.array_equal(value, y, equal_nan=True)
    # Nothing else is: neither ex2 of whole numbers nor lg2 of powers of two.
    whole, powers = (slice(SPECIAL.size + start, SPECIAL.size + start + WHOLE.size) for start in (0, WHOLE.size))
    for is_exact in (found["ex2"][whole] == x[powers], found["lg2"][powers] == x[whole]):
        assert is_exact.all() if arithmetic == "exact" else is_exact.mean() < 0.3


def test_float64_has_no_such_instructions(answers):
    _, x, found = answers
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(found["wide_ex2"], np.exp2(x.astype(np.float64)), rtol=2.0**-50)
        np.testing.assert_allclose(found["wide_lg2"], np.log2(x.astype(np.float64)), rtol=2.0**-50, atol=2.0**-50)


@pytest.mark.parametrize("name", ["mma_m16n8k16_f16", "mma_m16n8k16_bf16", "mma_m16n8k8_f16"])
def test_both_paths_truncate_alike(name):
    primitive, rng = BY_NAME[name], np.random.default_rng(3)
    arrays = dict(primitive.arrays)
    halves = np.float16 if name.endswith("_f16") else None
    for operand in "ab":  # halves of any size around 1
        bits = rng.integers(0, 2, (*arrays[operand].shape, 2)) << 15
        bits += (15 << 10) + rng.integers(-4096, 4096, bits.shape) if halves else (
            127 << 7) + rng.integers(-512, 512, bits.shape)  # fmt: skip
        arrays[operand] = bits.astype(np.uint16).view(np.uint32)[..., 0]
    arrays["c"] = rng.standard_normal((32, 4)).astype(np.float32)
    arguments = {
        "name": "primitive.cu", "entry": "primitive", "arrays": arrays, "outputs": list(primitive.outputs),
        "virtual": {"primitive.cu": primitive.source}, "shared_bytes": primitive.shared_bytes,
    }  # fmt: skip
    host, ptx = run_both(**arguments, arithmetic="hardware")
    assert_same_bits(host, ptx)
    exact = run_path("host", **arguments)
    assert (host["d"] != exact["d"]).any()
    np.testing.assert_allclose(host["d"], exact["d"], rtol=1e-4, atol=1e-4)


# ---- attention

PAIRS = st.sampled_from([
    ("hardware", "hardware"), ("hardware-high", "hardware-low"), ("hardware-low", "hardware-high"),
])  # fmt: skip


class Hardware(On):
    """The emulator with an arithmetic for the forward and one for the backward: p is most wrong where they differ."""

    def __init__(self, forward, backward, arch="sm_80"):
        super().__init__(f"emulator:{arch}")
        self.arithmetics = {True: forward, False: backward}

    def __call__(self, function, *arrays, **options):
        with emulator.settings(arithmetic=self.arithmetics[function is flash_attention]):
            return super().__call__(function, *arrays, **options)

    @property
    def approximate(self):
        return True


@pytest.mark.parametrize("arithmetic", APPROXIMATE)
def test_results_differ_and_repeat(arithmetic):
    q, k, v, *_ = Case(sq=20, sk=40, d=16).arrays()
    exact = flash_attention(q, k, v, backend="emulator")
    with emulator.settings(arithmetic=arithmetic):
        assert approximate_on("emulator:sm_80") and approximate_on("cuda") and not approximate_on("cpu")
        first, again = (flash_attention(q, k, v, backend="emulator") for _ in range(2))
    assert not approximate_on("emulator:sm_80") and approximate_on("cuda")
    assert np.array_equal(first, again) and not np.array_equal(first, exact)


@settings(max_examples=6)
@given(
    case=cases(40, head_dims=st.just(7), dtypes=st.sampled_from(["float16", "float32"]), batch=(), dv=None),
    pair=PAIRS,
    dlse=st.booleans(),
)
def test_within_error_budget(case, pair, dlse):
    check(case, Hardware(*pair), dlse=dlse)


# Over the budget, but for a term of it.
WORST = {
    "out, ex2": Case(sq=1, sk=2, d=2, scale=0.0, seed=8700),
    "dv, ex2": Case(sq=1, sk=2, d=1, scale=0.0, seed=3808),
    "dv, lg2": Case(sq=5, sk=150, d=7, dv=8, scale=0.0, seed=6514),
    "lse, headroom": Case(dtype="bfloat16", sq=1, sk=1, d=33, dv=64, scale=0.0, seed=1688277367, magnitude=4.0),
    "lse of one key": Case(dtype="float16", sq=1, sk=1, d=16, scale=0.0),
}
DIRECTIONS = [("hardware-high", "hardware-low"), ("hardware-low", "hardware-high")]


@pytest.mark.parametrize("name", WORST)
@pytest.mark.parametrize("pair", DIRECTIONS)
def test_the_worst_is_within_the_budget(name, pair):
    check(WORST[name], Hardware(*pair))


@pytest.mark.parametrize("name", WORST)
def test_no_term_of_the_budget_is_too_much(name, monkeypatch):
    """Without what the name says, or without all terms where it says none, some direction of errors is over it."""
    result, _, term = name.partition(", ")
    all_terms = budget.approximations
    fewer = budget.Approximations() if not term else all_terms(DTYPES[WORST[name].dtype])._replace(**{term: 0.0})
    monkeypatch.setattr(budget, "approximations", lambda dtype: fewer)
    with pytest.raises(AssertionError, match=f"^{result.split()[0]}: error"):
        for pair in DIRECTIONS:
            check(WORST[name], Hardware(*pair))


@pytest.mark.parametrize("pair", DIRECTIONS)
def test_scores_that_are_made_twice_may_err_to_both_sides(pair):
    check(Case(dtype="float16", heads_k=2, sq=1, sk=1, d=7, softcap=20.0, seed=26814), Hardware(*pair))


def spent_by(q, k, v, arithmetic):
    """Of the error budget, the shares that out and lse take; the scale is 1."""
    options = {"causal": False, "q_offset": None, "scale": 1.0}
    found = Hardware(arithmetic, arithmetic)(flash_attention, q, k, v, return_lse=True, **options)
    naive = attention_reference(q, k, v, return_lse=True, **options)
    sizes = budget.magnitudes(q, k, v, np.ones_like(found[0]), None, **options, approximate=True)
    results = zip(("out", "lse"), found, naive, attention(q, k, v, **options), strict=False)
    errors = {name: budget.spent(*x, sizes[name]) for name, *x in results}
    return {name: error / allowed for name, (error, allowed) in errors.items()}


def rising():
    """One query, and keys each of which is scored higher than all before."""
    k = np.linspace(0, 0.01, 4096, dtype=np.float32)[None, :, None]
    return np.ones((1, 1, 1), np.float32), k, np.where(np.arange(4096) < 2048, 1, -1).astype(np.float32)[None, :, None]


def cut(dtype):
    """A score of 1 whose other terms cancel out, but that most are less than the last place of 1."""
    terms = np.array([1] + 120 * [1.75 * 2.0**-24] + [-105 * 2.0**-23])
    k = np.array([1] + 121 * [2.0**-12])
    return (terms / k).astype(dtype)[None, None], k.astype(dtype)[None, None], np.ones((1, 1, 1), dtype)


def test_every_rise_of_the_maximum_is_in_the_budget(monkeypatch):
    assert max(spent_by(*rising(), "hardware-high").values()) < 0.2
    monkeypatch.setattr(budget, "_rises", np.zeros_like)
    assert spent_by(*rising(), "hardware-high")["out"] > 1.2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_tensor_cores_cut_is_in_the_budget(dtype, monkeypatch):
    arrays, whole = cut(DTYPES[dtype]), budget.approximations(DTYPES[dtype])
    assert 0.25 < spent_by(*arrays, "hardware")["lse"] < 1
    # The headroom's part would hide it: one key's 2^x, and the logarithm that takes it back, are off by little here.
    for sums in (whole.sums, 0.0):
        only = whole._replace(ex2=2.5, sums=sums)
        monkeypatch.setattr(budget, "approximations", lambda dtype, only=only: only)
        assert (spent_by(*arrays, "hardware")["lse"] > 1) == (sums == 0)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    case=cases(max_seqlen=200, arrays=True),
    pair=PAIRS,
    arch=st.sampled_from(["sm_75", "sm_80", "sm_90a"]),
    deterministic=st.booleans(),
    dlse=st.booleans(),
)
def test_within_error_budget_thoroughly(case, pair, arch, deterministic, dlse):
    check(case, Hardware(*pair, arch), deterministic=deterministic, dlse=dlse)
