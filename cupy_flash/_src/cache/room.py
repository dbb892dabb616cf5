"""The size of the cache: the entries that were used last stay, and those that any process uses.

An entry is what a folder of the cache holds under one name up to its first dot, a library or a cubin with its record.
A process that uses one holds a lock, shared with others, on a byte of the file `in-use` that the name chooses. Locks of
bytes end with the process, however it ends, and one open file holds any number of them. Who removes an entry must have
its byte alone. Linux has locks that belong to the open file, and to forked children too; elsewhere they belong to the
process, which loses them when anything in it closes another opening of the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cupy_flash._src.notice import warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FOLDERS = ("cpu", "cubin", "emulator")  # what is compiled, and can be again
DEFAULT_LIMIT, _DEFAULT = "2GB", 2 * 10**9
KEPT = 0.9  # of the limit, after entries were removed
FRESH = 3600.0  # seconds for which the time of the last use is near enough

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d+)?) ?(|[kmgt]i?b)", re.IGNORECASE | re.ASCII)
_BYTES = 2**30  # that a name may choose; a file need not be so long to be locked


def limit() -> int | None:
    """Bytes that compiled files may take: CUPY_FLASH_CACHE_LIMIT, such as 500MB; None if that is "none".

    Anything else is warned of, and means the default.
    """
    chosen = os.environ.get("CUPY_FLASH_CACHE_LIMIT") or DEFAULT_LIMIT
    if chosen == "none":
        return None
    size = _SIZE.fullmatch(chosen)
    if size is None:
        warn(f"CUPY_FLASH_CACHE_LIMIT is {chosen!r}: expected one like 500MB, or none; {DEFAULT_LIMIT} holds")
        return _DEFAULT
    return int(float(size[1]) * _UNITS[size[2].lower()])


@dataclass(frozen=True)
class Entry:
    """Files of one name, their size, and when they were used last."""

    name: str
    paths: tuple[Path, ...]
    size: int
    used: float


def entries(folder: Path) -> list[Entry]:
    """What a cache folder holds, the least recently used first."""
    by_name: dict[str, list[Path]] = {}
    for top in FOLDERS:
        for path in _below(folder / top):
            by_name.setdefault(_name(path.relative_to(folder)), []).append(path)
    found = []
    for name, paths in by_name.items():
        with contextlib.suppress(FileNotFoundError):  # removed, or renamed to what it shall be, at this moment
            facts = [path.lstat() for path in paths]
            found.append(Entry(name, tuple(paths), sum(x.st_size for x in facts), max(x.st_mtime for x in facts)))
    return sorted(found, key=lambda entry: entry.used)


def make_room(folder: Path) -> None:
    """Remove what was not used for longest while there is more than `limit` bytes, but nothing that is in use."""
    most = limit()
    present = entries(folder) if most is not None and fcntl is not None else []
    size = sum(entry.size for entry in present)
    if most is None or size <= most:
        return
    for entry in present:
        if size <= KEPT * most:
            break
        if _uses.remove(folder, entry):
            size -= entry.size


def hold(folder: Path, name: str) -> bool:
    """Say that this process uses, from now on, the file `name` of a cache folder; False while another removes it."""
    return _uses.hold(folder, _byte(_name(Path(name))))


def touch(path: Path) -> None:
    """Note that an entry is used now, as far as the folder can be written."""
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > FRESH:
            os.utime(path)


class _Uses:
    """The bytes that this process holds, by folder."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()  # locks of bytes are between processes only
        self._files: dict[Path, int] = {}
        self._bytes: dict[Path, set[int]] = {}

    def hold(self, folder: Path, byte: int) -> bool:
        with self._mutex:
            folder = Path(os.path.realpath(folder))  # which may have two names
            file = self._open(folder)
            held = self._bytes.setdefault(folder, set())
            if byte not in held and file is not None and not _lock(file, byte):
                return False
            held.add(byte)
            return True

    def remove(self, folder: Path, entry: Entry) -> bool:
        """Remove an entry unless anybody uses it; whether it was."""
        byte = _byte(entry.name)
        with self._mutex:
            folder = Path(os.path.realpath(folder))
            file = self._open(folder)
            if file is None or byte in self._bytes.get(folder, ()):
                return False
            try:
                _set(file, fcntl.F_WRLCK, byte)
            except OSError:  # in use, or there are no locks to tell
                return False
            try:
                for path in entry.paths:
                    path.unlink(missing_ok=True)
            except OSError:
                return False
            finally:
                _set(file, fcntl.F_UNLCK, byte)
            return True

    def forked(self) -> None:
        """In a forked child, which uses what the parent does but may have none of its locks."""
        self._mutex = threading.Lock()
        for folder, file in self._files.items():
            for byte in self._bytes.get(folder, ()):
                _lock(file, byte)

    def _open(self, folder: Path) -> int | None:
        """The file of locks, opened once."""
        path, file = folder / "in-use", self._files.get(folder)
        if fcntl is None or (file is not None and _is_open(path, file)):
            return file
        file = _open_file(path)
        if file is not None:
            self._files[folder] = file
            for byte in self._bytes.get(folder, ()):
                _lock(file, byte)
        return file


_uses = _Uses()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _uses.forked())


def _set(file: int, kind: int, byte: int) -> None:
    """Take or let go of the lock of a byte, without waiting; an OSError if another has it."""
    if sys.platform == "linux":  # of the open file
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, byte, 1, 0))
    else:
        flags = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}
        fcntl.lockf(file, flags[kind] | fcntl.LOCK_NB, 1, byte)


def _lock(file: int, byte: int) -> bool:
    try:
        _set(file, fcntl.F_RDLCK, byte)
    except OSError as error:  # another has it, or the file system has no locks, so that nobody removes
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _open_file(path: Path) -> int | None:
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_NOFOLLOW, 0o644)
    return None


def _is_open(path: Path, file: int) -> bool:
    """Whether the path still names the open file: a cache may be cleared by hand."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except OSError:
        return False


def _name(path: Path) -> str:
    return path.as_posix().partition(".")[0]


def _byte(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % _BYTES


def _below(folder: Path) -> Iterator[Path]:
    """Files of a folder and of those in it."""
    for here, _, names in os.walk(folder):
        yield from (Path(here, name) for name in names)
