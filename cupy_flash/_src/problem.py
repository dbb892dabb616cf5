"""The validated problem: with `components`, the only place that raises for bad input."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cupy_flash._src.arrays import DTYPES, Described, Fields, check_aligned, check_description, check_strides, describe
from cupy_flash._src.components import ARRAYS, COMPONENTS, INPUTS, Options, arrays_among
from cupy_flash._src.components.component import (
    Array,
    Component,
    Interval,
    Mask,
    Place,
    Region,
    Rows,
    Score,
    Sink,
    Sizes,
)
from cupy_flash._src.components.mods import Mod

# Results that `merge_attention` takes together: of one type, or of a half type and of merged ones before.
_MERGED_WITH: dict[str, tuple[np.dtype, ...]] = {
    "float16": (DTYPES["float16"], DTYPES["float32"]),
    "bfloat16": (DTYPES["bfloat16"], DTYPES["float32"]),
    "float32": (DTYPES["float32"], DTYPES["float16"], DTYPES["bfloat16"]),
    "float64": (DTYPES["float64"],),
}
_AXES = "axes are (..., heads, sequence, head_dim): of arrays (..., sequence, heads, head_dim) pass x.swapaxes(-3, -2)"
MAX_HEAD_DIM = 512
MAX_SEQLEN = 2**29  # positions and their sums are 32-bit in the kernels


class Term(NamedTuple):
    """An option whose array has a gradient.

    Attributes
    ----------
    keyword : str
        Of the option.
    shape : tuple of int
        Of the array, as (*batch, Hq, Sq, Sk) with 1 along each axis that it is constant on.
    dtype : str
        Of the array.
    gather : int
        Of what a function captures, how its gradient is made (attention/gather.cuh): the shape is then that of what a
        block has of the scores.
    """

    keyword: str
    shape: tuple[int, ...]
    dtype: str
    gather: int = 0


@dataclass(frozen=True)
class AttentionProblem:
    """Shapes and options of one attention call, checked and normalised.

    Attributes
    ----------
    dtype : str
        ``"float16"``, ``"bfloat16"``, ``"float32"`` or ``"float64"``.
    batch : tuple of int
        The broadcast leading dimensions of q, k and v.
    num_heads_q, num_heads_k : int
        Query heads and key/value heads; the first is a multiple of the second.
    seqlen_q, seqlen_k : int
        Sequence lengths.
    head_dim, head_dim_v : int
        Size of the last axis of q and k, and of v; 1 to 512.
    q_offset : int
        Position of query 0 among the keys as the components want it, which see the same keys by it as by what the call
        said; 0 where only the call's arrays tell.
    components : tuple of Component
        What is in effect between ``q @ k.T`` and the softmax, in its order: the scale first.
    deterministic : bool
        Whether the backward repeats bit for bit.
    wide_out : bool
        Whether the output is in the accumulator's dtype and `dtype` a half type: the output of merged chunks of keys.
    wrt : tuple of str
        What the backward computes gradients of.
    terms : tuple of Term
        Those of them that are options, the sinks last.
    first_batch : int
        Number of the first batch element, where the problem is a part of another.
    """

    dtype: str
    batch: tuple[int, ...]
    num_heads_q: int
    num_heads_k: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    head_dim_v: int
    q_offset: int
    components: tuple[Component, ...]
    deterministic: bool = False
    wide_out: bool = False
    wrt: tuple[str, ...] = INPUTS
    terms: tuple[Term, ...] = ()
    first_batch: int = 0

    @classmethod
    def of(cls, q: Any, k: Any, v: Any, options: Options) -> AttentionProblem:
        """Check q, k, v and how the options go with them; see `flash_attention` for their meaning.

        Raises
        ------
        TypeError
            If a dtype is unsupported or the dtypes differ.
        ValueError
            If the shapes do not fit together or an option is out of range.
        """
        # What was found right once is right again: a repeated call costs a look-up.
        return _problem(describe(q), describe(k), describe(v), options)

    @classmethod
    def from_arrays(cls, q: Any, k: Any, v: Any, **options: Any) -> AttentionProblem:
        """The same, the options by their keywords."""
        return cls.of(q, k, v, Options.of(arrays_among(options), **options))

    @classmethod
    def of_outputs(cls, out_a: Any, out_b: Any) -> AttentionProblem:
        """The problem as far as two of its outputs tell: what merging them needs; the keys are left out.

        Its dtype is the narrower of theirs.

        Raises
        ------
        TypeError
            If a dtype is unsupported, or they do not fit together.
        ValueError
            If the shape is not that of an output, or not the same.
        """
        return _problem_of_outputs(describe(out_a), describe(out_b))

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @functools.cached_property
    def scores(self) -> tuple[Score, ...]:
        """The steps from ``q @ k.T`` to what the softmax is taken of."""
        return tuple(component for component in self.components if isinstance(component, Score))

    @functools.cached_property
    def masks(self) -> tuple[Mask, ...]:
        """What hides keys."""
        return tuple(component for component in self.components if isinstance(component, Mask))

    @functools.cached_property
    def mods(self) -> tuple[Mod, ...]:
        """The functions of the caller."""
        return tuple(component for component in self.components if isinstance(component, Mod))

    @property
    def mask_mod(self) -> Mod | None:
        """The one that hides keys."""
        return next((mod for mod in self.mods if mod.concept == "Mask"), None)

    @property
    def elementwise(self) -> bool:
        """Whether a mask hides keys inside the intervals of all."""
        return any(mask.elementwise for mask in self.masks)

    @property
    def wants_inputs(self) -> bool:
        """Whether the backward computes a gradient of q, k or v, not of options alone."""
        return not set(INPUTS).isdisjoint(self.wrt)

    @property
    def sinks(self) -> Sink | None:
        """What else is in the sums of rows."""
        return next((component for component in self.components if isinstance(component, Sink)), None)

    def captured(self, keyword: str) -> tuple[Any, ...]:
        """What the function captures whose arguments have this keyword: numbers, and descriptions of arrays."""
        return next((mod.arguments for mod in self.mods if mod.captured == keyword), ())

    @functools.cached_property
    def uses_offset(self) -> bool:
        """Whether positions of queries among the keys matter."""
        return any(component.uses_offset for component in self.components)

    @functools.cached_property
    def scale(self) -> float:
        """Of the first of `scores`, which every backend takes into its matrix products."""
        return self.scores[0].scale  # type: ignore[attr-defined]

    def check_values(self, arrays: Mapping[str, Array]) -> None:
        """Raise a ValueError for what arrays among the options must not hold, as far as they lie on the CPU."""
        sizes = Sizes(self.dtype, self.head_dim, self.seqlen_q, self.seqlen_k)
        for name, x in arrays.items():
            if isinstance(x, np.ndarray) and name in ARRAYS:
                ARRAYS[name].check_values(x, sizes)

    def expanded(self, xp: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Views of the arrays among the options, as (*batch, Hq, Sq, Sk), or with 1 for what these lack at the end.

        Those that functions capture are as they are.
        """
        full = (*self.batch, self.num_heads_q, self.seqlen_q, self.seqlen_k)
        views = {}
        for name, x in arrays.items():
            if name not in ARRAYS:  # which a function captures
                views[name] = x
                continue
            lacks = ARRAYS[name].lacks or 0
            shape = (*full[: len(full) - min(lacks, 2)], *[1] * min(lacks, 2))
            index = ..., *[None] * lacks
            views[name] = xp.broadcast_to(xp.asarray(x)[index], shape)
        return views

    @functools.cached_property
    def _numbers(self) -> tuple[Rows, Rows]:
        """Of batch elements, (*batch, 1, 1, 1), and of query heads, (Hq, 1, 1)."""
        batches = np.arange(prod(self.batch)).reshape(self.batch)
        return batches[..., None, None, None], np.arange(self.num_heads_q)[:, None, None]

    def place(self, arrays: Mapping[str, Array] | None = None, head: tuple[int, ...] | None = None) -> Place:
        """Where scores belong: of `expanded` arrays, or without them as far as it is known before the call.

        With `head`, (*batch, head), of that head alone.
        """
        batch: Rows = 0
        number: Rows = 0
        found = arrays or {}
        if head is not None:
            batch, number = np.ravel_multi_index(head[:-1], self.batch).item() if self.batch else 0, head[-1]
            found = {name: _of_head(name, x, head) for name, x in found.items()}
        elif arrays is not None:
            batch, number = self._numbers
        place = Place(self.seqlen_q, self.seqlen_k, self.q_offset, found, batch, number)
        for component in self.components:
            place = component.moved(place)
        return place

    @functools.cached_property
    def _anywhere(self) -> Place:
        return self.place()

    def keys(self, first: Rows, last: Rows | None = None, place: Place | None = None) -> Interval:
        """Where the keys lie that queries from `first` to `last` see; by default those of `first` alone.

        Numbers or arrays of them. No key outside is seen by any. Of one query each key inside is seen, unless a mask is
        elementwise or `place` is missing, without which it is not known what the arrays of options hide.
        """
        place = place or self._anywhere
        last = first if last is None else last
        found = ((mask.keys(first, place).begin, mask.keys(last, place).end) for mask in self.masks)
        return _common(found, first * 0, self.seqlen_k)

    def queries(self, first: Rows, last: Rows | None = None, place: Place | None = None) -> Interval:
        """The same of the queries that see keys from `first` to `last`."""
        place = place or self._anywhere
        last = first if last is None else last
        found = ((mask.queries(first, place).begin, mask.queries(last, place).end) for mask in self.masks)
        return _common(found, first * 0, self.seqlen_q)

    def seen(self, xp: Any, region: Region) -> Array:
        """Which key (last axis) a query (the one before) sees."""
        begin, end = self.keys(region.queries(xp), place=region.place)
        keys = region.keys(xp)
        seen = (begin <= keys) & (keys < end)
        for mask in self.masks:
            if mask.elementwise:
                mask.check_indices(xp, seen, region)
                seen = seen & mask.shows(xp, region)
        return seen

    @functools.cached_property
    def seeing(self) -> Interval:
        """Where the queries lie that may see a key."""
        return self.queries(0, self.seqlen_k - 1) if self.seqlen_k else Interval(self.seqlen_q, self.seqlen_q)

    @functools.cached_property
    def group_size(self) -> int:
        """Query heads that share one key head."""
        return self.num_heads_q // self.num_heads_k

    @functools.cached_property
    def with_wide_out(self) -> AttentionProblem:
        """The same problem with an output in the accumulator's dtype."""
        return replace(self, wide_out=True)

    @functools.cached_property
    def without_terms(self) -> AttentionProblem:
        """The same problem, but for the gradients of options."""
        return self if not self.terms else replace(self, terms=())

    @functools.cached_property
    def storage(self) -> np.dtype:
        """dtype of q, k, v and their gradients, and of the output; but see `out_storage`."""
        return DTYPES[self.dtype]

    @functools.cached_property
    def out_storage(self) -> np.dtype:
        """dtype of the output and of dq, both of which are unfinished where the keys are only a chunk of all."""
        return self.accumulator if self.wide_out else self.storage

    @functools.cached_property
    def accumulator(self) -> np.dtype:
        """dtype of sums and of the log-sum-exp: float64 for float64, else float32."""
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    @functools.cached_property
    def arithmetic(self) -> str:
        """Name of the accumulator's dtype; NumPy takes 4 us to make one up."""
        return self.accumulator.name

    @functools.cached_property
    def q_shape(self) -> tuple[int, ...]:
        return (*self.batch, self.num_heads_q, self.seqlen_q, self.head_dim)

    @functools.cached_property
    def k_shape(self) -> tuple[int, ...]:
        return (*self.batch, self.num_heads_k, self.seqlen_k, self.head_dim)

    @functools.cached_property
    def v_shape(self) -> tuple[int, ...]:
        return (*self.batch, self.num_heads_k, self.seqlen_k, self.head_dim_v)

    @functools.cached_property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.batch, self.num_heads_q, self.seqlen_q, self.head_dim_v)

    @functools.cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of q, k, v and the output."""
        return self.q_shape, self.k_shape, self.v_shape, self.out_shape

    @functools.cached_property
    def lse_shape(self) -> tuple[int, ...]:
        return (*self.batch, self.num_heads_q, self.seqlen_q)


def _of_head(name: str, x: Array, head: tuple[int, ...]) -> Array:
    """What an option's array, as `AttentionProblem.expanded` has it, holds for one head."""
    lacks = ARRAYS[name].lacks if name in ARRAYS else None
    return x if lacks is None else x[head] if lacks == 0 else x[head][0, 0]


def _common(intervals: Iterable[tuple[Rows | None, Rows | None]], zero: Rows, size: int) -> Interval:
    """What these have in common with ``[0, size)``; begin and end of nothing are equal."""
    begin, end = zero, zero + size
    for low, high in intervals:
        begin = begin if low is None else np.maximum(begin, low)
        end = end if high is None else np.minimum(end, high)
    begin = np.minimum(begin, size)
    return Interval(begin, np.maximum(begin, end))


@functools.lru_cache(maxsize=1024)
def _problem(q: Fields, k: Fields, v: Fields, options: Options) -> AttentionProblem:
    """The checks of `AttentionProblem.of`."""
    arrays = {"q": Described(*q), "k": Described(*k), "v": Described(*v)}
    dtype = _check_dtypes(**arrays)
    shape_q, shape_k, shape_v = (_split(name, x) for name, x in arrays.items())
    (batch_q, hq, sq, d), (batch_k, hk, sk, dk), (batch_v, hv, sv, dv) = shape_q, shape_k, shape_v
    if dk != d:
        raise ValueError(f"k has head_dim {dk}, q has head_dim {d}: the last axes of q and k must be equal")
    if sv != sk:
        raise ValueError(f"v has sequence length {sv}, k has {sk}: they must be equal")
    if hv != hk:
        raise ValueError(f"v has {hv} heads, k has {hk}: they must be equal; {_AXES}")
    if hk == 0 or hq % hk:
        raise ValueError(f"q has {hq} heads, k has {hk}: the heads of q must be a multiple of the heads of k; {_AXES}")
    for name, size in (("q and k", d), ("v", dv)):
        if not 1 <= size <= MAX_HEAD_DIM:
            raise ValueError(f"{name} have head_dim {size}: expected 1 to {MAX_HEAD_DIM}")
    for name, size in (("q", sq), ("k", sk)):
        if size > MAX_SEQLEN:
            raise ValueError(f"{name} has sequence length {size}: expected at most {MAX_SEQLEN}")
    try:
        batch = np.broadcast_shapes(batch_q, batch_k, batch_v)
    except ValueError:
        raise ValueError(
            f"leading dimensions of q {batch_q}, k {batch_k} and v {batch_v} do not broadcast together"
        ) from None
    sizes, given = Sizes(dtype, d, sq, sk, prod(batch), hq), options.by_keyword
    for name, component in ARRAYS.items():
        if isinstance(given[name], Described):
            _check_extent(name, given[name].shape, (*batch, hq, sq, sk), component.lacks or 0)
    components = options.components(sizes)
    uses_offset = any(component.uses_offset for component in components)
    if given["q_offset"] is not None and not uses_offset:
        seen = "an array" if isinstance(given["q_offset"], Described) else given["q_offset"]
        wanted = " or ".join(x.keyword for x in COMPONENTS if x.uses_offset)
        raise ValueError(f"q_offset is {seen}: expected none without {wanted}, for it matters to nothing else")
    for name, x in arrays.items():
        check_aligned(name, x)
    terms = tuple(
        Term(name, _own_shape(given[name].shape, (*batch, hq, sq, sk), component.lacks or 0), given[name].dtype.name)
        for name, component in ARRAYS.items()
        if name in options.wrt
    )
    return AttentionProblem(
        dtype, batch, hq, hk, sq, sk, d, dv, options.offset(sizes) if uses_offset else 0, components,
        options.deterministic, wrt=options.wrt, terms=terms,
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _problem_of_outputs(a: Fields, b: Fields) -> AttentionProblem:
    """The checks of `AttentionProblem.of_outputs`."""
    out_a, out_b = Described(*a), Described(*b)
    dtype = _check_dtypes(out_a=out_a)
    check_aligned("out_a", out_a)
    batch, heads, rows, cols = _split("out_a", out_a)
    if not 1 <= cols <= MAX_HEAD_DIM:
        raise ValueError(f"out_a has head_dim {cols}: expected 1 to {MAX_HEAD_DIM}")
    check_description("out_b", b, out_a.shape, _MERGED_WITH[dtype])
    narrow = min(out_a.dtype, out_b.dtype, key=lambda x: x.itemsize)
    wide_out = out_a.dtype != out_b.dtype
    return AttentionProblem(narrow.name, batch, heads, heads, rows, 0, cols, cols, 0, (), wide_out=wide_out)


def _check_extent(name: str, shape: tuple[int, ...], full: tuple[int, ...], lacks: int) -> None:
    """Raise unless an option's array broadcasts to (..., Hq, Sq, Sk) without its last axes; but heads are as many."""
    wanted = full[: len(full) - lacks]
    axes = ["...", "heads", "queries", "keys"][: 4 - lacks]
    try:
        fits = np.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        fits = False
    if not fits or (lacks == 2 and shape[-1:] != wanted[-1:]):
        raise ValueError(
            f"{name} has shape {shape}: expected {wanted}, ({', '.join(axes)}), or one that broadcasts to it"
        )


def _own_shape(shape: tuple[int, ...], full: tuple[int, ...], lacks: int) -> tuple[int, ...]:
    """The shape of an option's array with all axes of (..., Hq, Sq, Sk)."""
    return (*[1] * (len(full) - lacks - len(shape)), *shape, *[1] * lacks)


def _check_dtypes(**arrays: Described) -> str:
    names = {}
    for name, array in arrays.items():
        dtype = np.dtype(array.dtype)
        names[name] = dtype.name
        if DTYPES.get(dtype.name) != dtype:  # a foreign byte order has the same name
            raise TypeError(f"{name} has dtype {dtype}: expected one of {', '.join(DTYPES)}, in native byte order")
        check_strides(name, array)
    if len(set(names.values())) > 1:
        seen = ", ".join(f"{name} {dtype}" for name, dtype in names.items())
        raise TypeError(f"dtypes differ ({seen}): q, k and v must have the same dtype")
    return next(iter(names.values()))


def _split(name: str, array: Described) -> tuple[tuple[int, ...], int, int, int]:
    """Shape as (leading dimensions, heads, sequence, head_dim); a 2-D array has one head."""
    shape = tuple(int(n) for n in array.shape)
    if len(shape) < 2:
        raise ValueError(f"{name} has shape {shape}: expected (..., heads, sequence, head_dim), at least 2-D")
    heads = shape[-3] if len(shape) > 2 else 1
    return shape[:-3], heads, shape[-2], shape[-1]
