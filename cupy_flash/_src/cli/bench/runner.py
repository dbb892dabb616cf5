"""Measures what the book lacks: each case by each method, verified, timed, written down."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cupy_flash._src.cli.arguments import arrays_for
from cupy_flash._src.cli.bench import options
from cupy_flash._src.cli.bench.book import OK, Book, Row
from cupy_flash._src.cli.bench.cases import Case, Inputs
from cupy_flash._src.cli.bench.machine import Machine
from cupy_flash._src.cli.bench.methods import COMPILED, Bound, Method
from cupy_flash._src.cli.bench.table import OURS
from cupy_flash._src.cli.bench.timing import Timer, Timing
from cupy_flash._src.cli.bench.verify import Expected
from cupy_flash._src.device import Device
from cupy_flash._src.plan import Launch, plan_backward, plan_forward
from cupy_flash._src.problem import DTYPES, AttentionProblem


class DeviceLost(Exception):
    """The GPU refuses everything more from this process."""


def matmul_case(size: int) -> Case:
    return Case("matmul", "float16", 1, 1, 1, size, size, size, False)


def copy_case(size: int) -> Case:
    return Case("copy", "uint8", 1, 1, 1, 1, size, 1, False)


def launches(case: Case, device: Device) -> list[Launch]:
    """Our launches for a case."""
    zero = np.zeros((), DTYPES[case.dtype])
    q, k = (
        np.broadcast_to(zero, (case.batch, heads, seqlen, case.head_dim))
        for heads, seqlen in ((case.heads_q, case.seqlen_q), (case.heads_k, case.seqlen_k))
    )
    option = options.named(case.option)
    given = {"causal": case.causal} | option.values() | arrays_for(option.takes, (1, case.heads_q, 1, 1))
    given |= option.functions(case)
    given |= {name: np.broadcast_to(zero, shape) for name, shape in option.learned(case).items()}
    problem = AttentionProblem.from_arrays(q, k, k, **given, wrt=options.wrt(case))
    if case.direction == "backward":
        return [*plan_forward(problem, device).all_launches, *plan_backward(problem, device).all_launches]
    return plan_forward(problem, device).all_launches


def measure_limits(machine: Machine, book: Book, today: str) -> None:
    """The matmul's TFLOP/s and the copy's GB/s, which all else is compared with."""
    for case, make, column, amount in (
        (matmul_case(machine.matmul_size), machine.matmul, "tflops", 2 * machine.matmul_size**3 / 1e12),
        (copy_case(machine.copy_bytes), machine.copy, "gbps", 2 * machine.copy_bytes / 1e9),
    ):
        if book.find(case, "cupy"):
            continue
        before = machine.sensors("before")
        try:
            timing = machine.timer.measure(make())
        except Exception as error:
            book.add(case, method="cupy", status=_reason(error), date=today)
            if machine.is_lost():
                raise DeviceLost(_reason(error)) from error
            continue
        found = before | machine.sensors("after") | _times(timing) | {column: amount / timing.median}
        book.add(case, method="cupy", status=OK, timer=machine.timer.name, date=today, **found)


def pending(cases: Sequence[Case], methods: Sequence[Method], book: Book) -> list[tuple[Case, Method]]:
    """What is not in the book, in the methods' turns.

    Where each case is compiled those with options come first, which few others have, should time run out.
    """
    todo = [(c, m) for c in cases for m in methods if m.takes(c) and not book.find(c, m.name)]
    return sorted(todo, key=lambda pair: (pair[1].turn, pair[1].turn == COMPILED and not pair[0].option))


def measure_all(
    machine: Machine,
    todo: Sequence[tuple[Case, Method]],
    book: Book,
    today: str,
    told: Callable[[Row], None],
    deadline: float,
) -> int:
    """Measure until done or until `time.monotonic` passes the deadline; returns how many are left.

    Raises
    ------
    DeviceLost
        If a method breaks the device for the process. Its row is written: the next run goes on after it.
    """
    now: Case | None = None
    methods = list(dict.fromkeys(method for _, method in todo))
    for done, (case, method) in enumerate(todo):
        if time.monotonic() > deadline:
            return len(todo) - done
        timer = method.timer(machine)
        columns: dict[str, object] = {
            "method": method.name, "method_version": method.version, "timer": timer.name, "date": today,
        }  # fmt: skip
        try:
            if case != now:
                x = machine.numbers.inputs(case)
                expected, now = Expected(case, x), case
            if method.name == OURS:
                columns["plan"] = "; ".join(
                    f"{x.kernel} x {x.grid}" for x in launches(case, machine.device) if x.span == 0
                )
            with method.on_stream(machine.stream):
                columns |= _measure(machine, timer, case, method, x, expected)
        except Exception as error:
            columns["status"] = _reason(error)
        told(book.add(case, **columns))
        if columns["status"] != OK:
            if machine.is_lost():
                raise DeviceLost(f"{method.name}, {case}: {columns['status']}")
            gc.collect()  # tracebacks in cycles keep the arrays of the failed call
        for each in methods:
            each.release()
        machine.release()
    return 0


def _measure(
    machine: Machine, timer: Timer, case: Case, method: Method, x: Inputs, expected: Expected
) -> dict[str, object]:
    bound = method.bind(case, x)
    error = expected.error(bound, x)
    call = _call(case, bound, x)
    before = machine.sensors("before")
    timing = timer.measure(call)
    after = machine.sensors("after")
    return {
        "status": OK,
        **before,
        **after,
        **_times(timing),
        "tflops": case.flops / timing.median / 1e12,
        "gbps": case.bytes_moved / timing.median / 1e9,
        "peak_bytes": method.peak_bytes(machine, call),
        "error": error,
    }


def _call(case: Case, bound: Bound, x: Inputs) -> Callable[[], Any]:
    if case.direction != "backward":
        return bound.forward
    saved, dout = bound.saved(), bound.take(x.dout)
    return lambda: bound.backward(saved, dout)


def _times(timing: Timing) -> dict[str, object]:
    median, p10, p90 = (1e6 * x for x in timing[:3])
    return {"median_us": median, "p10_us": p10, "p90_us": p90, "repeats": timing.repeats}


def _reason(error: Exception) -> str:
    """One line, not too long for a cell."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, ArithmeticError) else f"{type(error).__name__}: {text}")[:200]
