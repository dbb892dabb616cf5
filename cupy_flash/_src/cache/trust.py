"""Whose hands a file was in. What the cache holds is loaded as code, so nobody else may have put it there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

try:
    import grp
    import pwd
except ImportError:  # Windows, where a user's folders are the user's by their access lists
    grp = pwd = None  # type: ignore[assignment]

_GROUP, _ALL = stat.S_IWGRP, stat.S_IWOTH
_MOST_LINKS = 40  # as Linux has it


def objection(path: Path, folder: Path) -> str | None:
    """Why the file or folder `path`, in the cache `folder` or the folder itself, may be another user's work.

    None if only root, this user and the folder's owner could have put it there: on the way to it, through links too,
    each folder and link is theirs, and none lets others replace what is in it; where all may make files, as in /tmp,
    what stands there is root's or this user's. From `folder` on nothing is writable by a group or by all.

    Raises
    ------
    OSError
        If it is not there or cannot be looked at.
    """
    if grp is None:
        return None
    top, end = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    us = {os.geteuid(), os.stat("/").st_uid}  # root, which user namespaces know by another number
    owners = us | {top.stat().st_uid}
    for step in _steps(path):
        status = step.lstat()
        if status.st_uid not in owners:
            return f"{step} belongs to another user, of number {status.st_uid}: remove it"
        if _lets_others_write(status) and (step == end or step.is_relative_to(top)) and not step.is_symlink():
            return f"{step} is writable by others than its owner: chmod -R go-w {folder}, if what is in it is yours"
        above = step.parent.lstat()
        if above.st_mode & stat.S_ISVTX and _lets_others_write(above):  # all may make files, and replace only theirs
            if status.st_uid not in us:
                return f"{step} belongs to another user, who chose its name"
        elif above.st_mode & _ALL or (above.st_mode & _GROUP and not _is_private(above)):
            return f"others may replace what lies in {step.parent}: chmod go-w {step.parent}"
    return None


def _steps(path: Path) -> Iterator[Path]:
    """Everything below / that is looked at on the way to a path: folders, links, what they lead to, the file."""
    here, links = Path("/"), 0
    ahead = list(path.absolute().parts[1:])
    while ahead:
        name = ahead.pop(0)
        if name == "..":
            here = here.parent
            continue
        step = here / name
        yield step
        if step.is_symlink():
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = Path(os.readlink(step))
            here = Path("/") if target.is_absolute() else here
            ahead[:0] = target.parts[1:] if target.is_absolute() else target.parts
        else:
            here = step


def _lets_others_write(status: os.stat_result) -> bool:
    return bool(status.st_mode & (_GROUP | _ALL))


def _is_private(status: os.stat_result) -> bool:
    """Whether the group is the owner's alone, as many systems give each user one: home folders are writable by it."""
    try:
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return group.gr_gid != 0 and group.gr_name == owner and set(group.gr_mem) <= {owner}
