"""What a component is: an option that changes a score or hides a key, at home in one file here, one .cuh and one .h.

A subclass is a frozen dataclass of what is left of the option once it is checked: an instance is in effect in a
problem, is part of the keys of all caches, and has the same name in three languages. `Softcap` of ``softcap.py`` is
``Softcap`` of ``attention/score/softcap.cuh`` and of ``cpu/score/softcap.h``; beside it either header has the struct
``SoftcapParams``, whose fields `Component.params` fills in by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    q_offset : int
        Position of the first query among the keys.
    """

    dtype: str
    head_dim: int
    seqlen_q: int = 0
    seqlen_k: int = 0
    q_offset: int = 0


@dataclass(frozen=True)
class Component:
    """An option in effect.

    Attributes
    ----------
    keyword : str
        Of the public calls.
    default : object
        Its value there.
    examples : sequence of object
        Other values of the keyword, for checks and tests.
    uses_offset : bool
        Whether positions of queries among the keys matter to it.
    concept : str
        What kernels know it as: ``"Score"`` or ``"Mask"``.
    header : str
        Path of its headers below ``attention/`` and ``cpu/``, without suffix.
    struct : str
        Name of the struct that has its parameters.
    """

    keyword: ClassVar[str]
    default: ClassVar[Any] = None
    examples: ClassVar[Sequence[Any]] = ()
    uses_offset: ClassVar[bool] = False
    concept: ClassVar[str] = ""
    header: ClassVar[str]
    struct: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.header = f"{cls.concept.lower()}/{cls.__module__.rpartition('.')[2]}"
        cls.struct = f"{cls.__name__}Params"

    @staticmethod
    def check(value: Any) -> Any:
        """The keyword's value, unless it is the default, as a plain Python value, by which a problem is found again.

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

    @property
    def type(self) -> str:
        """Name of the CUDA type."""
        return self.__class__.__name__

    def params(self) -> dict[str, Any]:
        """The fields of its structs by name: its own, unless it says others."""
        return dict(vars(self))


class Score(Component):
    """A step between q . k and the softmax. The steps in effect follow one another.

    Attributes
    ----------
    error : float
        Of what it makes, relative, in the instructions that a GPU has for it where the inputs are of a half type.
    """

    concept = "Score"
    error: ClassVar[float] = 0.0

    def forward(self, xp: Any, s: Array) -> Array:
        """What the step makes of scores; `xp` is numpy or cupy."""
        raise NotImplementedError

    def backward(self, xp: Any, ds: Array, s: Array) -> Array:
        """The gradient with respect to `s`, that of what ``forward(s)`` made being `ds`."""
        raise NotImplementedError


class Mask(Component):
    """A rule that hides keys from queries. A query sees the keys that no mask in effect hides.

    Positions are numbers or arrays of them. Each query sees an interval of keys, and each key is seen by an interval of
    queries. No end of either falls as the argument rises, and both say the same.
    """

    concept = "Mask"

    def keys(self, query: Rows, q_offset: int) -> Interval:
        """Those that the query sees; its own position among them is ``query + q_offset``."""
        raise NotImplementedError

    def queries(self, key: Rows, q_offset: int) -> Interval:
        """Those that see the key."""
        raise NotImplementedError


def declarations(components: Sequence[type[Component]], folder: str, suffix: str) -> str:
    """Includes of the components' headers, and the struct `Components` of all that they are told."""
    includes = "".join(f'#include "{folder}/{component.header}.{suffix}"\n' for component in components)
    structs = ", ".join(component.struct for component in components)
    return f"{includes}struct Components : {structs} {{}};\n"


def fill(record: np.ndarray, components: Iterable[Component]) -> None:
    """Write what components are told into a record of their structs; those that it lacks are passed over."""
    for component in components:
        if component.struct in (record.dtype.names or ()):
            told, struct = component.params(), record[component.struct]
            for field in struct.dtype.names or ():
                struct[field] = told[field]
