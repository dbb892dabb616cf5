"""Query i sees key j when j <= i + q_offset"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cupy_flash._src.components.component import Mask, Rows, Sizes
from cupy_flash._src.options import boolean


@dataclass(frozen=True)
class Causal(Mask):
    """No query sees a key behind it."""

    keyword, default = "causal", False
    examples = (True,)
    uses_offset = True

    @staticmethod
    def check(value: Any) -> bool:
        return boolean("causal", value)

    @classmethod
    def of(cls, value: bool, sizes: Sizes) -> Causal | None:
        return cls() if value else None

    def params(self) -> dict[str, Any]:
        return {"used": True}

    def key_end(self, query: Rows, q_offset: int) -> Rows:
        return query + q_offset + 1

    def query_begin(self, key: Rows, q_offset: int) -> Rows:
        return key - q_offset
