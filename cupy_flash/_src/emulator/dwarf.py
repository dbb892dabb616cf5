"""Debug information of a library in DWARF 4, as far as reports need it (no binutils): sections, numbers, entries."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# DWARF Debugging Information Format, version 4, sections 7.5.4 and 7.5.5.
ARRAY, MEMBER, STRUCT, TYPEDEF, UNION, INHERITANCE, INLINED, SUBRANGE = 0x01, 0x0D, 0x13, 0x16, 0x17, 0x1C, 0x1D, 0x21
CLASS, BASE, CONST, SUBPROGRAM, TEMPLATE_TYPE, VOLATILE = 0x02, 0x24, 0x26, 0x2E, 0x2F, 0x35
NAME, SIZE, STATEMENTS, LOW, HIGH, UPPER, COUNT = 0x03, 0x0B, 0x10, 0x11, 0x12, 0x2F, 0x37
LOCATION, TYPE, RANGES, CALL_FILE, CALL_LINE = 0x38, 0x49, 0x55, 0x58, 0x59
_ADDRESS, _STRING, _BLOCK, _SIGNED, _STRING_AT, _UNSIGNED = 0x01, 0x08, 0x09, 0x0D, 0x0E, 0x0F
_REFERENCE, _INDIRECT, _EXPRESSION, _PRESENT = 0x15, 0x16, 0x18, 0x19
_COMPRESSED = 0x800  # SHF_COMPRESSED of an ELF section
_NUMBERS = {0x01: "Q", 0x05: "H", 0x06: "I", 0x07: "Q", 0x0B: "B", 0x0C: "B", 0x10: "I", 0x17: "I", 0x20: "Q"}
_REFERENCES = {0x11: "B", 0x12: "H", 0x13: "I", 0x14: "Q"}
_BLOCKS = {0x03: "H", 0x04: "I", 0x0A: "B"}  # after a length of this kind

# What reading raises where debug information is damaged, or not of the forms above. An error of a kernel is to be
# told all the same, with fewer names.
UNREADABLE = (struct.error, ValueError, LookupError, ArithmeticError, RecursionError)


class Reader:
    """Numbers and strings of a section, one after another."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, code: str) -> int:
        """A number of the kind that `struct` calls `code`."""
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
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


@dataclass
class Entry:
    """A debugging information entry: its tag, attributes by their codes, and children."""

    tag: int
    attributes: dict[int, int | str]
    high_is_size: bool = False
    children: list[Entry] = field(default_factory=list)

    def number(self, attribute: int, default: int = 0) -> int:
        value = self.attributes.get(attribute, default)
        return value if isinstance(value, int) else default


class Library:
    """The debug sections of a library: of an ELF file of 64 bits, little-endian; another has none."""

    def __init__(self, path: Path) -> None:
        self._sections: dict[str, bytes] = {}
        with suppress(*UNREADABLE):
            self._read_sections(path.read_bytes())

    def _read_sections(self, elf: bytes) -> None:
        if not elf.startswith(b"\x7fELF\x02\x01"):
            return
        (headers,) = struct.unpack_from("<Q", elf, 40)
        size, count, names = struct.unpack_from("<HHH", elf, 58)
        sections = [struct.unpack_from("<IIQQQQ", elf, headers + i * size) for i in range(count)]
        for name, _, flags, _, offset, length in sections:
            text = Reader(elf, sections[names][4] + name).text()
            if text.startswith(".debug_") and not flags & _COMPRESSED:
                self._sections[text] = elf[offset : offset + length]

    def section(self, name: str) -> bytes:
        """A section's content, empty if there is none."""
        return self._sections.get(name, b"")

    @cached_property
    def entries(self) -> dict[int, Entry]:
        """All entries by their offset in .debug_info, to which their references are made absolute."""
        found: dict[int, Entry] = {}
        info = self.section(".debug_info")
        strings = self.section(".debug_str")
        start = 0
        while start + 4 <= len(info):
            end = start + 4 + Reader(info, start).take("I")
            with suppress(*UNREADABLE):
                self._read_unit(Reader(info[:end], start), strings, found)
            start = end
        return found

    def _read_unit(self, reader: Reader, strings: bytes, found: dict[int, Entry]) -> None:
        start = reader.at
        reader.take("I")
        if reader.take("H") > 4:
            return
        kinds = self._abbreviations(reader.take("I"))
        reader.take("B")
        open_entries: list[Entry] = []
        while reader.at < len(reader.data):
            offset = reader.at
            code = reader.leb128()
            if not code:
                if open_entries:
                    open_entries.pop()
                continue
            tag, has_children, attributes = kinds[code]
            entry = Entry(tag, {})
            for attribute, form in attributes:
                value = _value(reader, form, start, strings)
                if value is not None:
                    entry.attributes[attribute] = value
                if attribute == HIGH:
                    entry.high_is_size = form != _ADDRESS
            if open_entries:
                open_entries[-1].children.append(entry)
            found[offset] = entry
            if has_children:
                open_entries.append(entry)

    def _abbreviations(self, at: int) -> dict[int, tuple[int, bool, list[tuple[int, int]]]]:
        reader = Reader(self.section(".debug_abbrev"), at)
        kinds = {}
        while code := reader.leb128():
            tag, has_children, attributes = reader.leb128(), bool(reader.take("B")), []
            while (pair := (reader.leb128(), reader.leb128())) != (0, 0):
                attributes.append(pair)
            kinds[code] = tag, has_children, attributes
        return kinds

    def ranges(self, entry: Entry, base: int) -> Iterator[tuple[int, int]]:
        """The addresses of an entry, from and up to; `base` is its unit's."""
        if HIGH in entry.attributes:
            low, high = entry.number(LOW), entry.number(HIGH)
            yield low, low + high if entry.high_is_size else high
        if RANGES in entry.attributes:
            reader = Reader(self.section(".debug_ranges"), entry.number(RANGES))
            while (pair := (reader.take("Q"), reader.take("Q"))) != (0, 0):
                if pair[0] == 2**64 - 1:
                    base = pair[1]
                elif pair[0] < pair[1]:
                    yield base + pair[0], base + pair[1]


def _value(reader: Reader, form: int, unit: int, strings: bytes) -> int | str | None:
    """An attribute's value; None of an expression, or of what is of no use here."""
    if form in _NUMBERS:
        return reader.take(_NUMBERS[form])
    if form in _REFERENCES:
        return unit + reader.take(_REFERENCES[form])
    if form == _REFERENCE:
        return unit + reader.leb128()
    if form in (_SIGNED, _UNSIGNED):
        return reader.leb128(signed=form == _SIGNED)
    if form == _STRING:
        return reader.text()
    if form == _STRING_AT:
        return Reader(strings, reader.take("I")).text()
    if form == _PRESENT:
        return 1
    if form == _INDIRECT:
        return _value(reader, reader.leb128(), unit, strings)
    if form in _BLOCKS or form in (_BLOCK, _EXPRESSION):
        length = reader.take(_BLOCKS[form]) if form in _BLOCKS else reader.leb128()
        reader.at += length
        return None
    raise ValueError(f"DWARF form {form:#x} is not one of version 4")
