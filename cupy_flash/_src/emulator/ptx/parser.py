"""PTX text to entries, each a list of declarations, labels and instructions (PTX ISA chapters 4 and 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

from cupy_flash._src import source

OPENING, CLOSING = "{[(", "}])"

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_SPACE = re.compile(r"\s*")
_LABEL = re.compile(r"([$\w]+)\s*:(?!:)")
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)(?:[^\n]*inlined_at\s+(\d+)\s+(\d+))?[^\n]*")
_INSTRUCTION = re.compile(r"(?:@(!?[%$\w]+)\s+)?([\w.:]+)\s*(.*)", re.S)
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"')
_TARGET = re.compile(r"\.target\s+sm_(\d+)")
_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)([^{;]*)\{")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s.*?)?([%$\w]+)(?:\[(\d+)\])?", re.S)
_DIRECTIVE = re.compile(r"^\s*\.(?:version|target|address_size|file)\b[^\n]*", re.M)
_THREADS = re.compile(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|weak|extern)\s+)?\.(global|const|shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"([%$\w]+)(\[\d*\])?\s*(?:=\s*(.*))?$",
    re.S,
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)


def split_list(text: str) -> list[str]:
    """Split at the commas that stand outside every bracket.

    >>> split_list("{%r1, %r2}, [%rd1+8], 4")
    ['{%r1, %r2}', '[%rd1+8]', '4']
    """
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in OPENING) - (char in CLOSING)
        if char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


@dataclass(frozen=True)
class Site:
    """Where a statement stands: its line in the PTX, and the CUDA file and line that `.loc` names."""

    ptx_line: int
    file: str
    line: int


@dataclass(frozen=True)
class Registers:
    """`.reg .type names`: each name of the list, ranges `%r<5>` written out."""

    type: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Variable:
    """A variable in some state space; `count` is None for a scalar, 0 for an open array."""

    space: str
    align: int | None
    type: str
    name: str
    count: int | None
    values: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Open:
    """`{`: the start of a scope of registers and labels."""


@dataclass(frozen=True)
class Close:
    """`}`: its end."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: `opcode` is split at its dots, `operands` at its commas."""

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str | None
    site: Site

    @property
    def name(self) -> str:
        return ".".join(self.opcode)

    def has(self, *modifiers: str) -> bool:
        """Whether any of the modifiers is present; `shared` also matches `shared::cta`."""
        return any(part.split("::")[0] in modifiers for part in self.opcode[1:])

    def unsupported(self, why: str = "is not supported by the emulator") -> NotImplementedError:
        text = " ".join((self.name, ", ".join(self.operands))).rstrip()
        where = f"{self.site.file}:{self.site.line}, " if self.site.line else ""
        return NotImplementedError(f"PTX instruction {text} {why} ({where}PTX line {self.site.ptx_line})")


Statement = Registers | Variable | Label | Open | Close | Instruction


@dataclass(frozen=True)
class Parameter:
    type: str
    name: str
    align: int | None
    count: int | None


@dataclass(frozen=True)
class Entry:
    """A kernel: its parameters, the block size of its launch bounds (0 if none) and its statements."""

    name: str
    parameters: tuple[Parameter, ...]
    max_threads: int
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class PtxModule:
    target: int
    variables: tuple[Variable, ...]
    entries: tuple[Entry, ...] = field(default=())


def parse(ptx: str) -> PtxModule:
    """Parse a PTX module as NVRTC prints it.

    Raises
    ------
    ValueError
        If the text has no `.target`.
    NotImplementedError
        For device functions that were not inlined (`.func` and `call`).

    Examples
    --------
    >>> module = parse(".target sm_80\\n.visible .entry k()\\n{\\n  .reg .b32 %r<2>;\\n  mov.u32 %r1, 3;\\n}")
    >>> module.target, module.entries[0].name, module.entries[0].body[1].name
    (80, 'k', 'mov.u32')
    """
    target = _TARGET.search(ptx)
    if target is None:
        raise ValueError("ptx has no .target directive: expected the text of a PTX module")
    files = {number: _source_name(path) for number, path in _FILE.findall(ptx)}
    text = _blank_comments(ptx)
    entries, outside, end = [], [], 0
    for match in _ENTRY.finditer(text):
        outside.append(text[end : match.start()])
        end = _closing_brace(text, match.end())
        entries.append(_entry(match, text, end, files))
    outside.append(text[end:].partition(".section")[0])
    module_level = _DIRECTIVE.sub("", "".join(outside))
    variables = [v for part in module_level.split(";") if (v := _variable(part.strip())) is not None]
    if re.search(r"\.func\b", module_level):
        raise NotImplementedError("PTX .func: device functions must be inlined (__forceinline__) in kernels")
    return PtxModule(int(target[1]), tuple(variables), tuple(entries))


def _source_name(path: str) -> str:
    """A source's name under cuda_src: NVRTC puts the current directory in front of every `#line` name."""
    parts = PurePath(path).parts
    names = ("/".join(parts[i:]) for i in range(1, len(parts)))
    return next((name for name in names if (source.root() / name).is_file()), parts[-1])


def _blank_comments(ptx: str) -> str:
    """Comments become blanks, so that offsets and line numbers stay."""
    return _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), ptx)


def _closing_brace(text: str, start: int) -> int:
    """The offset behind the brace that closes the one opened before `start`."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.end()
    raise ValueError("ptx ends inside an entry: a closing brace is missing")


def _entry(match: re.Match[str], text: str, end: int, files: dict[str, str]) -> Entry:
    parameters = []
    for declaration in split_list(match[2]):
        found = _PARAMETER.fullmatch(declaration)
        if found is None:
            raise NotImplementedError(f"PTX parameter declaration {declaration!r} of entry {match[1]}")
        align, type_, name, count = found.groups()
        parameters.append(Parameter(type_, name, int(align) if align else None, int(count) if count else None))
    threads = 0
    if bounds := _THREADS.search(match[3]):
        threads = 1
        for extent in bounds.groups():
            threads *= int(extent or 1)
    return Entry(match[1], tuple(parameters), threads, tuple(_statements(text, match.end(), end - 1, files)))


def _statements(text: str, start: int, end: int, files: dict[str, str]) -> Iterator[Statement]:
    position, file, line = start, "ptx", 0
    ptx_line, counted = text.count("\n", 0, start) + 1, start
    while (position := _skip_space(text, position)) < end:
        ptx_line, counted = ptx_line + text.count("\n", counted, position), position
        if location := _LOCATION.match(text, position):
            file, line = _located(location, files)
            position = location.end()
        elif label := _LABEL.match(text, position):
            yield Label(label[1])
            position = label.end()
        elif text[position] in "{}":
            yield Open() if text[position] == "{" else Close()
            position += 1
        else:
            stop = text.index(";", position)
            statement = _statement(text[position:stop].strip(), Site(ptx_line, file, line))
            if statement is not None:
                yield statement
            position = stop + 1


def _located(location: re.Match[str], files: dict[str, str]) -> tuple[str, int]:
    """The file and line of a `.loc`; for a primitive's own line, the line that calls the primitive."""
    number, line, outer_number, outer_line = location.groups()
    file = files.get(number, "ptx")
    if outer_number and file.startswith("ptx/"):
        return files.get(outer_number, "ptx"), int(outer_line)
    return file, int(line)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _statement(text: str, site: Site) -> Statement | None:
    if registers := _REGISTERS.match(text):
        return Registers(registers[1], tuple(_register_names(registers[2])))
    if (variable := _variable(text)) is not None:
        return variable
    if not text or text.startswith(".pragma"):
        return None
    match = _INSTRUCTION.fullmatch(text)
    if match is None or text.startswith("."):
        raise NotImplementedError(f"PTX statement {text!r} (PTX line {site.ptx_line})")
    predicate, opcode, operands = match.groups()
    return Instruction(tuple(opcode.split(".")), tuple(split_list(operands)), predicate, site)


def _register_names(declared: str) -> Iterator[str]:
    for name in split_list(declared):
        base, _, count = name.partition("<")
        if count:
            yield from (f"{base}{i}" for i in range(int(count.rstrip("> \t"))))
        else:
            yield name


def _variable(text: str) -> Variable | None:
    match = _VARIABLE.match(text)
    if match is None:
        return None
    space, align, type_, name, extent, values = match.groups()
    count = None if extent is None else int(extent.strip("[]") or 0)
    listed = split_list(values.strip().removeprefix("{").removesuffix("}")) if values else []
    return Variable(space, int(align) if align else None, type_, name, count, tuple(listed))
