"""Threads for tiles: a persistent pool, per-thread scratch, and BLAS held to one thread while tiles run.

NumPy releases the GIL inside matrix products and elementwise loops, where tiles spend their time, so plain
threads use every core. BLAS must not start threads of its own inside them.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
_CGROUP = Path("/sys/fs/cgroup")


def num_threads() -> int:
    """Return how many threads compute: CUPY_FLASH_NUM_THREADS, else as many as this process may use CPUs.

    That is what its affinity and the quota of its control group allow.

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
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, _quota(_CGROUP) or cpus)


@functools.cache
def _quota(root: Path) -> int | None:
    """CPUs that a container's control group grants, rounded up; None without a limit (cgroups of version 2, then 1)."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((root / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdecimal() and int(period) > 0:  # "max" and -1 are no limit
            return max(1, math.ceil(int(quota) / int(period)))
    return None


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
    available = num_threads()
    job = _Job(function, items)
    with _state.one_blas_thread:
        try:
            for _ in range(min(available, len(items)) - 1):
                _state.executor().submit(job.help)
            job.work()
        except BaseException as error:
            job.stop(error)
        job.wait()
    if job.error is not None:
        raise job.error


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
                raise _Aborted

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


class _Aborted(Exception):
    """Raised in the threads that wait for one that failed."""


class _Job:
    """Items that several threads take in turn, and the first error."""

    def __init__(self, function: Callable[[Any], None], items: Sequence[Any]) -> None:
        self.error: BaseException | None = None
        self._function = function
        self._items = iter(items)
        self._helpers = 0
        self._changed = threading.Condition()

    def work(self) -> None:
        """Take items until there are none, or one failed."""
        try:
            with np.errstate(all="ignore"):
                while True:
                    with self._changed:
                        item = next(self._items, self) if self.error is None else self
                    if item is self:
                        return
                    self._function(item)
        except _Aborted:
            return
        except BaseException as error:  # KeyboardInterrupt too: the other threads have to stop first
            self.stop(error)

    def help(self) -> None:
        """`work` on a thread of the pool, where no interrupt is raised."""
        with self._changed:
            self._helpers += 1
        self.work()
        with self._changed:
            self._helpers -= 1
            self._changed.notify_all()

    def stop(self, error: BaseException) -> None:
        """Let no thread start another item."""
        self.error = self.error or error

    def wait(self) -> None:
        """Wait until no helper works any more, however often interrupted: until then the arrays must live."""
        while True:
            try:
                with self._changed:
                    self._changed.wait_for(lambda: self._helpers == 0)
                return
            except BaseException as error:
                self.stop(error)


class _OneBlasThread:
    """A context in which BLAS computes with one thread. Several threads may be inside at once.

    The limit belongs to the process: the first to enter sets it, the last to leave takes it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._libraries: list[Any] | None = None
        self._numbers: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                if self._libraries is None:  # finding them takes 1 ms, setting the limit 7 us
                    self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
                self._numbers = [library.num_threads for library in self._libraries]
                self._limit([1] * len(self._numbers))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit(self._numbers)

    def restore(self) -> None:
        """Take the limit back in a forked child, where the threads that were inside do not exist."""
        if self._inside:
            self._limit(self._numbers)

    def _limit(self, numbers: list[int]) -> None:
        for library, number in zip(self._libraries or [], numbers, strict=True):
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
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(max(num_threads() - 1, 1), "cupy_flash")
            return self._executor


_state = _State()


def _reset_after_fork() -> None:
    global _state
    _state.one_blas_thread.restore()
    _state = _State()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
