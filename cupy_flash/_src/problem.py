"""The validated problem: with `components`, the only place that raises for bad input."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cupy_flash._src.components import COMPONENTS, Options
from cupy_flash._src.components.component import Component, Interval, Mask, Rows, Score, Sizes

DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
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
        Position of query 0 among the keys, in ``[-seqlen_q, seqlen_k]``: `Window` of the same components fits it.
    components : tuple of Component
        What is in effect between ``q @ k.T`` and the softmax, in its order: the scale first.
    deterministic : bool
        Whether the backward repeats bit for bit.
    wide_out : bool
        Whether the output is in the accumulator's dtype and `dtype` a half type: the output of merged chunks of keys.
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
        return _problem(_describe(q), _describe(k), _describe(v), options)

    @classmethod
    def from_arrays(cls, q: Any, k: Any, v: Any, **options: Any) -> AttentionProblem:
        """The same, the options by their keywords."""
        return cls.of(q, k, v, Options.of(**options))

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
        return _problem_of_outputs(_describe(out_a), _describe(out_b))

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
    def uses_offset(self) -> bool:
        """Whether positions of queries among the keys matter."""
        return any(component.uses_offset for component in self.components)

    @functools.cached_property
    def scale(self) -> float:
        """Of the first of `scores`, which every backend takes into its matrix products."""
        return self.scores[0].scale  # type: ignore[attr-defined]

    def keys(self, first: Rows, last: Rows | None = None) -> Interval:
        """Where the keys lie that queries from `first` to `last` see; by default those of `first` alone.

        Numbers or arrays of them. No key outside is seen by any, and of one query each key inside is seen.
        """
        found = (
            (mask.keys(first, self.q_offset).begin, mask.keys(first if last is None else last, self.q_offset).end)
            for mask in self.masks
        )
        return _common(found, first * 0, self.seqlen_k)

    def queries(self, first: Rows, last: Rows | None = None) -> Interval:
        """The same of the queries that see keys from `first` to `last`."""
        found = (
            (mask.queries(first, self.q_offset).begin, mask.queries(first if last is None else last, self.q_offset).end)
            for mask in self.masks
        )
        return _common(found, first * 0, self.seqlen_q)

    @functools.cached_property
    def seeing(self) -> Interval:
        """Where the queries lie that see a key."""
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


_Fields = tuple[np.dtype, tuple[int, ...], tuple[int, ...], bool]  # of a _Described; a plain tuple is made sooner


def _common(intervals: Iterable[tuple[Rows | None, Rows | None]], zero: Rows, size: int) -> Interval:
    """What these have in common with ``[0, size)``; begin and end of nothing are equal."""
    begin, end = zero, zero + size
    for low, high in intervals:
        begin = begin if low is None else np.maximum(begin, low)
        end = end if high is None else np.minimum(end, high)
    begin = np.minimum(begin, size)
    return Interval(begin, np.maximum(begin, end))


class _Described(NamedTuple):
    """What the checks have to know of an array: all but its elements and where exactly they lie."""

    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: bool


def _describe(array: Any) -> _Fields:
    aligned = array.flags.aligned if isinstance(array, np.ndarray) else array.data.ptr % array.itemsize == 0
    return array.dtype, array.shape, array.strides, aligned


@functools.lru_cache(maxsize=1024)
def _problem(q: _Fields, k: _Fields, v: _Fields, options: Options) -> AttentionProblem:
    """The checks of `AttentionProblem.of`."""
    arrays = {"q": _Described(*q), "k": _Described(*k), "v": _Described(*v)}
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
    sizes = Sizes(dtype, d, sq, sk, sk - sq if options.q_offset is None else options.q_offset)
    components = options.components(sizes)
    uses_offset = any(component.uses_offset for component in components)
    if options.q_offset is not None and not uses_offset:
        wanted = " or ".join(f"{x.keyword}={x.examples[0]}" for x in COMPONENTS if x.uses_offset)
        raise ValueError(
            f"q_offset is {options.q_offset}: without {wanted} every query sees every key, wherever it stands"
        )
    for name, x in arrays.items():
        _check_aligned(name, x)
    return AttentionProblem(
        dtype, batch, hq, hk, sq, sk, d, dv, options.offset(sizes) if uses_offset else 0, components,
        options.deterministic,
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _problem_of_outputs(a: _Fields, b: _Fields) -> AttentionProblem:
    """The checks of `AttentionProblem.of_outputs`."""
    out_a, out_b = _Described(*a), _Described(*b)
    dtype = _check_dtypes(out_a=out_a)
    _check_aligned("out_a", out_a)
    batch, heads, rows, cols = _split("out_a", out_a)
    if not 1 <= cols <= MAX_HEAD_DIM:
        raise ValueError(f"out_a has head_dim {cols}: expected 1 to {MAX_HEAD_DIM}")
    _check_description("out_b", b, out_a.shape, _MERGED_WITH[dtype])
    narrow = min(out_a.dtype, out_b.dtype, key=lambda x: x.itemsize)
    wide_out = out_a.dtype != out_b.dtype
    return AttentionProblem(narrow.name, batch, heads, heads, rows, 0, cols, cols, 0, (), wide_out=wide_out)


def check_plain(name: str, array: np.ndarray) -> None:
    """Raise for the kinds of NumPy array that mean something else by their elements or by indexing."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array: masks are not supported, expected a plain array")
    if isinstance(array, np.matrix):
        raise TypeError(f"{name} is a numpy.matrix, which stays 2-D whatever is done to it: expected a plain array")


def check_like(name: str, array: Any, shape: tuple[int, ...], *dtypes: np.dtype) -> None:
    """Raise unless `array` has exactly this shape and one of these dtypes."""
    _check_description(name, _describe(array), shape, dtypes)


@functools.lru_cache(maxsize=1024)
def _check_description(name: str, fields: _Fields, shape: tuple[int, ...], dtypes: tuple[np.dtype, ...]) -> None:
    array = _Described(*fields)
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}: expected {shape}")
    if np.dtype(array.dtype) not in dtypes:
        expected = " or ".join(dict.fromkeys(map(str, dtypes)))
        raise TypeError(f"{name} has dtype {array.dtype}: expected {expected}")
    _check_strides(name, array)
    _check_aligned(name, array)


def _check_strides(name: str, array: _Described) -> None:
    """Elements must lie whole elements apart, as a GPU needs them."""
    itemsize = np.dtype(array.dtype).itemsize
    if any(stride % itemsize for stride, n in zip(array.strides, array.shape, strict=True) if n > 1):
        raise ValueError(f"{name} has strides {array.strides} bytes: expected multiples of the item size {itemsize}")


def _check_aligned(name: str, array: _Described) -> None:
    """The first element's address must be a multiple of the item size."""
    if not array.aligned and 0 not in array.shape:
        expected = f"expected an address that is a multiple of {array.dtype.itemsize}"
        raise ValueError(f"{name} is not aligned in memory: {expected}")


def _check_dtypes(**arrays: _Described) -> str:
    names = {}
    for name, array in arrays.items():
        dtype = np.dtype(array.dtype)
        names[name] = dtype.name
        if DTYPES.get(dtype.name) != dtype:  # a foreign byte order has the same name
            raise TypeError(f"{name} has dtype {dtype}: expected one of {', '.join(DTYPES)}, in native byte order")
        _check_strides(name, array)
    if len(set(names.values())) > 1:
        seen = ", ".join(f"{name} {dtype}" for name, dtype in names.items())
        raise TypeError(f"dtypes differ ({seen}): q, k and v must have the same dtype")
    return next(iter(names.values()))


def _split(name: str, array: _Described) -> tuple[tuple[int, ...], int, int, int]:
    """Shape as (leading dimensions, heads, sequence, head_dim); a 2-D array has one head."""
    shape = tuple(int(n) for n in array.shape)
    if len(shape) < 2:
        raise ValueError(f"{name} has shape {shape}: expected (..., heads, sequence, head_dim), at least 2-D")
    heads = shape[-3] if len(shape) > 2 else 1
    return shape[:-3], heads, shape[-2], shape[-1]
