"""What traced functions are in CUDA: operations, intervals, lists of blocks, sums of gradients."""

import functools
import math

import numpy as np
import pytest
from cases import same_bits
from emulator.emulated import run as run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    block_mask,
    emulator,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
    mods,
)
from cupy_flash._src import launch
from cupy_flash._src.backends.emulator import EmulatorBackend
from cupy_flash._src.components.mask_mod import LISTS
from cupy_flash._src.device import named
from cupy_flash._src.expressions.cxx import code
from cupy_flash._src.expressions.graph import Builder, evaluate
from cupy_flash._src.expressions.operations import BOOL, FLOAT, INT, OPERATIONS
from cupy_flash._src.expressions.ranges import Range, ranges
from cupy_flash._src.plan import plan_forward
from cupy_flash._src.problem import AttentionProblem

# --- operations ---

NAMES = {"i": INT, "j": INT, "wide": INT, "s": FLOAT, "t": FLOAT}  # i and j below 2^29, wide any 64 bits


@functools.cache
def every_operation():
    """A graph whose roots are all operations of all types that they take, and their names."""
    builder = Builder()
    i, j, wide, s, t = (builder.symbol(name, type) for name, type in NAMES.items())
    apply, number = builder.apply, builder.constant
    near, less, alike = (
        apply("subtract", i, j),
        apply("less", i, j),
        apply("equal", apply("remainder", i, number(3)), j),
    )
    some = {
        BOOL: [(less, alike)],
        INT: [
            (near, j),
            (i, near),
            (near, number(7)),
            (wide, near),
            (near, wide),
            (near, number(-4)),
            (i, number(2**40)),
        ],
        FLOAT: [
            (s, t),
            (near, t),
            (s, number(2.5)),
            (s, number(math.inf)),
            (t, number(-math.inf)),
            (s, number(math.nan)),
        ],
    }
    taken = {"float": [FLOAT], "number": [INT, FLOAT], "bits": [BOOL, INT], "any": [BOOL, INT, FLOAT]}
    found = {}
    for op, of in OPERATIONS.items():
        one = {"int": (BOOL, FLOAT), "float": (BOOL, INT)}.get(op)
        for type in one or taken[of.takes]:
            for n, pair in enumerate(some[type]):
                if one:
                    node = builder.convert(pair[0], op)
                elif op == "where":
                    node = builder.where(less, *pair)
                else:
                    node = apply(op, *pair[: 2 if op in TWO else 1])
                found[f"{op} of {type} {n}"] = node
    return builder.graph(*found.values()), list(found)


TWO = {
    "add", "subtract", "multiply", "divide", "floor_divide", "remainder", "power", "minimum", "maximum", "less",
    "less_equal", "equal", "not_equal", "bitwise_and", "bitwise_or", "bitwise_xor",
}  # fmt: skip
OF_NUMBERS = """
#include "attention/expression.cuh"
using Int = int;
using Wide = int64_t;
using Bool = bool;
using Float = FLOAT;
struct Params {
  const int *i, *j;
  const int64_t* wide;
  const Float *s, *t;
  int64_t* ints;
  double* floats;
  int cases;
};
extern "C" __global__ void __launch_bounds__(32) kernel(const __grid_constant__ Params p) {
  for (int n = threadIdx.x; n < p.cases; n += 32) {
    const Int i = p.i[n], j = p.j[n];
    const Wide wide = p.wide[n];
    const Float s = p.s[n], t = p.t[n];
BODY
  }
}
"""


def printed(graph):
    """Statements of the graph, and the names of its roots."""
    made = code(graph, (), {}, [range(len(graph.roots))])
    ((body, results),) = made.bodies
    return "\n".join([*made.row, *body]), results


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operations_in_cuda_are_numpy_s(dtype):
    graph, names = every_operation()
    text, results = printed(graph)
    is_float = [graph.nodes[root].type == FLOAT for root in graph.roots]
    stores = [
        f"{'p.floats' if own else 'p.ints'}[{r} * p.cases + n] = {result};"
        for r, (own, result) in enumerate(zip(is_float, results, strict=True))
    ]
    rng = np.random.default_rng(0)
    i, j = (
        np.concatenate([[0, 1, 5, 5, 2**29 - 1, 0, 64, 63], rng.integers(0, 40, 120)]).astype(np.int32) for _ in "ij"
    )
    j = np.roll(j, 1)
    wide = np.concatenate([[0, -1, 1, 2**31, -(2**31), 2**62, -(2**63), 2**63 - 1], rng.integers(-50, 50, 120)])
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -2.5, 3e9]
    s, t = (np.concatenate([special, rng.normal(0, 3, 120)]).astype(dtype) for _ in "st")
    t = np.roll(t, 3)
    ints, floats = np.zeros((len(names), i.size), np.int64), np.zeros((len(names), i.size))
    arguments = {
        "i": i,
        "j": j,
        "wide": wide,
        "s": s,
        "t": t,
        "ints": ints,
        "floats": floats,
        "cases": np.int32(i.size),
    }
    kernel = OF_NUMBERS.replace("FLOAT", "float" if dtype == np.float32 else "double")
    run_kernel(kernel.replace("BODY", text + "\n" + "\n".join(stores)), arguments, outputs=("ints", "floats"))
    symbols = {"i": i.astype(np.int64), "j": j.astype(np.int64), "wide": wide, "s": s, "t": t}
    with np.errstate(all="ignore"):
        expected = evaluate(graph, np, np.dtype(dtype), symbols, ())
    error = 1e-6 if dtype == np.float32 else 1e-14
    for name, own, x, y, z in zip(names, is_float, expected, floats, ints, strict=True):
        if own:
            np.testing.assert_allclose(y, x, rtol=error, atol=1e-30, err_msg=name)
        else:
            np.testing.assert_array_equal(z, x, err_msg=name)


# --- intervals ---

OF_RANGES = """
#include "attention/range.cuh"
using Int = IntRange;
using Wide = IntRange;
using Bool = BoolRange;
using Float = FloatRange;
struct Params {
  const Range *i, *j, *wide, *s, *t;
  Range* out;
  int cases;
};
extern "C" __global__ void __launch_bounds__(32) kernel(const __grid_constant__ Params p) {
  for (int n = threadIdx.x; n < p.cases; n += 32) {
    const Int i(p.i[n].low, p.i[n].high), j(p.j[n].low, p.j[n].high), wide(p.wide[n].low, p.wide[n].high);
    const Float s(p.s[n].low, p.s[n].high), t(p.t[n].low, p.t[n].high);
BODY
  }
}
"""


@functools.cache
def some_ranges():
    """Of each symbol the same number; some are one number, some infinite."""
    rng, count = np.random.default_rng(1), 400
    made = {}
    for name, type in NAMES.items():
        first = rng.integers(-20, 60, count) if type == INT else np.round(64 * rng.normal(0, 4, count)) / 64
        length = rng.integers(0, 70, count) * (rng.random(count) < 0.7)
        low, high = first.astype(float), (first + length).astype(float)
        if name in ("i", "j"):
            low, high = np.maximum(low, 0), np.maximum(high, 0)
        else:
            low[:20], high[10:30] = -np.inf, np.inf
        made[name] = Range(low, high)
    return made


@functools.cache
def ranges_in_cuda():
    graph, names = every_operation()
    text, results = printed(graph)
    stores = [f"p.out[{r} * p.cases + n] = {result};" for r, result in enumerate(results)]
    given = some_ranges()
    out = np.zeros((len(names), 400, 2))
    arguments = {name: np.stack(of, axis=-1) for name, of in given.items()} | {"out": out, "cases": np.int32(400)}
    run_kernel(OF_RANGES.replace("BODY", text + "\n" + "\n".join(stores)), arguments)
    return graph, names, out


def test_intervals_in_cuda_are_those_of_python():
    """Up to the rounding of functions."""
    graph, names, out = ranges_in_cuda()
    expected = ranges(graph, np, some_ranges(), {}, None)
    for name, root, found in zip(names, graph.roots, out, strict=True):
        x = np.stack(np.broadcast_arrays(*expected[root], np.zeros(400))[:2], axis=-1)
        np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-35, err_msg=name)


def test_values_lie_in_their_intervals_in_cuda():
    graph, names, out = ranges_in_cuda()
    rng = np.random.default_rng(2)
    for _ in range(30):
        symbols = {}
        for name, (low, high) in some_ranges().items():
            low, high = np.maximum(low, -1e3), np.minimum(high, 1e3)
            x = low + (high - low) * rng.choice([0, 0.5, 1, rng.random()], low.size)
            symbols[name] = np.floor(x).astype(np.int64) if NAMES[name] == INT else x.astype(np.float32)
        with np.errstate(all="ignore"):
            values = evaluate(graph, np, np.dtype(np.float32), symbols, ())
        for name, value, (low, high) in zip(names, values, out.transpose(0, 2, 1), strict=True):
            value = np.broadcast_to(value, low.shape).astype(float)
            inside = (low <= value) & (value <= high) | np.isnan(value) & (low == -np.inf) & (high == np.inf)
            assert inside.all(), (name, value[~inside][:3], low[~inside][:3], high[~inside][:3])


# --- lists of blocks ---


def listed(shape, sk, mask, *arguments, dtype="float16", heads_k=None, backward=True):
    """Lists of a call and its backward, whose other kernels do not run: (name, rows and keys of blocks, entries)."""
    found, of = [], EmulatorBackend.run

    def run(self, step, params, tensors):
        if step.kernel.entry in ("attention_block_lists", "attention_summaries"):
            of(self, step, params, tensors)
        if step.kernel.entry == "attention_block_lists":
            name = LISTS[step.kernel.constant("kByKeys")]
            found.append((name, *(step.kernel.constant(x) for x in ("kBlockM", "kBlockN")), tensors[name].copy()))

    (*lead, heads, sq), d = shape, 16
    q, k = np.zeros((*lead, heads, sq, d), dtype), np.zeros((*lead, heads_k or heads, sk, d), dtype)
    options = {"mask_mod": mask, "mask_args": arguments, "backend": "emulator:sm_80"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmulatorBackend, "run", run)
        out, lse = flash_attention(q, k, k, return_lse=True, **options)
        if backward:
            flash_attention_backward(q, q, k, k, out, lse, deterministic=True, **options)
    return found


def entries_of(entries):
    """Of each batch element, head and row of blocks the first rows of those that are listed, and which are whole."""
    for at in np.ndindex(entries.shape[:-1]):
        count, *rest = entries[at]
        yield at, np.array(rest[:count], int) >> 1, np.array(rest[:count], int) & 1 == 1


def shares(seen, m, n, packed=1):
    """Of (batch, heads, Sq, Sk) whether any and whether all of each block are seen: (batch, groups, rows, columns)."""
    batch, heads, sq, sk = seen.shape
    rows = seen.reshape(batch, heads // packed, packed, sq, sk).swapaxes(2, 3).reshape(batch, heads // packed, -1, sk)
    pad = (0, 0), (0, 0), (0, -rows.shape[2] % m), (0, -sk % n)
    blocks = [
        np.pad(rows, pad, constant_values=x).reshape(*rows.shape[:2], -1, m, (sk + n - 1) // n, n)
        for x in (False, True)
    ]
    return blocks[0].any((3, 5)), blocks[1].all((3, 5))


def check(found, seen, packed=1, exact=False):
    """Assert that lists have, in order, each block of which anything is seen, and call whole what is seen whole."""
    for name, m, n, entries in found:
        some, whole = shares(seen, m, n, packed if name == "of_queries" else 1)
        if name == "of_keys":
            some, whole = some.swapaxes(2, 3), whole.swapaxes(2, 3)
        assert entries.shape[2] == some.shape[2]
        assert (entries.shape[0], entries.shape[1]) in {(x, y) for x in (1, some.shape[0]) for y in (1, some.shape[1])}
        for (b, h, row), first, is_whole in entries_of(entries):
            blocks = first // (m if name == "of_keys" else n)
            assert (np.diff(first) > 0).all()
            for own_some, own_whole in zip(
                (some if entries.shape[0] == 1 else some[b : b + 1]).reshape(-1, *some.shape[1:]),
                (whole if entries.shape[0] == 1 else whole[b : b + 1]).reshape(-1, *some.shape[1:]),
                strict=True,
            ):
                heads = slice(None) if entries.shape[1] == 1 else slice(h, h + 1)
                needed, filled = own_some[heads, row], own_whole[heads, row]
                missing = needed.any(0).nonzero()[0]
                assert set(missing) <= set(blocks), (name, b, h, row)
                assert filled[:, blocks[is_whole]].all(), (name, b, h, row)
                if exact:
                    assert set(missing) == set(blocks), (name, b, h, row)
                    assert (filled[:, blocks] == is_whole).all(), (name, b, h, row)


S = 700
PREFIX = np.array([300])
BUILT_IN = {
    "causal": (mods.causal, (), {"causal": True, "q_offset": 0}),
    "window": (mods.window, (200, 70), {"window": (200, 70), "q_offset": 0}),
    "prefix": (mods.prefix, (PREFIX,), None),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_tiles_are_skipped_as_by_the_built_in_masks(name):
    """Exactly those of which nothing is seen; and exactly those that are seen whole are not looked at."""
    mask, arguments, options = BUILT_IN[name]
    found = listed((1, 1, S), S, mask, *arguments)
    assert {kind for kind, *_ in found} == set(LISTS)
    grid = np.ogrid[:1, :1, :S, :S]
    check(found, np.broadcast_to(mask(*grid, *arguments), (1, 1, S, S)), exact=True)
    if options:
        q = np.zeros((1, 1, S, 16), np.float16)
        problem = AttentionProblem.from_arrays(q, q, q, **options)
        for _, m, n, entries in (x for x in found if x[0] == "of_queries"):
            for (_, _, row), first, _ in entries_of(entries):
                begin, end = problem.keys(row * m, min((row + 1) * m, S) - 1)
                assert first.tolist() == list(range(begin // n * n, end, n))


def bytes_read(backward, **options):
    """Of keys, values and queries, by each kernel of a call, and of its backward."""
    q = np.ones((1, 1, S, 16), np.float16)
    options |= {"backend": "emulator:sm_80"}
    with emulator.settings(mode="counted"):
        out, lse = flash_attention(q, q, q, return_lse=True, **options)
        launches = emulator.last_run().launches
        if backward:
            flash_attention_backward(q, q, q, q, out, lse, deterministic=True, **options)
            launches += emulator.last_run().launches
    names = "attention_forward", "attention_dq", "attention_dkdv"
    return {x.kernel: [x.buffers[name].read for name in "qkv"] for x in launches if x.kernel in names}


@pytest.mark.parametrize("backward", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernels_read_what_they_do_under_the_built_in_mask(backward):
    found, expected = bytes_read(backward, mask_mod=mods.causal), bytes_read(backward, causal=True, q_offset=0)
    assert found == expected
    assert len(found) == (3 if backward else 1)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_documents_meet_themselves_alone(dtype):
    """Of sorted numbers blocks know the least and the largest, by whichever axis and strides they come."""
    ids = np.sort(np.random.default_rng(3).integers(0, 12, (S, 3)), axis=0)
    seen = ids.T[:, None, :, None] == ids.T[:, None, None, :]
    turned = np.asfortranarray(ids[::-1])

    def documents(b, h, i, j, of_queries, of_keys):
        return of_queries[i, b] == of_keys[j - of_keys.shape[0], 2 - b]

    check(listed((3, 2, S), S, documents, ids, turned[::-1, ::-1], dtype=dtype), np.repeat(seen, 2, 1), exact=True)


def any_mask(b, h, i, j, near, of_queries, of_keys, of_blocks, flags):
    """Arrays of all ints, indexed by one of the positions, by both, from the end, and by one another's numbers."""
    meet = (of_queries[b, i] <= of_keys[j - of_keys.shape[0]]) & (abs(i - j) < near + 9 * h)
    return meet | (of_blocks[h, i // 16, j // 16] > 100) | (flags[of_queries[b, i] % 4] & (j % 64 < i // 4))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 4, 40]), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_lists_leave_nothing_out(sq, sk, spread, in_order, seed):
    rng = np.random.default_rng(seed)
    of_queries = rng.integers(-spread, spread + 1, (2, sq)).astype(np.int16)
    of_keys = rng.integers(-spread, spread + 1, sk)
    if in_order:
        of_queries, of_keys = np.sort(of_queries), np.sort(of_keys)[::-1]
    of_blocks = rng.integers(0, rng.choice([90, 110, 256]), (2, 20, 20)).astype(np.uint8)
    arguments = int(rng.integers(0, 200)), of_queries, of_keys, of_blocks[:, ::-1], rng.random(4) < 0.3
    seen = np.broadcast_to(any_mask(*np.ogrid[:2, :2, :sq, :sk], *arguments), (2, 2, sq, sk))
    check(listed((2, 2, sq), sk, any_mask, *arguments), seen)


def test_lists_of_a_known_table_leave_nothing_out():
    rng = np.random.default_rng(5)
    of_queries = np.sort(rng.integers(0, 9, S)).astype(np.int16)
    arguments = 90, np.stack([of_queries, of_queries[::-1]]), np.sort(rng.integers(0, 9, S))
    arguments += np.zeros((2, 50, 50), np.uint8), np.zeros(4, bool)
    known = block_mask(any_mask, (2, 2, S, S), arguments)
    seen = np.broadcast_to(any_mask(*np.ogrid[:2, :2, :S, :S], *arguments), (2, 2, S, S))
    found = listed((2, 2, S), S, known)
    check(found, seen)
    for *_, entries in found:
        assert entries[..., 0].mean() < 0.8 * (entries.shape[-1] - 2)  # some are left out


def test_rows_of_packed_heads_have_a_list_together():
    def of_heads(b, h, i, j, of_keys):
        return of_keys[j] == h // 2

    ids, shape = np.sort(np.random.default_rng(4).integers(0, 4, 900)), (2, 16, 3)
    q, k = np.zeros((*shape, 16), np.float16), np.zeros((2, 2, 900, 16), np.float16)
    problem = AttentionProblem.from_arrays(q, k, k, mask_mod=of_heads, mask_args=(ids,))
    packed = plan_forward(problem, named("sm_80")).packed_heads
    assert packed > 1
    seen = np.broadcast_to(ids == np.arange(16)[:, None, None] // 2, (2, *shape[1:], 900))
    check(listed(shape, 900, of_heads, ids, heads_k=2, backward=False), seen, packed)


# --- sums of gradients ---

GATHER = """
template <class>
struct Score;  // kernels have one
#include "attention/gather.cuh"
using Real = REAL;
struct Array {
  void *gradient, *exponent;
  int sizes[1];
};
struct Params {
  const Real* parts;
  const int64_t* elements;
  void *gradient, *exponent;
  int size, each;
};
extern "C" __global__ void __launch_bounds__(64) kernel(const __grid_constant__ Params p) {
  const Array array{p.gradient, p.exponent, {p.size}};
  Sites<Real, 1, HOW> sites;
  const int64_t first = (int64_t(blockIdx.x) * 64 + threadIdx.x) * p.each;
  for (int64_t n = first; n < first + p.each; ++n) sites.add<0>(array, p.elements[n], p.parts[n]);
  sites.finish<0>(array);
}
"""
BLOCKS, EACH, SIZE = 4, 5, 7


def summed(how, parts, elements, gradient, exponent, **settings):
    arguments = {"parts": parts, "elements": elements, "gradient": gradient, "exponent": exponent}
    arguments |= {"size": np.int32(SIZE), "each": np.int32(EACH)}
    kernel = GATHER.replace("REAL", "float" if parts.dtype == np.float32 else "double").replace("HOW", str(how))
    run_kernel(kernel, arguments, outputs=("gradient",), grid=(BLOCKS,), block=(64,), **settings)


def in_whole_numbers(parts, elements, **settings):
    exponent, limbs = np.zeros(1, np.int32), 2 if parts.dtype == np.float32 else 3
    sums = np.zeros((limbs, SIZE), np.int64)
    summed(launch.SIZES, parts, elements, exponent, np.zeros(1, np.int32), **settings)
    summed(launch.ADD_WHOLE, parts, elements, sums, exponent, **settings)
    return launch._from_limbs(np, sums, exponent, parts.dtype)


def drawn_parts(dtype, spread):
    rng = np.random.default_rng(5)
    count = BLOCKS * 64 * EACH
    elements = rng.integers(0, SIZE, count).reshape(-1, EACH)
    elements[: len(elements) // 2] = elements[: len(elements) // 2, :1]  # some threads mean one element,
    elements[64:96] = 3  # and some warps
    parts = (rng.standard_normal(count) * 2.0 ** rng.integers(-spread, spread + 1, count)).astype(dtype)
    parts[rng.random(count) < 0.1] = 0
    return parts, elements.ravel().astype(np.int64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [0, 60])
def test_sums_in_whole_numbers_are_the_same_in_every_order(dtype, spread):
    """And as exact as the largest part allows: what a thread sums before is rounded, and so is the result."""
    parts, elements = drawn_parts(dtype, spread)
    found = [in_whole_numbers(parts, elements, seed=seed) for seed in (1, 2)]
    same_bits(found[:1], found[1:])
    own = [parts[elements == n].astype(float) for n in range(SIZE)]
    exact = np.array([math.fsum(x) for x in own])
    unit = abs(parts).max() * 2.0 ** (-42 if dtype == np.float32 else -64)
    rounding = np.finfo(dtype).eps * np.array([abs(x).sum() for x in own])
    assert (abs(found[0] - exact) <= len(parts) * unit + rounding).all()
    by_atomics = np.zeros(SIZE, dtype)
    summed(launch.ADD, parts, elements, by_atomics, np.zeros(1, np.int32), seed=1)
    assert (abs(by_atomics - exact) <= 100 * rounding).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sum_with_a_part_that_is_not_finite_is_nan(bad):
    parts, elements = drawn_parts(np.float32, 3)
    parts[100] = bad
    assert np.isnan(in_whole_numbers(parts, elements)).all()


def test_many_parts_of_one_size_do_not_overflow():
    parts, elements = np.full(BLOCKS * 64 * EACH, np.float32(2.0**120)), np.zeros(BLOCKS * 64 * EACH, np.int64)
    parts[::2] *= -1
    assert in_whole_numbers(parts, elements)[0] == 0
    assert not in_whole_numbers(np.zeros_like(parts), elements).any()


@pytest.mark.parametrize("on", ["emulator:sm_80", "emulator:sm_75"])
@pytest.mark.parametrize("sq", [5, 70])
def test_rows_that_do_not_exist_add_nothing(on, sq):
    """What they hold is 0, of which a function may make anything: an infinite slope, NaN, or a weight beyond 1."""
    rng = np.random.default_rng(0)
    q, dout = (rng.standard_normal((2, sq, 64)).astype(np.float16) for _ in range(2))
    k, v = (rng.standard_normal((2, 90, 64)).astype(np.float16) for _ in range(2))
    captured = (np.ones(2, np.float32), np.full(90, 200, np.float32))
    options = {
        "score_mod": lambda s, b, h, i, j, w, x: np.sqrt(abs(s)) - w[h] * np.log(abs(s)) / 8 + x[j],
        "score_args": captured,
    }
    wrt = ("q", "k", "v", "score_args")
    _, vjp = flash_attention_vjp(q, k, v, backend=on, wrt=wrt, **options)
    *found, of_args = vjp(dout)
    *expected, of_expected = attention_reference_backward(dout, q, k, v, wrt=wrt, compute_dtype=np.float64, **options)
    for x, y in zip((*found, *of_args), (*expected, *of_expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0.05, atol=0.02 * np.abs(y).max() + 1e-3)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_captured_array_that_only_chooses_has_a_gradient_of_0(deterministic):
    q = np.random.default_rng(0).standard_normal((2, 40, 32)).astype(np.float32)
    options = {"score_mod": lambda s, b, h, i, j, w: np.where(w[h] > 0, s, -s), "score_args": (np.array([1.0, -1.0]),)}
    _, vjp = flash_attention_vjp(
        q, q, q, backend="emulator", wrt=("score_args",), deterministic=deterministic, **options
    )
    ((dw,),) = vjp(q)
    assert dw.dtype == np.float64 and not dw.any()


def test_squares_of_positions_look_up_what_is_there():
    """Between squares lie no negative numbers, in kernels as in Python: no index leaves the array's summaries."""
    q = np.random.default_rng(0).standard_normal((1, 200, 32)).astype(np.float32)
    options = {"mask_mod": lambda b, h, i, j, x: x[(i // 16 - j // 16) ** 2] < 9, "mask_args": (np.arange(145) // 8,)}
    with emulator.settings(mode="checked"):
        found = flash_attention(q, q, q, backend="emulator", **options)
    np.testing.assert_allclose(found, attention_reference(q, q, q, **options), atol=1e-5)
