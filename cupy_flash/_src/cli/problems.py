"""The problems that `python -m cupy_flash check` solves, and their arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from cupy_flash._src.components import COMPONENTS, GATHERED, INPUTS, LEARNING
from cupy_flash._src.components.component import filled
from cupy_flash._src.components.mods import captured_name
from cupy_flash._src.problem import DTYPES, AttentionProblem

REDUCTION = 3  # of the sequence lengths where the emulator computes

# How the memory of an array (..., H, S, D) is shaped, and the view into it; what the view leaves out is NaN.
Layout = tuple[Callable[..., tuple[int, ...]], Callable[[Any], Any]]
LAYOUTS: dict[str, Layout] = {
    "contiguous": (lambda *shape: shape, lambda x: x),
    "bshd": (lambda *shape: (*shape[:-3], shape[-2], shape[-3], shape[-1]), lambda x: x.swapaxes(-2, -3)),
    "padded": (lambda *shape: (*shape[:-2], shape[-2] + 3, shape[-1] + 24), lambda x: x[..., 2:-1, 8:-16]),
    "reversed": (lambda *shape: shape, lambda x: x[..., ::-1, ::-1, :]),
    "odd strides": (lambda *shape: (*shape[:-1], 2 * shape[-1] + 1), lambda x: x[..., 1::2]),
}


@dataclass(frozen=True)
class Problem:
    """One forward and backward."""

    dtype: str = "float16"
    batch: tuple[int, ...] = (2,)
    heads_k: int = 2
    group: int = 1
    sq: int = 200
    sk: int = 260
    d: int = 64
    dv: int | None = None
    options: dict[str, Any] = field(default_factory=dict, hash=False)  # of the forward; arrays as functions: `example`
    layout: str = "contiguous"
    deterministic: bool = False

    def __str__(self) -> str:
        heads = f"{self.heads_k * self.group}" + (f"/{self.heads_k}" if self.group > 1 else "")
        dims = f"{self.d}" if self.dv is None else f"{self.d},{self.dv}"
        words = [self.dtype, f"D {dims}", f"H {heads}", f"S {self.sq}x{self.sk}"]
        for name, value in self.options.items():
            words.append(name if value is True else f"{name} {getattr(value, '__name__', value)}")
        if self.layout != "contiguous":
            words.append(self.layout)
        if self.deterministic:
            words.append("deterministic")
        return ", ".join(words)

    def reduced(self) -> Problem:
        """The same with shorter sequences, at least one key where there was one."""
        return replace(self, sq=-(-self.sq // REDUCTION), sk=-(-self.sk // REDUCTION))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of q, k, v and dout."""
        heads, dv = self.heads_k * self.group, self.d if self.dv is None else self.dv
        return (
            (*self.batch, heads, self.sq, self.d),
            (*self.batch, self.heads_k, self.sk, self.d),
            (*self.batch, self.heads_k, self.sk, dv),
            (*self.batch, heads, self.sq, dv),
        )

    @property
    def wrt(self) -> tuple[str, ...]:
        """All that there are gradients of."""
        return (*INPUTS, *(name for name in (*LEARNING, *GATHERED) if name in self.given()))

    @property
    def results(self) -> tuple[str, ...]:
        """Names of what a forward and a backward give: of `wrt` the gradients, of a function those of its arrays."""
        given, names = self.given(), ["out", "lse"]
        for name in self.wrt:
            of = enumerate(given[name]) if name in GATHERED else ()
            found = [captured_name(name, n) for n, x in of if isinstance(x, np.ndarray) and x.dtype.kind not in "bui"]
            names += [f"d{x}" for x in ([name] if name not in GATHERED else found)]
        return tuple(names)

    def given(self, xp: Any = np) -> dict[str, Any]:
        """The options as calls take them."""
        rng, full = np.random.default_rng(1), (*self.shapes[3][:-1], self.sk)
        return {name: _moved(xp, value) for name, value in filled(self.options, rng, full).items()}

    def arrays(self, xp: Any = np) -> list[Any]:
        """q, k, v, dout and dlse, the same numbers in NumPy and CuPy; dlse is contiguous."""
        rng, dtype = np.random.default_rng(0), DTYPES[self.dtype]
        lse_dtype = np.float64 if self.dtype == "float64" else np.float32
        laid_out = [self._lay_out(xp, rng.standard_normal(shape).astype(dtype)) for shape in self.shapes]
        return [*laid_out, xp.asarray(rng.standard_normal(self.shapes[3][:-1]).astype(lse_dtype))]

    def _lay_out(self, xp: Any, x: np.ndarray) -> Any:
        memory_shape, view = LAYOUTS[self.layout]
        memory = np.full(memory_shape(*x.shape), np.nan, x.dtype)
        view(memory)[...] = x
        return view(xp.asarray(memory))  # moved whole, so the view and its holes are the same on a GPU

    def problem(self) -> AttentionProblem:
        """What is planned: by shapes and types, without the arrays."""
        zero = np.zeros((), DTYPES[self.dtype])
        q, k, v = (np.broadcast_to(zero, shape) for shape in self.shapes[:3])
        return AttentionProblem.from_arrays(q, k, v, **self.given(), deterministic=self.deterministic, wrt=self.wrt)


def _moved(xp: Any, value: Any) -> Any:
    """An option with its arrays where `xp` has them."""
    if isinstance(value, tuple):
        return tuple(_moved(xp, x) for x in value)
    return xp.asarray(value) if isinstance(value, np.ndarray) else value


CAUSAL = {"causal": True}

# One of each family and dtype, named by both.
SMOKE = {
    "mma float16": Problem("float16", sq=300, sk=300, options=CAUSAL),
    "mma bfloat16": Problem("bfloat16", sq=300, sk=300, options=CAUSAL),
    "simt float16": Problem("float16", sq=300, sk=300, d=512, options=CAUSAL),  # more columns than mma takes
    "simt bfloat16": Problem("bfloat16", sq=300, sk=300, d=512, options=CAUSAL),
    "simt float32": Problem("float32", sq=300, sk=300, options=CAUSAL),
    "simt float64": Problem("float64", sq=300, sk=300, options=CAUSAL),
}


def problems() -> Iterator[Problem]:
    """What the kernels differ in, each value at least once with each half type or with the types it concerns."""
    for dtype in ("float16", "bfloat16"):
        for i, d in enumerate((32, 64, 96, 128, 192, 256, 512)):
            one, other = ({}, CAUSAL) if i % 2 else (CAUSAL, {})
            yield Problem(dtype, d=d, options=one)
            yield Problem(dtype, d=d, options=other, group=2, heads_k=1, deterministic=i % 2 == 0)
        for d, dv in ((80, None), (33, None), (192, 128), (64, 256)):
            yield Problem(dtype, d=d, dv=dv, options=CAUSAL)
        for group in (7, 8):
            yield Problem(dtype, batch=(1,), heads_k=1, group=group, d=128, options=CAUSAL)
        for heads_k, group, d in ((4, 1, 128), (2, 8, 128), (1, 16, 64), (2, 4, 256)):
            yield Problem(dtype, batch=(1,), heads_k=heads_k, group=group, sq=1, sk=2003, d=d, options=CAUSAL)
        yield Problem(dtype, batch=(1,), heads_k=1, sq=1024, sk=1024, d=128, options=CAUSAL)
        yield Problem(dtype, batch=(1,), heads_k=1, sq=1500, sk=24, d=64)  # two passes: few keys meet many queries
    for dtype in ("float32", "float64"):
        for d in (40, 128, 512):
            yield Problem(dtype, d=d, options=CAUSAL, group=2, heads_k=1)
        yield Problem(dtype, d=64, deterministic=True)
    for dtype, d in (("float32", 64), ("float16", 512)):  # keys in spans
        yield Problem(dtype, batch=(1,), heads_k=1, sq=5, sk=2**15 + 100, d=d, options=CAUSAL)
    for offset in (0, 7, -64, 10**12, -(10**12)):
        yield Problem(d=128, options=CAUSAL | {"q_offset": offset})
    for dtype in ("float16", "float32"):  # windows of many tiles, and of few of the keys that are split
        for sq, sk in ((577, 1023), (1, 2003)):
            yield Problem(dtype, batch=(1,), heads_k=1, group=4, sq=sq, sk=sk, options={"window": (200, 50)})
        yield Problem(dtype, sq=577, sk=577, options=CAUSAL | {"window": (100, None)}, deterministic=True)
    for component in COMPONENTS:
        for value, dtype in product(component.examples, ("float16", "float32")):
            # Where queries stand matters only to other options.
            yield Problem(dtype, options={component.keyword: value} | (CAUSAL if component.concept == "Place" else {}))
    for dtype in DTYPES:
        yield Problem(dtype, heads_k=1, group=2, options={x.keyword: x.examples[0] for x in COMPONENTS})
    for sq, sk in ((1, 1), (1, 129), (129, 1), (577, 1023), (0, 5), (5, 0)):
        yield Problem(batch=(1,), sq=sq, sk=sk)
    for layout in (name for name in LAYOUTS if name != "contiguous"):
        for dtype in ("float16", "float32"):
            yield Problem(dtype, layout=layout, options=CAUSAL)
