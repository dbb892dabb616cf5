"""The structs that Python fills in for C++ and CUDA, read from the headers that declare them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

_STRUCT = re.compile(r"(?<!>\n)^struct (\w+)(?: : ([\w, ]+))? \{(?:\};|(.*?)^\};)", re.MULTILINE | re.DOTALL)
_MEMBER = re.compile(r"^  (?! |static |using |template |friend )([^\n]+);$", re.MULTILINE)
_FUNCTION = re.compile(r"[^(*]+\([^(]*\)(?: const)?")
_DECLARATION = re.compile(r"(?:const )?(\w+)(\*?) (\*?\w+(?:\[\w+\])?(?:, \*?\w+(?:\[\w+\])?)*)")
_CONSTANT = re.compile(r"^constexpr int (\w+) = (\d+);", re.MULTILINE)
_POINTER = np.dtype(np.uintp)
_NUMBERS = {
    "int": np.int32,
    "uint32_t": np.uint32,
    "int64_t": np.int64,
    "float": np.float32,
    "double": np.float64,
}


def structs_of(text: str) -> dict[str, np.dtype]:
    """The structs of a header as structured dtypes, laid out as C++ compilers do.

    Parameters
    ----------
    text : str
        The header with those that it includes. Structs stand at the left margin, members of one type to a line that two
        spaces indent. A base class, which has none itself, is a field of its own name. A struct is left out that is a
        template, has other bases, or other members than numbers, pointers, such structs and arrays of them.

    Examples
    --------
    >>> point = structs_of("struct Point {\\n  int x, y;  // of a grid\\n  double weight[2];\\n};\\n")["Point"]
    >>> point.names, point.itemsize
    (('x', 'y', 'weight'), 24)
    """
    sizes = {name: int(value) for name, value in _CONSTANT.findall(text)}
    types = {name: np.dtype(number) for name, number in _NUMBERS.items()}
    found: dict[str, np.dtype] = {}
    bare: dict[str, np.dtype] = {}  # without bases: members of a class that has some may lie in its padding
    for name, bases, body in _STRUCT.findall(text):
        fields: list[tuple[Any, ...]] = [(base, bare.get(base), ()) for base in re.findall(r"\w+", bases)]
        for statement in _MEMBER.findall(re.sub(" *//.*", "", body)):
            declaration = _DECLARATION.fullmatch(statement)
            if declaration is None:
                fields += [] if _FUNCTION.fullmatch(statement) else [(statement, None, ())]
                continue
            of, pointer, members = declaration.groups()
            for star, member, count in re.findall(r"(\*?)(\w+)(?:\[(\w+)\])?", members):
                shape = (sizes.get(count) or int(count),) if count else ()
                fields.append((member, _POINTER if pointer or star else types.get(of), shape))
        if all(dtype is not None for _, dtype, _ in fields):
            # An empty base takes no room.
            kept = [field for field in fields if field[1].itemsize]
            types[name] = found[name] = np.dtype(kept, align=True)
            if not bases:
                bare[name] = found[name]
    return found
