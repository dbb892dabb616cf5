"""Tables of the blocks that a mask's function shows, made once for many calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from cupy_flash._src import backends
from cupy_flash._src.components import CAPTURED
from cupy_flash._src.components.block_mask import BlockMask, classified
from cupy_flash._src.components.component import Sizes
from cupy_flash._src.components.mods import captured_arrays
from cupy_flash._src.names import answered


@answered
def block_mask(
    mask_mod: Callable[..., Any],
    shape: Sequence[int],
    mask_args: tuple[Any, ...] | list[Any] = (),
    *,
    backend: str | None = None,
) -> BlockMask:
    """A mask's function and the blocks of queries and keys that it shows, for many calls with the same mask.

    `flash_attention` finds these blocks at each call, by intervals (a few percent of its time, for arrays may have
    changed); of what this returns, given as `mask_mod`, it takes them as they are.

    Parameters
    ----------
    mask_mod : callable
        ``mask_mod(b, h, i, j, *mask_args)``, as `flash_attention` takes it.
    shape : sequence of int
        Of the scores, (..., Hq, Sq, Sk); (Sq, Sk) is enough for a function that depends on neither b nor h.
    mask_args : tuple, optional
        What the function captures. **When these arrays change, the table must be made again**: nothing notices that it
        tells of what they held, and the result is that of neither.
    backend : str, optional
        As in `flash_attention`. Without it the table lies where the arrays do; of a function without arrays on the CPU.

    Returns
    -------
    BlockMask
        To be passed as `mask_mod`, without `mask_args`, with q, k and v of these lengths. The forward and the backward
        share it.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `flash_attention`, of the function and its arguments; a ValueError if `shape` is none.

    Notes
    -----
    A byte for every 64 x 64 scores: of 131072 queries and keys 4 MiB. Which blocks are empty or full is found by
    interval arithmetic (R. E. Moore, "Interval Analysis", 1966): a block of which that does not tell is looked at key
    by key, so that a table never changes a result.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_flash import block_mask, flash_attention, mods
    >>> mask = block_mask(mods.window, (512, 512), (64, 0))
    >>> mask
    BlockMask(window, (512, 512): 77% hidden, 23% in part, 0% seen)
    >>> x = np.random.default_rng(0).standard_normal((8, 512, 64), dtype=np.float32)
    >>> out = flash_attention(x, x, x, mask_mod=mask)
    >>> bool(np.allclose(out, flash_attention(x, x, x, mask_mod=mods.window, mask_args=(64, 0))))
    True
    """
    component, sizes = CAPTURED["mask_args"], _sizes(shape)
    arrays = dict(captured_arrays("mask_args", mask_args))
    if arrays:
        module, taken = backends.select(backend, **arrays)
        arrays = dict(zip(arrays, taken, strict=True))
    else:
        module, _ = backends.select(backend or "cpu")
    if isinstance(mask_mod, BlockMask) or not callable(mask_mod):
        raise TypeError(f"mask_mod is {mask_mod!r}: expected a function")
    call: Any = component.given({"mask_mod": mask_mod, "mask_args": tuple(mask_args), **arrays})
    mod: Any = component.of({"mask_mod": component.check(call)}, sizes)
    with module.placed(**arrays):
        table = module.namespace.ascontiguousarray(classified(module.namespace, mod, arrays))
    return BlockMask(mask_mod, tuple(mask_args), tuple(map(operator.index, shape)), table)


def _sizes(shape: Sequence[int]) -> Sizes:
    """A problem of such scores."""
    try:
        numbers = tuple(map(operator.index, shape))
    except TypeError:
        raise TypeError(f"shape is {shape!r}: expected ints, (..., Hq, Sq, Sk)") from None
    if len(numbers) < 2 or min(numbers) < 0:
        raise ValueError(f"shape is {shape!r}: expected sizes (..., Hq, Sq, Sk), or (Sq, Sk)")
    *batch, heads, sq, sk = (1, *numbers) if len(numbers) == 2 else numbers
    return Sizes("float32", 1, sq, sk, prod(batch), heads)
