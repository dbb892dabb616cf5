"""Folders of compiled files: which there are, and which takes new ones."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cupy_flash.cache import trust
from cupy_flash.cache.files import make_folder
from cupy_flash.notice import warn
from cupy_flash.temporary import own_folder

_own: dict[int, Path] = {}  # this process' own folder, by its number: a forked child makes another
_told: set[Path | None] = set()


def named() -> list[Path]:
    """Folders that the environment names, the preferred first: CUPY_FLASH_CACHE_DIR, the user's cache folder."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    users = os.path.join(xdg if os.path.isabs(xdg) else "~/.cache", "cupy_flash")
    texts = filter(None, (os.environ.get("CUPY_FLASH_CACHE_DIR"), users))
    return [folder for text in texts if (folder := _absolute(os.path.expanduser(text)))]


@functools.cache
def _absolute(text: str) -> Path | None:
    """A relative path means for good what it meant when first seen. None where it leads nowhere: "~" of nobody."""
    try:
        return None if text.startswith("~") else Path(os.path.abspath(text))
    except OSError:  # relative to a folder that was removed
        return None


def readable() -> Iterator[Path]:
    """Folders to look in, in order, whether or not they are there; the one for new files is the last."""
    for folder in named():
        yield folder
        if refusal(folder) is None:
            return
    if os.getpid() in _own:
        yield _own[os.getpid()]


def writable() -> Path:
    """The folder for new files: the first that the environment names which can be written, and by nobody else.

    Where there is none, a folder of this process alone. A warning tells, once, of one that is passed over.
    """
    passed_over: tuple[Path | None, str] = (None, "it has no folder, for HOME is not set")
    for folder in named():
        reason = refusal(folder)
        if reason is None:
            break
        if passed_over[0] is None:
            passed_over = folder, reason
    else:
        folder = _own.get(os.getpid()) or _own.setdefault(os.getpid(), own_folder())
    if folder != next(iter(named()), None):
        lost = " and is lost with it" if folder in _own.values() else ""
        leave_aside(*passed_over, f"What this process compiles goes to {folder}{lost}")
    return folder


@functools.cache
def refusal(folder: Path) -> str | None:
    """Why new files cannot go to a folder, None if they can. Makes it."""
    try:
        make_folder(folder)
        objection = trust.objection(folder, folder)
        if objection is None:
            tempfile.TemporaryFile(dir=folder).close()
        return objection
    except OSError as error:
        return f"it cannot be written ({error})"


def leave_aside(folder: Path | None, reason: str, instead: str = "") -> None:
    """Warn, once, that a folder is not used."""
    if folder not in _told:
        _told.add(folder)
        place = f" {folder}" if folder else ""
        further = f". {instead}" if instead else ""
        warn(
            f"cupy_flash leaves its cache{place} aside: {reason}{further}. CUPY_FLASH_CACHE_DIR names another folder",
            stacklevel=4,
        )
