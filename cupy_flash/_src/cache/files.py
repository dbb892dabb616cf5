"""How files appear whole, and how processes that would make the same one wait for the first."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 300.0  # seconds to wait for another process, which may have been stopped

_held: set[int] = set()  # open files of locks


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, for the owner alone to write and, but for the umask, all to read."""
    if not folder.is_dir():
        if folder.parent != folder:
            make_folder(folder.parent)
        folder.mkdir(mode=0o755, exist_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that other processes see whole or not at all and, but for the umask, may read.

    Its folder is made if needed.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Let one process at a time pass, so that the others find what it made; `path` is there meanwhile.

    Without locks in the file system, or after `PATIENCE`, all pass: what they write appears whole in any case.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644) if fcntl else None
    except OSError:
        file = None
    if file is None:
        yield
        return
    _held.add(file)
    try:
        _wait(file)
        yield
    finally:
        if file in _held:
            _held.remove(file)
            with contextlib.suppress(OSError):  # it is gone, or the folder can no longer be written
                path.unlink()
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # which closing leaves to a forked child that has the file too
            os.close(file)


def _wait(file: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:  # the file system has no locks: Lustre, some NFS
            return


def _close_in_child() -> None:
    """The locks are the parent's. What a forked child keeps open would hold them when the parent was killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
