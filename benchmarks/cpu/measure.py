"""Measures a case: verified first, then both libraries in turns."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from cpu.cases import Case, make_inputs
from cpu.libraries import LIBRARIES, call_of, verify
from cpu.machine import load_average
from cpu.results import LEFT_OUT, OK, Row
from cupy_flash._src.backends import native

PAUSE = 0.05  # seconds: PyTorch's OpenMP threads spin for a while after their last work
TURN = 0.02  # seconds of calls in a row: a call of 50 us alone would be one of threads that just woke
MIN_PAIRS = 3
MEMORY_WARM_UP_SEQLEN = 16


def measure_all(cases: Iterable[Case], seconds: float, cap: float) -> Iterator[Row]:
    """A row for each case; those that would take longer than `cap` seconds a pair are left out, and say so.

    What a pair would take is known from the same case at the length before: time grows with S squared.
    """
    known: dict[Case, tuple[int, float]] = {}
    for case in cases:
        key = replace(case, seqlen_q=0, seqlen_k=0)
        seqlen, pair = known.get(key, (1, 0.0))
        estimate = pair * (case.seqlen_k / seqlen) ** 2
        if estimate > cap:
            yield Row(case, f"{LEFT_OUT}: a pair would take about {estimate:.0f} s, more than {cap:g}")
            continue
        row = replace(measure(case, seconds), load=load_average())
        if case.section == "speed" and row.ours and row.torch:
            known[key] = case.seqlen_k, (row.ours + row.torch) / 1e3
        yield row


def measure(case: Case, seconds: float) -> Row:
    """One row; a wrong result or an error is its status, and then it has no figures."""
    try:
        if case.section == "compile":
            return Row(case, ours=compile_time(case.what))
        if case.section == "memory":
            megabytes = [_peak_memory_apart(name, case) / 1e6 for name in LIBRARIES]
            return Row(case, OK, *megabytes)
        x = make_inputs(case)
        bounds = {name: bind(case, x) for name, bind in LIBRARIES.items()}
        verify(case, x, bounds)
        ours, theirs = interleave([call_of(case, bound, x) for bound in bounds.values()], seconds)
        medians = statistics.median(ours), statistics.median(theirs)
        return Row(case, OK, *medians, min(ours), min(theirs), len(ours))
    except (ArithmeticError, OSError, RuntimeError) as error:
        return Row(case, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def interleave(functions: list[Callable[[], Any]], seconds: float) -> list[list[float]]:
    """Milliseconds a call of each, in turns for so long; at least `MIN_PAIRS` turns each.

    A turn of a short function is many calls in a row.
    """
    first = [_turn(function, 1) for function in functions]
    numbers = [max(1, round(1e3 * TURN / time)) for time in first]
    times = [[t] if n == 1 else [] for t, n in zip(first, numbers, strict=True)]
    stop = time.perf_counter() + seconds
    while min(map(len, times)) < MIN_PAIRS or time.perf_counter() < stop:
        for function, number, list_ in zip(functions, numbers, times, strict=True):
            list_.append(_turn(function, number))
    return times


def _turn(function: Callable[[], Any], number: int) -> float:
    """Milliseconds a call."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    for _ in range(number):
        function()
    return 1e3 * (time.perf_counter() - start) / number


def compile_time(isa: str) -> float:
    """Seconds to make the library of the compiled tier with an empty cache."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CUPY_FLASH_CACHE_DIR=folder):
        start = time.perf_counter()
        native.compile_library(isa)
        return time.perf_counter() - start


def peak_memory(name: str, case: Case) -> int:
    """Bytes by which forward + backward raises this process' peak beyond inputs and results: out, dq, dk, dv.

    Right for the first such call of a process only.
    """
    warm_up = replace(case, seqlen_q=MEMORY_WARM_UP_SEQLEN, seqlen_k=MEMORY_WARM_UP_SEQLEN)
    for at in warm_up, case:  # first what code and threads take, whatever the length
        x = make_inputs(at)
        bound = LIBRARIES[name](at, x)
        before = _status("VmRSS")
        call_of(at, bound, x)()
    results = sum(a.nbytes for a in (x.q, x.q, x.k, x.v))
    return _status("VmHWM") - before - results


def _peak_memory_apart(name: str, case: Case) -> int:
    """In a process of its own: memory that was once taken from the system is not always given back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(peak_memory, name, case).result()


def _status(field: str) -> int:
    """Bytes that Linux reports for this process."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
