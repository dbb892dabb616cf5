"""Host versions of ptx/*.cuh against NumPy; layouts and rounding are written from the PTX ISA."""

from fractions import Fraction

import emulated
import ml_dtypes
import numpy as np
import pytest

from cupy_flash._src.analysis.budget import approximations

LANES = np.arange(32)
GROUP, IN_GROUP = LANES // 4, LANES % 4
HALVES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# ---- conversions
CONVERT = """
#include "platform.cuh"
#include "ptx/convert.cuh"
struct Params {
  const float* values;
  const uint16_t* bits;
  uint16_t* narrow;
  uint32_t* pairs;
  float* wide;
  int n;
};
extern "C" __global__ void __launch_bounds__(32) kernel(const __grid_constant__ Params p) {
  for (int i = threadIdx.x; i < p.n; i += 32) {
    p.narrow[i] = ptx::HALF_from_f32(p.values[i]);
    p.pairs[i] = ptx::HALFx2_from_f32(p.values[i], p.values[p.n - 1 - i]);
    p.wide[i] = ptx::f32_from_HALF(p.bits[i]);
  }
}
"""


def awkward_floats(rng, half):
    """Every value of the 16-bit format, midpoints, what lies next to both, special and random values."""
    every = np.arange(65536, dtype=np.uint16).view(half).astype(np.float32)
    exact = np.unique(every[np.isfinite(every)])
    ties = exact[:-1] + (exact[1:] - exact[:-1]) / 2
    limit = np.float32(ml_dtypes.finfo(half).max)
    overflow = limit * np.float32(1 + 2.0 ** -(ml_dtypes.finfo(half).nmant + 2))
    special = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, limit, overflow, -overflow])
    around = [np.nextafter(x, np.float32(s)) for x in (exact, ties) for s in (-np.inf, np.inf)]
    anything = rng.integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([exact, ties, *around, special, anything]).astype(np.float32)


@pytest.mark.parametrize("name", HALVES)
def test_conversions_round_to_nearest_even(name, rng):
    half = HALVES[name]
    values = awkward_floats(rng, half)
    bits = np.arange(values.size, dtype=np.uint64).astype(np.uint16)  # all 65536, again and again
    narrow, pairs = np.empty(values.size, np.uint16), np.empty(values.size, np.uint32)
    wide = np.empty(values.size, np.float32)
    arguments = {"values": values, "bits": bits, "narrow": narrow, "pairs": pairs, "wide": wide}
    arguments["n"] = np.int32(values.size)
    emulated.run(CONVERT.replace("HALF", name), arguments, outputs=("narrow", "pairs", "wide"))

    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(half).view(np.uint16)
    expected[np.isnan(values)] = 0x7FFF  # cvt's canonical NaN
    np.testing.assert_array_equal(narrow, expected)
    np.testing.assert_array_equal(pairs & 0xFFFF, expected)
    np.testing.assert_array_equal(pairs >> 16, expected[::-1])
    np.testing.assert_array_equal(wide, bits.view(half).astype(np.float32))
    assert np.signbit(wide[0x8000])


# ---- mma
MMA = """
#include "platform.cuh"
#include "ptx/mma.cuh"
struct Params { const uint32_t* a; const uint32_t* b; const float* c; float* out; };
extern "C" __global__ void __launch_bounds__(64) kernel(const __grid_constant__ Params p) {
  const int t = threadIdx.x;
  uint32_t a[A_REGISTERS], b[B_REGISTERS];
  float c[4], d[4];
  for (int i = 0; i < A_REGISTERS; ++i) a[i] = p.a[t * A_REGISTERS + i];
  for (int i = 0; i < B_REGISTERS; ++i) b[i] = p.b[t * B_REGISTERS + i];
  for (int i = 0; i < 4; ++i) c[i] = p.c[t * 4 + i];
  ptx::OPERATION(d, a, b, c);
  for (int i = 0; i < 4; ++i) p.out[t * 4 + i] = d[i];
}
"""


def lower_k_first(pairs):
    """Registers from (..., 2) 16-bit elements: the first in the lower half."""
    return np.ascontiguousarray(pairs).view(np.uint32)[..., 0]


def a_fragment(a):
    """(32, registers): lane l holds rows l / 4 and 8 further, columns 2 (l % 4), the next, and 8 further."""
    registers = [
        lower_k_first(np.stack([a[GROUP + down, 2 * IN_GROUP + right + e] for e in (0, 1)], axis=-1))
        for right in range(0, a.shape[1], 8)
        for down in (0, 8)
    ]
    return np.stack(registers, axis=-1)


def b_fragment(b):
    """(32, registers): lane l holds column l / 4, rows 2 (l % 4), the next, and both 8 further."""
    registers = [
        lower_k_first(np.stack([b[2 * IN_GROUP + down + e, GROUP] for e in (0, 1)], axis=-1))
        for down in range(0, b.shape[0], 8)
    ]
    return np.stack(registers, axis=-1)


def c_fragment(c):
    """(32, 4): lane l holds row l / 4, columns 2 (l % 4) and the next, then the same of row l / 4 + 8."""
    return np.stack([c[GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2] for i in range(4)], axis=-1)


@pytest.mark.parametrize(
    ("operation", "k", "half"),
    [("m16n8k16_f16", 16, "f16"), ("m16n8k16_bf16", 16, "bf16"), ("m16n8k8_f16", 8, "f16")],
)
@pytest.mark.parametrize("mode", ["fast", "checked"])
def test_mma(operation, k, half, mode, rng):
    a = rng.standard_normal((2, 16, k)).astype(HALVES[half])  # a problem for each of two warps
    b = rng.standard_normal((2, k, 8)).astype(HALVES[half])
    c = rng.standard_normal((2, 16, 8)).astype(np.float32)
    out = np.empty((2, 32, 4), np.float32)
    kernel = MMA.replace("A_REGISTERS", str(k // 4)).replace("B_REGISTERS", str(k // 8))
    kernel = kernel.replace("OPERATION", f"mma_{operation}")
    arguments = {
        name: np.ascontiguousarray([fragment(x) for x in xs])
        for name, fragment, xs in (("a", a_fragment, a), ("b", b_fragment, b), ("c", c_fragment, c))
    }
    report = emulated.run(kernel, arguments | {"out": out}, block=(64,), mode=mode)
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64)) + c
    np.testing.assert_allclose(out, [c_fragment(x) for x in exact], rtol=1e-5, atol=1e-5)
    assert report.mma == 2


def run_mma(operation, half, a, b, c, **settings):
    """D = A B + C of one warp."""
    fragments = {"a": a_fragment(a.astype(half)), "b": b_fragment(b.astype(half)), "c": c_fragment(c)}
    arguments = {name: np.ascontiguousarray(x) for name, x in fragments.items()}
    out = np.empty((32, 4), np.float32)
    kernel = MMA.replace("A_REGISTERS", str(a.shape[1] // 4)).replace("B_REGISTERS", str(a.shape[1] // 8))
    emulated.run(kernel.replace("OPERATION", f"mma_{operation}"), arguments | {"out": out}, **settings)
    d = np.empty((16, 8), np.float32)
    for i in range(4):
        d[GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2] = out[:, i]
    return d


def last_place(x):
    """2^-23 times the power of two that a number other than 0 begins with."""
    x = abs(x)
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    return Fraction(2) ** (exponent - (Fraction(2) ** exponent > x) - 23)


def truncated(terms):
    """The sum of fractions, each cut to the last place of the largest, and the sum to its own: int() cuts."""
    place = last_place(max(terms, key=abs))
    total = sum(int(term / place) for term in terms) * place
    return total and int(total / last_place(total)) * last_place(total)


@pytest.mark.parametrize("arithmetic", ["hardware", "hardware-high", "hardware-low"])
@pytest.mark.parametrize("operation", ["m16n8k16_f16", "m16n8k16_bf16", "m16n8k8_f16"])
def test_mma_truncates_as_fractions_do(operation, arithmetic, rng):
    k, half = int(operation[6:].split("_")[0]), HALVES[operation.split("_")[1]]
    a, b, c = (
        (rng.standard_normal(shape) * 2.0 ** rng.integers(-4, 5, shape)).astype(dtype)
        for shape, dtype in (((16, k), half), ((k, 8), half), ((16, 8), np.float32))
    )
    d = run_mma(operation, half, a, b, c, arithmetic=arithmetic)
    for row, column in np.ndindex(16, 8):
        total, exact, size = (Fraction(float(c[row, column])),) * 3
        for k0 in range(0, k, 8):
            products = [Fraction(float(a[row, i])) * Fraction(float(b[i, column])) for i in range(k0, k0 + 8)]
            total, exact = truncated([total, *products]), exact + sum(products)
            size = abs(size) + sum(map(abs, products))
        assert d[row, column] == float(total)
        assert abs(total - exact) <= approximations(half).sums * (k + 1) * size * 2**-23


TINY = 2.0**-24  # half of the last place of 1
LARGEST = float(np.finfo(np.float32).max)
# c, some products by their depth, and what their sum is in exact and in a tensor core's arithmetic.
SUMS = {
    "what is below the last place is lost": (1.0, dict.fromkeys(range(8), TINY), 1 + 8 * TINY, 1.0),
    "so it is below 0": (-1.0, {0: -TINY, 1: -TINY}, -1 - 2 * TINY, -1.0),
    "by whatever the sum comes to": (1.0, {0: -1.0, **dict.fromkeys(range(1, 8), TINY)}, 7 * TINY, 0.0),
    "though not among their like": (0.0, dict.fromkeys(range(8), TINY), 8 * TINY, 8 * TINY),
    "a block meets the sum of the one before": (0.0, {0: 1.0, 8: TINY, 9: TINY}, 1 + 2 * TINY, 1.0),
    "not the block's terms": (0.0, {0: TINY, 7: TINY, 8: 1.0}, 1 + 2 * TINY, 1 + 2 * TINY),
    "a carry stays": (2 - 2 * TINY, {0: 2 * TINY}, 2.0, 2.0),
    "the sum is cut to its own last place": (2 - 2 * TINY, {0: 1.5}, 3.5 - 2 * TINY, 3.5 - 4 * TINY),
    "toward zero": (-2 + 2 * TINY, {0: -4 * TINY}, -2 - 2 * TINY, -2.0),
    "zeros": (0.0, {}, 0.0, 0.0),
    "infinity": (1.0, {3: np.inf}, np.inf, np.inf),
    "no number": (-np.inf, {3: np.inf}, np.nan, np.nan),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize(("half", "factor"), [("f16", 2.0**-12), ("bf16", 1.0)])
def test_sums_by_hand(name, half, factor):
    start, products, exact, hardware = SUMS[name]
    a, b, c = np.zeros((16, 16)), np.full((16, 8), factor), np.full((16, 8), start, np.float32)
    for i, product in products.items():
        a[:, i] = product / factor
    operation = f"m16n8k16_{half}"
    found = [run_mma(operation, HALVES[half], a, b, c, arithmetic=x) for x in ("exact", "hardware")]
    np.testing.assert_array_equal(found[1], np.float32(hardware))
    np.testing.assert_allclose(found[0], exact, rtol=2 * TINY, atol=0)


def test_sums_beyond_the_largest_number():
    """What is cut to the largest number is not infinite, 2^128 is."""
    a, b = np.zeros((16, 16)), np.full((16, 8), 2.0**64)
    c = np.full((16, 8), LARGEST, np.float32)
    a[1, 0] = 2.0**39  # half of c's last place
    a[2, :2], c[2] = 2.0**62, 2.0**127 - 2.0**103  # together 2^128 - 2^103, half a place below 2^128
    a[3, :2], c[3] = 2.0**63, 0
    found = run_mma("m16n8k16_bf16", HALVES["bf16"], a, b, c, arithmetic="hardware")
    np.testing.assert_array_equal(found[:4, 0], np.float32([LARGEST, LARGEST, LARGEST, np.inf]))


# ---- ldmatrix
LDMATRIX = """
#include "platform.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/shared.cuh"
struct Params { const uint16_t* matrices; const int* row_of_lane; uint32_t* out; };
struct Storage { alignas(16) uint16_t rows[32][8]; };
extern "C" __global__ void __launch_bounds__(32) kernel(const __grid_constant__ Params p) {
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x;
  for (int i = 0; i < 8; ++i) s.rows[t][i] = p.matrices[8 * t + i];
  __syncwarp();
  uint32_t r[COUNT];
  ptx::ldmatrix_xCOUNTTRANS(r, ptx::shared_address(s.rows[p.row_of_lane[t]]));
  for (int i = 0; i < COUNT; ++i) p.out[COUNT * t + i] = r[i];
}
"""


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, trans, rng):
    rows = rng.integers(0, 65536, (32, 8)).astype(np.uint16)
    row_of_lane = rng.permutation(32).astype(np.int32)
    out = np.empty((32, count), np.uint32)
    kernel = LDMATRIX.replace("COUNT", str(count)).replace("TRANS", "_trans" if trans else "")
    arguments = {"matrices": rows, "row_of_lane": row_of_lane, "out": out}
    report = emulated.run(kernel, arguments, shared=512, mode="checked")

    matrices = rows[row_of_lane].reshape(4, 8, 8)
    if trans:
        matrices = matrices.transpose(0, 2, 1)
    for i in range(count):
        np.testing.assert_array_equal(out[:, i] & 0xFFFF, matrices[i][GROUP, 2 * IN_GROUP])
        np.testing.assert_array_equal(out[:, i] >> 16, matrices[i][GROUP, 2 * IN_GROUP + 1])
    assert report.ldmatrix == 1


# ---- cp.async
CP_ASYNC = """
#include "platform.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/shared.cuh"
struct Params { const uint8_t* in; uint8_t* out; const int* source_bytes; };
struct Storage { alignas(16) uint8_t bytes[32][SIZE]; };
extern "C" __global__ void __launch_bounds__(32) kernel(const __grid_constant__ Params p) {
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x;
  ptx::cp_async_SIZE(ptx::shared_address(s.bytes[t]), p.in + SIZE * t, p.source_bytes[t]);
  FINISH
  for (int i = 0; i < SIZE; ++i) p.out[SIZE * t + i] = s.bytes[t][i];
}
"""


WAITS = ["ptx::cp_async_commit(); ptx::cp_async_wait<0>();", "ptx::cp_async_wait_all();"]


@pytest.mark.parametrize("finish", WAITS)
@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("seed", [None, 1])
def test_cp_async_fills_with_zeros(size, finish, seed, rng):
    data = emulated.aligned((32, size), np.uint8)
    data[:] = rng.integers(1, 256, data.shape)
    source_bytes = rng.integers(0, size + 1, 32).astype(np.int32)
    out = np.empty((32, size), np.uint8)
    kernel = CP_ASYNC.replace("SIZE", str(size)).replace("FINISH", finish)
    arguments = {"in": data, "out": out, "source_bytes": source_bytes}
    report = emulated.run(kernel, arguments, shared=32 * size, mode="checked", seed=seed)
    expected = np.where(np.arange(size) < source_bytes[:, None], data, 0)
    np.testing.assert_array_equal(out, expected)
    assert report.cp_async == 32
    assert report.buffers["in"].read == source_bytes.sum()


# ---- shuffles and votes
SHUFFLE = """
#include "platform.cuh"
#include "ptx/warp.cuh"
struct Params { const T* in; T* out; int argument; int width; };
extern "C" __global__ void __launch_bounds__(64) kernel(const __grid_constant__ Params p) {
  p.out[threadIdx.x] = ptx::OPERATION(p.in[threadIdx.x], p.argument, p.width);
}
"""


def shuffled_lanes(operation, argument, width):
    """The lane each lane reads from: PTX ISA, shfl.sync, written for segments of `width` lanes."""
    first = LANES // width * width
    if operation == "shfl":
        return first + argument % width
    if operation == "shfl_xor":
        source = LANES ^ argument
        return np.where(source < first + width, source, LANES)
    source = LANES - argument if operation == "shfl_up" else LANES + argument
    return np.where((source >= first) & (source < first + width), source, LANES)


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("operation", ["shfl", "shfl_xor", "shfl_up", "shfl_down"])
@pytest.mark.parametrize("type_name", ["float", "double", "int", "uint64_t"])
def test_shuffles(type_name, operation, width, rng):
    dtype = {"float": np.float32, "double": np.float64, "int": np.int32, "uint64_t": np.uint64}[type_name]
    data = rng.integers(0, 256, 64 * np.dtype(dtype).itemsize).astype(np.uint8)
    data[3 :: np.dtype(dtype).itemsize] = 1  # no NaN
    data[7 :: np.dtype(dtype).itemsize] = 1
    data = data.view(dtype)
    kernel = SHUFFLE.replace("OPERATION", operation).replace("T*", f"{type_name}*")
    for argument in (1, 3, 5, 16):
        out = np.empty_like(data)
        arguments = {"in": data, "out": out, "argument": np.int32(argument), "width": np.int32(width)}
        report = emulated.run(kernel, arguments, block=(64,))
        lanes = shuffled_lanes(operation, argument, width)
        np.testing.assert_array_equal(out.reshape(2, 32), data.reshape(2, 32)[:, lanes])
        assert report.shuffles == 2 * np.dtype(dtype).itemsize // 4


VOTE = """
#include "platform.cuh"
#include "ptx/warp.cuh"
struct Params { const int* in; uint32_t* out; };
extern "C" __global__ void __launch_bounds__(96) kernel(const __grid_constant__ Params p) {
  const bool yes = p.in[threadIdx.x] != 0;
  const uint32_t ballot = ptx::ballot(yes);
  const bool any = ptx::any(yes);
  const bool all = ptx::all(yes);
  uint32_t* out = p.out + 3 * threadIdx.x;
  out[0] = ballot;
  out[1] = any;
  out[2] = all;
}
"""


def test_votes(rng):
    yes = rng.integers(0, 2, (3, 32)).astype(np.int32)
    yes[1], yes[2] = 0, 1
    out = np.empty((3, 32, 3), np.uint32)
    emulated.run(VOTE, {"in": yes, "out": out}, block=(96,))
    expected = [[(row << LANES).sum(), row.any(), row.all()] for row in yes.astype(np.int64)]
    np.testing.assert_array_equal(out, np.broadcast_to(np.array(expected, np.uint32)[:, None], out.shape))


# ---- barriers
PING_PONG = """
#include "platform.cuh"
#include "ptx/barrier.cuh"
struct Params { float* out; int rounds; };
struct Storage { float slot[64]; };
extern "C" __global__ void __launch_bounds__(128) kernel(const __grid_constant__ Params p) {
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x % 64;
  float sum = 0.0f;
  for (int round = 0; round < p.rounds; ++round) {
    if (threadIdx.x < 64) {
      if (round > 0) ptx::barrier_sync(2, 128);
      s.slot[t] = static_cast<float>(round * 64 + t);
      ptx::barrier_arrive(1, 128);
    } else {
      ptx::barrier_sync(1, 128);
      sum += s.slot[63 - t];
      if (round + 1 < p.rounds) ptx::barrier_arrive(2, 128);
    }
  }
  if (threadIdx.x >= 64) p.out[t] = sum;
}
"""


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_named_barriers_pass_a_buffer_to_and_fro(seed):
    out = np.zeros(64, np.float32)
    rounds = 5
    report = emulated.run(
        PING_PONG,
        {"out": out, "rounds": np.int32(rounds)},
        block=(128,),
        shared=256,
        mode="checked",
        seed=seed,
    )
    np.testing.assert_array_equal(out, sum(np.arange(64)[::-1] + 64 * r for r in range(rounds)))
    assert report.barriers == 2 * rounds - 1


VOTING_BARRIER = """
#include "platform.cuh"
struct Params { const int* in; int* out; };
extern "C" __global__ void __launch_bounds__(80) kernel(const __grid_constant__ Params p) {
  const int t = threadIdx.x;
  for (int round = 0; round < 3; ++round) {
    const int yes = p.in[80 * round + t];
    int* out = p.out + 3 * (80 * round + t);
    out[0] = __syncthreads_or(yes);
    out[1] = __syncthreads_and(yes);
    out[2] = __syncthreads_count(yes);
  }
}
"""


@pytest.mark.parametrize("seed", [None, 4])
def test_barriers_that_reduce(seed, rng):
    yes = rng.integers(0, 2, (3, 80)).astype(np.int32)
    yes[1], yes[2] = 0, 1
    out = np.empty((3, 80, 3), np.int32)
    emulated.run(VOTING_BARRIER, {"in": yes, "out": out}, block=(80,), seed=seed)
    expected = np.array([[row.any(), row.all(), row.sum()] for row in yes])
    np.testing.assert_array_equal(out, np.broadcast_to(expected[:, None], out.shape))


# ---- atomics
ATOMICS = """
#include "platform.cuh"
struct Params { float* f; double* d; int* i; int* largest; };
struct Storage { int counter; };
extern "C" __global__ void __launch_bounds__(64) kernel(const __grid_constant__ Params p) {
  Storage& s = shared_storage<Storage>();
  if (threadIdx.x == 0) s.counter = 0;
  __syncthreads();
  atomicAdd(p.f + threadIdx.x % 4, 0.5f);
  atomicAdd(p.d, 0.25);
  atomicMax(p.largest, static_cast<int>(blockIdx.x * 64 + threadIdx.x));
  atomicAdd(&s.counter, 2);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(p.i, s.counter);
}
"""


@pytest.mark.parametrize("seed", [None, 2])
def test_atomics(seed):
    f, d = np.zeros(4, np.float32), np.zeros(1)
    i, largest = np.zeros(1, np.int32), np.full(1, -1, np.int32)
    arguments = {"f": f, "d": d, "i": i, "largest": largest}
    report = emulated.run(
        ATOMICS,
        arguments,
        outputs=tuple(arguments),
        grid=(3,),
        block=(64,),
        shared=4,
        mode="checked",
        seed=seed,
    )
    np.testing.assert_array_equal(f, 3 * 16 * 0.5)
    assert (d[0], i[0], largest[0]) == (3 * 64 * 0.25, 3 * 64 * 2, 191)
    assert report.atomics == 3 * (64 * 4 + 1)


# ---- math
MATH = """
#include "platform.cuh"
#include "ptx/math.cuh"
struct Params { const float* in; float* exponential; float* logarithm; int n; };
extern "C" __global__ void __launch_bounds__(32) kernel(const __grid_constant__ Params p) {
  for (int i = threadIdx.x; i < p.n; i += 32) {
    p.exponential[i] = ptx::ex2(p.in[i]);
    p.logarithm[i] = ptx::lg2(p.in[i]);
  }
}
"""


def test_ex2_and_lg2_flush_subnormals(rng):
    special = [0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -126, -126.5, 128]
    x = np.concatenate([rng.uniform(-140, 130, 1000), special]).astype(np.float32)
    exponential, logarithm = np.empty_like(x), np.empty_like(x)
    arguments = {"in": x, "exponential": exponential, "logarithm": logarithm, "n": np.int32(x.size)}
    emulated.run(MATH, arguments, outputs=("exponential", "logarithm"))

    smallest_normal = np.finfo(np.float32).tiny
    with np.errstate(all="ignore"):
        expected = np.exp2(x.astype(np.float64)).astype(np.float32)
        flushed = np.where(np.abs(x) < smallest_normal, 0.0, x)
        np.testing.assert_allclose(logarithm, np.log2(flushed), rtol=1e-6, atol=1e-6)
    expected = np.where(expected < smallest_normal, 0.0, expected)
    np.testing.assert_allclose(exponential, expected, rtol=1e-6)
