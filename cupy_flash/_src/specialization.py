"""What one compiled kernel is: its source file, its entry point and everything fixed at compile time."""

from __future__ import annotations

import functools
from dataclasses import dataclass

_HEADERS = ("numeric.cuh", "attention/mask.cuh", "attention/score.cuh")
ELEMENT = {"float16": "Float16", "bfloat16": "BFloat16", "float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Variant:
    """What a problem asks of its kernels, apart from sizes.

    Attributes
    ----------
    dtype : str
        A key of `problem.DTYPES`.
    causal : bool
        Whether the mask is causal.
    head_dim, head_dim_v : int
        Of q and k, and of v.
    negative_scale : bool
        Whether the scale is below 0.
    """

    dtype: str
    causal: bool
    head_dim: int
    head_dim_v: int
    negative_scale: bool = False

    def types(self) -> tuple[tuple[str, str], ...]:
        """The type aliases of the prelude."""
        return (
            ("Element", ELEMENT[self.dtype]),
            ("Mask", "CausalMask" if self.causal else "FullMask"),
            ("Score", "NegatedScore" if self.negative_scale else "ScaledScore"),
        )


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
        Type aliases: Element, Mask, Score; in row-wise kernels Out, the type of an output that they read.
    constants : tuple of (str, int)
        Compile-time integers by name.
    """

    source: str
    entry: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.source, self.entry, self.types, self.constants))

    @property
    def family(self) -> str:
        """Folder of the source: ``"simt"``, ``"mma"``, or ``"attention"`` for what all families share."""
        return self.source.partition("/")[0]

    def prelude(self) -> str:
        """The text of ``specialization.cuh``, which the kernel includes."""
        lines = ["#pragma once", *(f'#include "{header}"' for header in _HEADERS)]
        for name, value in self.types:
            if name == "Score":
                lines.append(f"template <class Accumulator> using {name} = {value}<Accumulator>;")
            else:
                lines.append(f"using {name} = {value};")
        lines += [f"constexpr int {name} = {value};" for name, value in self.constants]
        return "\n".join(lines) + "\n"

    def constant(self, name: str) -> int:
        """Value of one compile-time integer."""
        return dict(self.constants)[name]

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in (*self.types, *self.constants))
        return f"{self.family}/{self.entry}({values})"
