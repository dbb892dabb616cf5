"""Functions for `score_mod` and `mask_mod`, to be used as they are and read as examples.

Each takes the number of the batch element b (counted through all leading dimensions), of the query head h, of the query
i and of the key j, a score function the score s first; what follows are arguments, which a call names in `score_args`
or `mask_args`. Positions count from 0 on both sides, whatever `q_offset` is.

>>> import numpy as np
>>> from cupy_flash import flash_attention, mods
>>> x = np.random.default_rng(0).standard_normal((8, 128, 64), dtype=np.float32)
>>> masked = flash_attention(x, x, x, mask_mod=mods.window, mask_args=(16, 0))
>>> bool(np.allclose(masked, flash_attention(x, x, x, window=(16, 0), q_offset=0), atol=1e-6))
True
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "alibi",
    "and_masks",
    "blocks",
    "causal",
    "dilated",
    "documents",
    "neighbourhood",
    "not_mask",
    "or_masks",
    "picture",
    "prefix",
    "relative",
    "softcap",
    "spatial",
    "t5",
    "temperature",
    "window",
]


def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    """The keys up to the query's own.

    Examples
    --------
    >>> print(picture(causal, 5))
    # . . . .
    # # . . .
    # # # . .
    # # # # .
    # # # # #
    """
    return j <= i


def window(b: Any, h: Any, i: Any, j: Any, left: Any, right: Any) -> Any:
    """The query's own key and so many on either side (Beltagy et al., "Longformer", arXiv:2004.05150, section 3.1).

    Parameters
    ----------
    left, right : int
        How many keys before and after.

    Examples
    --------
    >>> print(picture(window, 5, 2, 1))
    # # . . .
    # # # . .
    # # # # .
    . # # # #
    . . # # #
    """
    return (i - left <= j) & (j <= i + right)


def prefix(b: Any, h: Any, i: Any, j: Any, lengths: Any) -> Any:
    """All see the first keys; the others are causal (Raffel et al., "T5", arXiv:1910.10683, figure 4).

    Parameters
    ----------
    lengths : array of int, shape (batch,)
        How many keys all see.

    Examples
    --------
    >>> print(picture(prefix, 5, np.array([3])))
    # # # . .
    # # # . .
    # # # . .
    # # # # .
    # # # # #
    """
    return (j < lengths[b]) | (j <= i)


def documents(b: Any, h: Any, i: Any, j: Any, of_queries: Any, of_keys: Any) -> Any:
    """Documents one after another in a sequence, of which each sees itself.

    Parameters
    ----------
    of_queries : array of int, shape (batch, Sq)
        The document that each query belongs to.
    of_keys : array of int, shape (batch, Sk)
        The same of keys.

    Examples
    --------
    >>> ids = np.array([[0, 0, 1, 1, 1]])
    >>> print(picture(documents, 5, ids, ids))
    # # . . .
    # # . . .
    . . # # #
    . . # # #
    . . # # #
    """
    return of_queries[b, i] == of_keys[b, j]


def dilated(b: Any, h: Any, i: Any, j: Any, step: Any) -> Any:
    """Every so many-th key, counted from the query's own (Longformer, section 3.1, where a window is dilated).

    Parameters
    ----------
    step : int
        From one key to the next.

    Examples
    --------
    >>> print(picture(and_masks(window, dilated), 6, 4, 4, 2))
    # . # . # .
    . # . # . #
    # . # . # .
    . # . # . #
    # . # . # .
    . # . # . #
    """
    return (i - j) % step == 0


def blocks(b: Any, h: Any, i: Any, j: Any, size: Any) -> Any:
    """Blocks on the diagonal.

    Parameters
    ----------
    size : int
        Queries and keys of each.

    Examples
    --------
    >>> print(picture(blocks, 5, 2))
    # # . . .
    # # . . .
    . . # # .
    . . # # .
    . . . . #
    """
    return i // size == j // size


def neighbourhood(b: Any, h: Any, i: Any, j: Any, rows: Any, columns: Any, radius: Any) -> Any:
    """The square of pixels around a pixel, of an image row after row.

    At the borders it is moved inwards, so that all see equally many (Hassani et al., "Neighborhood Attention
    Transformer", arXiv:2204.07143, section 3.1).

    Parameters
    ----------
    rows, columns : int
        Of the image.
    radius : int
        How many pixels the square goes on from its middle.

    Examples
    --------
    >>> print(picture(neighbourhood, (4, 12), 3, 4, 1))
    # # # . # # # . # # # .
    # # # . # # # . # # # .
    . # # # . # # # . # # #
    . # # # . # # # . # # #
    """
    row, column = np.clip(i // columns, radius, rows - 1 - radius), np.clip(i % columns, radius, columns - 1 - radius)
    return (abs(row - j // columns) <= radius) & (abs(column - j % columns) <= radius)


def alibi(s: Any, b: Any, h: Any, i: Any, j: Any, slopes: Any) -> Any:
    """Linear biases (Press et al., "Train Short, Test Long", arXiv:2108.12409, section 3), on both sides.

    Parameters
    ----------
    slopes : array of float, shape (heads,)
        What each unit of distance costs.

    Examples
    --------
    >>> alibi(0.0, 0, 0, np.arange(3)[:, None], np.arange(4), np.array([0.5]))
    array([[ 0. , -0.5, -1. , -1.5],
           [-0.5,  0. , -0.5, -1. ],
           [-1. , -0.5,  0. , -0.5]])
    """
    return s - slopes[h] * abs(i - j)


def relative(s: Any, b: Any, h: Any, i: Any, j: Any, table: Any) -> Any:
    """A bias for each head and distance, beyond a table that at its ends.

    As Shaw et al., "Self-Attention with Relative Position Representations", arXiv:1803.02155, section 3.2, clip
    distances, with numbers in the place of vectors.

    Parameters
    ----------
    table : array of float, shape (heads, 2 n + 1)
        Biases of the distances i - j from -n to n.

    Examples
    --------
    >>> relative(0.0, 0, 0, np.arange(3)[:, None], np.arange(4), np.array([[7.0, 5.0, 6.0]]))
    array([[5., 7., 7., 7.],
           [6., 5., 7., 7.],
           [6., 6., 5., 7.]])
    """
    last = table.shape[1] - 1
    return s + table[h, np.clip(i - j + last // 2, 0, last)]


def t5(furthest: int) -> Callable[..., Any]:
    """A bias for each head and bucket of distances, both ways (Raffel et al., "T5", arXiv:1910.10683, section 2.1).

    Its argument is a table of floats, of shape (heads, buckets). The first half of the buckets is for keys up to the
    query's own, the second for those after it. Of the n buckets of a half the first m = n // 2 are single distances;
    the others grow: one more from each distance d on with log(d / m) / log(furthest / m) = t / (n - m). In whole
    numbers, as here, no such distance falls on the wrong side.

    Parameters
    ----------
    furthest : int
        The distance that would begin the bucket after the last; T5 has 128, and 32 buckets.

    Examples
    --------
    >>> t5(8)(0.0, 0, 0, np.arange(3)[:, None], np.arange(6), np.arange(8.0)[None])
    array([[0., 5., 6., 6., 7., 7.],
           [1., 0., 5., 6., 6., 7.],
           [2., 1., 0., 5., 6., 6.]])
    """

    def biased(s: Any, b: Any, h: Any, i: Any, j: Any, table: Any) -> Any:
        half = table.shape[1] // 2
        single, distance = half // 2, abs(i - j)
        bucket = np.minimum(distance, single) + np.where(j > i, half, 0)
        for first in _buckets(single, half - single, furthest):
            bucket = bucket + np.where(distance >= first, 1, 0)
        return s + table[h, bucket]

    return biased


def spatial(s: Any, b: Any, h: Any, i: Any, j: Any, table: Any, distances: Any) -> Any:
    """A bias for each head and distance of two nodes of a graph.

    As in Ying et al., "Do Transformers Really Perform Bad for Graph Representation?", arXiv:2106.05234, section 3.1.2.

    Parameters
    ----------
    table : array of float, shape (heads, n)
        Biases of the distances from 0 to n - 1; the last is also that of longer ones, and of -1: no path.
    distances : array of int, shape (batch, Sq, Sk)
        Numbers of edges on the shortest paths.

    Examples
    --------
    >>> path_and_node = np.array([[[0, 1, 2, -1], [1, 0, 1, -1], [2, 1, 0, -1], [-1, -1, -1, 0]]])
    >>> spatial(0.0, 0, 0, np.arange(4)[:, None], np.arange(4), np.array([[0.0, 0.1, 0.2, -9.0]]), path_and_node)
    array([[ 0. ,  0.1,  0.2, -9. ],
           [ 0.1,  0. ,  0.1, -9. ],
           [ 0.2,  0.1,  0. , -9. ],
           [-9. , -9. , -9. ,  0. ]])
    """
    return s + table[h, np.clip(distances[b, i, j], -1, table.shape[1] - 1)]


def softcap(s: Any, b: Any, h: Any, i: Any, j: Any, cap: Any) -> Any:
    """A bound that scores approach (Gemma 2, arXiv:2408.00118, section 2.2).

    Parameters
    ----------
    cap : float
        The bound.

    Examples
    --------
    >>> softcap(np.array([-1000.0, -1.0, 0.0, 1.0, 20.0]), 0, 0, 0, 0, 20.0).round(2)
    array([-20.  ,  -1.  ,   0.  ,   1.  ,  15.23])
    """
    return cap * np.tanh(s / cap)


def temperature(s: Any, b: Any, h: Any, i: Any, j: Any, temperatures: Any) -> Any:
    """A temperature for each head, which may be learned.

    Parameters
    ----------
    temperatures : array of float, shape (heads,)
        What scores are divided by.

    Examples
    --------
    >>> temperature(3.0, 0, np.arange(2), 0, 0, np.array([1.0, 2.0]))
    array([3. , 1.5])
    """
    return s / temperatures[h]


def and_masks(*masks: Callable[..., Any]) -> Callable[..., Any]:
    """The keys that all of some masks show; their arguments follow one another.

    Parameters
    ----------
    *masks : callable
        Functions for `mask_mod`.

    Examples
    --------
    >>> print(picture(and_masks(causal, dilated), 5, 2))
    # . . . .
    . # . . .
    # . # . .
    . # . # .
    # . # . #
    """
    return _joined("and_masks", lambda x, y: x & y, masks)


def or_masks(*masks: Callable[..., Any]) -> Callable[..., Any]:
    """The keys that any of some masks shows; their arguments follow one another.

    Parameters
    ----------
    *masks : callable
        Functions for `mask_mod`.

    Examples
    --------
    >>> print(picture(or_masks(blocks, dilated), 5, 2, 4))
    # # . . #
    # # . . .
    . . # # .
    . . # # .
    # . . . #
    """
    return _joined("or_masks", lambda x, y: x | y, masks)


def not_mask(mask: Callable[..., Any]) -> Callable[..., Any]:
    """The keys that a mask hides; it has the mask's arguments.

    Parameters
    ----------
    mask : callable
        A function for `mask_mod`.

    Examples
    --------
    >>> print(picture(not_mask(causal), 5))
    . # # # #
    . . # # #
    . . . # #
    . . . . #
    . . . . .
    """

    def hidden(b: Any, h: Any, i: Any, j: Any, *arguments: Any) -> Any:
        return np.logical_not(mask(b, h, i, j, *arguments))

    return _named("not_mask", (mask,), hidden)


def picture(mask: Callable[..., Any], size: int | tuple[int, int], *arguments: Any, b: int = 0, h: int = 0) -> str:
    """A mask of so many queries (down) and keys (across): # where a key is seen.

    Parameters
    ----------
    mask : callable
        A function for `mask_mod`.
    size : int or (int, int)
        Queries and keys.
    *arguments
        What a call would have as `mask_args`.
    b, h : int, optional
        The batch element and the head.

    Examples
    --------
    >>> print(picture(lambda b, h, i, j: j == i + h, (2, 4), h=1))
    . # . .
    . . # .
    """
    queries, keys = (size, size) if isinstance(size, int) else size
    shown = np.broadcast_to(mask(b, h, np.arange(queries)[:, None], np.arange(keys), *arguments), (queries, keys))
    return "\n".join(" ".join("#" if seen else "." for seen in row) for row in shown)


def _buckets(single: int, more: int, furthest: int) -> list[int]:
    """The least distances d >= single with (d / single)^more >= (furthest / single)^t, for t from 1 to more - 1."""
    found = []
    for t in range(1, more):
        d = max(single, int(single * (furthest / single) ** (t / more)) - 1)
        while d**more * single**t < furthest**t * single**more:
            d += 1
        found.append(d)
    return found


def _joined(name: str, join: Callable[[Any, Any], Any], masks: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    counts = tuple(_takes(mask) for mask in masks)

    def joined(b: Any, h: Any, i: Any, j: Any, *arguments: Any) -> Any:
        if len(arguments) != sum(counts):
            raise TypeError(f"{len(arguments)} arguments for masks that take {' + '.join(map(str, counts))}")
        found, first = None, 0
        for mask, count in zip(masks, counts, strict=True):
            shown = mask(b, h, i, j, *arguments[first : first + count])
            found, first = shown if found is None else join(found, shown), first + count
        return found

    return _named(name, masks, joined)


def _named(name: str, masks: tuple[Callable[..., Any], ...], function: Any) -> Callable[..., Any]:
    """A function of the arguments of masks, with the name that messages have."""
    if not masks:
        raise TypeError(f"{name} of nothing: expected one mask or more")
    function.__qualname__ = f"{name}({', '.join(getattr(mask, '__qualname__', repr(mask)) for mask in masks)})"
    function.takes = sum(map(_takes, masks))
    return function


def _takes(mask: Any) -> int:
    """How many arguments a mask must be given beyond b, h, i and j."""
    if hasattr(mask, "takes"):
        return mask.takes
    parameters = list(inspect.signature(mask).parameters.values())[4:]
    if any(x.kind is x.VAR_POSITIONAL for x in parameters):
        raise TypeError(f"{mask!r} takes any number of arguments: expected a mask that names them")
    return sum(x.default is x.empty for x in parameters)
