"""What a vjp keeps between its two calls must be what it was: noted at the first, asked at the second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cupy_flash._src.operands import KEPT, Gradients, Operands
from cupy_flash._src.problem import AttentionProblem


def names_of(flags: Any) -> tuple[str, ...]:
    """The arrays whose flag, of five, is not 0."""
    return tuple(name for name, flag in zip(KEPT, flags.tolist(), strict=True) if flag)


def refuse(changed: tuple[str, ...]) -> None:
    """Raise if there is a name."""
    if changed:
        raise ValueError(
            f"{' and '.join(changed)} changed since flash_attention_vjp: expected what it was given and returned, "
            "unchanged until vjp is called (write x = out + residual, not out += residual)"
        )


class HostSeal:
    """Of NumPy arrays: digests by `digest` of a tier of the backend "cpu"."""

    def __init__(
        self, digest: Callable[[AttentionProblem, Operands], np.ndarray], problem: AttentionProblem, operands: Operands
    ) -> None:
        self._digest = lambda: digest(problem, operands)
        self._before = self._digest()

    def changed(self) -> tuple[str, ...]:
        return names_of((self._digest() != self._before).any(axis=0))

    def check(self) -> None:
        refuse(self.changed())

    def spoil(self, found: Any, gradients: Gradients) -> None:
        pass
