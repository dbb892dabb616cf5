"""Functions of the caller that change scores or hide keys: what both kinds have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cupy_flash._src.arrays import Described, check_aligned, check_strides, describe
from cupy_flash._src.components.component import Array, Component, Region, Sizes
from cupy_flash._src.expressions import headers
from cupy_flash._src.expressions.cxx import MOST, SMALL, Code, Value, code
from cupy_flash._src.expressions.graph import LARGEST, Graph, evaluate
from cupy_flash._src.expressions.indices import GUARDED, Captive, outside, states
from cupy_flash._src.expressions.operations import FLOAT
from cupy_flash._src.expressions.ranges import Range
from cupy_flash._src.expressions.symbols import type_of
from cupy_flash._src.expressions.text import expressions
from cupy_flash._src.expressions.tracing import Argument, Kind, Traced, trace

Scalar = bool | int | float
SUMMARIZED = 32  # kSummarized of attention/range.cuh
TABLE = "mask_mod.table"  # what the table of a `BlockMask` is called among the arrays of a call
_COUNTED = {"b": "batch elements", "h": "heads", "i": "queries", "j": "keys"}


class Call(NamedTuple):
    """A function and what it captures: numbers, and arrays or what describes them.

    Of a mask whose blocks are known, `shape` is that of the scores.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    shape: tuple[int, ...] | None = None


class Checked(NamedTuple):
    """The same once it is traced: plain values."""

    traced: Traced
    arguments: tuple[Scalar | Described, ...]
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Mod(Component):
    """A traced function.

    Attributes
    ----------
    traced : Traced
        The function.
    arguments : tuple
        What it captures: values of numbers, descriptions of arrays.
    states : tuple
        Of each element of an array, for each axis, where indices lie (`expressions.indices`).
    sizes : Sizes
        Of the problem.
    has_table : bool
        Of a mask whether the caller knows its blocks (`block_mask`).
    """

    traced: Traced
    arguments: tuple[Scalar | Described, ...]
    states: tuple[tuple[str, ...], ...]
    sizes: Sizes
    has_table: bool = False

    kind: ClassVar[Kind]

    @classmethod
    def arrays_among(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Of a call's arguments the arrays that it captures, by their names."""
        return dict(captured_arrays(cls.captured, arguments.get(cls.captured, ())))

    @classmethod
    def given(cls, arguments: Mapping[str, Any]) -> Call | None:
        function, captured = arguments[cls.keyword], arguments[cls.captured]
        if function is None:
            if not is_empty(captured):
                raise TypeError(f"{cls.captured} are given without {cls.keyword}, the function that they belong to")
            return None
        names = (captured_name(cls.captured, n) for n in range(len(captured)))
        return Call(function, tuple(arguments.get(name, x) for name, x in zip(names, captured, strict=True)))

    @classmethod
    def check(cls, value: Call) -> Checked:
        for n, x in enumerate(value.arguments):
            if isinstance(x, int) and abs(x) > LARGEST:
                raise ValueError(f"{captured_name(cls.captured, n)} is {x}, which is too large: ints have 64 bits")
        described = tuple(x if _is_scalar(x) else Described(*describe(x)) for x in value.arguments)
        of = (
            Argument(np.asarray(x).dtype, None) if _is_scalar(x) else Argument(np.dtype(x.dtype), tuple(x.shape))
            for x in described
        )
        scalars = tuple(x.item() if isinstance(x, np.generic) else x for x in described)
        traced = trace(cls.kind, value.function, tuple(of))
        for n, x in enumerate(described):
            if isinstance(x, Described):
                check_strides(captured_name(cls.captured, n), x)
                check_aligned(captured_name(cls.captured, n), x)
        return Checked(traced, scalars, value.shape)

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Mod | None:
        checked = options[cls.keyword]
        if checked is None:
            return None
        traced, arguments, _ = checked
        for name, size in _extents(sizes).items():
            if size > MOST[name]:
                raise ValueError(f"{cls.keyword} of {size} {_COUNTED[name]}: expected at most {MOST[name]}")
        symbols = {name: Range(0.0, max(size - 1.0, 0.0)) for name, size in _extents(sizes).items()}
        scalars = {n: float(x) for n, x in enumerate(arguments) if _is_scalar(x)}
        arrays = {
            n: Captive(name, np.dtype(x.dtype), tuple(x.shape))
            for n, (name, x) in enumerate(zip(traced.arguments, arguments, strict=True))
            if isinstance(x, Described)
        }
        graph = traced.graph
        if 0 in _extents(sizes).values():  # nothing is looked up
            arrays = {n: x._replace(shape=tuple(2**31 for _ in x.shape)) for n, x in arrays.items()}
        return cls(traced, arguments, states(graph, traced.lookups, symbols, scalars, arrays), sizes)

    @property
    def graph(self) -> Graph:
        return self.traced.graph

    @property
    def arrays(self) -> Iterator[tuple[int, Described]]:
        """Those that it captures, and their numbers among the arguments."""
        return ((n, x) for n, x in enumerate(self.arguments) if isinstance(x, Described))

    @functools.cached_property
    def outside(self) -> Graph | None:
        """Whether it looks for an element that is not there; None if that cannot be."""
        return outside(self.graph, self.states)

    def check_indices(self, xp: Any, seen: Array, region: Region) -> None:
        """Raise an IndexError if it does, where keys are seen."""
        if self.outside is not None:
            (left,) = self.evaluate(self.outside, xp, np.dtype(np.float64), region)
            if bool((left & seen).any()):
                texts = expressions(self.graph, self.traced.arguments)
                found = zip(self.traced.lookups, self.graph.find("element"), self.states, strict=True)
                places = dict.fromkeys(f"{where}: {texts[n]}" for where, n, axes in found if GUARDED in axes)
                raise IndexError(f"{' or '.join(places)} leaves the array, for a query and a key that it sees")

    @property
    def passed(self) -> tuple[Value, ...]:
        """How kernels are told what it captures."""
        return tuple(
            Value(f"{self.captured}_{n}", np.dtype(x.dtype), ndim=len(x.shape), is_near=_is_near(x))
            if isinstance(x, Described)
            else Value(f"{self.captured}_{n}", np.asarray(x).dtype, isinstance(x, int) and abs(x) <= SMALL)
            for n, x in enumerate(self.arguments)
        )

    def struct_text(self, more: str = "") -> str:
        """Its struct, as CUDA, with more members."""
        arithmetic = "float64" if self.sizes.dtype == "float64" else "float32"
        return headers.params(self.struct, self.passed, arithmetic, more)

    def cpu_text(self) -> str:
        """Its functions for the CPU, as C++."""
        raise NotImplementedError

    def code(self, graph: Graph, *groups: Sequence[int], **calls: str) -> Code:
        """The text of a graph that has the function's elements, for each group of roots."""
        states = dict(zip(graph.find("element"), self.states, strict=True))
        return code(graph, self.passed, states, groups, calls)

    def summary_axis(self, number: int) -> int | None:
        """Of an array of ints the axis along which positions of queries or keys move, None if there is none."""
        dependence, graph = self.graph.dependence(), self.graph
        axes = [
            axis
            for n in graph.find("element")
            if graph.nodes[n].value == number and graph.nodes[n].type != FLOAT
            for axis, index in enumerate(graph.nodes[n].args)
            if dependence[index] & {"i", "j"}
        ]
        return max(axes, key=axes.count, default=None)

    @property
    def looks_up_keys(self) -> bool:
        """Whether arrays are indexed by keys."""
        dependence = self.graph.dependence()
        return any("j" in dependence[n] for n in self.graph.find("element"))

    def params(self) -> dict[str, Any]:
        told: dict[str, Any] = {f"{self.captured}_{n}": x for n, x in enumerate(self.arguments)}
        for n, x in self.arrays:
            steps = zip(x.strides, x.shape, strict=True)
            strides = tuple(stride // x.dtype.itemsize if size > 1 else 0 for stride, size in steps)
            told_of = (0, x.shape or (1,), strides or (0,), 0)
            if type_of(x.dtype) == FLOAT:
                told[f"{self.captured}_{n}"] = (*told_of, 0)
            else:
                axis = self.summary_axis(n)
                chunks = 0 if axis is None else -(-x.shape[axis] // SUMMARIZED)
                told[f"{self.captured}_{n}"] = (*told_of, -1 if axis is None else axis, chunks)
        return told | {"heads": self.sizes.heads}

    @classmethod
    def array_of(cls, field: str) -> str:
        return captured_name(cls.captured, int(field.rpartition("_")[2]))

    def values(self, region: Region) -> tuple[Any, ...]:
        """What the function captures, in a place."""
        return self.values_among(region.place.arrays)

    def values_among(self, arrays: Mapping[str, Array]) -> tuple[Any, ...]:
        """The same among the arrays of a call."""
        return tuple(
            x if _is_scalar(x) else arrays[captured_name(self.captured, n)] for n, x in enumerate(self.arguments)
        )

    def evaluate(self, graph: Graph, xp: Any, dtype: np.dtype, region: Region, **symbols: Array) -> tuple[Array, ...]:
        """The roots of a graph of the function's arguments."""
        place = region.place
        symbols |= {"b": place.batch, "h": place.head, "i": region.queries(xp), "j": region.keys(xp)}
        return evaluate(graph, xp, dtype, symbols, self.values(region))


def captured_name(keyword: str, number: int) -> str:
    """What a captured array is called among the arrays of a call."""
    return f"{keyword}[{number}]"


def is_empty(captured: Any) -> bool:
    """Whether nothing is captured."""
    return isinstance(captured, (tuple, list)) and not captured


def is_captured(name: str) -> bool:
    """Whether an array of a call belongs to a function, and has no axes of scores."""
    return name.endswith("]") or name == TABLE


def captured_arrays(keyword: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The arrays among what a function captures, by their names.

    Raises
    ------
    TypeError
        If it is no tuple or list.
    """
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{keyword} is a {type(value).__name__}: expected a tuple of arrays and numbers")
    for n, x in enumerate(value):
        if not _is_scalar(x):
            yield captured_name(keyword, n), x


def _is_scalar(x: Any) -> bool:
    return isinstance(x, (bool, int, float, np.bool_, np.integer, np.floating))


def _is_near(x: Described) -> bool:
    steps = (abs(stride) // x.dtype.itemsize * (n - 1) for stride, n in zip(x.strides, x.shape, strict=True))
    return sum(steps) < 2**31


def _extents(sizes: Sizes) -> dict[str, int]:
    return {"b": sizes.batch, "h": sizes.heads, "i": sizes.seqlen_q, "j": sizes.seqlen_k}
