"""Time on the GPU: CUDA events around a call, on one stream, with a cold L2 cache."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from cupy_flash._src.compile import target_of, text_to_cubin

SECONDS = 0.2  # of running one case, about
MIN_REPEATS, MAX_REPEATS = 7, 100
MAX_CYCLES_PER_SECOND = 2.6e9  # above every GPU's clock, so that a wait of so many cycles is long enough
SPIN = 'extern "C" __global__ void spin(long long n) { const long long t = clock64(); while (clock64() - t < n); }'


class Timing(NamedTuple):
    """Seconds: the median and the 10th and 90th percentile of so many repeats."""

    median: float
    p10: float
    p90: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        p10, median, p90 = np.percentile(seconds, (10, 50, 90))
        return cls(float(median), float(p10), float(p90), len(seconds))


class Timer(Protocol):
    """A way to time a call; `name` is a column of the results."""

    name: str

    def measure(self, call: Callable[[], Any]) -> Timing: ...


def spin(cycles: int) -> None:
    """Keep the current stream busy for so many cycles of the GPU's clock."""
    import cupy

    _spin_kernel(cupy.cuda.runtime.getDevice())((1,), (1,), (np.int64(cycles),))


@functools.cache
def _spin_kernel(device_index: int) -> Any:
    import cupy

    target = target_of(int(cupy.cuda.Device(device_index).compute_capability))
    return cupy.RawModule(path=str(text_to_cubin(SPIN, "spin.cu", "spin", target).path)).get_function("spin")


def repeats_for(seconds: float) -> int:
    """How often a call that takes so long is repeated."""
    return int(min(MAX_REPEATS, max(MIN_REPEATS, SECONDS / max(seconds, 1e-9))))


class EventTimer:
    """Times calls that launch on CuPy's current stream, which is `stream` while `measure` runs.

    Before each call the L2 cache is overwritten, then the stream spins for longer than the host needs to launch the
    call: what is timed is the GPU's work alone, however slow the Python before it. Events are recorded on that same
    stream, so nothing else is waited for.
    """

    name = "events"

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._flush_bytes = 2 * cupy.cuda.Device().attributes["L2CacheSize"]
        self._flushed = cupy.cuda.alloc(self._flush_bytes)

    def measure(self, call: Callable[[], Any]) -> Timing:
        call()  # compiles and fills memory pools
        self.stream.synchronize()
        start = time.perf_counter()
        call()
        launched = time.perf_counter() - start
        self.stream.synchronize()
        repeats = repeats_for(time.perf_counter() - start)
        cycles = int((50e-6 + 2 * min(launched, 5e-3)) * MAX_CYCLES_PER_SECOND)
        events = []
        for _ in range(repeats):
            self._flushed.memset_async(0, self._flush_bytes, self.stream)
            spin(cycles)
            begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            begin.record(self.stream)
            call()
            end.record(self.stream)
            events.append((begin, end))
        self.stream.synchronize()
        return Timing.of([self.cupy.cuda.get_elapsed_time(*pair) / 1e3 for pair in events])


class HostTimer:
    """Times calls of a library that has streams of its own: the growth of the time for n calls in a row with n.

    What a call costs beyond the GPU's work, waiting included, is the same for n and for 2 n calls and falls out,
    provided that launching is faster than running. The L2 cache is not flushed: inputs larger than it flush it.

    Parameters
    ----------
    wait : callable
        Returns when the result of a call, and all before it, is there.
    """

    name = "host"

    def __init__(self, wait: Callable[[Any], Any]) -> None:
        self.wait = wait

    def measure(self, call: Callable[[], Any]) -> Timing:
        def seconds(calls: int) -> float:
            start = time.perf_counter()
            for _ in range(calls):
                result = call()
            self.wait(result)
            return time.perf_counter() - start

        seconds(1)  # compiles
        calls = max(1, repeats_for(seconds(1)) // MIN_REPEATS)
        timing = Timing.of([(seconds(2 * calls) - seconds(calls)) / calls for _ in range(MIN_REPEATS)])
        if timing.p10 <= 0:  # then the spread, as a rate, has no upper end
            raise RuntimeError("too short for the host's clock")
        return timing


class OnceTimer:
    """The host's clock around a single call: a stand-in where figures mean nothing."""

    name = "emulator"

    def measure(self, call: Callable[[], Any]) -> Timing:
        start = time.perf_counter()
        call()
        return Timing.of([time.perf_counter() - start])
