"""Finds cuda_src and flattens a kernel with its includes into one source, so that a hash of it covers everything."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from cupy_flash._src import forks
from cupy_flash._src.temporary import own_folder

if TYPE_CHECKING:
    from importlib.abc import Traversable

_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


class SourcesMissingError(RuntimeError):
    """The installation lacks cuda_src."""


def root() -> Path:
    """Folder of the sources: beside the package in a checkout, inside it in a wheel; unpacked from a zip file.

    Raises
    ------
    SourcesMissingError
        If the installation lacks them.
    """
    root = _root(os.getpid())
    if not root.is_dir():  # what was unpacked goes before the last functions of atexit
        _root.cache_clear()
        root = _root(os.getpid())
    return root


@functools.cache
def _root(process: int) -> Path:
    """Of this process: a forked child may outlive its parent, with whom what is unpacked goes."""
    with forks.whole():  # it imports
        package = resources.files("cupy_flash")
    for folder in (package / "cuda_src", Path(__file__).resolve().parents[2] / "cuda_src"):
        if (folder / "params.cuh").is_file():
            return folder if isinstance(folder, Path) else _unpack(folder, own_folder())
    raise SourcesMissingError(
        f"the C++ and CUDA sources, the folder cuda_src, are missing in {package}: reinstall cupy_flash, or let the "
        "program that you freeze include it as data of the package"
    )


def _unpack(folder: Traversable, target: Path) -> Path:
    for item in folder.iterdir():
        if item.is_dir():
            (target / item.name).mkdir()
            _unpack(item, target / item.name)
        else:
            (target / item.name).write_bytes(item.read_bytes())
    return target


def flatten(name: str, *, virtual: Mapping[str, str] | None = None, search: Sequence[Path] | None = None) -> str:
    """Inline every ``#include "file"`` of a CUDA source, each file once.

    Parameters
    ----------
    name : str
        The file to start from, relative to a search folder.
    virtual : mapping of str to str, optional
        Texts that stand for files of these names.
    search : sequence of Path, optional
        Folders in order of preference, by default `root()` alone.

    Returns
    -------
    str
        The text, with ``#line`` directives that keep each file's name and line numbers.

    Raises
    ------
    FileNotFoundError
        If an included file is in no search folder.
    """
    virtual, folders = virtual or {}, tuple(search or (root(),))
    seen: set[str] = set()
    out: list[str] = []

    def add(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        out.append(f'#line 1 "{name}"')
        for number, line in enumerate(_read(name, virtual, folders).splitlines(), 1):
            include = _INCLUDE.match(line)
            if include:
                add(include[1])
                out.append(f'#line {number + 1} "{name}"')
            else:
                out.append("" if line.strip() == "#pragma once" else line)

    add(name)
    return "\n".join(out) + "\n"


def _read(name: str, virtual: Mapping[str, str], folders: Sequence[Path]) -> str:
    if name in virtual:
        return virtual[name]
    for folder in folders:
        path = folder / name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"{name} is in none of {', '.join(str(f) for f in folders)}")
