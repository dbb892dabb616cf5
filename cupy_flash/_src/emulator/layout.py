"""Names of bytes of shared memory, by the layout of the struct that a kernel plans it as."""

from __future__ import annotations

import functools
from pathlib import Path

from cupy_flash._src.emulator import dwarf
from cupy_flash._src.emulator.dwarf import Entry

_STORAGE = "shared_storage"  # of platform.cuh: its template's type is the struct
_ALIASES = {dwarf.TYPEDEF, dwarf.CONST, dwarf.VOLATILE}
_RECORDS = {dwarf.STRUCT, dwarf.CLASS, dwarf.UNION}


def member(library: Path, offset: int) -> str:
    """What lies at a byte of shared memory, such as ``"ring[1].data[160]"``; empty where the library does not tell.

    Where members of a union share it, all of them are named. Where kernels of one library plan their memory as
    different structs, none is: which of them ran is not known here.
    """
    try:
        entries, kinds = _storage(library)
        return " or ".join(_paths(entries, kinds[0], offset, "")) if len(kinds) == 1 else ""
    except dwarf.UNREADABLE:
        return ""


@functools.lru_cache(maxsize=8)
def _storage(library: Path) -> tuple[dict[int, Entry], list[Entry]]:
    """All entries of a library, and the structs that its kernels plan their shared memory as."""
    entries = dwarf.Library(library).entries
    kinds = {
        child.number(dwarf.TYPE)
        for entry in entries.values()
        if entry.tag == dwarf.SUBPROGRAM and str(entry.attributes.get(dwarf.NAME, "")).startswith(_STORAGE)
        for child in entry.children
        if child.tag == dwarf.TEMPLATE_TYPE
    }
    return entries, [entries[kind] for kind in kinds]


def _resolved(entries: dict[int, Entry], kind: Entry) -> Entry:
    """The type that a name or a qualifier stands for."""
    return _resolved(entries, entries[kind.number(dwarf.TYPE)]) if kind.tag in _ALIASES else kind


def _paths(entries: dict[int, Entry], kind: Entry, offset: int, path: str) -> list[str]:
    """Names of the byte at `offset` of a thing of this kind that is called `path`."""
    kind = _resolved(entries, kind)
    if kind.tag == dwarf.ARRAY:
        element = entries[kind.number(dwarf.TYPE)]
        lengths = [_length(child) for child in kind.children if child.tag == dwarf.SUBRANGE]
        size = _size(entries, element)
        index, rest = divmod(offset, size)
        indices = []
        for length in reversed(lengths):
            index, at = divmod(index, length)
            indices.append(f"[{at}]")
        return [] if index else _paths(entries, element, rest, path + "".join(reversed(indices)))
    if kind.tag not in _RECORDS:
        return [path + (f"+{offset}" if offset else "")]
    members = [
        (str(child.attributes.get(dwarf.NAME, "")), child.number(dwarf.LOCATION), entries[child.number(dwarf.TYPE)])
        for child in kind.children
        if child.tag in (dwarf.MEMBER, dwarf.INHERITANCE)
        and (dwarf.LOCATION in child.attributes or kind.tag == dwarf.UNION)  # else it is static
    ]
    if path and len(members) == 1 and _resolved(entries, members[0][2]).tag == dwarf.BASE:
        return _paths(entries, members[0][2], offset, path)  # a Float16 is a number, whatever holds it
    found = []
    for name, begin, inner in members:
        if begin <= offset < begin + _size(entries, inner):
            found += _paths(entries, inner, offset - begin, f"{path}.{name}" if path and name else path or name)
    return found


def _length(subrange: Entry) -> int:
    return max(subrange.number(dwarf.COUNT, subrange.number(dwarf.UPPER, -1) + 1), 1)


def _size(entries: dict[int, Entry], kind: Entry) -> int:
    kind = _resolved(entries, kind)
    if kind.tag != dwarf.ARRAY:
        return kind.number(dwarf.SIZE, 8)  # that of a pointer, where none is given
    size = _size(entries, entries[kind.number(dwarf.TYPE)])
    for child in kind.children:
        size *= _length(child) if child.tag == dwarf.SUBRANGE else 1
    return size
