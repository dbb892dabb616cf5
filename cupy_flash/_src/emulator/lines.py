"""Source lines of instruction addresses, those of inlined callers too, from a library's DWARF 4."""

from __future__ import annotations

import bisect
import functools
from contextlib import suppress
from pathlib import Path

from cupy_flash._src.emulator import dwarf
from cupy_flash._src.emulator.errors import Site

Row = tuple[int, Site]  # from this address on
Call = tuple[int, int, int, Site]  # from an address up to another; how deep the call lies; where it is


def find_site(library: Path, offset: int) -> Site:
    """The source line of the instruction at `offset` from the start of a library, with the lines that it comes from.

    Where functions are inlined these are the lines of the calls, the innermost first; at a function that is called
    they end. Of calls that the compiler has made one of there is no line.
    """
    rows, calls = _tables(library)
    at = bisect.bisect_right(rows, offset, key=lambda row: row[0]) - 1
    if at < 0 or not rows[at][1].line:
        return Site("?", 0)
    around = sorted((call for call in calls if call[0] <= offset < call[1]), key=lambda call: -call[2])
    callers = tuple(site for *_, site in around if site.line)
    return Site(rows[at][1].file, rows[at][1].line, callers)


def named_site(library: Path, file: str, line: int, offset: int) -> Site:
    """The place that a call names, which is the instruction at `offset` or one of those that it comes from."""
    found = find_site(library, offset)
    chain = [(site.file, site.line) for site in (found, *found.callers)]
    if (file, line) not in chain:
        return Site(file, line)
    return Site(file, line, found.callers[chain.index((file, line)) :])


@functools.lru_cache(maxsize=64)
def _tables(library: Path) -> tuple[list[Row], list[Call]]:
    information = dwarf.Library(library)
    lines = information.section(".debug_line")
    rows: list[Row] = []
    files_of: dict[int, list[str]] = {}
    start = 0
    with suppress(*dwarf.UNREADABLE):
        while start + 4 <= len(lines):
            end = start + 4 + dwarf.Reader(lines, start).take("I")
            files_of[start], unit_rows = _unit(dwarf.Reader(lines[:end], start + 4))
            rows += unit_rows
            start = end
    # Where one function ends and the next begins, the beginning counts.
    rows.sort(key=lambda row: (row[0], row[1].line > 0))
    calls: list[Call] = []
    with suppress(*dwarf.UNREADABLE):
        for entry in information.entries.values():
            if dwarf.STATEMENTS in entry.attributes:
                files = files_of.get(entry.number(dwarf.STATEMENTS), [])
                _inlined(information, entry, entry.number(dwarf.LOW), files, 0, calls)
    return rows, calls


def _inlined(
    information: dwarf.Library, entry: dwarf.Entry, base: int, files: list[str], depth: int, calls: list[Call]
) -> None:
    for child in entry.children:
        if child.tag == dwarf.INLINED:
            file, line = child.number(dwarf.CALL_FILE), child.number(dwarf.CALL_LINE)
            site = Site(files[file] if file < len(files) else "?", line)
            calls += ((low, high, depth, site) for low, high in information.ranges(child, base))
        _inlined(information, child, base, files, depth + 1, calls)


def _unit(reader: dwarf.Reader) -> tuple[list[str], list[Row]]:
    """Files and rows of one unit's line program (DWARF 4, section 6.2).

    An assembler may write the program of an earlier version than the compiler's entries have.
    """
    version = reader.take("H")
    if version > 4:
        return [], []
    program = reader.take("I") + reader.at
    least_length = reader.take("B")
    reader.at += 2 if version == 4 else 1  # operations of one instruction, which is_stmt follows
    line_base, line_range, opcode_base = reader.take("b"), reader.take("B"), reader.take("B")
    operands = [reader.take("B") for _ in range(opcode_base - 1)]
    folders = [""]
    while folder := reader.text():
        folders.append(folder)
    files = [""]
    while name := reader.text():
        folder = folders[reader.leb128()]
        files.append(f"{folder}/{name}" if folder and "/" not in name else name)
        reader.leb128(), reader.leb128()
    reader.at = program

    rows: list[Row] = []
    address, file, line = 0, 1, 1
    while reader.at < len(reader.data):
        opcode = reader.take("B")
        if opcode >= opcode_base:
            address += (opcode - opcode_base) // line_range * least_length
            line += line_base + (opcode - opcode_base) % line_range
            rows.append((address, Site(files[file], line)))
        elif opcode == 0:
            end = reader.leb128() + reader.at
            extended = reader.take("B")
            if extended == 1:  # end_sequence
                rows.append((address, Site("?", 0)))
                address, file, line = 0, 1, 1
            elif extended == 2:
                address = reader.take("Q")
            reader.at = end
        elif opcode == 1:  # copy
            rows.append((address, Site(files[file], line)))
        elif opcode == 2:
            address += reader.leb128() * least_length
        elif opcode == 3:
            line += reader.leb128(signed=True)
        elif opcode == 4:
            file = reader.leb128()
        elif opcode == 8:  # const_add_pc
            address += (255 - opcode_base) // line_range * least_length
        elif opcode == 9:  # fixed_advance_pc
            address += reader.take("H")
        else:
            for _ in range(operands[opcode - 1]):
                reader.leb128()
    return files, rows
