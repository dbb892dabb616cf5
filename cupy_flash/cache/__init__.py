"""Compiled files on disk: found by the next process, used by many, written by one.

What lies in a folder of the cache has a name relative to it, such as ``cubin/sm_80/attention_forward-0123.cubin``.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cupy_flash.cache import files, places, room, trust
from cupy_flash.cache.files import write_atomically

__all__ = ["find", "folder", "folders", "lock", "store", "work_folder", "write_atomically"]

T = TypeVar("T")

_ROOM_EVERY = 32  # stored files: to count what is there takes a millisecond for a hundred
_HOLD_SECONDS = 1.0
_stored = 0


def folder() -> Path:
    """Where new files go."""
    return places.writable()


def folders() -> list[Path]:
    """Where to look, in order; some may not be there."""
    return list(places.readable())


def find(name: str, read: Callable[[Path], T | None]) -> T | None:
    """What `read` makes of the first file of this name that is whole and to be trusted; it is in use from now on.

    Parameters
    ----------
    name : str
        Relative to a cache folder.
    read : callable
        Takes a path, and returns None if the file is damaged.
    """
    for place in places.readable():
        path = place / name
        try:
            objection = trust.objection(path, place)
        except OSError:  # it is not there
            continue
        if objection is not None:
            places.leave_aside(place, objection)
        elif room.hold(place, name):
            found = read(path)
            if found is not None:
                room.touch(path)
                return found
    return None


def store(name: str, content: bytes) -> Path:
    """Write a file into `folder`, where others see it whole or not at all; it is in use from now on."""
    global _stored
    place = folder()
    files.make_folder((place / name).parent)
    end = time.monotonic() + _HOLD_SECONDS
    while not room.hold(place, name) and time.monotonic() < end:
        time.sleep(0.001)
    write_atomically(place / name, content)
    if _stored % _ROOM_EVERY == 0:
        room.make_room(place)
    _stored += 1
    return place / name


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Let one process at a time make a file of this name, as far as the file system can."""
    path = folder() / name
    files.make_folder(path.parent)
    with files.lock(path.with_suffix(".lock")):
        yield


@contextlib.contextmanager
def work_folder(name: str) -> Iterator[Path]:
    """A folder beside a file of this name, to make it in; should this process be killed it goes with the file."""
    path = folder() / name
    room.hold(folder(), name)
    files.make_folder(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}.") as work:
        yield Path(work)
