"""From a Python function to its graph: it is called once, with symbols."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cupy_flash._src.expressions.graph import Builder, Graph, made_of
from cupy_flash._src.expressions.operations import BOOL, FLOAT, INT
from cupy_flash._src.expressions.symbols import Captured, Symbol, is_callers, node_of, place, type_of


class Kind(NamedTuple):
    """What a function is for: the symbols that it is called with before its arguments, and what it returns."""

    keyword: str
    captured: str
    symbols: tuple[tuple[str, str], ...]
    returns: str


_POSITIONS = (("b", INT), ("h", INT), ("i", INT), ("j", INT))
SCORE = Kind("score_mod", "score_args", (("s", FLOAT), *_POSITIONS), FLOAT)
MASK = Kind("mask_mod", "mask_args", _POSITIONS, BOOL)


class Argument(NamedTuple):
    """A captured argument without its values: of a scalar `shape` is None."""

    dtype: np.dtype
    shape: tuple[int, ...] | None


class Traced(NamedTuple):
    """A function as a graph.

    Attributes
    ----------
    graph : Graph
        Of one root.
    name : str
        What to call the function, and where it begins.
    arguments : tuple of str
        Names of the captured ones.
    lookups : tuple of str
        Of each element in the graph, what to call the function and the line that looks it up.
    """

    graph: Graph
    name: str
    arguments: tuple[str, ...]
    lookups: tuple[str, ...]


def trace(kind: Kind, function: Callable[..., Any], arguments: tuple[Argument, ...]) -> Traced:
    """The function's graph; of one that would give the same again what was found before.

    Raises
    ------
    TypeError
        If it is no function of so many arguments, asks for a value, or returns none or one of another type.
    IndexError
        If an index is none of the array's.

    Messages of these, and of other mistakes in the function, name it and the line.
    """
    if not callable(function):
        raise TypeError(f"{kind.keyword} is {function!r}: expected a function of {_signature(kind)} and its arguments")
    identity = _identity(function, {})
    if identity is None:
        return _trace(kind, function, arguments)
    return _known(kind, _Alike(identity, function), arguments)


@dataclass(frozen=True)
class _Alike:
    """Functions that trace alike are equal."""

    identity: Hashable
    function: Callable[..., Any] = field(compare=False)


@functools.lru_cache(maxsize=1024)
def _known(kind: Kind, alike: _Alike, arguments: tuple[Argument, ...]) -> Traced:
    return _trace(kind, alike.function, arguments)


_MISTAKES = (TypeError, ValueError, IndexError, KeyError, AttributeError, NameError, ArithmeticError)


def _trace(kind: Kind, function: Callable[..., Any], arguments: tuple[Argument, ...]) -> Traced:
    called, begin = _name(kind, function)
    builder = Builder()
    symbols = [Symbol(builder, builder.symbol(name, type)) for name, type in kind.symbols]
    try:
        names = _check_signature(kind, function, len(arguments))
        captured = [_captured(builder, name, n, of) for n, (name, of) in enumerate(zip(names, arguments, strict=True))]
        root = _result(kind, builder, function(*symbols, *captured))
    except _MISTAKES as error:
        made = next(mistake for mistake in _MISTAKES if isinstance(error, mistake))
        raise made(f"{called}{_line(error) or begin}: {error}") from error
    found = sorted(made_of(builder.nodes, [root]))
    lookups = tuple(called + builder.places[n] for n in found if n in builder.places)
    return Traced(builder.graph(root), called + begin, names, lookups)


def _captured(builder: Builder, name: str, number: int, of: Argument) -> Any:
    try:
        kind = type_of(of.dtype)
    except TypeError as error:
        raise TypeError(f"its argument {name} has {error}") from None
    if of.shape is None:
        return Symbol(builder, builder.scalar(number, kind))
    captured = Captured(builder, name, number, of)
    return captured if of.shape else captured.element()


def _result(kind: Kind, builder: Builder, result: Any) -> int:
    if isinstance(result, (type(None), tuple, list, str)):
        raise TypeError(f"it returned {result!r}: expected one value, made of {_signature(kind)}")
    node = node_of(builder, result)
    found = builder.type(node)
    if (found == BOOL) != (kind.returns == BOOL):
        raise TypeError(f"it returned values of type {found}: expected {kind.returns}")
    return builder.convert(node, kind.returns)


def _check_signature(kind: Kind, function: Any, count: int) -> tuple[str, ...]:
    """Names of the captured arguments."""
    given = len(kind.symbols) + count
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return tuple(f"{kind.captured}[{n}]" for n in range(count))
    try:
        bound = signature.bind(*range(given)).arguments
    except TypeError:
        bare = [x.replace(annotation=x.empty) for x in signature.parameters.values()]
        takes = signature.replace(parameters=bare, return_annotation=signature.empty)
        raise TypeError(
            f"it takes {takes}: expected {_signature(kind)} and as many more as {kind.captured} has, {count}"
        ) from None
    names: list[str] = []
    for name, value in bound.items():
        names += [f"{name}[{n}]" for n in range(len(value))] if isinstance(value, tuple) else [name]
    return tuple(names[len(kind.symbols) :])


def _signature(kind: Kind) -> str:
    return f"({', '.join(name for name, _ in kind.symbols)})"


def _name(kind: Kind, function: Any) -> tuple[str, str]:
    """What to call the function, and where it begins."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    name = getattr(function, "__qualname__", type(function).__qualname__).replace("<locals>.", "")
    code = getattr(function, "__code__", getattr(type(function).__call__, "__code__", None))
    return f"{kind.keyword} {name}", place(code.co_filename, code.co_firstlineno) if code else ""


def _line(error: BaseException) -> str:
    """Where in the caller's code it happened, if there."""
    found, step = "", error.__traceback__
    while step is not None:
        if is_callers(step.tb_frame):
            found = place(step.tb_frame.f_code.co_filename, step.tb_lineno)
        step = step.tb_next
    return found


_NUMBERS = (bool, int, float, complex, str)
_FIXED = (np.ufunc, np.dtype, type(np.where))
_FIXED_MODULES = ("builtins", "math", "_operator", "numpy", "cupy_flash", "cupy_flash.mods")


def _identity(x: Any, seen: dict[int, int]) -> Hashable:
    """What tells functions and values apart that trace differently; None of what may change unseen.

    It holds what it is made of, so that none of that gives its place in memory to something else. Functions that were
    `seen` before are told by their order, for they may call one another.
    """
    if x is None or type(x) in _NUMBERS or isinstance(x, np.generic):
        return type(x), repr(x)
    if _is_fixed(x):
        return x
    if id(x) in seen:
        return "again", seen[id(x)]
    of: Any = type(x)
    parts: list[Any]
    if isinstance(x, tuple):
        parts = list(x)
    elif isinstance(x, functools.partial):
        parts = [x.func, x.args, *sorted(x.keywords.items())]
    elif isinstance(x, types.FunctionType):
        seen[id(x)] = len(seen)
        of = x.__code__, x.__code__.co_filename, x.__qualname__
        try:
            cells = [cell.cell_contents for cell in x.__closure__ or ()]
        except ValueError:  # one has no value yet
            return None
        named = {**(x.__kwdefaults__ or {}), **x.__dict__}
        parts = [x.__defaults__, *cells, tuple(sorted(named.items())), *_read(x.__code__, x.__globals__)]
    else:
        return None
    found = []
    for part in parts:
        if (identity := _identity(part, seen)) is None:
            return None
        found.append(identity)
    return of, tuple(found)


def _is_fixed(x: Any) -> bool:
    """Whether it never changes."""
    home = x.__self__ if isinstance(x, types.BuiltinFunctionType) else x
    if isinstance(home, types.ModuleType):
        return home.__name__ in _FIXED_MODULES
    return isinstance(x, _FIXED) or (isinstance(x, type) and x.__module__ in _FIXED_MODULES)


def _read(code: types.CodeType, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the code, and that inside it, reads of its module's names and imports; perhaps more."""
    for name in code.co_names:
        for names in (known, sys.modules):
            if name in names:
                yield name, names[name]
                break
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _read(constant, known)
