"""What one compiled kernel is: its source file, its entry point and everything fixed at compile time."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cupy_flash._src.components import Options
from cupy_flash._src.components.component import Component, Sizes, declarations

ELEMENT = {"float16": "Float16", "bfloat16": "BFloat16", "float32": "float", "float64": "double"}
CONCEPTS = ("Place", "Score", "Sink", "Mask")  # that components belong to


class Part(NamedTuple):
    """A component as far as the text of a kernel goes.

    `type` is the name of its CUDA type, and `text` what stands in place of its header.
    """

    component: type[Component]
    type: str
    text: str = ""


def parts_of(components: Iterable[Component]) -> tuple[Part, ...]:
    return tuple(Part(x.__class__, x.type, x.text) for x in components)


def composition(parts: tuple[Part, ...]) -> str:
    """What a kernel of these parts includes for them, and the struct `Components` of all that they are told."""
    return declarations([x.component for x in parts], [x.text for x in parts], "attention", "cuh") if parts else ""


@dataclass(frozen=True)
class Variant:
    """What a problem asks of its kernels, apart from sizes.

    Attributes
    ----------
    dtype : str
        A key of `problem.DTYPES`.
    head_dim, head_dim_v : int
        Of q and k, and of v.
    parts : tuple of Part
        What they are made of.
    """

    dtype: str
    head_dim: int
    head_dim_v: int
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, dtype: str, head_dim: int, head_dim_v: int | None = None, **options: Any) -> Variant:
        """Of calls with these options, keywords of components.

        Examples
        --------
        >>> [part.type for part in Variant.of("float16", 64, causal=True).parts]
        ['Scale', 'Causal']
        """
        components = Options.of(**options).components(Sizes(dtype, head_dim))
        return cls(dtype, head_dim, head_dim if head_dim_v is None else head_dim_v, parts_of(components))

    @functools.cached_property
    def backward(self) -> Variant:
        """The same for kernels that take what sinks do from the log-sum-exp."""
        parts = tuple(part for part in self.parts if part.component.concept != "Sink")
        return self if parts == self.parts else replace(self, parts=parts)

    @functools.cached_property
    def masked(self) -> bool:
        """Whether keys may be hidden."""
        return any(part.component.concept == "Mask" for part in self.parts)


@dataclass(frozen=True)
class Specialization:
    """One compiled kernel: exactly what its prelude prints, exactly what its cache key covers.

    Attributes
    ----------
    source : str
        The kernel's file under cuda_src.
    entry : str
        Name of the entry point.
    types : tuple of (str, str)
        Type aliases: Element; Out, in row-wise kernels the type of an output that they read, in those of gradients of
        options that of the gradient.
    constants : tuple of (str, int)
        Compile-time integers by name.
    parts : tuple of Part
        What BlockPlace, Score, Sink and Mask are made of; none in kernels that know none of them.
    """

    source: str
    entry: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...]
    parts: tuple[Part, ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.source, self.entry, self.types, self.constants, self.parts))

    @property
    def family(self) -> str:
        """Folder of the source: ``"simt"``, ``"mma"``, or ``"attention"`` for what all families share."""
        return self.source.partition("/")[0]

    def prelude(self) -> str:
        """The text of ``specialization.cuh``, which the kernel includes."""
        lines = ["#pragma once", '#include "numeric.cuh"', *(f"using {name} = {value};" for name, value in self.types)]
        lines += [f"constexpr int {name} = {value};" for name, value in self.constants]
        if self.parts:
            places, scores, sinks, masks = (", ".join(self._types_of(concept)) for concept in CONCEPTS)
            lines += [
                composition(self.parts),
                *(f'#include "attention/{header}.cuh"' for header in ("composed", "place", "score", "sink", "mask")),
                f"using BlockPlace = PlaceOf<{places}>;",
                f"template <class Accumulator> using Score = ScoreOf<Accumulator, {scores}>;",
                f"using Sink = SinkOf<{sinks}>;",
                f"using Mask = MaskOf<{masks}>;",
            ]
        return "\n".join(lines) + "\n"

    def _types_of(self, concept: str) -> list[str]:
        return [part.type for part in self.parts if part.component.concept == concept]

    def constant(self, name: str) -> int:
        """Value of one compile-time integer."""
        return dict(self.constants)[name]

    def __str__(self) -> str:
        concepts = [(name, "+".join(self._types_of(name))) for name in CONCEPTS if self._types_of(name)]
        values = ", ".join(f"{name}={value}" for name, value in (*self.types, *concepts, *self.constants))
        return f"{self.family}/{self.entry}({values})"
