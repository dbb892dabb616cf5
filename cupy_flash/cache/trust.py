"""Whose hands a file was in. What the cache holds is loaded as code, so nobody else may have put it there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

try:
    import grp
    import pwd
except ImportError:  # Windows, where a user's folders are the user's by their access lists
    grp = pwd = None  # type: ignore[assignment]

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def objection(path: Path, folder: Path) -> str | None:
    """Why the file or folder `path`, in the cache `folder` or the folder itself, may be another user's work.

    None if only root, this user and the folder's owner could have written it: neither it nor a folder between is
    writable by a group or by all, no folder above lets others replace it, and it is not another user's folder where
    all may make one, as in /tmp. Links are followed first.

    Raises
    ------
    OSError
        If it is not there or cannot be looked at.
    """
    if grp is None:
        return None
    path, top = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    us = {0, os.getuid()}
    owners = us | {top.stat().st_uid}
    if not path.is_relative_to(top):  # by a link
        top = path.parent
    for inside in (path, *path.parents):
        status = inside.lstat()
        if status.st_mode & _OTHERS:
            return f"{inside} is writable by others than its owner: chmod -R go-w {folder}, if what is in it is yours"
        if status.st_uid not in owners:
            return f"{inside} belongs to another user, of number {status.st_uid}: remove it"
        if inside == top:
            break
    below = top
    for above in top.parents:
        status = above.lstat()
        if status.st_mode & stat.S_ISVTX and status.st_mode & _OTHERS:  # where all may make, but not replace
            if below.lstat().st_uid not in us:
                return f"{below} belongs to another user, who chose its name in {above}: name another folder"
        elif status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _is_private(status)):
            return f"others may replace what lies in {above}: chmod go-w {above}"
        below = above
    return None


def _is_private(status: os.stat_result) -> bool:
    """Whether the group is the owner's alone, as many systems give each user one: home folders are writable by it."""
    try:
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return group.gr_gid != 0 and group.gr_name == owner and set(group.gr_mem) <= {owner}
