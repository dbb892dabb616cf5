"""What a fork must not cut in two.

A forked child has the locks and pipes of all its parent's threads but only one of the threads: who was to release a
lock is not there. So a fork through Python waits until no other thread is at work in `whole`, and who comes meanwhile
waits for the fork. It serves for what takes a lock that is not ours: Python's of a module being imported, NVRTC's while
it compiles, the pipes of a program being started, the dynamic loader's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

# This module's functions around a fork, and those of logging, which it imports, release a lock taken before the fork.
# Imported while one waits here, they would release what they did not take.
with contextlib.suppress(RuntimeError):  # of an interpreter that ends
    import concurrent.futures.thread  # noqa: F401

PATIENCE = 60.0  # seconds a fork waits: somebody inside may wait for the thread that forks


class _Gate:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}  # entries by thread
        self._forking: set[int] = set()  # threads

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            # A thread that waits with its fork may be interrupted by a signal whose handler comes here.
            self._changed.wait_for(lambda: not self._forking or me in self._forking or me in self._inside)
            self._inside[me] = self._inside.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                self._changed.notify_all()

    def before_fork(self) -> None:
        me = threading.get_ident()
        self._changed.acquire()  # until after the fork
        self._forking.add(me)
        self._changed.wait_for(lambda: self._inside.keys() <= {me}, PATIENCE)

    def after_in_parent(self) -> None:
        if threading.get_ident() in self._forking:  # unless this module came to be during the fork
            self._forking.remove(threading.get_ident())
            self._changed.notify_all()
            self._changed.release()

    def after_in_child(self) -> None:
        me = threading.get_ident()
        self._changed = threading.Condition()
        self._inside = {thread: n for thread, n in self._inside.items() if thread == me}
        self._forking = set()


_gate = _Gate()
whole = _gate.whole
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_gate.before_fork, after_in_parent=_gate.after_in_parent, after_in_child=_gate.after_in_child
    )
