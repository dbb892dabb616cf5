"""Folders that live as long as this process."""

from __future__ import annotations

import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path


def own_folder() -> Path:
    """Make a folder that this process, and no forked child of it, removes when it ends."""
    folder = tempfile.mkdtemp(prefix="cupy_flash-")
    # Unlike atexit's functions it knows its process, and runs at the end of one that multiprocessing made too.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=0)
    return Path(folder)
