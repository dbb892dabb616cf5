"""Query i sees key j where mask_mod(b, h, i, j, *mask_args)"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from cupy_flash._src.components.block_mask import LISTS, BlockMask, table_shape
from cupy_flash._src.components.component import Array, Mask, Region, Sizes
from cupy_flash._src.components.mods import TABLE, Call, Mod, captured_arrays, is_empty
from cupy_flash._src.expressions import headers
from cupy_flash._src.expressions.tracing import MASK


def same(b: Any, h: Any, i: Any, j: Any, of_queries: Any, of_keys: Any) -> Any:
    return of_queries[b, i] == of_keys[b, j]


def of_documents(rng: np.random.Generator, full: tuple[int, ...]) -> dict[str, Any]:
    """Of different lengths."""
    numbers = (np.sort(rng.integers(0, 4, (prod(full[:-3]), n))) for n in full[-2:])
    return {"mask_mod": same, "mask_args": tuple(numbers)}


def earlier(b: Any, h: Any, i: Any, j: Any) -> Any:
    return j <= i


def without_arguments(rng: np.random.Generator, full: tuple[int, ...]) -> dict[str, Any]:
    return {"mask_mod": earlier}


class MaskMod(Mod, Mask):
    """A function of the caller that tells which keys a query sees."""

    keyword, captured, kind = "mask_mod", "mask_args", MASK
    examples = (of_documents, without_arguments)
    elementwise = True

    @classmethod
    def arrays_among(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        function = arguments[cls.keyword]
        if not isinstance(function, BlockMask):
            return super().arrays_among(arguments)
        return dict(captured_arrays(cls.captured, function.mask_args)) | {TABLE: function.table}

    @classmethod
    def given(cls, arguments: Mapping[str, Any]) -> Call | None:
        function, captured = arguments[cls.keyword], arguments[cls.captured]
        if not isinstance(function, BlockMask):
            return super().given(arguments)
        if not is_empty(captured):
            raise TypeError("mask_args are given with a BlockMask, which has its own")
        call = super().given({**arguments, cls.keyword: function.mask_mod, cls.captured: function.mask_args})
        return call and call._replace(shape=function.shape)

    @classmethod
    def of(cls, options: Mapping[str, Any], sizes: Sizes) -> Mod | None:
        mod, checked = super().of(options, sizes), options[cls.keyword]
        if mod is None or checked.shape is None:
            return mod
        *leading, sq, sk = checked.shape
        batch, heads = (prod(leading[:-1]), leading[-1]) if leading else (1, 1)
        made = replace(mod, has_table=True, sizes=sizes._replace(batch=batch, heads=heads, seqlen_q=sq, seqlen_k=sk))
        if table_shape(made) != table_shape(mod) or (sq, sk) != (sizes.seqlen_q, sizes.seqlen_k):
            wanted = (sizes.batch, sizes.heads, sizes.seqlen_q, sizes.seqlen_k)
            raise ValueError(f"mask_mod is a BlockMask of shape {checked.shape}: expected scores {wanted}")
        return replace(mod, has_table=True)

    def params(self) -> dict[str, Any]:
        _, heads, rows, columns = table_shape(self)
        known = self.graph.symbols
        strides = (
            heads * rows * columns if "b" in known else 0,
            rows * columns if "h" in known else 0,
            columns,
        )
        return super().params() | {"table": (0, *strides)}

    @property
    def text(self) -> str:
        return header(self)

    @classmethod
    def array_of(cls, field: str) -> str:
        return field if field in LISTS else TABLE if field == "table" else super().array_of(field)

    def cpu_text(self) -> str:
        return headers.cpu_mask(self.struct_text(), self.code(self.graph, (0,)))

    def shows(self, xp: object, region: Region) -> Array:
        (found,) = self.evaluate(self.graph, xp, np.dtype(np.float64), region)
        return found


@functools.lru_cache(maxsize=1024)
def header(mod: MaskMod) -> str:
    """Its struct and its part of a mask, as CUDA."""
    code, ranges = mod.code(mod.graph, (0,)), mod.code(mod.graph, (0,), element="element_range")
    return headers.INCLUDES + mod.struct_text(headers.BLOCKS) + headers.mask(code, ranges, mod.looks_up_keys)
