"""Threads that share a job's items with whoever brings it, and the CPUs that there are for them.

They are daemons that nobody joins, and one that cannot be started is only missing: concurrent.futures refuses work,
and to be imported, once the main thread has ended, though functions of atexit and other threads still run then.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

_CGROUP = Path("/sys/fs/cgroup")


def cpus() -> int:
    """Return how many CPUs the affinity of this process and the quota of its control group let it use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _quota(_CGROUP) or allowed)


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


def start_thread(function: Callable[[], None]) -> bool:
    """Call `function` on a new daemon thread; False where none can be started, as at a limit of the system."""
    if sys.is_finalizing():  # before Python 3.12 one could be, and would never come to run
        return False
    try:
        threading.Thread(target=function, name="cupy_flash", daemon=True).start()
    except RuntimeError:
        return False
    return True


class Aborted(Exception):
    """Raised by the function of a job that gives up because another thread failed: never the job's error."""


class Job:
    """Items that several threads take in turn, each the next one when it is free.

    As a context it ends when no helper is at work any more, after an interrupt too, and raises the first error: threads
    then finish the item they are at and take no other.

    Parameters
    ----------
    function : callable
        Takes an item.
    items : iterable
        The work.
    """

    def __init__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> None:
        self._function = function
        self._items = iter(items)
        self._error: BaseException | None = None
        self._helpers = 0
        # Entered as a lock: an interrupt inside the condition's own __enter__, which is Python, would leave it locked.
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)

    def work(self) -> None:
        """Take items until there are none, or one failed."""
        try:
            while (item := self._take()) is not self:
                self._function(item)
        except Aborted:
            return
        except BaseException as error:  # KeyboardInterrupt too: the other threads have to stop first
            self._stop(error)

    def help(self) -> None:
        """`work` on a thread other than the one inside the context, where no interrupt is raised."""
        with self._lock:
            self._helpers += 1
        self.work()
        with self._lock:
            self._helpers -= 1
            self._ended.notify_all()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if error is not None:
            self._stop(error)
        self._wait()
        del self._function  # a helper that comes too late takes no item, and must not keep arrays alive
        if self._error is not None and self._error is not error:
            raise self._error

    def _take(self) -> Any:
        with self._lock:
            return next(self._items, self) if self._error is None else self

    def _stop(self, error: BaseException) -> None:
        self._error = self._error or error

    def _wait(self) -> None:
        """Wait until no helper works any more, however often interrupted: until then the arrays must live."""
        while True:
            try:
                with self._lock:
                    self._ended.wait_for(lambda: self._helpers == 0)
                return
            except BaseException as error:
                self._stop(error)


class Pool:
    """Threads that wait for jobs to help with, as many as one job ever wanted."""

    def __init__(self) -> None:
        self._offers: SimpleQueue[Job] = SimpleQueue()
        self._threads = 0
        self._starting = threading.RLock()  # a signal's handler may bring a job too

    def offer(self, job: Job, wanted: int) -> None:
        """Let up to `wanted` threads help, each when it is free."""
        if self._threads < wanted:
            with self._starting:
                while self._threads < wanted and start_thread(self._help_forever):
                    self._threads += 1
        for _ in range(min(wanted, self._threads)):
            self._offers.put(job)

    def _help_forever(self) -> None:
        while True:
            self._offers.get().help()
