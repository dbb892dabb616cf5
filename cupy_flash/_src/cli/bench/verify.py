"""A method's result on some rows against float64 on the host: at full size, before it is timed.

The rows are the first and the last of the last batch element and key head. For the backward the gradient of the
output is zero in all others, so that dk and dv, too, are sums over these rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from cupy_flash import attention_reference, attention_reference_backward
from cupy_flash._src.cli.bench import options
from cupy_flash._src.cli.bench.cases import Case, Inputs, row_blocks
from cupy_flash._src.cli.bench.methods import Bound
from cupy_flash._src.components import ARRAYS, CAPTURED, COMPONENTS
from cupy_flash._src.problem import DTYPES

PLACED = [component.keyword for component in COMPONENTS if component.uses_offset]
WITH_ROWS = ("out", "dq", "dbias")  # the others are sums over all rows
# Peers round where they like: twice what `check` grants our kernels, and a few roundings of the result.
NAIVE_ERRORS, ROUNDINGS = 4.0, 4.0


class Expected:
    """What one case must give; made once, for all methods."""

    def __init__(self, case: Case, x: Inputs) -> None:
        self.case, self.blocks, self.backward = case, list(row_blocks(case)), case.direction == "backward"
        self.heads = slice(case.heads_q - case.group, case.heads_q)
        self.wrt = options.wrt(case)
        self.names = tuple(f"d{name}" for name in self.wrt) if self.backward else ("out",)
        q, dout = (_host(a[-1, self.heads]) for a in (x.q, x.dout))
        k, v = (_host(a[-1, -1:]) for a in (x.k, x.v))
        self.exact, self.naive = (self._results(dtype, q, k, v, dout) for dtype in (np.float64, None))

    def _results(self, dtype: Any, q: Any, k: Any, v: Any, dout: Any) -> tuple[np.ndarray, ...]:
        """The output's rows; or gradients: rows of those that have them, and all of the others."""
        parts: list[tuple[np.ndarray, ...]] = []
        for rows in self.blocks:
            given = self._given(rows) | {"compute_dtype": dtype}
            if self.backward:
                given["wrt"] = self.wrt
                parts.append(attention_reference_backward(dout[:, rows], q[:, rows], k, v, **given))
            else:
                parts.append((attention_reference(q[:, rows], k, v, **given),))
        found = [[x.astype(np.float64) for x in part] for part in zip(*parts, strict=True)]
        return tuple(
            np.concatenate(part, axis=-2) if name in WITH_ROWS else sum(part, np.zeros(()))
            for name, part in zip(self.names, found, strict=True)
        )

    def _given(self, rows: slice) -> dict[str, Any]:
        """The options, of arrays what belongs to these rows."""
        case = self.case
        found = options.given(case, np)
        full = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
        for name, component in ARRAYS.items():
            if name in found:
                axes = 4 - (component.lacks or 0)
                index = (-1, self.heads, rows, slice(None))[:axes]
                found[name] = np.broadcast_to(found[name], full[:axes])[index]
        if any(found.get(keyword, False) is not False for keyword in PLACED):
            found["q_offset"] = rows.start + case.seqlen_k - case.seqlen_q
        begin = case.batch - 1, self.heads.start, rows.start
        for component in CAPTURED.values():
            if component.keyword in found:
                symbols = [name for name, _ in component.kind.symbols]
                found[component.keyword] = _moved(found[component.keyword], symbols.index("b"), begin)
        return found

    def error(self, bound: Bound, x: Inputs) -> float:
        """The largest error of a method.

        Raises
        ------
        ArithmeticError
            If it is more than rounding explains.
        """
        results: tuple[np.ndarray, ...]
        if self.backward:
            dout = x.dout.copy(order="K")  # laid out as it is
            dout[...] = 0
            for rows in self.blocks:
                dout[-1, self.heads, rows] = x.dout[-1, self.heads, rows]
            dq, dk, dv, *learned = bound.backward(bound.saved(), bound.take(dout))
            results = tuple(map(bound.give, (dq, dk, dv))) + tuple(map(bound.give_option or bound.give, learned))
        else:
            results = (bound.give(bound.forward()),)
        eps, largest = float(ml_dtypes.finfo(DTYPES[self.case.dtype]).eps), 0.0
        for name, whole, naive, exact in zip(self.names, results, self.naive, self.exact, strict=True):
            result = self._rows(whole) if name in WITH_ROWS else self._sum(name, whole)
            error = float(np.abs(result.astype(np.float64) - exact).max())
            allowed = NAIVE_ERRORS * np.abs(naive - exact).max() + ROUNDINGS * eps * np.abs(exact).max()
            if not error <= allowed:
                raise ArithmeticError(f"wrong: {name} is off by {error:.3g}, rounding explains {allowed:.3g}")
            largest = max(largest, error)
        return largest

    def _rows(self, x: Any) -> np.ndarray:
        return np.concatenate([_host(x[-1, self.heads, rows]) for rows in self.blocks], axis=-2)

    def _sum(self, name: str, x: Any) -> np.ndarray:
        return _host(x[self.heads] if name == "dsinks" else x[-1, -1:])


def _moved(function: Callable[..., Any], first: int, begin: tuple[int, int, int]) -> Callable[..., Any]:
    """The function of a part of the scores, whose b, h and i, from argument `first` on, begin there."""

    def moved(*given: Any) -> Any:
        places = (x + n for x, n in zip(given[first:], begin, strict=False))
        return function(*given[:first], *places, *given[first + len(begin) :])

    return moved


def _host(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.get()
