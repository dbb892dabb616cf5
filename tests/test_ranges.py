"""Intervals: no value lies outside its own, no index outside what is said of it, and blocks show what they are to."""

import numpy as np
import pytest
from functions import (
    ARGUMENTS,
    EXTENTS,
    NAMES,
    POSITIONS,
    all_values_of,
    arrays,
    graph_or_reject,
    scores,
    texts,
    traced,
    values_of,
)
from hypothesis import example, given
from hypothesis import strategies as st

from cupy_flash import flash_attention
from cupy_flash._src.expressions.blocks import ALL, NONE, SOME, classify
from cupy_flash._src.expressions.graph import Builder, evaluate
from cupy_flash._src.expressions.indices import GUARDED, INSIDE, WRAPS, Captive, outside, states
from cupy_flash._src.expressions.indices import values_of as ints_of
from cupy_flash._src.expressions.operations import FLOAT, INT, LARGEST_INT
from cupy_flash._src.expressions.ranges import ANYTHING, Range, ranges
from cupy_flash._src.expressions.tracing import MASK, SCORE, Argument, trace

INF, NAN = np.inf, np.nan
FLOAT64, INT64 = np.dtype(np.float64), np.dtype(np.int64)


def check_hold(node, found, value):
    """A range holds all of the values; one of a float that may be NaN holds everything."""
    low, high = (float(bound) for bound in found)
    value = np.asarray(value, np.float64)
    if np.isnan(value).any():
        assert (low, high) == (-INF, INF), f"{node}: NaN in {low} to {high}"
    assert not np.any((value < low) | (value > high)), f"{node}: {np.min(value)} to {np.max(value)} in {low} to {high}"


# --- intervals ---


@given(scores(), st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, 4)) for n in EXTENTS)), st.integers(0, 99))
@example("(i * 0.5) % (s - 2.0) + np.clip(s, -1.5, 2) // 0.3", ((0, 1), (0, 1), (0, 4), (0, 1)), 0)
def test_values_lie_in_their_ranges(text, box, seed):
    graph, captured = graph_or_reject(text, SCORE), arrays(seed)
    positions = {name: POSITIONS[name].take(np.arange(first, min(first + n, size)), "bhij".index(name))
                 for name, size, (first, n) in zip("bhij", EXTENTS, box, strict=True)}  # fmt: skip
    s = np.random.default_rng(seed).uniform(-2, 3, EXTENTS)[tuple(slice(first, first + n) for first, n in box)]
    symbols = {name: Range(float(x.min()), float(x.max())) for name, x in {**positions, "s": s}.items()}
    symbols["s"] = Range(-2.0, 3.0)

    def of(node, indices):
        x = captured[node.value]
        rounded = x.astype(np.float32)
        return Range(float(min(x.min(), rounded.min())), float(max(x.max(), rounded.max())))

    found = ranges(graph, np, symbols, {}, of)
    for dtype in (np.float32, np.float64):
        values = all_values_of(graph, captured, {**positions, "s": s.astype(dtype)}, dtype)
        for node, interval, value in zip(graph.nodes, found, values, strict=True):
            if node.type != FLOAT or node.op not in ("element", "symbol"):
                check_hold(node, interval, value)


# Values of an argument, and of which ranges they are the ends.
FLOATS = [-INF, -1e39, -3.5, -1.0, -0.1, -1e-40, 0.0, 1e-40, 0.1, 0.3, 1.0, 2.5, 16777217.0, 1e39, INF]
INTS = [-(2**63) + 1, -(2**53) - 1, -(2**31), -7, -3, -1, 0, 1, 2, 5, 2**31 - 1, 2**53 + 1, 2**63 - 1]
UNARY = ["negative", "absolute", "sign", "floor", "exp", "exp2", "log", "log2", "log1p", "tanh", "sqrt", "sin", "cos"]
BINARY = ["add", "subtract", "multiply", "divide", "floor_divide", "remainder", "minimum", "maximum", "power"]
COMPARED = ["less", "less_equal", "equal", "not_equal"]
BITS = ["bitwise_and", "bitwise_or", "bitwise_xor", "invert"]


def computed(op, type, *values):
    """An operation of values, as kernels of floats of 32 bits and of 64 have it."""
    builder = Builder()
    names = "xyz"[: len(values)]
    nodes = [builder.symbol(name, type) for name in names]
    root = builder.convert(nodes[0], op) if op in (INT, FLOAT) else builder.apply(op, *nodes)
    graph = builder.graph(root)
    for dtype in (np.float32, np.float64):
        of = dtype if type == FLOAT else np.int64
        with np.errstate(all="ignore"):
            symbols = {name: np.asarray(x).astype(of) for name, x in zip(names, values, strict=True)}
        yield graph, values_of(graph, [], symbols, dtype)[0]


@pytest.mark.parametrize("op", [*UNARY, *BINARY, *COMPARED, *BITS, "isfinite", "int", "float"])
@pytest.mark.parametrize("type", [FLOAT, INT])
def test_each_operation_keeps_its_values_in_range(op, type):
    """Of ranges between two of some values, and the values between these."""
    x = np.array(INTS if type == INT or op in BITS else FLOATS)
    takes_two = op in BINARY + COMPARED + BITS[:3]
    spans = [slice(a, b + 1) for a in range(len(x)) for b in range(a, len(x)) if b - a in (0, 1, 3, len(x) - 1)]
    type = FLOAT if x.dtype.kind == "f" else INT
    found = list(computed(op, type, x[:, None], x) if takes_two else computed(op, type, x))
    graph = found[0][0]
    with np.errstate(over="ignore"):
        as_rounded = np.stack([x.astype(np.float64), x.astype(np.float32 if type == FLOAT else np.float64)])
    lows, highs = (np.array([end(as_rounded[:, span]) for span in spans]) for end in (np.min, np.max))
    symbols = {"x": Range(lows[:, None], highs[:, None]), "y": Range(lows, highs)}
    low, high = ranges(graph, np, symbols, {}, None)[graph.roots[0]]
    shape = (len(spans), len(spans)) if takes_two else (len(spans), 1)
    low, high = (np.broadcast_to(bound, shape) for bound in (low, high))
    for _, value in found:
        value = np.asarray(value, np.float64).reshape(len(x), -1)
        for at in np.ndindex(shape):
            part = value[spans[at[0]], spans[at[1]] if takes_two else slice(None)]
            check_hold((op, *at), (low[at], high[at]), part)


@pytest.mark.parametrize(
    "function, box, expected",
    [
        (lambda i, j: i - j, ((4, 7), (0, 2)), (2, 7)),
        (lambda i, j: i * i, ((0, 3), (0, 0)), (0, 9)),
        (lambda i, j: (i - j) ** 2, ((0, 1), (3, 5)), (4, 25)),
        (lambda i, j: i % 8, ((9, 14), (0, 0)), (1, 6)),
        (lambda i, j: i % 8, ((9, 17), (0, 0)), (0, 7)),
        (lambda i, j: i // 8, ((9, 17), (0, 0)), (1, 2)),
        (lambda i, j: -i // 4 % 3, ((5, 8), (0, 0)), (1, 1)),
        (lambda i, j: i // (j - 1), ((5, 8), (0, 3)), (-8, 8)),
        (lambda i, j: abs(i - j), ((0, 3), (2, 9)), (0, 9)),
        (lambda i, j: np.clip(i - j, -2, 2), ((0, 9), (1, 1)), (-1, 2)),
        (lambda i, j: np.where(i > j, i, -j), ((5, 9), (1, 4)), (5, 9)),
        (lambda i, j: np.where(i > j, i, -j), ((0, 9), (1, 4)), (-4, 9)),
        (lambda i, j: (i & 5) + (i | j) + (i ^ j), ((0, 3), (0, 4)), (0, 17)),
        (lambda i, j: ~i, ((0, 3), (0, 0)), (-4, -1)),
        (lambda i, j: (i * 0.5).astype(int), ((3, 6), (0, 0)), (1, 3)),
        (lambda i, j: np.floor(i * 1.0), ((3, 2**24), (0, 0)), (3, 2**24)),
        (lambda i, j: np.minimum(np.exp2(i) + 0.5, 2) * 0 + i, ((3, 6), (0, 0)), None),
        (lambda i, j: i > j, ((3, 6), (0, 2)), (1, 1)),
        (lambda i, j: (i > j) | (i == j), ((3, 6), (7, 8)), (0, 0)),
        (lambda i, j: (i <= j) & (i != 9), ((3, 6), (6, 8)), (1, 1)),
        (lambda i, j: (i <= j) ^ (i < 9), ((3, 6), (6, 8)), (0, 0)),
        (lambda i, j: (i == 3) ^ (j == 6), ((3, 3), (6, 7)), (0, 1)),
        (lambda i, j: np.isfinite(i * 1.5), ((3, 3), (6, 7)), (1, 1)),
        (lambda i, j: np.where(i < 2, i < 3, j < 5), ((3, 6), (6, 7)), (0, 0)),
    ],
)
def test_ranges_are_no_wider_than_they_need_to_be(function, box, expected):
    """Of what masks are made of they are exact, or as near as a rule for each operation comes."""
    seen = []
    trace(MASK, lambda b, h, i, j: (seen.append(function(i, j)), i > j)[1], ())
    builder, root = seen[0]._builder, seen[0]._node
    graph = builder.graph(root)
    symbols = {name: Range(*map(float, ends)) for name, ends in zip("ij", box, strict=True)}
    low, high = ranges(graph, np, symbols, {}, None)[graph.roots[0]]
    if expected is None:
        expected = box[0][0], box[0][1]
        assert low <= expected[0] and high >= expected[1] and high - low < expected[1] - expected[0] + 1e-4
    else:
        assert (float(low), float(high)) == expected


def test_what_is_not_known_is_anything():
    builder = Builder()
    x, y = builder.symbol("x", FLOAT), builder.symbol("y", INT)
    results = [builder.apply("less_equal", x, builder.constant(INF)), builder.apply("equal", x, x)]
    results += [builder.apply("less", y, builder.constant(3)), builder.convert(x, INT), builder.constant(NAN)]
    graph = builder.graph(*results)
    found = ranges(graph, np, {}, {}, None)
    bounds = [tuple(map(float, found[n])) for n in graph.roots]
    assert bounds == [(0, 1), (0, 1), (0, 1), (-LARGEST_INT, LARGEST_INT), (-INF, INF)]


def test_constants_and_scalars_are_as_kernels_round_them():
    """0.1 + 0.2 and 0.3 are one float of 32 bits: they may be equal, and may not."""
    builder = Builder()
    total, third = builder.constant(0.1 + 0.2), builder.scalar(0, FLOAT)
    graph = builder.graph(builder.apply("equal", total, third))
    assert ranges(graph, np, {}, {0: Range(0.3, 0.3)}, None)[graph.roots[0]] == (0, 1)
    builder = Builder()
    graph = builder.graph(builder.apply("equal", builder.constant(0.5), builder.scalar(0, FLOAT)))
    assert ranges(graph, np, {}, {0: Range(0.5, 0.5)}, None)[graph.roots[0]] == (1, 1)


# --- indices ---


def of_extents(extents):
    return {name: Range(0.0, size - 1.0) for name, size in zip("bhij", extents, strict=True)}


CAPTIVES = {n: Captive(name, of.dtype, of.shape) for n, (name, of) in enumerate(zip(NAMES, ARGUMENTS, strict=True))}


@given(texts("I"), st.integers(0, 99))
def test_indices_lie_where_it_is_said(text, seed):
    graph_or_reject(text, SCORE)
    try:
        found = traced(f"ids[{text}] > 0", MASK)
    except IndexError:  # of a constant
        return
    graph, captured = found.graph, arrays(seed)
    *_, n = graph.find("element")
    index = values_of(graph._replace(roots=graph.nodes[n].args), captured)[0]
    try:
        *_, (state,) = states(graph, found.lookups, of_extents(EXTENTS), {}, CAPTIVES)
    except IndexError:
        assert np.any((index < -9) | (index >= 9))
    else:
        assert np.all((index >= 0) & (index < 9)) or state != INSIDE
        assert np.all((index >= -9) & (index < 9)) or state == GUARDED


LINE = Argument(FLOAT64, (8,))


def states_of(function, **scalars):
    given = (LINE, *(Argument(INT64, None) for _ in scalars))
    found = trace(SCORE, function, given)
    known = dict(enumerate(scalars.values(), 1))
    return found, states(found.graph, found.lookups, of_extents((1, 1, 8, 8)), known, {0: Captive("x", FLOAT64, (8,))})


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda s, b, h, i, j, x: x[i], INSIDE),
        (lambda s, b, h, i, j, x: x[-i], WRAPS),
        (lambda s, b, h, i, j, x: x[i - 8], WRAPS),
        (lambda s, b, h, i, j, x: x[i - j], WRAPS),
        (lambda s, b, h, i, j, x: x[i - j - 2], GUARDED),
        (lambda s, b, h, i, j, x: x[i * j], GUARDED),
        (lambda s, b, h, i, j, x: x[np.clip(i * j, 0, 7)], INSIDE),
        (lambda s, b, h, i, j, x: x[i * j % 8], INSIDE),
        (lambda s, b, h, i, j, x: x[-1], INSIDE),
    ],
)
def test_where_an_index_may_lie(function, expected):
    assert states_of(function)[1] == ((expected,),)


@pytest.mark.parametrize(
    "function, text",
    [
        (lambda s, b, h, i, j, x: x[i + 1], "the index i + 1 of x[i + 1] goes from 1 to 8; axis 0 of x has 8 elements"),
        (lambda s, b, h, i, j, x: x[2 * i - 4], "goes from -4 to 10"),
        (lambda s, b, h, i, j, x: x[-j - 2], "goes from -9 to -2"),
        (lambda s, b, h, i, j, x: x[i * j + 8], "goes from 8 to 57"),
        (lambda s, b, h, i, j, x: x[-i * j - 9], "goes from -58 to -9"),
        (lambda s, b, h, i, j, x: x[s.astype(int)], "goes from -2147483647 to 2147483647"),
    ],
)
def test_an_index_that_surely_leaves_is_refused(function, text):
    with pytest.raises(IndexError) as found:
        states_of(function)
    assert text in str(found.value)
    assert str(found.value).startswith(f"score_mod <lambda> ({__file__}, line {function.__code__.co_firstlineno}): ")


def test_scalars_tell_where_indices_lie():
    function = lambda s, b, h, i, j, x, n: x[i * j % n]  # noqa: E731
    assert states_of(function, n=8.0)[1] == ((INSIDE,),)
    assert states_of(function, n=9.0)[1] == ((GUARDED,),)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
def test_ints_of_a_dtype_lie_in_its_range(dtype):
    low, high = ints_of(np.dtype(dtype))
    if dtype is np.int64:
        assert (low, high) == ANYTHING
    else:
        ends = (0, 1) if dtype is bool else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        assert (low, high) == ends


@pytest.mark.parametrize(
    "function",
    [
        lambda s, b, h, i, j, x: s + x[i * j],
        lambda s, b, h, i, j, x: np.where(i > 3, x[i * j - 9], x[j * j]),
        lambda s, b, h, i, j, x: np.where(x[i * j] > 0, s, 1.0),
        lambda s, b, h, i, j, x: np.where((i * j < 8) & (i * j >= -8), x[i * j], 0.0) + x[i],
    ],
)
def test_outside_is_where_a_chosen_element_is_missing(function):
    found, known = states_of(function)
    i, j = np.ogrid[:8, :8]
    x = np.arange(8.0) - 4
    symbols = {"s": 0.0, "b": 0, "h": 0, "i": i, "j": j}
    (left,) = values_of(outside(found.graph, known), [x], symbols)
    for at in np.ndindex(8, 8):
        missing = chosen_outside(found.graph, x, {**symbols, "i": np.int64(at[0]), "j": np.int64(at[1])})
        assert bool(np.broadcast_to(left, (8, 8))[at]) == missing


def chosen_outside(graph, x, symbols):
    """Whether an element that is missing is looked up, with Python's `if` for where."""
    values = all_values_of(graph, [x], symbols)

    def ask(n):
        node = graph.nodes[n]
        if node.op == "where":
            condition, first, second = node.args
            return ask(condition) or ask(first if values[condition] else second)
        missing = node.op == "element" and not -8 <= values[node.args[0]] < 8
        return missing or any(ask(arg) for arg in node.args)

    return ask(graph.roots[0])


def test_nothing_is_outside_where_all_is_inside():
    found, known = states_of(lambda s, b, h, i, j, x: x[i] + x[-j])
    assert outside(found.graph, known) is None


# --- blocks ---


@given(
    texts("B"), st.sampled_from([1, 2, 3, 4, 16]), st.sampled_from([1, 2, 3, 5, 16]), st.integers(0, 99), st.booleans()
)
@example("(grid[b, np.clip(i, 0, 4)] == grid[b, np.clip(j, 0, 4) - 5])", 2, 3, 0, False)
@example("(ids[i - j] > ids[-j])", 2, 2, 3, True)
def test_blocks_show_what_they_are_to(text, rows, columns, seed, sort):
    graph, captured = graph_or_reject(text, MASK), arrays(seed, sort)
    shares = classify(graph, np, EXTENTS, (rows, columns), captured)
    shares = np.broadcast_to(shares, (*EXTENTS[:2], *shares.shape[2:]))
    assert shares.shape[2:] == (-(-EXTENTS[2] // rows), -(-EXTENTS[3] // columns))
    for dtype in (np.float32, np.float64):
        seen = np.broadcast_to(values_of(graph, captured, dtype=dtype)[0], EXTENTS)
        for m, n in np.ndindex(shares.shape[2:]):
            tile = seen[:, :, m * rows : (m + 1) * rows, n * columns : (n + 1) * columns]
            share = shares[:, :, m, n]
            assert not np.any((share == NONE) & tile.any((2, 3)))
            assert not np.any((share == ALL) & ~tile.all((2, 3)))


def table(function, extents, block, *captured):
    arguments = tuple(Argument(x.dtype, x.shape) if hasattr(x, "dtype") else Argument(INT64, None) for x in captured)
    return classify(trace(MASK, function, arguments).graph, np, extents, block, captured)


def exact_table(function, extents, block, *captured):
    """The shares of what is seen."""
    positions = np.ogrid[tuple(slice(n) for n in extents)]
    seen = np.broadcast_to(function(*positions, *captured), extents)
    found = np.empty((*extents[:2], *(-(-n // size) for n, size in zip(extents[2:], block, strict=True))), np.uint8)
    for at in np.ndindex(found.shape):
        tile = seen[at[0], at[1], at[2] * block[0] :, at[3] * block[1] :][: block[0], : block[1]]
        found[at] = ALL if tile.all() else SOME if tile.any() else NONE
    return found


DOCUMENTS = np.repeat([[0, 1, 2, 3], [5, 5, 6, 9]], [40, 9, 30, 21], axis=1)


@pytest.mark.parametrize(
    "function, captured",
    [
        (lambda b, h, i, j: j <= i, ()),
        (lambda b, h, i, j, n: (i - n <= j) & (j <= i + 3), (20,)),
        (lambda b, h, i, j, n: (j <= i) | (j < n[b]), (np.array([33, 7]),)),
        (lambda b, h, i, j, x: x[b, i] == x[b, j], (DOCUMENTS,)),
        (lambda b, h, i, j, x: (x[b, i] == x[b, j]) & (j <= i), (DOCUMENTS,)),
        (lambda b, h, i, j, x: x[b, i - 100] == x[b, j], (DOCUMENTS,)),
        (lambda b, h, i, j: i // 25 == j // 25, ()),
        (lambda b, h, i, j, x: x[j], (np.arange(100) // 30 % 2 == 0,)),
        (lambda b, h, i, j: (h == 1) | (b == 0), ()),
    ],
)
@pytest.mark.parametrize("block", [(8, 8), (16, 25), (100, 7)])
def test_blocks_of_the_usual_masks_are_told_exactly(function, captured, block):
    extents = (2, 3, 100, 100)
    found = table(function, extents, block, *captured)
    np.testing.assert_array_equal(
        np.broadcast_to(found, (2, 3, *found.shape[2:])), exact_table(function, extents, block, *captured)
    )


def test_a_table_is_as_large_as_the_mask_needs():
    extents, block = (4, 8, 33, 65), (16, 16)
    for function, leading in [
        (lambda b, h, i, j: i > j, (1, 1)),
        (lambda b, h, i, j: i + b > j, (4, 1)),
        (lambda b, h, i, j: i > j * h, (1, 8)),
        (lambda b, h, i, j: i > j * h + b, (4, 8)),
    ]:
        found = table(function, extents, block)
        assert (found.shape, found.dtype) == ((*leading, 3, 5), np.uint8)
    assert table(lambda b, h, i, j: True, extents, block).tolist() == [[[[ALL] * 5] * 3]]
    assert table(lambda b, h, i, j: i > j, (1, 1, 0, 5), block).shape == (1, 1, 0, 1)


def test_large_ints_are_not_taken_for_equal():
    """Doubles do not tell ints beyond 2^53 apart: names of documents may be as large."""
    x = np.array([2**53, 2**53, 2**53 + 1, 2**53 + 1])
    found = table(lambda b, h, i, j, x: x[i] == x[j], (1, 1, 4, 4), (2, 2), x)
    assert found.tolist() == [[[[SOME, SOME], [SOME, SOME]]]]


def test_blocks_are_those_that_built_in_masks_skip():
    """What is hidden, seen and in between of causal and window, as functions, in blocks of the compiled CPU tier."""
    q = np.ones((1, 300, 4), np.float32)
    function = lambda b, h, i, j: (j <= i) & (i - 90 <= j)  # noqa: E731
    found = table(function, (1, 1, 300, 300), (64, 64))
    np.testing.assert_array_equal(found, exact_table(function, (1, 1, 300, 300), (64, 64)))
    out = flash_attention(q, q, q, mask_mod=function)
    np.testing.assert_allclose(out, flash_attention(q, q, q, causal=True, window=(90, 0)), rtol=1e-6)


class Strict:
    """NumPy, but for conditions that are numbers of Python, which CuPy does not take."""

    def __getattr__(self, name):
        return getattr(np, name)

    def where(self, condition, x, y):
        return np.where(condition.astype(bool), x, y)


def test_conditions_are_never_numbers_of_python():
    """CuPy refuses them: of positions that are numbers, and of captured bools."""

    def looked_up(b, h, i, j, ids, table, some):
        found = table[h, ids[b, j // 2] - b] // np.maximum(b, 1) > i - 200
        return np.where(some, found, j < 3) & (ids[b, i % 40] % np.maximum(h, 1) == 0)

    ids, table = np.arange(80).reshape(2, 40) % 7 + 1, np.arange(21).reshape(3, 7)
    arrays = (ids, table, True)
    traced = trace(MASK, looked_up, tuple(Argument(np.asarray(x).dtype, np.shape(x) or None) for x in arrays))
    symbols = {"b": 1, "h": 2, "i": np.arange(80)[:, None], "j": np.arange(80)}
    (expected,) = evaluate(traced.graph, np, np.dtype(np.float64), symbols, arrays)
    blocks = classify(traced.graph, np, (2, 3, 80, 80), (16, 16), arrays)
    (found,) = evaluate(traced.graph, Strict(), np.dtype(np.float64), symbols, arrays)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(classify(traced.graph, Strict(), (2, 3, 80, 80), (16, 16), arrays), blocks)
