"""Random functions for score_mod and mask_mod, as text: the same text is called with symbols and with NumPy arrays."""

import re

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from cupy_flash._src.expressions.graph import Graph, evaluate
from cupy_flash._src.expressions.tracing import SCORE, Argument, Traced, trace

# Sizes of (b, h, i, j), and what functions capture: `ids` and `grid` of ints, `flags` of bools, `table` of floats.
EXTENTS = (2, 3, 7, 9)
NAMES = ("ids", "grid", "flags", "table")
SHAPES = ((9,), (2, 5), (4,), (3, 6))
DTYPES = tuple(map(np.dtype, (np.int64, np.int32, np.bool_, np.float64)))
ARGUMENTS = tuple(Argument(dtype, shape) for dtype, shape in zip(DTYPES, SHAPES, strict=True))
POSITIONS = dict(zip("bhij", np.ogrid[tuple(slice(n) for n in EXTENTS)], strict=True))

FIRST = {
    "F": ("np.float64({number})", "(i * 0.5)", "(j - i) / 3", "table[h, i % 6]", "table[h, np.clip(j - i, -6, 5)]"),
    "I": ("b", "h", "i", "j", "np.int64({int})", "ids[i]", "ids[-j]", "grid[b, j % 5]", "grid[b, i - j >> 2]"),
    "B": ("(j <= i)", "flags[j // 3]", "(ids[i] == ids[j])", "(grid[b, i % 5] != h)"),
}
MORE = {
    "F": (
        *("({F} + {F})", "({F} - {F})", "({F} * {F})", "({F} / {F})", "({F} % {F})", "({F} // {F})", "({F} + {I})"),
        *("-{F}", "abs({F})", "np.exp({F})", "np.exp2({F})", "np.log({F})", "np.log2({F})", "np.log1p({F})"),
        *("np.tanh({F})", "np.sqrt({F})", "np.sin({F})", "np.cos({F})", "np.floor({F})", "np.sign({F})"),
        *("np.minimum({F}, {F})", "np.maximum({I}, {F})", "np.clip({F}, -1.5, 2)", "({F} ** 2)", "(2.0 ** {F})"),
        *("np.where({B}, {F}, {F})", "np.where({B}, {F}, {I})", "({F} * {B})", "(np.float32(2) * {F})", "(1 / {F})"),
    ),
    "I": (
        *("({I} + {I})", "({I} - {I})", "({I} * {I})", "({I} // {I})", "({I} % {I})", "({I} & {I})", "({I} | {I})"),
        *("({I} ^ {I})", "~{I}", "-{I}", "abs({I})", "np.sign({I})", "({I} ** 2)", "({I} << 2)", "({I} >> 1)"),
        *("({I} // {step})", "({I} % {step})", "({int} - {I})", "np.clip({I}, -3, {I})", "np.minimum({I}, 4)"),
        *("np.maximum({I}, {I})", "np.where({B}, {I}, {I})", "(np.int64(3) - {I})", "({I} + {B})"),
    ),
    "B": (
        *("({F} < {F})", "({F} <= {F})", "({F} == {F})", "({F} != {F})", "({F} >= {number})", "({number} < {F})"),
        *("({I} < {I})", "({I} <= {I})", "({I} == {I})", "({I} != {I})", "({I} > {int})", "({I} % {step} == 0)"),
        *("({B} & {B})", "({B} | {B})", "({B} ^ {B})", "~{B}", "np.where({B}, {B}, {B})", "np.isfinite({F})"),
        *("np.logical_and({B}, {I})", "np.logical_not({B})", "np.logical_or({I}, {B})", "np.logical_xor({B}, {B})"),
    ),
}
CONSTANTS = {
    "int": st.integers(-9, 9).map(str),
    "step": st.sampled_from(["-4", "-1", "1", "2", "3", "7", "16"]),
    "number": st.sampled_from(["-2.5", "-1.0", "-0.1", "0.1", "0.3", "0.5", "1.0", "3.0", "7.25"]),
}


@st.composite
def texts(draw, type="F", leaves=(), depth=4):
    """An expression of floats, ints or bools ("F", "I", "B"), which may have more leaves that are floats."""
    first = FIRST[type] + (leaves if type == "F" else ())
    form = draw(st.sampled_from(first + MORE[type] if depth else first))

    def filled(match):
        name = match[1]
        return draw(CONSTANTS[name] if name in CONSTANTS else texts(name, leaves, depth - 1))

    return re.sub(r"{(\w+)}", filled, form)


def scores(depth=4):
    """Texts of floats that score functions return."""
    return texts("F", ("s",) * 4, depth)


def function_of(text: str, kind=SCORE):
    """The text as a function."""
    symbols = ", ".join(name for name, _ in kind.symbols)
    return eval(f"lambda {symbols}, {', '.join(NAMES)}: {text}", {"np": np})


def traced(text: str, kind=SCORE) -> Traced:
    """The text's function, traced."""
    with np.errstate(all="ignore"):
        return trace(kind, function_of(text, kind), ARGUMENTS)


def graph_or_reject(text: str, kind=SCORE) -> Graph:
    """Its graph, unless constants of it are larger than 64 bits."""
    try:
        return traced(text, kind).graph
    except ValueError as error:
        assert "is too large: ints have 64 bits" in str(error)
        return assume(False)


def arrays(seed: int, sort: bool = False):
    """What functions capture."""
    rng = np.random.default_rng(seed)
    ids, grid = rng.integers(-3, 6, SHAPES[0]), rng.integers(0, 4, SHAPES[1]).astype(DTYPES[1])
    return (np.sort(ids) if sort else ids), grid, rng.random(SHAPES[2]) < 0.5, rng.standard_normal(SHAPES[3])


def called(text: str, captured, symbols=POSITIONS, kind=SCORE):
    """What the text's function returns for arrays."""
    with np.errstate(all="ignore"):
        return function_of(text, kind)(*(symbols[name] for name, _ in kind.symbols), *captured)


def values_of(graph: Graph, captured, symbols=POSITIONS, dtype=np.float64):
    """The roots of a graph for arrays."""
    with np.errstate(all="ignore"):
        return evaluate(graph, np, np.dtype(dtype), symbols, captured)


def all_values_of(graph: Graph, captured, symbols=POSITIONS, dtype=np.float64):
    """The same of all of its nodes."""
    return values_of(graph._replace(roots=tuple(range(len(graph.nodes)))), captured, symbols, dtype)
