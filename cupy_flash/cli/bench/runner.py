"""Measures what the book lacks: each case by each method, verified, timed, written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cupy_flash.backends.cupy_ import CupyBackend
from cupy_flash.cli.bench.book import OK, Book, Row
from cupy_flash.cli.bench.cases import Case, Inputs, Numbers
from cupy_flash.cli.bench.methods import Bound, Method
from cupy_flash.cli.bench.table import OURS
from cupy_flash.cli.bench.verify import Expected
from cupy_flash.device import Device
from cupy_flash.plan import Launch, plan_backward, plan_forward
from cupy_flash.problem import DTYPES, AttentionProblem

MATMUL_SIZE, COPY_BYTES = 8192, 2**30
MATMUL = Case("matmul", "float16", 1, 1, 1, MATMUL_SIZE, MATMUL_SIZE, MATMUL_SIZE, False)
COPY = Case("copy", "uint8", 1, 1, 1, 1, COPY_BYTES, 1, False)


class DeviceLost(Exception):
    """The GPU refuses everything more from this process."""


class Gpu:
    """What the runner needs of the current GPU; the tests give it another."""

    def __init__(self) -> None:
        import cupy

        from cupy_flash.cli.bench.timing import EventTimer

        self.cupy = cupy
        self.backend = CupyBackend()
        self.timer: Any = EventTimer()
        self.stream = self.timer.stream
        self.numbers = Numbers(cupy)

    @property
    def device(self) -> Device:
        return self.backend.device

    def is_lost(self) -> bool:
        try:
            self.cupy.cuda.runtime.deviceSynchronize()
        except self.cupy.cuda.runtime.CUDARuntimeError:
            return True
        return False

    def matmul(self) -> Callable[[], Any]:
        inputs = self.numbers.inputs(Case("forward", "float16", 1, 1, 1, MATMUL_SIZE, MATMUL_SIZE, MATMUL_SIZE, False))
        x, y = inputs.q[0, 0], inputs.k[0, 0]
        return lambda: self.cupy.matmul(x, y)

    def copy(self) -> Callable[[], Any]:
        source, target = (self.cupy.cuda.alloc(COPY_BYTES) for _ in range(2))
        return lambda: target.copy_from_device_async(source, COPY_BYTES, self.stream)


def launches(case: Case, device: Device) -> list[Launch]:
    """Our launches for a case."""
    zero = np.zeros((), DTYPES[case.dtype])
    q, k = (
        np.broadcast_to(zero, (case.batch, heads, seqlen, case.head_dim))
        for heads, seqlen in ((case.heads_q, case.seqlen_q), (case.heads_k, case.seqlen_k))
    )
    problem = AttentionProblem.from_arrays(q, k, k, causal=case.causal)
    if case.direction == "backward":
        return [*plan_forward(problem, device).launches, *plan_backward(problem, device).launches]
    return plan_forward(problem, device).launches


def measure_limits(gpu: Any, book: Book, today: str) -> None:
    """The matmul's TFLOP/s and the copy's GB/s, which all else is compared with."""
    for case, make, column, amount in (
        (MATMUL, gpu.matmul, "tflops", 2 * MATMUL_SIZE**3 / 1e12),
        (COPY, gpu.copy, "gbps", 2 * COPY_BYTES / 1e9),
    ):
        if book.find(case, "cupy"):
            continue
        try:
            timing = gpu.timer.measure(make())
        except Exception as error:
            book.add(case, method="cupy", status=_reason(error), date=today)
            if gpu.is_lost():
                raise DeviceLost(_reason(error)) from error
            continue
        speed = {column: amount / timing.median}
        book.add(case, method="cupy", status=OK, timer="events", date=today, **_times(timing), **speed)


def pending(cases: Sequence[Case], methods: Sequence[Method], book: Book) -> list[tuple[Case, Method]]:
    """What is not in the book: methods that are slow to prepare or to run come after all others."""
    groups = [m for m in methods if not m.slow], [m for m in methods if m.slow]
    return [(c, m) for group in groups for c in cases for m in group if not book.find(c, m.name)]


def measure_all(
    gpu: Any, todo: Sequence[tuple[Case, Method]], book: Book, today: str, told: Callable[[Row], None], deadline: float
) -> int:
    """Measure until done or until `time.monotonic` passes the deadline; returns how many are left.

    Raises
    ------
    DeviceLost
        If a method breaks the device for the process. Its row is written: the next run goes on after it.
    """
    now: Case | None = None
    for done, (case, method) in enumerate(todo):
        if time.monotonic() > deadline:
            return len(todo) - done
        columns: dict[str, object] = {
            "method": method.name, "method_version": method.version, "timer": method.timer, "date": today,
        }  # fmt: skip
        try:
            if case != now:
                x = gpu.numbers.inputs(case)
                expected, now = Expected(case, x), case
            if method.name == OURS:
                columns["plan"] = "; ".join(f"{x.kernel} x {x.grid}" for x in launches(case, gpu.device))
            with method.on_stream(gpu.stream):
                columns |= _measure(gpu, case, method, x, expected)
        except Exception as error:
            columns["status"] = _reason(error)
        told(book.add(case, **columns))
        if columns["status"] != OK and gpu.is_lost():
            raise DeviceLost(f"{method.name}, {case}: {columns['status']}")
        method.release()
    return 0


def _measure(gpu: Any, case: Case, method: Method, x: Inputs, expected: Expected) -> dict[str, object]:
    bound = method.bind(case, x)
    error = expected.error(bound, x)
    call = _call(case, bound, x)
    timing = method.measure(gpu.timer, call)
    return {
        "status": OK,
        **_times(timing),
        "tflops": case.flops / timing.median / 1e12,
        "gbps": case.bytes_moved / timing.median / 1e9,
        "peak_bytes": method.peak_bytes(call),
        "error": error,
    }


def _call(case: Case, bound: Bound, x: Inputs) -> Callable[[], Any]:
    if case.direction != "backward":
        return bound.forward
    saved, dout = bound.saved(), bound.take(x.dout)
    return lambda: bound.backward(saved, dout)


def _times(timing: Any) -> dict[str, object]:
    median, p10, p90 = (1e6 * x for x in timing[:3])
    return {"median_us": median, "p10_us": p10, "p90_us": p90, "repeats": timing.repeats}


def _reason(error: Exception) -> str:
    """One line, not too long for a cell."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, ArithmeticError) else f"{type(error).__name__}: {text}")[:200]
