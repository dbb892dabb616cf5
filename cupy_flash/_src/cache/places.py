"""Folders of compiled files: which there are, and which takes new ones.

A file's place depends on the subfolder of the cache that it belongs to: a user's cache may hold one that root has made.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cupy_flash._src.cache import trust
from cupy_flash._src.cache.files import make_folder
from cupy_flash._src.notice import warn
from cupy_flash._src.temporary import own_folder

_absolute: dict[str, Path] = {}  # a relative path means for good what it meant when first seen
_own: dict[int, Path] = {}  # this process' own folder, by its number: a forked child makes another
_told: dict[str, bool] = {}  # reasons, and whether a folder was named that lasts


class Refusal(NamedTuple):
    """Why new files cannot go to a folder, and whether that is because others could have written there."""

    reason: str
    distrusted: bool


_refusals: dict[tuple[int, Path], Refusal | None] = {}  # by user: a server may become another after its first look


def named() -> Iterator[tuple[str, Path | None]]:
    """Folders that the environment names, the preferred first: CUPY_FLASH_CACHE_DIR, the user's cache folder.

    Each with its name; None for one that leads nowhere, such as "~" without a home.
    """
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    users = os.path.join(xdg if os.path.isabs(xdg) else "~/.cache", "cupy_flash")
    for name in dict.fromkeys(filter(None, (os.environ.get("CUPY_FLASH_CACHE_DIR"), users))):
        text = os.path.expanduser(name)
        if text not in _absolute and not text.startswith("~"):
            with contextlib.suppress(OSError):  # relative to a folder that was removed
                _absolute[text] = Path(os.path.abspath(text))
        yield name, _absolute.get(text)


def readable(below: str = "") -> Iterator[Path]:
    """Caches to look in for a file of the subfolder `below`, in order.

    The last of them is the one for new files, which is made; the others may not be there.
    """
    for _, place in named():
        if place is not None:
            yield place
            if refusal(place, below) is None:
                return
    if os.getpid() in _own:
        yield _own[os.getpid()]


def writable(below: str = "") -> Path:
    """The cache for new files of a subfolder: the first that can be written there, and by nobody else.

    Where there is none, a folder of this process alone. A warning tells, once, of one that is passed over.
    """
    passed_over: tuple[str, Refusal] | None = None
    for name, place in named():
        found = refusal(place, below) if place is not None else Refusal("it leads nowhere", False)
        if place is not None and found is None:
            break
        if passed_over is None and found is not None:
            passed_over = str(place or name), found
    else:
        place = _own.get(os.getpid()) or _own.setdefault(os.getpid(), own_folder())
        make_folder(place / below)
    if passed_over is not None:
        name, found = passed_over
        tell(found.reason, f"puts nothing new into its cache {name}", place)
    return place


def is_own(place: Path) -> bool:
    """Whether a cache is a process' own."""
    return place in _own.values()


def refusal(place: Path, below: str = "") -> Refusal | None:
    """What keeps new files from a subfolder of a cache. Makes it."""
    key = _key(place / below)
    if key not in _refusals or (_refusals[key] is None and not (place / below).is_dir()):
        try:
            make_folder(place / below)
            objection = trust.objection(place / below, place)
            if objection is None:
                tempfile.TemporaryFile(dir=place / below).close()
            _refusals[key] = Refusal(objection, True) if objection else None
        except OSError as error:
            refuse(place, below, error)
    return _refusals[key]


def refuse(place: Path, below: str, error: OSError) -> None:
    """Let new files go elsewhere from now on."""
    _refusals[_key(place / below)] = Refusal(f"it cannot be written ({error})", False)


def _key(folder: Path) -> tuple[int, Path]:
    return os.geteuid() if hasattr(os, "geteuid") else 0, folder


def tell(reason: str, what: str, instead: Path | None = None) -> None:
    """Warn, once for each reason, of what is not done for it; and again if what was named `instead` failed likewise."""
    lasts = instead is not None and not is_own(instead)
    if reason not in _told or (_told[reason] and not lasts):
        _told[reason] = lasts
        further = f"New files go to {instead}{'' if lasts else ' until this process ends'}. " if instead else ""
        warn(f"cupy_flash {what}: {reason}. {further}Set CUPY_FLASH_CACHE_DIR to a folder of your own")
