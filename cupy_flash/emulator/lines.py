"""Source lines of instruction addresses, from a library's DWARF 4 line table (no binutils needed)."""

from __future__ import annotations

import bisect
import functools
import struct
from pathlib import Path

from cupy_flash.emulator.errors import Site


def find_site(library: Path, offset: int) -> Site:
    """The source line of the instruction at `offset` from the start of a library."""
    rows = _rows(library)
    at = bisect.bisect_right(rows, offset, key=lambda row: row[0]) - 1
    if at < 0:
        return Site("?", 0)
    return rows[at][1]


@functools.lru_cache(maxsize=64)
def _rows(library: Path) -> list[tuple[int, Site]]:
    table = _section(library.read_bytes(), b".debug_line")
    rows: list[tuple[int, Site]] = []
    start = 0
    while start + 4 <= len(table):
        (length,) = struct.unpack_from("<I", table, start)
        rows += _unit(table[start + 4 : start + 4 + length])
        start += 4 + length
    # Where one function ends and the next begins, the beginning counts.
    return sorted(rows, key=lambda row: (row[0], row[1].line > 0))


def _section(elf: bytes, name: bytes) -> bytes:
    """A section of a 64-bit little-endian ELF file; empty when it is not there."""
    (headers,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQ", elf, headers + i * size) for i in range(count)]
    for section in sections:
        at = sections[names][4] + section[0]
        if elf[at : at + len(name) + 1] == name + b"\0":
            return elf[section[4] : section[4] + section[5]]
    return b""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        value = self.data[self.at : end].decode()
        self.at = end + 1
        return value

    def leb128(self, signed: bool = False) -> int:
        value = shift = 0
        while True:
            byte = self.take("B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value - (1 << shift) if signed and byte & 0x40 else value


def _unit(data: bytes) -> list[tuple[int, Site]]:
    """Rows of one unit's line program (DWARF 4, section 6.2)."""
    reader = _Reader(data)
    if reader.take("H") > 4:
        return []
    program = reader.take("I") + reader.at
    least_length, _, _ = reader.take("B"), reader.take("B"), reader.take("B")
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

    rows: list[tuple[int, Site]] = []
    address, file, line = 0, 1, 1
    while reader.at < len(data):
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
    return rows
