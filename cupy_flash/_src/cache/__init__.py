"""Compiled files on disk: found by the next process, used by many, written by one.

What lies in a folder of the cache has a name relative to it, such as ``cubin/sm_80/attention_forward-0123.cubin``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cupy_flash._src.cache import files, places, room, trust
from cupy_flash._src.cache.files import write_atomically

__all__ = ["find", "folder", "folders", "lock", "store", "write_atomically"]

T = TypeVar("T")

_ROOM_EVERY = 32  # stored files: to count what is there takes a millisecond for a hundred
_HOLD_SECONDS = 10.0  # far more than another process takes to remove an entry
_stored = 0


def folder(below: str = "") -> Path:
    """The cache whose subfolder takes new files."""
    return places.writable(below)


def folders(below: str = "") -> list[Path]:
    """Caches to look in, in order; the one for new files is made, the others may not be there."""
    return list(places.readable(below))


def find(name: str, read: Callable[[Path], T | None]) -> T | None:
    """What `read` makes of the first file of this name that is whole and to be trusted; it is in use from now on.

    Parameters
    ----------
    name : str
        Relative to a cache folder.
    read : callable
        Takes a path, and returns None if the file is damaged.
    """
    for place in places.readable(os.path.dirname(name)):
        path = place / name
        try:
            if not path.is_file():
                continue
            objection = None if places.is_own(place) else trust.objection(path, place)
        except OSError:  # it cannot be looked at
            continue
        if objection is not None:
            places.tell(objection, f"does not load {path}")
        elif room.hold(place, name):
            found = read(path)
            if found is not None:
                room.touch(path)
                return found
    return None


def store(name: str, content: bytes) -> Path:
    """Write a file where others see it whole or not at all; it is in use from now on.

    Raises
    ------
    OSError
        If it can be written nowhere.
    """
    global _stored
    while True:
        place = folder(os.path.dirname(name))
        try:
            end = time.monotonic() + _HOLD_SECONDS
            while not room.hold(place, name) and time.monotonic() < end:
                time.sleep(0.001)
            write_atomically(place / name, content)
            break
        except OSError as error:  # the disk is full, or what could be written no longer can
            if places.is_own(place):
                raise
            places.refuse(place, os.path.dirname(name), error)
    if _stored % _ROOM_EVERY == 0:
        with contextlib.suppress(OSError):
            room.make_room(place)
    _stored += 1
    return place / name


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Let one process at a time make a file of this name, as far as the file system can."""
    path = folder(os.path.dirname(name)) / name
    with files.lock(path.with_suffix(".lock")):
        yield
