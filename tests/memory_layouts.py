"""How an array of a call may lie in memory, whatever the others do."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

ALIGNMENT = 64  # of the memory that a view is taken of, in bytes
UNTOUCHED = 2**28  # elements, beyond which memory is left to be 0: nobody has so much


@dataclass(frozen=True)
class Layout:
    """A view of memory of its own. Fields that name axes may be shorter than the shape: the other axes are plain.

    Attributes
    ----------
    order : tuple of int
        The axes from the outermost in memory to the innermost; () as the shape has them.
    gaps : tuple of int
        For each axis, elements between the ends of one entry and the begin of the next.
    reversed : frozenset of int
        Axes of negative stride.
    constant : frozenset of int
        Axes of stride 0, along which all values are the first.
    single : int
        Stride in bytes of axes with one entry, which no one should look at; 0 leaves it as it falls.
    offset : int
        Elements before the first.
    """

    order: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    reversed: frozenset[int] = frozenset()
    constant: frozenset[int] = frozenset()
    single: int = 0
    offset: int = 0

    def strides(self, shape, itemsize):
        """Strides in bytes, and how many elements the view spans."""
        strides, extent = [0] * len(shape), 1
        for axis in reversed(self.order or range(len(shape))):
            if axis not in self.constant:
                strides[axis] = extent + (self.gaps[axis] if axis < len(self.gaps) else 0)
                extent += strides[axis] * (shape[axis] - 1)
        return [
            self.single if n == 1 and self.single else stride * itemsize * (-1 if axis in self.reversed else 1)
            for axis, (stride, n) in enumerate(zip(strides, shape, strict=True))
        ], extent


CONTIGUOUS = Layout()


def lay_out(x, layout):
    """A view with the values of x, in memory that is NaN wherever the view does not look."""
    if not x.size:
        return x
    for axis in layout.constant:
        x = np.broadcast_to(x.take([0], axis), x.shape)
    strides, extent = layout.strides(x.shape, x.itemsize)
    backwards = sum(-stride * (n - 1) for stride, n in zip(strides, x.shape, strict=True) if stride < 0 and n > 1)
    first = layout.offset * x.itemsize + backwards
    size = layout.offset + extent + ALIGNMENT // x.itemsize
    memory = np.zeros(size, x.dtype) if size > UNTOUCHED else np.full(size, np.nan, x.dtype)
    start = -memory.ctypes.data % ALIGNMENT
    view = np.ndarray(x.shape, x.dtype, memory, start + first, strides)
    view[...] = x
    return view


def named(name, ndim, *, rows_of=2):
    """The layouts that people use, of arrays (..., heads, sequence, head_dim), or with `rows_of` 1 without columns."""
    head = ndim - 1 - rows_of
    lead, row, cols = range(head), head + 1, range(head + 2, ndim)
    return {
        "contiguous": CONTIGUOUS,
        "bshd": Layout(order=(*lead, row, head, *cols)),
        "padded": Layout(gaps=(*(0 for _ in lead), 72, 24, *(0 for _ in cols)), offset=8),  # 16-byte alignment stays
        "reversed": Layout(reversed=frozenset({head, row})),
        "strided_cols": Layout(gaps=(1,) * ndim),  # x[..., ::2]: all other strides are as they were, times 2
        "offset": Layout(offset=1),  # one element past alignment
    }[name]


LAYOUTS = ("contiguous", "bshd", "padded", "reversed", "strided_cols", "offset")


def any_layout(seed, shape, *, constant=True):
    """A layout for an array of this shape: axes in any order, gaps, strides of 0 (unless refused) and below 0.

    Half of them keep rows on 16-byte boundaries, for kernels that load vectors, but for one axis perhaps. From a seed
    rather than drawn one by one: of examples with so many parts Hypothesis repeats most.
    """
    rng, axes = Random(seed), range(len(shape))
    if rng.random() < 1 / 4:
        return CONTIGUOUS
    vectors = rng.random() < 1 / 2
    unit, order = (8, axes[:-1]) if vectors else (1, axes)
    gaps = [unit * rng.randint(0, 3) for _ in axes[:-1]] + [0 if vectors else rng.choice([0, 1, 2])]
    gaps[rng.choice(axes[:-1])] += rng.choice([0, 1])
    return Layout(
        order=(*rng.sample(order, len(order)), *axes[len(order) :]),
        gaps=tuple(gaps),
        reversed=frozenset() if vectors else frozenset(rng.sample(axes, rng.randint(0, 2))),
        constant=frozenset(rng.sample(axes[:-1], rng.randint(0, 1))) if constant else frozenset(),
        single=rng.choice([0, 0, 16, 7, -3, 2**40 + 1]),
        offset=unit * rng.randint(0, 3),
    )
