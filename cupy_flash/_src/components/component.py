"""What a component is: an option that changes a score or hides a key, at home in one file here, one .cuh and one .h.

A subclass is a frozen dataclass of what is left of the option once it is checked: an instance is in effect in a
problem, is part of the keys of all caches, and has the same name in three languages. `Softcap` of ``softcap.py`` is
``Softcap`` of ``attention/score/softcap.cuh`` and of ``cpu/score/softcap.h``; beside it either header has the struct
``SoftcapParams``, whose fields `Component.params` fills in by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray
Rows = Any  # one position, or an array of them


class Interval(NamedTuple):
    """Positions from `begin` on that lie before `end`; None where there is no bound."""

    begin: Rows = None
    end: Rows = None


class Sizes(NamedTuple):
    """What a component is told of the problem that it is in effect in.

    Attributes
    ----------
    dtype : str
        Of the inputs.
    head_dim : int
        Of q and k.
    seqlen_q, seqlen_k : int
        Sequence lengths.
    batch, heads : int
        Elements of the batch, and query heads of each.
    """

    dtype: str
    head_dim: int
    seqlen_q: int = 0
    seqlen_k: int = 0
    batch: int = 0
    heads: int = 0


class Place(NamedTuple):
    """Where scores belong, which may be one head or many at once.

    Attributes
    ----------
    seqlen_q, seqlen_k : int
        Sequence lengths.
    q_offset : int, array or None
        Position of the first query among the keys; None where only the call tells.
    arrays : mapping
        What options hold here that are arrays, by their keywords: numbers, or arrays that broadcast with scores
        (..., Sq, Sk). Those that are missing are not known before the call.
    batch, head : int or array
        Number of the batch element, counted through all leading dimensions, and of the query head.
    """

    seqlen_q: int
    seqlen_k: int
    q_offset: Rows | None
    arrays: Mapping[str, Array] = {}
    batch: Rows = 0
    head: Rows = 0


class Region(NamedTuple):
    """Those queries and keys of a place that an array of scores has."""

    place: Place
    rows: slice
    cols: slice

    def queries(self, xp: Any) -> Array:
        """Numbers of the queries, as a column."""
        return xp.arange(self.rows.start, self.rows.stop)[:, None]

    def keys(self, xp: Any) -> Array:
        """Numbers of the keys."""
        return xp.arange(self.cols.start, self.cols.stop)


@dataclass(frozen=True)
class Component:
    """An option in effect.

    Attributes
    ----------
    keyword : str
        Of the public calls.
    default : object
        Its value there.
    examples : sequence
        Other values of the keyword, for checks and tests; of arrays, functions that `example` calls.
    uses_offset : bool
        Whether positions of queries among the keys matter to it.
    lacks : int or None
        How many of the last axes of (..., Hq, Sq, Sk) an array lacks that is the keyword's value; None: it is none.
    floats : bool
        Whether that array is of float32 or the dtype of q.
    learns : bool
        Whether it may have a gradient.
    captured : str
        Of a function the keyword of what it captures.
    concept : str
        What kernels know it as: ``"Score"``, ``"Mask"``, ``"Place"`` or ``"Sink"``.
    header : str
        Path of its headers below ``attention/`` and ``cpu/``, without suffix.
    struct : str
        Name of the struct that has its parameters.
    """

    keyword: ClassVar[str]
    default: ClassVar[Any] = None
    examples: ClassVar[Sequence[Any]] = ()
    uses_offset: ClassVar[bool] = False
    lacks: ClassVar[int | None] = None
    floats: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    captured: ClassVar[str] = ""
    concept: ClassVar[str] = ""
    header: ClassVar[str]
    struct: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.header = f"{cls.concept.lower()}/{cls.__module__.rpartition('.')[2]}"
        cls.struct = f"{cls.__name__}Params"

    @classmethod
    def given(cls, arguments: Mapping[str, Any]) -> Any:
        """The option among a call's arguments by their keywords; None if it is not given."""
        return arguments[cls.keyword]

    @staticmethod
    def array(value: Any) -> Any:
        """Of a value that may be an array: that array, or None where it is a plain value."""
        return value

    @staticmethod
    def check_values(values: np.ndarray, sizes: Sizes) -> None:
        """Raise a ValueError for what the array must not hold, where it lies on the CPU."""

    @staticmethod
    def check(value: Any) -> Any:
        """The keyword's value, unless it is the default, as a plain Python value, by which a problem is found again.

        That of an array is what describes it.

        Raises
        ------
        TypeError, ValueError
            With the value seen, if it is none of the option's.
        """
        raise NotImplementedError

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Component | None:
        """What checked values, by their keywords, mean for a problem: nothing, or this component."""
        raise NotImplementedError

    def check_indices(self, xp: Any, seen: Array, region: Region) -> None:
        """Raise an IndexError where it looks up, for a key that is seen, what an array does not have."""

    @property
    def type(self) -> str:
        """Name of the CUDA type."""
        return self.__class__.__name__

    @property
    def text(self) -> str:
        """What stands in place of its CUDA header, if it has none."""
        return ""

    @classmethod
    def array_of(cls, field: str) -> str:
        """The name of the array that a field of its struct stands for."""
        return field

    def params(self) -> dict[str, Any]:
        """The numbers in its structs by the names of their fields: its own, unless it says others.

        Fields that are tensors have the names of keywords, and are the arrays that these hold.
        """
        return dict(vars(self))

    def moved(self, place: Place) -> Place:
        """The place as it changes it."""
        return place


class Score(Component):
    """A step between q . k and the softmax. The steps in effect follow one another.

    Attributes
    ----------
    error : float
        Of what it makes, relative, in the instructions that a GPU has for it where the inputs are of a half type.
    """

    concept = "Score"
    error: ClassVar[float] = 0.0

    def forward(self, xp: Any, s: Array, region: Region) -> Array:
        """What the step makes of scores; `xp` is numpy or cupy."""
        raise NotImplementedError

    def backward(self, xp: Any, ds: Array, s: Array, region: Region) -> Array:
        """The gradient with respect to `s`, that of what ``forward(s)`` made being `ds`."""
        raise NotImplementedError

    def term(self, xp: Any, ds: Array, region: Region) -> Array:
        """Of a step that `learns`: each score's part of the gradient with respect to the array.

        Elements of the array have the sums over all scores that they belong to.
        """
        raise NotImplementedError

    def new_gradients(self, xp: Any, dtype: np.dtype) -> tuple[Array | None, ...]:
        """Of a step that captures: zeros in the shapes of arrays of floats, None for others, by their numbers."""
        raise NotImplementedError

    def gather(self, xp: Any, ds: Array, s: Array, region: Region, gradients: Sequence[Array | None]) -> None:
        """Add to the gradients of captured arrays, by their numbers among the arguments, what scores of a region have.

        `ds` and `s` as `backward` has them.
        """
        raise NotImplementedError


class Sink(Component):
    """What is in the sum of a row beside its keys: a logit that has no value."""

    concept = "Sink"

    def of_queries(self, xp: Any, query: Rows, place: Place) -> Array:
        """The logits of queries in a place, or what broadcasts to them; -inf of queries that have none."""
        raise NotImplementedError


class Mask(Component):
    """A rule that hides keys from queries. A query sees the keys that no mask in effect hides.

    Positions are numbers or arrays of them. Each query sees an interval of keys, and each key is seen by an interval of
    queries. No end of either falls as the argument rises, and both say the same. What a place does not tell yet hides
    nothing.

    Attributes
    ----------
    elementwise : bool
        Whether `shows` hides keys inside the intervals.
    """

    concept = "Mask"
    elementwise: ClassVar[bool] = False

    def keys(self, query: Rows, place: Place) -> Interval:
        """Those that the query sees; its own position among them is ``query + place.q_offset``."""
        return Interval()

    def queries(self, key: Rows, place: Place) -> Interval:
        """Those that see the key."""
        return Interval()

    def shows(self, xp: Any, region: Region) -> Array:
        """Where it does not hide the key, of those of the intervals."""
        raise NotImplementedError


def example(value: Any, rng: np.random.Generator, full: tuple[int, ...]) -> Any:
    """One of `Component.examples` as a call takes it, which has scores of shape `full`, (..., Hq, Sq, Sk)."""
    return value(rng, full) if callable(value) else value


def filled(options: Mapping[str, Any], rng: np.random.Generator, full: tuple[int, ...]) -> dict[str, Any]:
    """The same of options by their keywords, some of which are examples: one that is a function has arguments too."""
    made: dict[str, Any] = {}
    for name, value in options.items():
        found = example(value, rng, full)
        made |= found if isinstance(found, dict) else {name: found}
    return made


def declarations(components: Sequence[type[Component]], texts: Sequence[str], folder: str, suffix: str) -> str:
    """The components' headers, or the texts in their places, and the struct `Components` of all that they are told."""
    includes = "".join(
        text or f'#include "{folder}/{component.header}.{suffix}"\n'
        for component, text in zip(components, texts, strict=True)
    )
    structs = ", ".join(component.struct for component in components)
    return f"{includes}struct Components : {structs} {{}};\n"


def fill(record: np.ndarray, components: Iterable[Component]) -> None:
    """Write the numbers that components are told into a record of their structs.

    Components that the record lacks are passed over.
    """
    for component in _within(record.dtype, components):
        told, struct = component.params(), record[component.struct]
        for field in struct.dtype.names or ():
            if struct.dtype[field].names is None or field in told:
                struct[field] = told[field]


def arrays_in(dtype: np.dtype, components: Iterable[Component]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where such a record has places for arrays, as names of fields from outside in; and the arrays' names."""
    for component in _within(dtype, components):
        struct = dtype[component.struct]
        for field in struct.names or ():
            if (members := struct[field].names) is not None:
                path, name = (component.struct, field), component.array_of(field)
                yield path, name
                others = [more for more in members[1:] if struct[field][more].kind == "u"]  # addresses too
                yield from (((*path, more), f"{more} of {name}") for more in others)


def _within(dtype: np.dtype, components: Iterable[Component]) -> Iterator[Component]:
    return (component for component in components if component.struct in (dtype.names or ()))
