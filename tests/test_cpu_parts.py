"""Parts of the CPU backend's compiled tier alone: conversions of every number, rows of every length, powers of 2.

Each for the widest instruction set that this machine has, and for any CPU.
"""

import contextlib
import ctypes
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from cupy_flash._src import source
from cupy_flash._src.backends import native
from cupy_flash._src.problem import DTYPES
from cupy_flash._src.toolchain import ToolchainError, compile_shared, cpu_features, feature_flags

PARTS = """
#include "cpu/convert.h"
#include "cpu/mask.h"
#include "cpu/product.h"
#include "cpu/scratch.h"

// Query i sees keys i + low to i + high: of two, by a place that holds both.
struct Bands {
  struct { int64_t components[4], seqlen_q, seqlen_k; } shape;
};
template <int n>
struct Band : Unbounded {
  Band(const int64_t* lines, const Bands&) : low(lines[2 * n]), high(lines[2 * n + 1]) {}
  int64_t key_begin(int64_t query) const { return query + low; }
  int64_t key_end(int64_t query) const { return query + high + 1; }
  int64_t query_begin(int64_t key) const { return key - high; }
  int64_t query_end(int64_t key) const { return key - low + 1; }
  int64_t low, high;
};

extern "C" {
void bounds(const Bands* bands, int64_t* keys, int64_t* queries) {
  const MaskOf<Band<0>, Band<1>> mask(*bands);
  for (int64_t i = 0; i < bands->shape.seqlen_q; ++i) *keys++ = mask.key_begin(i), *keys++ = mask.key_end(i);
  for (int64_t j = 0; j < bands->shape.seqlen_k; ++j) *queries++ = mask.query_begin(j), *queries++ = mask.query_end(j);
}
int64_t lanes() { return kLanes<float>; }
int64_t row_unit() { return kRowUnit; }
int64_t finite_floats(const float* x, int64_t count) { return all_finite(x, count); }
int64_t finite_doubles(const double* x, int64_t count) { return all_finite(x, count); }
// Where two pieces of so many bytes begin, and where the memory that is asked for them ends.
void pieces(char* begin, int64_t count, char** places) {
  Scratch counted(nullptr), scratch(begin);
  for (int64_t n = 0; n < 2; ++n) counted.take<char>(count), places[n] = scratch.take<char>(count);
  places[2] = begin + counted.bytes();
}
void load_float(int64_t dtype, float* y, int64_t pitch, const char* x, int64_t stride, int64_t width) {
  load_row(dtype, y, pitch, x, stride, width);
}
void load_double(int64_t dtype, double* y, int64_t pitch, const char* x, int64_t stride, int64_t width) {
  load_row(dtype, y, pitch, x, stride, width);
}
void store_float(int64_t dtype, char* y, int64_t stride, const float* x, int64_t count) {
  store_row(dtype, y, stride, x, count);
}
void store_double(int64_t dtype, char* y, int64_t stride, const double* x, int64_t count) {
  store_row(dtype, y, stride, x, count);
}
const float* factor(int64_t dtype, float* y, int64_t pitch, const char* x, int64_t row, int64_t col, int64_t rows,
                    int64_t width) {
  return load_factor(dtype, y, pitch, x, Layout{nullptr, row, col}, rows, width);
}
void pairs_in_rows(Pair* y, int64_t pitch, const char* x, int64_t row, int64_t col, int64_t rows, int64_t width) {
  load_pairs(y, pitch, x, Layout{nullptr, row, col}, rows, width);
}
void pairs_in_columns(Pair* y, int64_t pitch, const char* x, int64_t row, int64_t col, int64_t rows, int64_t width) {
  load_row_pairs(y, pitch, x, Layout{nullptr, row, col}, rows, width);
}
void rounded_pairs(Pair* y, const float* x, int64_t panel, int64_t rows) { round_to_pairs(y, x, panel, rows); }
void pair_products(float* sum, const Pair* x, const Pair* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i, y += kLanes<float>) {
    Vector<float> total = load(sum);
    multiply_add(total, x[i], load(y));
    store(sum, total);
  }
}
void exp2_float(float* x, int64_t count, float unit, float less) {
  for (int64_t i = 0; i < count; i += kLanes<float>) store(x + i, exp2<float>(load(x + i), unit, less));
}
void exp2_double(double* x, int64_t count, double unit, double less) {
  for (int64_t i = 0; i < count; i += kLanes<double>) store(x + i, exp2<double>(load(x + i), unit, less));
}
}
"""
KINDS = {"float": np.float32, "double": np.float64}  # of arithmetic
HALVES = {name: np.dtype(DTYPES[name]) for name in ("float16", "bfloat16")}


@pytest.fixture(scope="module", params=["widest", "portable"])
def parts(request):
    """Functions of the library by name; arrays are passed as addresses."""
    isas = [name for name, features in native.ISAS.items() if cpu_features().issuperset(features)]
    for isa in isas if request.param == "widest" else ["portable"]:
        flags = (*native._FLAGS, *feature_flags(native.ISAS[isa]), "-DBFLOAT16_PAIRS")
        text = source.flatten("parts", virtual={"parts": PARTS})
        with contextlib.suppress(ToolchainError):  # a compiler that does not know it
            library = ctypes.CDLL(str(compile_shared(text, "parts", flags=flags, freestanding=True, folder="cpu")))
            break
    library.factor.restype = ctypes.c_void_p
    for name, kind in (("exp2_float", ctypes.c_float), ("exp2_double", ctypes.c_double)):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_int64, kind, kind]

    def caller(function):
        def call(*arguments):
            return function(*[x if isinstance(x, float) else ctypes.c_int64(address(x)) for x in arguments])

        return function if function.argtypes else call

    def address(x):
        return x.ctypes.data if isinstance(x, np.ndarray) else int(x)

    names = [line.split("(")[0].split()[-1].lstrip("*") for line in PARTS.splitlines() if "(" in line[:40]]
    return SimpleNamespace(**{name: caller(getattr(library, name)) for name in names if hasattr(library, name)})


def number_of(dtype):
    """The enumerator of DType."""
    return native._DTYPES.index(dtype)


def narrowed(parts, dtype, x):
    y = np.empty(len(x), HALVES[dtype])
    parts.store_float(number_of(dtype), y, 2, x, len(x))
    return y


def assert_same_bits(x, exact):
    """Nan as nan, of the same sign; anything else, -0 and subnormals too, bit by bit."""
    kind = f"u{exact.itemsize}"
    with np.errstate(invalid="ignore"):  # signalling
        nan = np.isnan(exact)
        np.testing.assert_array_equal(np.isnan(x), nan)
    np.testing.assert_array_equal(np.signbit(x), np.signbit(exact))
    np.testing.assert_array_equal(x.view(kind)[~nan], exact.view(kind)[~nan])


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_becomes_its_float_and_back(parts, dtype):
    every = np.arange(2**16, dtype=np.uint16).view(HALVES[dtype])
    wide = np.empty(2**16, np.float32)
    parts.load_float(number_of(dtype), wide, len(wide), every, 2, len(every))
    assert_same_bits(wide, every.astype(np.float32))
    assert_same_bits(narrowed(parts, dtype, wide), every)


@pytest.mark.parametrize("dtype", HALVES)
def test_floats_become_the_nearest_half_and_ties_the_even_one(parts, dtype):
    """Around every half and every tie of two neighbours, the largest and its successor too; and floats of any bits."""
    info = ml_dtypes.finfo(dtype)
    positive = np.arange(2**15, dtype=np.uint16).view(HALVES[dtype])
    finite = positive[: int(info.max.view(np.uint16)) + 1].astype(np.float64)
    finite = np.append(finite, 2 * finite[-1] - finite[-2])  # what would come next, were there no largest
    ties = (finite[1:] + finite[:-1]) / 2
    around = np.concatenate([finite, ties])
    with np.errstate(over="ignore"):
        around = around.astype(np.float32)
    assert np.array_equal(around[np.isfinite(around)], np.concatenate([finite, ties])[np.isfinite(around)])
    bits = around.view(np.uint32).astype(np.int64)
    odd = np.arange(0x7F800000, 0x7F800000 + 2**10) - 2**9, 0x7F800000 + 2 ** np.arange(23), np.array([0x7FFFFFFF])
    some = np.random.default_rng(0).integers(0, 2**31, 2**18)
    bits = np.concatenate([np.maximum(bits - 1, 0), bits, bits + 1, *odd, some])
    x = np.concatenate([bits, bits | 2**31]).astype(np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        exact = x.astype(HALVES[dtype])
    assert (exact == info.smallest_subnormal).any() and np.isinf(exact).any()
    assert_same_bits(narrowed(parts, dtype, x), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_length_are_loaded_and_stored(parts, dtype):
    """Elements of any stride, zeros up to the pitch, and not a byte beyond."""
    storage, kind = np.dtype(DTYPES[dtype]), "double" if dtype == "float64" else "float"
    load, store = (getattr(parts, f"{name}_{kind}") for name in ("load", "store"))
    rng, size = np.random.default_rng(0), storage.itemsize
    for width in range(4 * parts.lanes() + 2):
        pitch = -(-width // 16) * 16 + 16
        for step in (1, 2, -1, -3):
            memory = rng.standard_normal(max(width, 1) * 3 + 1).astype(storage)
            view = memory[1:][::step][:width]  # one element past alignment
            wide = np.full(pitch + 4, 7, KINDS[kind])
            load(number_of(dtype), wide, pitch, view, step * size, width)
            np.testing.assert_array_equal(wide[:width], view.astype(KINDS[kind]))
            assert not wide[width:pitch].any() and (wide[pitch:] == 7).all()

            numbers = rng.standard_normal(pitch).astype(KINDS[kind])
            expected = memory.copy()
            expected[1:][::step][:width] = numbers[:width].astype(storage)
            store(number_of(dtype), view, step * size, numbers, width)
            np.testing.assert_array_equal(memory, expected)


def test_factors_are_read_in_place_only_where_they_lie_as_in_scratch(parts):
    """Else they are copied: with zeros up to the pitch, and in rows up to a whole unit."""
    rng, unit, pitch = np.random.default_rng(0), parts.row_unit(), 16
    for rows in range(1, 3 * unit + 1):
        for width, apart in ((pitch, pitch), (pitch - 1, pitch), (pitch, pitch + 1)):
            x = rng.standard_normal((rows, apart)).astype(np.float32)
            y = np.full((rows + unit, pitch), 7, np.float32)
            at = parts.factor(number_of("float32"), y, pitch, x, x.strides[0], 4, rows, width)
            whole = -(-rows // unit) * unit
            if rows == whole and width == apart == pitch:
                assert at == x.ctypes.data and (y == 7).all()
                continue
            assert at == y.ctypes.data
            np.testing.assert_array_equal(y[:rows, :width], x[:, :width])
            assert not y[:rows, width:].any() and not y[rows:whole].any() and (y[whole:] == 7).all()


def as_pairs(low, high):
    return low.view(np.uint16).astype(np.uint32) | high.view(np.uint16).astype(np.uint32) << 16


def test_pairs_hold_neighbours_and_0_where_there_is_none(parts):
    """Of rows, of columns, and of numbers that are rounded; what lies beyond, nan here, is not touched."""
    rng, bfloat16, pitch = np.random.default_rng(0), HALVES["bfloat16"], 32
    for rows in range(1, 6):
        for width in (1, 2, 7, 16, 31):
            memory = np.full((6, 40), np.nan, bfloat16)
            x = memory[:rows, :width]
            x[...] = rng.standard_normal(x.shape)
            padded = np.zeros((6, 2 * pitch), bfloat16)
            padded[:rows, :width] = x
            for columns in (x, memory[:rows, ::-1][:, -width:]):
                padded[:rows, :width] = columns
                y = np.full((6, pitch), 7, np.uint32)
                parts.pairs_in_rows(y, pitch, columns, *columns.strides, rows, width)
                np.testing.assert_array_equal(y[:rows], as_pairs(padded[:rows, ::2], padded[:rows, 1::2]))
                assert (y[rows:] == 7).all()
                y = np.full((4, pitch), 7, np.uint32)
                parts.pairs_in_columns(y, pitch, columns, *columns.strides, rows, width)
                pairs = -(-rows // 2)
                expected = as_pairs(padded[0::2, :pitch], padded[1::2, :pitch])
                np.testing.assert_array_equal(y[:pairs], expected[:pairs])
                assert (y[pairs:] == 7).all()
        numbers = np.full((6, pitch), np.nan, np.float32)
        numbers[:rows] = rng.standard_normal((rows, pitch))
        y = np.full((4, pitch), 7, np.uint32)
        parts.rounded_pairs(y, numbers, pitch, rows)
        rounded = np.zeros((6, pitch), bfloat16)
        rounded[:rows] = numbers[:rows]
        np.testing.assert_array_equal(y[:pairs], as_pairs(rounded[0::2], rounded[1::2])[:pairs])
        assert (y[pairs:] == 7).all()


def test_products_of_pairs_are_exact(parts):
    """Of small whole numbers in both halves, of which nothing may reach the other's product."""
    rng, lanes = np.random.default_rng(0), parts.lanes()
    x, y = (rng.integers(-127, 128, shape).astype(HALVES["bfloat16"]) for shape in ((2, 9), (2, 9, lanes)))
    total = np.full(lanes, 3, np.float32)
    parts.pair_products(total, as_pairs(*x), as_pairs(*y), 9)
    exact = 3 + np.einsum("pn,pnl->l", x.astype(np.float64), y.astype(np.float64))
    np.testing.assert_array_equal(total, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_powers_of_2_are_accurate(parts, kind):
    """2^(unit x - less) of every exponent; where multiply and add are two steps, the product is rounded too."""
    number, raise_2 = KINDS[kind], getattr(parts, f"exp2_{kind}")
    info = np.finfo(number)
    for unit, less in ((1, 0), (1, 21), (1.4426950216293335, 0), (1.9999998807907104, 8)):
        exponents = np.linspace(info.minexp + 1, info.maxexp - 1, 100_000)
        x = ((exponents + less) / unit).astype(number)
        y = x.copy()
        raise_2(y.ctypes.data, len(y), unit, less)
        exact = np.exp2(x.astype(np.longdouble) * unit - less)
        error = np.abs(y / exact - 1) / info.eps
        assert (error <= 1 + (unit != 1) * np.abs(x)).all()
    edges = np.full(16, np.nan, number)
    edges[:6] = -np.inf, info.min, info.minexp - 1, info.minexp - 1.5, info.maxexp, 0
    raise_2(edges.ctypes.data, len(edges), 1, 0)
    np.testing.assert_array_equal(edges[:6], [0, 0, 0, 0, np.inf, 1])
    assert np.isnan(edges[6:]).all()


@pytest.mark.parametrize("first", [(-9, 5), (-30, 30), (2, 4)], ids=str)
def test_bounds_of_a_mask_are_the_narrowest_of_its_parts(parts, first):
    seqlen_q, seqlen_k = 12, 17
    for low, high in np.random.default_rng(0).integers(-20, 20, (100, 2)):
        for bands in ([first, (low, high)], [(low, high), first]):
            keys, queries = np.empty((seqlen_q, 2), np.int64), np.empty((seqlen_k, 2), np.int64)
            parts.bounds(np.array([*np.ravel(bands), seqlen_q, seqlen_k]), keys, queries)
            begin, end = max(first[0], low), min(first[1], high) + 1  # of keys, from the query's own
            i, j = np.arange(seqlen_q), np.arange(seqlen_k)
            np.testing.assert_array_equal(keys.T, np.clip([i + begin, i + end], 0, seqlen_k))
            np.testing.assert_array_equal(queries.T, np.clip([j - end + 1, j - begin + 1], 0, seqlen_q))


@pytest.mark.parametrize(("name", "kind"), [("finite_floats", np.float32), ("finite_doubles", np.float64)])
def test_any_number_may_be_the_one_that_is_not_finite(parts, name, kind):
    finite, lanes = getattr(parts, name), parts.lanes() * 4 // np.dtype(kind).itemsize
    for count in (0, lanes, 3 * lanes):
        x = np.resize([np.finfo(kind).max, np.finfo(kind).min, 0, -1], count).astype(kind)
        assert finite(x, count)
        for i in range(count):
            for value in (np.nan, np.inf, -np.inf):
                assert not finite(np.where(np.arange(count) == i, value, x).astype(kind), count)


def test_memory_that_begins_anywhere_holds_what_is_taken_of_it_in_cache_lines(parts):
    for count in (0, 1, 63, 64, 65, 128):
        for begin in range(4096, 4096 + 64):
            parts.pieces(begin, count, places := np.empty(3, np.int64))
            first, second, end = places
            assert begin <= first and first + count <= second and second + count <= end
            assert first % 64 == second % 64 == 0
