"""Traced functions: their graphs, what these compute, their derivatives and their texts, and what is refused."""

import functools
import math
import re
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from functions import (
    ARGUMENTS,
    EXTENTS,
    NAMES,
    POSITIONS,
    all_values_of,
    arrays,
    called,
    graph_or_reject,
    scores,
    texts,
    values_of,
)
from hypothesis import example, given
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from cupy_flash import flash_attention
from cupy_flash._src.expressions import cxx, derivative, headers
from cupy_flash._src.expressions.cxx import Value, code
from cupy_flash._src.expressions.derivative import derivatives
from cupy_flash._src.expressions.graph import Builder
from cupy_flash._src.expressions.indices import GUARDED, INSIDE, WRAPS
from cupy_flash._src.expressions.operations import BOOL, FLOAT, INT, LARGEST_INT, OPERATIONS, compute, truncated
from cupy_flash._src.expressions.text import expressions, statements
from cupy_flash._src.expressions.tracing import MASK, SCORE, Argument, trace

FLOAT64, INT64 = np.dtype(np.float64), np.dtype(np.int64)
LINE = Argument(FLOAT64, (8,))
S = np.random.default_rng(1).standard_normal(EXTENTS)


def text_of(function, *arguments, kind=SCORE):
    """What a function is as text, its arguments x, y, z."""
    graph = trace(kind, function, arguments).graph
    return "; ".join(statements(graph, ["x", "y", "z"], ["f"])).removeprefix("f = ")


# --- what functions compute ---


@given(scores(), st.integers(0, 99))
def test_a_score_is_what_numpy_has(text, seed):
    symbols = {**POSITIONS, "s": S}
    (found,) = values_of(graph_or_reject(text), arrays(seed), symbols)
    expected = np.asarray(called(text, arrays(seed), symbols), np.float64)
    np.testing.assert_array_equal(np.broadcast_to(found, EXTENTS), np.broadcast_to(expected, EXTENTS))


@given(texts("B"), st.integers(0, 99))
def test_a_mask_is_what_numpy_has(text, seed):
    (found,) = values_of(graph_or_reject(text, MASK), arrays(seed))
    expected = called(text, arrays(seed), kind=MASK)
    assert np.asarray(expected).dtype == np.bool_
    np.testing.assert_array_equal(np.broadcast_to(found, EXTENTS), np.broadcast_to(expected, EXTENTS))


def in_place(s, b, h, i, j, *_):
    x = s
    x += 1
    x *= 2
    return x - s


@pytest.mark.parametrize(
    "function, expected",
    [
        (in_place, lambda s, i, j: s + 2),
        (lambda s, b, h, i, j, x: s**3 - x[0] ** -2, lambda s, i, j: s**3 - 1.0),
        (lambda s, b, h, i, j, x: np.power(abs(s), 0.5), lambda s, i, j: np.sqrt(abs(s))),
        (lambda s, b, h, i, j, x: s + (j**0 + i**5), lambda s, i, j: s + 1 + i**5),
        (lambda s, b, h, i, j, x: s**65.0, lambda s, i, j: s**65.0),
        (lambda s, b, h, i, j, x: s * np.divmod(i, 3)[1] + divmod(j, -2)[0], lambda s, i, j: s * (i % 3) + j // -2),
        (lambda s, b, h, i, j, x: np.float32(0.1) * s, lambda s, i, j: float(np.float32(0.1)) * s),
        (lambda s, b, h, i, j, x: bfloat16(1.5) * s, lambda s, i, j: 1.5 * s),
        (lambda s, b, h, i, j, x: np.array(2.0) - s + np.array(3)[()], lambda s, i, j: 5.0 - s),
        (lambda s, b, h, i, j, x: (s * 3).astype(int) + i, lambda s, i, j: np.trunc(s * 3) + i),
        (lambda s, b, h, i, j, x: (i > j).astype(np.int64) * s, lambda s, i, j: (i > j) * s),
        (lambda s, b, h, i, j, x: x[np.array(2)] + s, lambda s, i, j: 3.0 + s),
        (lambda s, b, h, i, j, x: s + x[-1] * x[np.int64(-8)] * len(x) * x.size, lambda s, i, j: s + 512.0),
        (lambda s, b, h, i, j, x: s * True + False, lambda s, i, j: s),
        (lambda s, b, h, i, j, x: np.clip(s, None, 0.5), lambda s, i, j: np.minimum(s, 0.5)),
        (lambda s, b, h, i, j, x: np.clip(i, 2, None) - s, lambda s, i, j: np.maximum(i, 2) - s),
        (lambda s, b, h, i, j, x: +s + np.square(i), lambda s, i, j: s + i * i),
        (lambda s, b, h, i, j, x: 7, lambda s, i, j: np.full_like(s, 7.0)),
    ],
)  # fmt: skip
def test_what_numpy_writes_otherwise(function, expected):
    x = np.arange(1.0, 9.0)
    graph = trace(SCORE, function, (LINE,)).graph
    i, j = np.ogrid[:4, :5]
    s = np.random.default_rng(0).standard_normal((4, 5))
    (found,) = values_of(graph, [x], {"s": s, "i": i, "j": j})
    np.testing.assert_allclose(np.broadcast_to(found, s.shape), expected(s, i, j), rtol=1e-14)


def test_arrays_are_indexed_as_numpy_does():
    x = np.arange(6.0).reshape(2, 3)
    of = Argument(FLOAT64, (2, 3))
    graph = trace(SCORE, lambda s, b, h, i, j, x: x[i][j] + 10 * x[-1, j - 3] + 100 * x[1][-3] + s, (of,)).graph
    i, j = np.ogrid[:2, :3]
    (found,) = values_of(graph, [x], {"s": 0.5, "i": i, "j": j})
    np.testing.assert_array_equal(found, x[i, j] + 10 * x[-1, j - 3] + 100 * x[1, -3] + 0.5)


def test_an_index_beyond_an_array_takes_the_nearest_end():
    graph = trace(SCORE, lambda s, b, h, i, j, x: x[i - 10], (LINE,)).graph
    (found,) = values_of(graph, [np.arange(8.0)], {"i": np.arange(20)})
    np.testing.assert_array_equal(found, [0, 0, *range(8), *range(8), 7, 7])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_float_becomes_the_nearest_int_of_32_bits(dtype):
    x = np.array([-np.inf, -3e9, -2.9, -0.0, 2.9, 2147483520, 2147483648, 3e9, np.inf, np.nan], dtype)
    expected = [-LARGEST_INT, -LARGEST_INT, -2, 0, 2, 2147483520, LARGEST_INT, LARGEST_INT, LARGEST_INT, 0]
    assert truncated(np, x).tolist() == expected
    assert [compute("int", np, FLOAT64, value) for value in x] == expected


def test_ints_divided_by_nothing_are_nothing():
    x = np.array([-5, 0, 5])
    assert compute("floor_divide", np, FLOAT64, x, np.int64(0)).tolist() == [0, 0, 0]
    assert compute("remainder", np, FLOAT64, x, np.array([0, 3, -3])).tolist() == [0, 0, -1]


# --- graphs ---


@pytest.mark.parametrize(
    "function, text",
    [
        (lambda s, b, h, i, j: s - 0 * i, "s"),
        (lambda s, b, h, i, j: (s - 0.0) * 1 / 1, "s"),
        (lambda s, b, h, i, j: s + 0.0, "s + 0.0"),
        (lambda s, b, h, i, j: 0.0 - s, "0.0 - s"),
        (lambda s, b, h, i, j: s * 0.0, "s * 0.0"),
        (lambda s, b, h, i, j: np.negative(-s) + np.minimum(i, i), "s + float(i)"),
        (lambda s, b, h, i, j: np.where(i > i, s, s), "s"),
        (lambda s, b, h, i, j: np.where(np.True_, s, i), "s"),
        (lambda s, b, h, i, j: s + np.where(np.False_, s, i), "s + float(i)"),
        (lambda s, b, h, i, j: s + ((i - i) * 5 + 7) * 0 + np.exp(0 * s.astype(int)), "1.0 + (s + 0.0)"),
        (lambda s, b, h, i, j: (s - -2) * (i - 3) ** 2, "x0 = i - 3; f = (s - (-2.0)) * float(x0 * x0)"),
        (lambda s, b, h, i, j: (-2.0) ** s - (-s) ** 0.5, "((-2.0) ** s) - ((-s) ** 0.5)"),
        (lambda s, b, h, i, j: s % 3 - np.where(i < j, s, -np.inf), "(s % 3.0) - where(i < j, s, -inf)"),
        (lambda s, b, h, i, j: (j + i) * (i + j) * s, "x0 = i + j; f = s * float(x0 * x0)"),
        (lambda s, b, h, i, j: np.minimum(j, i) * np.minimum(i, j) * s, "s * float(minimum(j, i) * minimum(i, j))"),
    ],
)  # fmt: skip
def test_constants_are_computed_and_what_is_equal_is_one(function, text):
    assert text_of(function) == text


@pytest.mark.parametrize(
    "function, text",
    [
        (lambda b, h, i, j: (i > j) & True | False, "j < i"),
        (lambda b, h, i, j: (i > j) & False, "False"),
        (lambda b, h, i, j: True | (i > j), "True"),
        (lambda b, h, i, j: (i > j) & ~(i > j), "False"),
        (lambda b, h, i, j: ~(i > j) | (i > j), "True"),
        (lambda b, h, i, j: (i > j) & (j < i) & ~~(i > j), "j < i"),
        (lambda b, h, i, j: (i & ~i) == 0, "(i & (~i)) == 0"),
        (lambda b, h, i, j: (i > j) ^ True, "(j < i) ^ True"),
        (lambda b, h, i, j: np.logical_not(i), "~(i != 0)"),
        (lambda b, h, i, j: (i > j) == (i < j), "int(j < i) == int(i < j)"),
    ],
)  # fmt: skip
def test_masks_are_simple(function, text):
    assert text_of(function, kind=MASK) == text


def test_only_what_a_root_is_made_of_is_left():
    builder = Builder()
    i, j = builder.symbol("i", INT), builder.symbol("j", INT)
    total, product = builder.apply("add", i, j), builder.apply("multiply", j, j)
    assert builder.graph(product).symbols == {"j"}
    graph = builder.graph(product, total)
    assert graph.root.op == "multiply"
    assert [graph.nodes[n].op for n in graph.roots] == ["multiply", "add"]
    assert graph.dependence()[graph.roots[1]] == {"i", "j"}
    assert Builder(graph).graph(*graph.roots) == graph


@pytest.mark.parametrize(
    "function, type",
    [
        (lambda s, b, h, i, j: i + (i > j), INT), (lambda s, b, h, i, j: i + 1.0, FLOAT),
        (lambda s, b, h, i, j: i / j, FLOAT), (lambda s, b, h, i, j: i // j, INT),
        (lambda s, b, h, i, j: i % 2.0, FLOAT), (lambda s, b, h, i, j: np.exp(i > j), FLOAT),
        (lambda s, b, h, i, j: i**2, INT), (lambda s, b, h, i, j: i**2.0, FLOAT),
        (lambda s, b, h, i, j: np.float64(2) ** i, FLOAT), (lambda s, b, h, i, j: i & (i > j), INT),
        (lambda s, b, h, i, j: np.where(i > j, i > j, i), INT), (lambda s, b, h, i, j: (i > j) * s, FLOAT),
        (lambda s, b, h, i, j: abs(i), INT), (lambda s, b, h, i, j: np.floor(s), FLOAT),
        (lambda s, b, h, i, j: np.sqrt(i), FLOAT), (lambda s, b, h, i, j: i == s, BOOL),
        (lambda s, b, h, i, j: (i > j) & (s > 0), BOOL), (lambda s, b, h, i, j: np.isfinite(i), BOOL),
    ],
)  # fmt: skip
def test_types_are_numpy_s(function, type):
    seen = []
    trace(SCORE, lambda s, *positions: (seen.append(function(s, *positions)), s)[1], ())
    (found,) = seen
    assert found._builder.type(found._node) == type
    i = np.arange(1, 4)
    kind = np.asarray(function(i * 0.5, i, i, i, i)).dtype.kind
    assert {"b": BOOL, "i": INT, "f": FLOAT}[kind] == type


# --- derivatives ---


def discrete(graph, values):
    """What tells pieces of a function apart on which it is smooth: comparisons, signs, whole parts."""
    found = []
    for node, value in zip(graph.nodes, values, strict=True):
        args = [values[arg] for arg in node.args]
        if node.type == BOOL or node.op in ("floor", "sign", "int", "floor_divide"):
            found.append(value)
        elif node.op in ("minimum", "maximum"):
            found.append(args[0] <= args[1])
        elif node.op == "absolute":
            found.append(np.sign(args[0]))
        elif node.op == "remainder":
            found.append(np.floor_divide(*args))
    return found


def check_slope(graph, captured):
    """The derivative is the central difference where the function is smooth; returns at which share of places."""
    builder, found = derivatives(graph, lambda n: graph.nodes[n].value == "s")
    (slope,) = values_of(builder.graph(*found.values() or [builder.constant(0.0)]), captured, {**POSITIONS, "s": S})
    step, long = np.longdouble(1e-7), np.longdouble
    ways = [all_values_of(graph, captured, {**POSITIONS, "s": S + n * step}, long) for n in (-2, -1, 0, 1, 2)]
    smooth = np.ones(EXTENTS, bool)
    with np.errstate(all="ignore"):
        rounded = all_values_of(graph, captured, {**POSITIONS, "s": S})  # as the derivative has them
        for values in ways:
            for value in values:
                smooth &= np.isfinite(value) & (abs(value) < 1e6)
        for one, *others in zip(*(discrete(graph, values) for values in (rounded, *ways)), strict=True):
            for other in others:
                smooth &= one == other
        lower, low, middle, high, higher = (values[graph.roots[0]] for values in ways)
        expected = np.broadcast_to((high - low) / (2 * step), EXTENTS)
        # Where one step is no small one, the second difference is large, or that over two steps is another.
        curved = np.maximum(abs(high - 2 * middle + low) / step, abs((higher - lower) / (4 * step) - expected))
        smooth &= (abs(slope) < 1e6) & (curved < 1e-3 * (1 + abs(expected)))
    slope = np.broadcast_to(slope, EXTENTS)
    np.testing.assert_allclose(slope[smooth], expected[smooth].astype(float), rtol=1e-3, atol=1e-3)
    return smooth.mean()


@given(scores(), st.integers(0, 99))
@example("np.where(s > 0.1, np.log(s), 0.0) + np.where(s > 0.2, np.sqrt(np.log(s)), s)", 0)
@example("np.minimum(s, np.where(i > j, s * s, 0.5)) * np.where(j > i, s, 2.0)", 0)
@example("np.cos((1 / s))", 0)
@example("(s % ((j - i) / 3 * s))", 0)
def test_derivatives_are_central_differences(text, seed):
    check_slope(graph_or_reject(text), arrays(seed))


SMOOTH = {
    "add": "s * i + table[h, 2] * s", "subtract": "2.0 - s", "multiply": "s * s * np.sin(s)",
    "divide": "(s + 0.5) / (s * s + 1)", "remainder": "(7.5 + s) % (s * s + 0.5)", "power": "(s * s + 0.5) ** (s + i)",
    "negative": "-s", "absolute": "abs(s - 0.1)", "exp": "np.exp(s * 0.5)", "exp2": "np.exp2(1 - s)",
    "log": "np.log(s * s + 0.5)", "log2": "np.log2(s * s + 0.5)", "log1p": "np.log1p(s * s)", "tanh": "np.tanh(s * 2)",
    "sqrt": "np.sqrt(s * s + 0.5)", "sin": "np.sin(s * 2)", "cos": "np.cos(s * 2)", "minimum": "np.minimum(s * s, s)",
    "maximum": "np.maximum(s * 3, 0.2 - s)", "where": "np.where(i > j, s * s, s) * np.where(s > 0, s, 2.0)",
}  # fmt: skip


@pytest.mark.parametrize("op", [*derivative._RULES, *derivative._CHOICES])
def test_each_operation_has_its_derivative(op):
    graph = graph_or_reject(SMOOTH[op])
    assert graph.find(op)
    assert check_slope(graph, arrays(0)) > 0.9


def slope_of(function, *arguments, wanted=lambda node: node.value == "s"):
    """d score / d s as text."""
    graph = trace(SCORE, function, arguments).graph
    builder, found = derivatives(graph, lambda n: wanted(graph.nodes[n]))
    return "; ".join(statements(builder.graph(*found.values()), ["x", "y"], [f"d{n}" for n in range(len(found))]))


@pytest.mark.parametrize(
    "function, text",
    [
        (lambda s, b, h, i, j: s + i, "d0 = 1.0"),
        (lambda s, b, h, i, j: 3 * s * 2 - s, "d0 = 5.0"),
        (lambda s, b, h, i, j: 7 * np.tanh(s / 7), "x0 = tanh(s / 7.0); d0 = 1.0 - (x0 * x0)"),
        (lambda s, b, h, i, j: np.where(i > j, s, 0.5), "d0 = where(j < i, 1.0, 0.0)"),
        (lambda s, b, h, i, j: np.where(i > j, 2 * s, 3 * s), "d0 = where(j < i, 2.0, 3.0)"),
        (lambda s, b, h, i, j: np.minimum(s, 2), "d0 = where(s <= 2.0, 1.0, 0.0)"),
        (lambda s, b, h, i, j: np.floor(s) + np.sign(s) + s // 2 + s.astype(int), ""),
        (lambda s, b, h, i, j: s * 0.0, ""),
    ],
)
def test_derivatives_are_simple(function, text):
    assert slope_of(function) == text


def test_what_is_not_chosen_has_no_derivative_were_it_infinite():
    functions = (
        lambda s, b, h, i, j: np.where(s > 0, np.log(s), 0),
        lambda s, b, h, i, j: np.where(s > 0, 1 / s, s) * np.where(s > 1, np.sqrt(s), 1.0),
        lambda s, b, h, i, j: np.where(s > 1, np.log(s) ** 2, 0) + np.where(s > 2, np.sqrt(np.log(s)), 0),
    )
    for function, expected in zip(functions, (0.0, 1.0, 0.0), strict=True):
        graph = trace(SCORE, function, ()).graph
        builder, found = derivatives(graph, lambda n, graph=graph: graph.nodes[n].value == "s")
        assert values_of(builder.graph(*found.values()), [], {"s": np.zeros(1)})[0].tolist() == [expected]


def test_derivatives_grow_as_the_function_does():
    def gates(s, b, h, i, j):
        for n in range(40):
            s = s * np.where(i > j + n, 0.5 + h, 0.25 + h)
            s = np.where(j > n, np.minimum(s, n + 1.0), s * s)
        return s

    graph = trace(SCORE, gates, ()).graph
    builder, found = derivatives(graph, lambda n: graph.nodes[n].value == "s")
    assert len(builder.graph(*found.values()).nodes) < 5 * len(graph.nodes)


def test_captured_arrays_have_derivatives_too():
    function = lambda s, b, h, i, j, x, y: s * x[h] + np.exp(y[i]) * x[0]  # noqa: E731
    text = slope_of(function, LINE, LINE, wanted=lambda node: node.op == "element")
    assert text == "x0 = exp(y[i]); d0 = x0; d1 = x0 * x[0]; d2 = s"


# --- texts ---


PYTHON = {name: getattr(np, name) for name in OPERATIONS if hasattr(np, name)} | {
    "int": functools.partial(compute, "int", np, FLOAT64),
    "float": functools.partial(compute, "float", np, FLOAT64),
    "nan": math.nan,
    "inf": math.inf,
}


@given(scores(), st.integers(0, 99))
@example("(np.float64(-2.0) ** s) * -(s ** 2) - -np.float64(3.0)", 0)
def test_statements_compute_what_they_say(text, seed):
    graph = graph_or_reject(text)
    names = PYTHON | POSITIONS | {"s": S} | dict(zip(NAMES, arrays(seed), strict=True))
    with np.errstate(all="ignore"):
        exec("\n".join(statements(graph, NAMES, ["result"])), names)
    (expected,) = values_of(graph, arrays(seed), {**POSITIONS, "s": S})
    np.testing.assert_array_equal(*np.broadcast_arrays(np.asarray(names["result"], float), expected))


def test_each_node_has_a_text():
    arguments = Argument(INT64, (2, 3)), Argument(FLOAT64, None)
    graph = trace(SCORE, lambda s, b, h, i, j, x, y: s * y + x[i - 1, -1], arguments).graph
    found = expressions(graph, ["table", "slope"])
    assert found[graph.roots[0]] == "(s * slope) + float(table[i - 1, 2])"
    assert {"s", "i", "1", "i - 1", "table[i - 1, 2]", "slope"} < set(found)


CXX = re.compile(r"<[^<>]*>")
VALUES = tuple(Value(name, of.dtype, ndim=len(of.shape)) for name, of in zip(NAMES, ARGUMENTS, strict=True))


class Names(types.SimpleNamespace):
    """np:: of C++, as far as texts call it."""

    def __init__(self):
        super().__init__(**{op: functools.partial(compute, op, np, FLOAT64) for op in OPERATIONS})

    def __getattr__(self, name):
        given, to, made = name.partition("_to_")
        assert to and given in (BOOL, INT, FLOAT), name
        return functools.partial(compute, made, np, FLOAT64)

    nan, infinite = (staticmethod(lambda x=x: x) for x in (math.nan, math.inf))

    @staticmethod
    def square(x):
        return x * x

    @staticmethod
    def wide(x):
        return x

    @staticmethod
    def narrow(x):
        assert np.all(abs(x) < 2**31)
        return x

    @staticmethod
    def wrapped(x, size):
        assert np.all((x >= -size) & (x < size))
        return np.where(x < 0, x + size, x)

    @staticmethod
    def element(array, *indices):
        assert all(np.all((index >= 0) & (index < size)) for index, size in zip(indices, array.sizes, strict=True))
        return array.data[indices]


def run(lines, names):
    """C++ as Python, which it is but for types and literals."""
    for line in lines:
        name, expression = re.fullmatch(r"const auto (\w+) = (.*);", line).groups()
        expression = CXX.sub("", expression).replace("::", ".")
        expression = re.sub(r"-?0x[0-9a-f.]+p[+-]\d+", lambda m: repr(float.fromhex(m[0])), expression)
        names[name] = eval(re.sub(r"(\d)ll\b", r"\1", expression), names)


@given(scores(), st.integers(0, 99))
@example("s + (i * 300000000 + j) // 7 + ((h << 30) * 5 - 2147483648)", 0)
@example("((i * 0.5) ** 2) * ((j << 20) ** 2)", 0)
def test_kernels_have_the_same_expressions(text, seed):
    graph = graph_or_reject(text)
    symbols = {**POSITIONS, "s": S}
    printed = code(graph, VALUES, {n: (WRAPS,) * len(graph.nodes[n].args) for n in graph.find("element")}, [(0,)])
    params = {name: types.SimpleNamespace(data=x, sizes=x.shape) for name, x in zip(NAMES, arrays(seed), strict=True)}
    names = symbols | {"np": Names(), "params": types.SimpleNamespace(**params), "true": np.True_, "false": np.False_}
    names |= {"Int": np.int64, "Wide": np.int64, "Float": np.float64, "Bool": np.bool_}
    ((body, (result,)),) = printed.bodies
    with np.errstate(all="ignore"):
        run(printed.row, names)
        run([*body, f"const auto result = {result};"], names)
    (expected,) = values_of(graph, arrays(seed), symbols)
    np.testing.assert_array_equal(*np.broadcast_arrays(names["result"], expected))
    # What depends on the query alone is computed once for it; ints of 32 bits hold their values.
    assert not any(re.search(r"\b[sj]\b", line) for line in printed.row)
    assert {name for _, name in printed.members} <= {line.split()[2] for line in printed.row}
    types_of = cxx._types(graph, VALUES)
    for type, value in zip(types_of, all_values_of(graph, arrays(seed), symbols), strict=True):
        assert type != "Int" or np.all(abs(np.asarray(value)) < 2**31)


def test_what_is_known_of_an_index_is_printed():
    graph = trace(SCORE, lambda s, b, h, i, j, x: x[i, j, h] * s, (Argument(np.dtype(np.float16), (2, 3, 4)),)).graph
    (n,) = graph.find("element")
    values = [Value("x", np.dtype(np.float16), ndim=3)]
    ((body, _),) = code(graph, values, {n: (INSIDE, WRAPS, GUARDED)}, [(0,)]).bodies
    of = "np::element<Float, Float16>(params.x, i, np::wrapped(j, params.x.sizes[1]), np::held(h, params.x.sizes[2]))"
    assert of in body[0]
    ((body, _),) = code(graph, values, {n: (INSIDE,) * 3}, [(0,)], {"element": "element_range"}).bodies
    assert "np::element_range<Float, Float16>(params.x, i, j, h)" in body[0]


def test_ints_are_wide_where_they_may_need_it():
    graph = trace(MASK, lambda b, h, i, j, n: (i * j > n) & (i * 3 - 2 * j < 5), (Argument(INT64, None),)).graph
    lines = code(graph, [Value("n", INT64)], {}, [(0,)]).bodies[0][0]
    assert any("np::less(" in line and "np::multiply(np::wide(i), np::wide(j))" in "".join(lines) for line in lines)
    assert not any("wide" in line for line in lines if "subtract" in line)
    small = code(graph, [Value("n", INT64, is_small=True)], {}, [(0,)])
    assert "Int(params.n)" in "".join(small.row) and "Wide(params.n)" not in "".join(small.row)


# --- structs and functions of kernels ---


def test_structs_hold_what_functions_capture():
    values = [Value("a", np.dtype(np.float16), ndim=2), Value("b", np.dtype(np.int8), ndim=0)]
    values += [Value("c", INT64, is_small=True), Value("d", INT64), Value("e", FLOAT64), Value("f", np.dtype(bool))]
    assert headers.params("P", values, "float32", "  int more;\n") == (
        "struct P_a {\n  void* data;\n  int sizes[2];\n  int64_t strides[2];\n"
        "  void* gradient;\n  void* exponent;\n};\n"
        "struct P_b {\n  void* data;\n  int sizes[1];\n  int64_t strides[1];\n  void* summary;\n"
        "  int summary_axis, chunks;\n};\n"
        "struct P {\n  P_a a;\n  P_b b;\n  int c;\n  int64_t d;\n  float e;\n  int f;\n  int more;\n};\n"
    )
    assert "  double e;\n" in headers.params("P", values, "float64")
    assert headers.params("P", [], "float32") == "struct P {};\n"


def test_keys_are_held_where_arrays_are_looked_up_by_them():
    graph = trace(MASK, lambda b, h, i, j, x: x[j] > x[i], (LINE,)).graph
    printed = code(graph, [Value("x", FLOAT64, ndim=1)], dict.fromkeys(graph.find("element"), (INSIDE,)), [(0,)])
    held, free = (headers.mask(printed, printed, clamps) for clamps in (True, False))
    assert "shows(mask.params, min(columns(column), mask.shape.seqlen_k - 1))" in held
    assert "shows(mask.params, columns(column))" in free
    assert "      x1 = np::element<" in held or re.search(r"^ +x\d+ = np::element<", held, re.M)  # a member
    ((_, (result,)),) = printed.bodies
    assert f"return {result};" in held and f"Bool shown = {result};" in held


# --- what is traced, and when again ---


WIDTH = 3


def test_a_trace_is_found_again():
    def shown(b, h, i, j):
        return j <= i + WIDTH

    first = trace(MASK, shown, ())
    assert trace(MASK, shown, ()) is first
    assert trace(MASK, functools.partial(shown), ()) == first
    assert trace(SCORE, lambda s, *at: s + shown(*at), ()) != first


@pytest.mark.parametrize(
    "make",
    [
        lambda n: lambda b, h, i, j: j <= i + n,
        lambda n: lambda b, h, i, j, n=n: j <= i + n,
        lambda n: lambda b, h, i, j, *, n=n: j <= i + n,
        lambda n: functools.partial(lambda n, b, h, i, j: j <= i + n, n),
        lambda n: functools.partial(lambda b, h, i, j, n: j <= i + n, n=n),
        lambda n: (lambda inner: lambda b, h, i, j: j <= inner(i))(lambda i: i + n),
        lambda n: (lambda pair: lambda b, h, i, j: j <= i + pair[1])((0, n)),
        lambda n: lambda b, h, i, j: j <= i + (lambda: n)(),
        lambda n: lambda b, h, i, j: np.minimum(j, n) <= i + np.float32(n),
    ],
)
def test_a_changed_value_is_a_new_trace(make):
    once, again, other, real = (trace(MASK, make(n), ()) for n in (1, 1, 2, 1.0))
    assert once is again
    assert len({x.graph for x in (once, other, real)}) == 3


def test_what_may_change_unseen_is_traced_anew(monkeypatch):
    module = types.ModuleType("configuration")
    monkeypatch.setitem(sys.modules, "configuration", module)
    width, whole, box = {"n": 0}, np.array(0), types.SimpleNamespace(n=0)

    class Window:
        n = 0

        def __call__(self, b, h, i, j):
            return j <= i + self.n

        def shows(self, b, h, i, j):
            return self(b, h, i, j)

    window = Window()

    def attribute(b, h, i, j):
        return j <= i + attribute.n

    def imported(b, h, i, j):
        import configuration

        return j <= i + configuration.n

    functions = [
        lambda b, h, i, j: j <= i + width["n"],
        lambda b, h, i, j: j <= i + whole,
        lambda b, h, i, j: j <= i + box.n,
        lambda b, h, i, j: j <= i + module.n,
        lambda b, h, i, j: j <= i + Window.n,
        lambda b, h, i, j: j <= i + WIDTH,
        window,
        window.shows,
        attribute,
        imported,
    ]
    graphs = []
    for n in (1, 2, 1):
        width["n"] = box.n = module.n = Window.n = attribute.n = n
        whole[()] = n
        monkeypatch.setitem(globals(), "WIDTH", n)
        graphs.append([trace(MASK, function, ()).graph for function in functions])
    first, second, third = graphs
    assert first == third
    assert not any(x == y for x, y in zip(first, second, strict=True))
    assert len(set(first)) == 1


def test_functions_that_read_different_names_are_told_apart():
    """Where one name has a value and another has none, the other way round is something else."""
    graphs = set()
    for name in ("left", "right"):
        known = {name: 5}
        exec("def f(b, h, i, j):\n  try: return j <= i + left\n  except NameError: return j <= i - right", known)
        graphs.add(trace(MASK, known["f"], ()).graph)
    assert len(graphs) == 2


def test_functions_that_are_alike_keep_their_names():
    traces = set()
    for filename, name in (("one.py", "f"), ("other.py", "f"), ("other.py", "g")):
        known = {}
        exec(compile("f = lambda b, h, i, j: i > j", filename, "exec"), known)
        known["f"].__qualname__ = name
        found = trace(MASK, known["f"], ())
        assert found.name == f"mask_mod {name} ({filename}, line 1)"
        traces.add(found.graph)
    assert len(traces) == 1


def test_functions_may_call_themselves_and_one_another():
    def even(i, n):
        return i == 0 if n == 0 else odd(i - 1, n - 1)

    def odd(i, n):
        return i == 1 if n == 0 else even(i - 1, n - 1)

    def shown(b, h, i, j):
        return even(i, 2) | odd(j, 3)

    assert trace(MASK, shown, ()) is trace(MASK, shown, ())


def test_a_value_that_is_not_there_yet_is_no_obstacle():
    def make():
        shown = lambda b, h, i, j: j <= i + later  # noqa: E731
        with pytest.raises(NameError, match="later"):
            trace(MASK, shown, ())
        later = 5
        return shown

    assert text_of(make(), kind=MASK) == "j <= (i + 5)"


def test_dtypes_and_shapes_are_new_traces_and_values_are_not():
    def scaled(s, b, h, i, j, x):
        return s * x

    arguments = [Argument(FLOAT64, None), Argument(INT64, None), Argument(np.dtype(np.float32), ())]
    assert len({trace(SCORE, scaled, (of,)) for of in arguments}) == 3
    sized = lambda s, b, h, i, j, x: s + x[0] * len(x)  # noqa: E731
    assert trace(SCORE, sized, (LINE,)).graph != trace(SCORE, sized, (Argument(FLOAT64, (9,)),)).graph


def test_threads_may_trace_at_once():
    def make(n):
        return lambda b, h, i, j: j <= i + n

    def traced_from(start):  # more than are kept
        return [trace(MASK, make(n), ()) for n in range(start, start + 1100)]

    with ThreadPoolExecutor(4) as pool:
        for found, start in zip(pool.map(traced_from, (1, 301, 601, 901)), (1, 301, 601, 901), strict=True):
            for n, x in enumerate(found, start):
                assert [node.value for node in x.graph.nodes if node.op == "constant"] == [n]


# --- what is refused ---


def branch(s, b, h, i, j):
    if i > j:
        return s
    return s * 2


def chained(b, h, i, j):
    return 0 <= i - j < 5


def both(b, h, i, j):
    return i > j and j > 0


def float_index(s, b, h, i, j, x):
    return s + x[i / 2]


def two_lines(s, b, h, i, j, x):
    y = s * 2
    return y + x[i + 1] + x[i]


def helped(s, b, h, i, j, x):
    return s + two_lines(s, b, h, i, j, x[0.5])


def nothing(s, b, h, i, j):
    s + 1


def few(s, b, h, i):
    return s


def takes(s, b, h, i, j, x):
    return s + x[i]


@pytest.mark.parametrize(
    "kind, function, arguments, line, error, message",
    [
        (SCORE, branch, (), 1, TypeError, "`if`.* np.where, &"),
        (MASK, chained, (), 1, TypeError, "chained comparisons.* np.where, &"),
        (MASK, both, (), 1, TypeError, "`and`.* np.where, &"),
        (SCORE, lambda s, *_: s or 1, (), 0, TypeError, "`or`"),
        (SCORE, lambda s, *_: s if bool(s) else 0, (), 0, TypeError, "np.where"),
        (SCORE, lambda s, *_: max(s, 0), (), 0, TypeError, "np.maximum"),
        (SCORE, lambda s, *_: math.exp(s), (), 0, TypeError, "NumPy's functions"),
        (SCORE, lambda s, *_: int(s), (), 0, TypeError, "astype"),
        (SCORE, lambda s, *_: np.arange(8)[_[0]], (), 0, TypeError, "score_args"),
        (SCORE, lambda s, *_: s + np.arange(8), (), 0, TypeError, "a ndarray meets"),
        (SCORE, lambda s, *_: s + 1j, (), 0, TypeError, "a complex meets"),
        (SCORE, lambda s, *_: s + np.complex64(1), (), 0, TypeError, "dtype complex64"),
        (SCORE, lambda s, *_: s + None, (), 0, TypeError, "NoneType"),
        (SCORE, lambda s, *_: np.sinh(s), (), 0, TypeError, "np.sinh is not among .* absolute, .* where"),
        (SCORE, lambda s, *_: np.sum(s), (), 0, TypeError, "np.sum is not among"),
        (SCORE, lambda s, *_: np.maximum.reduce(s), (), 0, TypeError, "np.maximum has options, or is reduced"),
        (SCORE, lambda s, *_: np.exp(s, where=s > 0), (), 0, TypeError, "np.exp has options"),
        (SCORE, lambda s, *_: np.add(1, s, out=s), (), 0, TypeError, "np.add has options"),
        (SCORE, lambda s, *_: s[0], (), 0, TypeError, "a number is indexed"),
        (SCORE, lambda s, *_: s.astype(np.int8), (), 0, TypeError, "astype of int8"),
        (SCORE, lambda s, *_: s.astype("V4"), (), 0, TypeError, "astype of void32"),
        (SCORE, lambda s, *_: s << 1, (), 0, TypeError, "a shift of a float"),
        (SCORE, lambda s, *_: s + (1 << _[2]), (), 0, TypeError, "constant number of bits"),
        (SCORE, lambda s, *_: s + 2 ** _[1], (), 0, TypeError, "a power of ints"),
        (SCORE, lambda s, *_: s + _[1] ** -1, (), 0, TypeError, "a power of ints"),
        (SCORE, lambda s, *_: s + -(s > 0), (), 0, TypeError, "negative of bools"),
        (SCORE, lambda s, *_: s & 1, (), 0, TypeError, "bitwise_and of a float"),
        (SCORE, lambda s, *_: s + _[2] * 2**63, (), 0, ValueError, "is too large"),
        (SCORE, lambda s, *_: s + undefined, (), 0, NameError, "undefined"),  # noqa: F821
        (SCORE, lambda s, *_: s + {}["key"], (), 0, KeyError, "key"),
        (SCORE, lambda s, *_: s / (1 // 0), (), 0, ArithmeticError, "division"),
        (SCORE, nothing, (), 0, TypeError, "returned None"),
        (SCORE, lambda s, *_: (s, s), (), 0, TypeError, "returned .*: expected one value"),
        (SCORE, lambda s, *_: s > 0, (), 0, TypeError, "returned values of type bool: expected float"),
        (MASK, lambda b, h, i, j: i - j, (), 0, TypeError, "returned values of type int: expected bool"),
        (SCORE, few, (), 0, TypeError, r"takes \(s, b, h, i\): expected \(s, b, h, i, j\) and as many more as"),
        (SCORE, takes, (), 0, TypeError, r"as many more as score_args has, 0$"),
        (MASK, takes, (LINE, LINE, LINE), 0, TypeError, r"expected \(b, h, i, j\) and as many .* mask_args has, 3$"),
        (SCORE, takes, (Argument(np.dtype("U4"), (8,)),), 0, TypeError, "its argument x has dtype <U4"),
        (SCORE, takes, (Argument(np.dtype(np.uint64), (8,)),), 0, TypeError, "its argument x has dtype uint64"),
        (SCORE, takes, (Argument(np.dtype(complex), (8,)),), 0, TypeError, "its argument x has dtype complex128"),
        (SCORE, takes, (Argument(np.dtype(">f4"), (8,)),), 0, TypeError, "its argument x has dtype >f4"),
        (SCORE, takes, (Argument(np.dtype("f8"), None),), 1, TypeError, "a number is indexed"),
        (SCORE, takes, (Argument(FLOAT64, (8, 8)),), 1, TypeError, "x is an array: index it along 1 more axes"),
        (SCORE, float_index, (LINE,), 1, TypeError, "an index of x is a float"),
        (SCORE, helped, (LINE,), 1, TypeError, "an index of x is 0.5"),
        (SCORE, lambda s, b, h, i, j, x: s + x[i > j], (LINE,), 0, TypeError, "an index of x is a bool"),
        (SCORE, lambda s, b, h, i, j, x: s + x[True], (LINE,), 0, TypeError, "an index of x is True"),
        (SCORE, lambda s, b, h, i, j, x: s + x[:, i], (LINE,), 0, IndexError, r"x has 1 axes .* 2 indices"),
        (SCORE, lambda s, b, h, i, j, x: s + x[1:], (LINE,), 0, TypeError, "an index of x is slice"),
        (SCORE, lambda s, b, h, i, j, x: s + x[8], (LINE,), 0, IndexError, "an index of x is 8: the axis has 8"),
        (SCORE, lambda s, b, h, i, j, x: s + x[-9], (LINE,), 0, IndexError, "an index of x is -9: the axis has 8"),
        (SCORE, lambda s, b, h, i, j, x: s + x, (LINE,), 0, TypeError, "x is an array: index it along all 1 axes"),
        (SCORE, lambda s, b, h, i, j, x: x == s, (LINE,), 0, TypeError, "x is an array"),
        (SCORE, lambda s, b, h, i, j, x: s + abs(x), (LINE,), 0, TypeError, "x is an array"),
        (SCORE, lambda s, b, h, i, j, x: np.where(i > j, x, s), (LINE,), 0, TypeError, "x is an array"),
        (SCORE, lambda s, b, h, i, j, x: x.sum(), (LINE,), 0, AttributeError, "x has no 'sum'"),
        (SCORE, lambda s, b, h, i, j, x: s + sum(x), (LINE,), 0, TypeError, "x is an array"),
        (SCORE, lambda s, b, h, i, j, x: s if x else 0, (LINE,), 0, TypeError, "x is an array"),
        (SCORE, lambda s, b, h, i, j, x: x, (LINE,), 0, TypeError, "x is an array"),
        (SCORE, lambda s, b, h, i, j, *x: s + x[1], (LINE, LINE), 0, TypeError, r"x\[1\] is an array"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_function_and_the_line(kind, function, arguments, line, error, message):
    with pytest.raises(error) as found:
        trace(kind, function, arguments)
    text = str(found.value).strip('"')
    line += function.__code__.co_firstlineno
    assert text.startswith(f"{kind.keyword} {function.__qualname__} ({__file__}, line {line}): ")
    assert re.search(message, text, re.S)


def test_callables_are_named_by_what_they_run():
    class Scorer:
        def __call__(self, s, b, h, i, j):
            return s if s else 0

        def method(self, s, b, h, i, j):
            return s if s else 0

    @functools.wraps(branch)
    def wrapper(*args):
        return branch(*args)

    begin = Scorer.__call__.__code__.co_firstlineno
    for function, name, line in [
        (Scorer(), "test_callables_are_named_by_what_they_run.Scorer", begin + 1),
        (Scorer().method, "test_callables_are_named_by_what_they_run.Scorer.method", begin + 4),
        (functools.partial(functools.partial(branch)), "branch", branch.__code__.co_firstlineno + 1),
        (wrapper, "branch", branch.__code__.co_firstlineno + 1),
    ]:
        with pytest.raises(TypeError) as found:
            trace(SCORE, function, ())
        assert str(found.value).startswith(f"score_mod {name} ({__file__}, line {line}): ")
    with pytest.raises(TypeError, match=r"^score_mod minimum: it takes"):
        trace(SCORE, np.minimum, ())
    with pytest.raises(TypeError, match=r"^mask_mod is 3: expected a function of \(b, h, i, j\) and its arguments$"):
        trace(MASK, 3, ())


def test_an_index_that_leaves_its_array_names_the_line_that_looks_it_up():
    q = np.ones((2, 10, 4))
    with pytest.raises(IndexError) as found:
        flash_attention(q, q, q, score_mod=two_lines, score_args=(np.ones(10),))
    line = two_lines.__code__.co_firstlineno + 2
    assert str(found.value) == (
        f"score_mod two_lines ({__file__}, line {line}): the index i + 1 of x[i + 1] goes from 1 to 10; axis 0 of x "
        "has 10 elements"
    )


def test_lines_are_no_part_of_a_graph():
    one = trace(MASK, lambda b, h, i, j, x: x[i] > 0, (LINE,))
    other = trace(MASK, lambda b, h, i, j, x: x[i] > 0, (LINE,))
    assert one.graph == other.graph
    assert one.lookups != other.lookups


def test_values_do_not_outlive_their_trace():
    kept = []

    def keeps(s, b, h, i, j):
        kept.append(s)
        return s + kept[0]

    trace(SCORE, keeps, ())
    with pytest.raises(TypeError, match="another trace"):
        trace(SCORE, keeps, ())


@pytest.mark.parametrize("axis, size, what", [("batch", 2**24 + 1, "batch elements"), ("heads", 2**16 + 1, "heads")])
def test_more_than_kernels_count_is_refused(axis, size, what):
    q = np.broadcast_to(np.float32(1), (size, 1, 1, 1) if axis == "batch" else (1, size, 1, 1))
    with pytest.raises(ValueError, match=f"^mask_mod of {size} {what}: expected at most {size - 1}$"):
        flash_attention(q, q, q, mask_mod=lambda b, h, i, j: j <= i)


def test_arrays_lie_as_kernels_read_them():
    q = np.ones((1, 8, 4))
    apart = np.zeros(8, [("x", np.float32), ("y", np.int16)])["x"]
    with pytest.raises(ValueError, match=r"^score_args\[0\] has strides \(6,\) bytes"):
        flash_attention(q, q, q, score_mod=takes, score_args=(apart,))
    shifted = np.zeros(33, np.uint8)[1:].view(np.float32)
    with pytest.raises(ValueError, match=r"^score_args\[0\] is not aligned"):
        flash_attention(q, q, q, score_mod=takes, score_args=(shifted,))
