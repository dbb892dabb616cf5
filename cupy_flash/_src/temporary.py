"""Folders that live no longer than this process."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path


def own_folder() -> Path:
    """Make a folder that this process, and no forked child of it, removes when it ends."""
    return _make()[0]


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """A folder that this process, and no forked child of it, removes afterwards."""
    folder, remove = _make()
    try:
        yield folder
    finally:
        remove()


def _make() -> tuple[Path, Finalize]:
    folder = tempfile.mkdtemp(prefix="cupy_flash-")
    # Unlike atexit's functions it knows its process, and runs at the end of one that multiprocessing made too.
    remove = Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=0)
    return Path(folder), remove
