"""Time, peak memory and error of one attention call, each measured in a fresh process."""

from __future__ import annotations

import multiprocessing
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cupy_flash import attention_reference, flash_attention
from cupy_flash._src.cli.text import embed, read_text
from cupy_flash._src.problem import DTYPES

ORACLE_ROWS = 256  # float64 scores of the last rows against all keys fit in memory at any length
TIMING_SECONDS = 1.0
MAX_REPEATS = 20


@dataclass(frozen=True)
class Case:
    """One call to measure: ``method`` is "flash" or "standard"."""

    method: str
    backend: str
    dtype: str
    seqlen: int
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Cost:
    """Best time of a call, its peak memory beyond the inputs, what of it is the output, its largest error."""

    seconds: float
    peak_bytes: int
    output_bytes: int
    error: float


def measure_apart(case: Case) -> Cost | None:
    """Measure in a process of its own, so that no cache or scratch memory is left from an earlier call.

    Returns
    -------
    cost : Cost or None
        None if the inputs would not fit in memory, or the process was killed, as systems do when memory runs out.
    """
    available = available_bytes("cpu")
    if available is not None and embedding_bytes(case) > available:
        return None
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as executor:
        try:
            return executor.submit(measure, case).result()
        except (BrokenProcessPool, MemoryError):
            return None


def measure(case: Case) -> Cost:
    """Measure in this process; the memory figure is right only for the first call."""
    embedded = embed(read_text(), case.seqlen, case.heads, case.head_dim)
    inputs = [x.astype(DTYPES[case.dtype]) for x in embedded]
    on_gpu = case.backend == "cuda"
    arrays = [_to_gpu(x) for x in inputs] if on_gpu else inputs
    seconds = []

    def attention(q: Any, k: Any, v: Any) -> Any:
        if case.method == "standard":
            return attention_reference(q, k, v, causal=True)
        return flash_attention(q, k, v, causal=True, backend=case.backend)

    def call() -> Any:
        start = _clock(on_gpu)
        out = attention(*arrays)
        seconds.append(_clock(on_gpu) - start)
        return out

    attention(*(x[:, :1] for x in arrays))  # first what is made once: code, what Python imports and keeps
    peak_bytes, out = _gpu_peak(call) if on_gpu else _host_peak(call)
    while sum(seconds) < TIMING_SECONDS and len(seconds) < MAX_REPEATS:
        call()

    last = slice(-ORACLE_ROWS, None)
    exact = attention_reference(inputs[0][:, last], *inputs[1:], causal=True, compute_dtype=np.float64)
    computed = (out.get() if on_gpu else out)[:, last].astype(np.float64)
    return Cost(min(seconds), peak_bytes, out.nbytes, float(np.abs(computed - exact).max()))


def embedding_bytes(case: Case) -> int:
    """What making the inputs needs on the host, near enough: ten arrays of seqlen x width in float64 at a time."""
    return 10 * 8 * case.seqlen * case.heads * case.head_dim


def standard_bytes(case: Case) -> int:
    """What the standard attention needs, near enough: three arrays of heads x seqlen x seqlen at a time."""
    return 3 * case.heads * case.seqlen**2 * max(4, DTYPES[case.dtype].itemsize)


def available_bytes(backend: str) -> int | None:
    """Memory that a call may still take, or None where the system does not say."""
    if backend == "cuda":
        import cupy

        return int(cupy.cuda.runtime.memGetInfo()[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _to_gpu(x: np.ndarray) -> Any:
    import cupy

    return cupy.asarray(x)


def _host_peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """Peak of what is allocated during a call, its result and the compiled backend's scratch memory included.

    Allocations are counted, for the resident set grows by pages, huge ones too, and by what others hold back.
    """
    tracemalloc.start()
    try:
        out = call()
        return tracemalloc.get_traced_memory()[1], out
    finally:
        tracemalloc.stop()


def _gpu_peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """What CuPy's pool takes from the device during a call and, as pools do, does not give back."""
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    out = call()
    return pool.total_bytes() - before, out


def _clock(on_gpu: bool) -> float:
    """Seconds, after what was launched on the GPU has finished."""
    if on_gpu:
        import cupy

        cupy.cuda.get_current_stream().synchronize()
    return time.perf_counter()
