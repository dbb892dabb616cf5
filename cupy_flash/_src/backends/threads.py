"""Threads for tiles: how many, a persistent pool, per-thread scratch, and BLAS held to one thread while tiles run.

NumPy releases the GIL inside matrix products and elementwise loops, where tiles spend their time, so plain
threads use every core. BLAS must not start threads of its own inside them.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from cupy_flash._src import forks, workers

T = TypeVar("T")

# Where each BLAS that starts threads unasked finds their number. Others have one thread, or none that can be told.
_VARIABLES = {
    "openblas": ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"),
    "mkl": ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
}
_OPENBLAS_MOST = 64  # threads of the build in NumPy's wheels, however many CPUs there are


def num_threads() -> int:
    """Return how many threads compute: CUPY_FLASH_NUM_THREADS, else as many as this process may use CPUs.

    That is the least of what its affinity, the quota of its control group, OMP_NUM_THREADS and threadpoolctl allow.
    OMP_NUM_THREADS counts if it is a positive number or a list that starts with one. threadpoolctl sets the number of
    threads of NumPy's BLAS: a limit is what is less than that library would take by itself, so OPENBLAS_NUM_THREADS
    and MKL_NUM_THREADS, which belong to the library, are none.

    Raises
    ------
    ValueError
        If CUPY_FLASH_NUM_THREADS is not a positive number.
    """
    chosen = os.environ.get("CUPY_FLASH_NUM_THREADS")
    if chosen:
        if not chosen.isdecimal() or int(chosen) == 0:
            raise ValueError(f"CUPY_FLASH_NUM_THREADS is {chosen!r}: expected a positive number")
        return int(chosen)
    cpus = workers.cpus()
    return min(cpus, _number("OMP_NUM_THREADS") or cpus, *_limits(cpus))


def _number(variable: str) -> int | None:
    """A positive number, or the first of a list, in the environment; anything else is none, as OpenMP has it."""
    first = os.environ.get(variable, "").partition(",")[0].strip()
    return int(first) or None if first.isdecimal() else None


def _limits(cpus: int) -> list[int]:
    """Numbers of threads that were set for a BLAS after it was loaded."""
    numbers = _state.one_blas_thread.numbers()
    return [n for library, n in numbers if n and n < cpus and n < _own_number(library, cpus)]


def _own_number(library: Any, cpus: int) -> int:
    """The least number of threads that a BLAS takes by itself."""
    kind = library.internal_api
    if kind not in _VARIABLES or library.threading_layer in ("disabled", "sequential"):
        return 1
    cpus = -(-cpus // 2) if kind == "mkl" else min(cpus, _OPENBLAS_MOST)  # MKL: one for each core, which may be two
    return min(_number(variable) or cpus for variable in _VARIABLES[kind])


def run(function: Callable[[T], None], items: Sequence[T]) -> None:
    """Call `function` on every item, on the caller's thread and on helpers from the pool.

    Items are started in order, each by the next thread that is free. Returns when all have ended, after an interrupt
    too: threads then finish the item they are at and start no other. Inside `function` BLAS has one thread, and NumPy's
    floating-point warnings are off. Several threads may call `run` at once.

    Parameters
    ----------
    function : callable
        Takes an item.
    items : sequence
        The work.

    Raises
    ------
    BaseException
        The first exception that `function` raised; items not yet started are then dropped.
    """
    helpers = min(num_threads(), len(items)) - 1 if len(items) > 1 else 0
    job = _Job(function, items)
    with _state.one_blas_thread, job:
        _state.pool.offer(job, helpers)
        job.work()


class _Job(workers.Job):
    def work(self) -> None:
        with np.errstate(all="ignore"):
            super().work()


class Scratch(threading.local):
    """Buffers by name, one set per thread, reused between calls and grown when a larger one is asked for."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, np.dtype], np.ndarray] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an uninitialised array; it is valid until the same thread asks for the same name again."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name, dtype] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


class Turns:
    """Lets threads do a step on each of several places in the order of their turns.

    With items that `run` starts in the order of their turns this cannot deadlock: a thread only waits for
    items that others have begun.
    """

    def __init__(self) -> None:
        self._next: dict[Any, int] = {}
        self._changed = threading.Condition()
        self._aborted = False

    def wait(self, place: Any, turn: int) -> None:
        """Wait until `done` was called `turn` times for `place`."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._next.get(place, 0) == turn)
            if self._aborted:
                raise workers.Aborted

    def done(self, place: Any) -> None:
        """Pass the turn on."""
        with self._changed:
            self._next[place] = self._next.get(place, 0) + 1
            self._changed.notify_all()

    def guard(self, function: Callable[[T], None]) -> Callable[[T], None]:
        """`function` as an item of `run`: should it fail, the threads that wait for its turns fail too."""

        def guarded(item: T) -> None:
            try:
                function(item)
            except BaseException:
                self.abort()
                raise

        return guarded

    def abort(self) -> None:
        """Let all that wait, now or later, raise."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()


class _OneBlasThread:
    """A context in which BLAS computes with one thread. Several threads may be inside at once.

    The limit belongs to the process: the first to enter sets it, the last to leave takes it back.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may compute too
        self._inside = 0
        self._found: list[Any] | None = None
        self._numbers: list[int] = []  # of threads, before the limit was set

    def __enter__(self) -> None:
        with forks.whole(), self._lock:  # threadpoolctl has a lock too
            libraries = self._libraries()
            if self._inside == 0:
                self._numbers = [library.num_threads for library in libraries]
            self._inside += 1
            if self._inside == 1:
                self._limit([1] * len(libraries))

    def __exit__(self, *_: object) -> None:
        with forks.whole(), self._lock:
            if self._inside == 1:
                self._limit(self._numbers)
            self._inside -= 1

    def numbers(self) -> list[tuple[Any, int]]:
        """Each library and its number of threads, the one from before while a thread is inside."""
        with forks.whole(), self._lock:
            if self._inside:
                return list(zip(self._libraries(), self._numbers, strict=True))
            return [(library, library.num_threads) for library in self._libraries()]

    def restore(self) -> None:
        """Take the limit back in a forked child, where the threads that were inside do not exist."""
        if self._inside:
            self._limit(self._numbers)

    def _libraries(self) -> list[Any]:
        if self._found is None:  # which takes 1 ms, to set the limit 7 us
            self._found = ThreadpoolController().select(user_api="blas").lib_controllers
        return self._found

    def _limit(self, numbers: list[int]) -> None:
        for library, number in zip(self._libraries(), numbers, strict=True):
            # From 3.8 on, threadpoolctl ignores all threads but the first that set a limit, until that lets
            # go. Ours may be set by one thread and taken back by another.
            let_go = getattr(library, "clear_controlling_thread", lambda force: None)
            let_go(force=True)
            library.set_num_threads(number)
            let_go(force=True)


class _State:
    """What this process shares between calls; a forked child starts anew."""

    def __init__(self) -> None:
        self.one_blas_thread = _OneBlasThread()
        self.pool = workers.Pool()


_state = _State()


def _reset_after_fork() -> None:
    global _state
    _state.one_blas_thread.restore()
    _state = _State()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
