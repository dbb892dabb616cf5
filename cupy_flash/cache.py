"""Where compiled files live, and how they appear there whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """Folder of compiled kernels: CUPY_FLASH_CACHE_DIR, else cupy_flash under the user's cache folder."""
    chosen = os.environ.get("CUPY_FLASH_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cupy_flash"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that other processes see whole or not at all; its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
