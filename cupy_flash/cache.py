"""Where compiled files live, and how they appear there whole."""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
import warnings
from pathlib import Path


def cache_dir() -> Path:
    """Folder of compiled kernels: CUPY_FLASH_CACHE_DIR, else cupy_flash under the user's cache folder.

    Where that cannot be written, a folder of this process alone, with one warning.
    """
    return _writable(location())


def location() -> Path:
    """The folder that `cache_dir` takes if it can be written; makes nothing."""
    chosen = os.environ.get("CUPY_FLASH_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cupy_flash"


@functools.cache
def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        own = tempfile.TemporaryDirectory(prefix="cupy_flash-")
        atexit.register(own.cleanup)
        warnings.warn(
            f"cupy_flash cannot write to its cache {folder} ({error}): what it compiles is lost with this process. "
            "CUPY_FLASH_CACHE_DIR names another folder",
            RuntimeWarning,
            stacklevel=2,
        )
        return Path(own.name)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that other processes see whole or not at all; its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
