"""The same attention computed by every backend, forward and backward, against float64."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupy_flash import attention_reference, attention_reference_backward, flash_attention_vjp
from cupy_flash._src import backends
from cupy_flash._src.cli.text import embed, read_text
from cupy_flash._src.problem import DTYPES

WAYS = {"cpu": "CPU backend", "emulator": "CUDA kernels, emulated", "cuda": "CUDA kernels, on the GPU"}


@dataclass(frozen=True)
class Result:
    """Largest errors of one way of computing, and the wall-clock time of its second call."""

    name: str
    arrays: tuple[np.ndarray, ...]  # out, dq, dk, dv in float64
    out_error: float
    grad_error: float
    seconds: float


class Agreement:
    """One small problem, its solution in float64, and what each way makes of it.

    The loss is ``sum(out ** 2) / 2``, so the gradient of the output is the output.
    """

    def __init__(self, dtype: str, seqlen: int, heads: int, head_dim: int) -> None:
        self.inputs = [x.astype(DTYPES[dtype]) for x in embed(read_text(), seqlen, heads, head_dim)]
        out = attention_reference(*self.inputs, causal=True, compute_dtype=np.float64)
        self.dout = out.astype(DTYPES[dtype])
        grads = attention_reference_backward(self.dout, *self.inputs, causal=True, compute_dtype=np.float64)
        self.exact = (out, *grads)

    def standard(self) -> Result:
        """The standard attention in the dtype of the problem."""
        start = time.perf_counter()
        out = attention_reference(*self.inputs, causal=True)
        grads = attention_reference_backward(self.dout, *self.inputs, causal=True)
        return self._result("standard attention", (out, *grads), time.perf_counter() - start)

    def flash(self, backend: str) -> Result:
        """`flash_attention_vjp` on one backend.

        Raises
        ------
        RuntimeError
            If the backend is not available on this machine.
        """
        xp = backends.get(backend).namespace
        q, k, v, dout = (xp.asarray(x) for x in (*self.inputs, self.dout))
        for _ in range(2):  # the first call compiles
            start = time.perf_counter()
            out, vjp = flash_attention_vjp(q, k, v, causal=True, backend=backend)
            arrays = [_to_host(x) for x in (out, *vjp(dout))]
            seconds = time.perf_counter() - start
        return self._result(WAYS[backend], arrays, seconds)

    def _result(self, name: str, arrays: Any, seconds: float) -> Result:
        arrays = tuple(x.astype(np.float64) for x in arrays)
        errors = [float(np.abs(x - exact).max()) for x, exact in zip(arrays, self.exact, strict=True)]
        return Result(name, arrays, errors[0], float(np.max(errors[1:])), seconds)


def largest_difference(results: list[Result]) -> float:
    """Largest difference of any two results, over the output and all gradients; nan where one is no number."""
    return float(
        np.max([np.ptp(np.stack(same), axis=0).max() for same in zip(*(r.arrays for r in results), strict=True)])
    )


def _to_host(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.get()
