"""Operands of PTX instructions as C++ expressions: registers, literals, special registers, addresses."""

from __future__ import annotations

import re

from cupy_flash._src.emulator.ptx.parser import Entry, Instruction, Parameter, PtxModule, Variable

C_TYPE = {
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    "f32": "float",
    "f64": "double",
    "pred": "bool",
    # 16-bit floating-point values are handled as bits.
    "f16": "uint16_t",
    "bf16": "uint16_t",
    "f16x2": "uint32_t",
    "bf16x2": "uint32_t",
}

_SPECIAL = {
    f"%{name}.{axis}": f"emulator_special_register({3 * i + j})"
    for i, name in enumerate(("tid", "ctaid", "ntid", "nctaid"))
    for j, axis in enumerate("xyz")
} | {
    "%laneid": "(emulator_special_register(12) & 31)",
    "%warpid": "(emulator_special_register(12) >> 5)",
    "%dynamic_smem_size": "emulator_special_register(13)",
    "%lanemask_eq": "(1u << (emulator_special_register(12) & 31))",
    "%lanemask_lt": "((1u << (emulator_special_register(12) & 31)) - 1)",
    "%lanemask_le": "(~0u >> (31 - (emulator_special_register(12) & 31)))",
    "%lanemask_gt": "(~1u << (emulator_special_register(12) & 31))",
    "%lanemask_ge": "(~0u << (emulator_special_register(12) & 31))",
    "WARP_SZ": "32u",
}

_INTEGER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|\d+)U?")
_FLOAT_BITS = re.compile(r"0[fFdD]([0-9a-fA-F]+)")
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*)?(-?\w+)?\s*\]")


def bits_of(type_: str) -> int:
    """Width of a PTX type such as `s32`, `bf16x2`, `pred` (1)."""
    if type_ == "pred":
        return 1
    return 32 if type_.endswith("x2") else int(type_.lstrip("bufs"))


def vector(operand: str) -> list[str]:
    """The elements of `{%r1, %r2}`."""
    return [element.strip() for element in operand.strip("{} ").split(",")]


def identifier(name: str) -> str:
    return re.sub(r"\W", "_", name.lstrip("%$"))


class Emitter:
    """The names of one entry while it is translated: registers and labels by scope, variables, parameters."""

    def __init__(self, module: PtxModule, entry: Entry) -> None:
        if len(entry.parameters) != 1:
            raise NotImplementedError(
                f"entry {entry.name} has {len(entry.parameters)} parameters: kernels here take one, by value"
            )
        self.target = module.target
        self.parameter: Parameter = entry.parameters[0]
        self.variables: dict[str, Variable] = {variable.name: variable for variable in module.variables}
        self._used: dict[str, dict[str, None]] = {}
        self._locals: list[str] = []
        self._registers: list[dict[str, tuple[str, str]]] = [{}]
        self._labels: list[dict[str, str]] = [{}]
        self._fresh = 0

    def open_scope(self) -> None:
        self._registers.append({})
        self._labels.append({})

    def close_scope(self) -> None:
        self._registers.pop()
        self._labels.pop()

    def _unique(self, name: str) -> str:
        if len(self._registers) == 1:
            return identifier(name)
        self._fresh += 1
        return f"{identifier(name)}_{self._fresh}"

    def declare_registers(self, type_: str, names: tuple[str, ...]) -> None:
        self._registers[-1].update({name: (self._unique(name), type_) for name in names})

    def declare_local(self, variable: Variable) -> None:
        self.variables[variable.name] = variable
        size = (variable.count or 1) * bits_of(variable.type) // 8
        self._locals.append(f"alignas({variable.align or 8}) uint8_t {identifier(variable.name)}[{size}];")

    def declarations(self) -> list[str]:
        """The variables and registers used so far, for the function's top: a goto may cross a scope.

        A register is an unsigned integer of its width, a predicate a bool.
        """
        lines = [
            f"{c_type} {', '.join(group)};" for c_type, names in self._used.items() for group in _rows(list(names))
        ]
        return [*self._locals, *lines]

    def label(self, name: str) -> str:
        """The C++ label for a PTX label; those that start with $ are the compiler's, unique in the entry."""
        if name.startswith("$"):
            return identifier(name)
        for scope in reversed(self._labels):
            if name in scope:
                return scope[name]
        return self._labels[-1].setdefault(name, self._unique(name) + "_label")

    def _register(self, name: str) -> tuple[str, str] | None:
        for scope in reversed(self._registers):
            if name in scope:
                c_name, type_ = scope[name]
                names = self._used.setdefault("bool" if type_ == "pred" else f"uint{bits_of(type_)}_t", {})
                names[c_name] = None
                return c_name, type_
        return None

    def require(self, instruction: Instruction, architecture: int) -> None:
        """Raise if the module's target lacks an instruction: NVRTC does not check inline PTX, ptxas does."""
        if self.target < architecture:
            raise instruction.unsupported(f"needs sm_{architecture}, the target is sm_{self.target}")

    def read(self, operand: str, type_: str) -> str:
        """The operand's value as an expression of the PTX type."""
        c_type = C_TYPE[type_]
        if operand.startswith("!"):
            return f"!{self.read(operand[1:], type_)}"
        if register := self._register(operand):
            name, register_type = register
            same = type_ == "pred" or (type_[0] in "bu" and bits_of(type_) == bits_of(register_type))
            return name if same else f"isa::as<{c_type}>({name})"
        if operand in _SPECIAL:
            return f"static_cast<{c_type}>({_SPECIAL[operand]})"
        if _INTEGER.fullmatch(operand) or _FLOAT_BITS.fullmatch(operand):
            return _literal(literal_bits(operand, type_), type_)
        if operand == self.parameter.name or operand in self.variables:
            space = self.variables[operand].space if operand in self.variables else "param"
            if space == "shared":
                return f"{c_type}{{0}}"
            return f"isa::as<{c_type}>(isa::address({self._base(operand)}))"
        raise NotImplementedError(f"PTX operand {operand!r} read as {type_}")

    def write(self, operand: str, value: str) -> str:
        """A statement that stores a C++ value, extended as its type says, in a register; `_` discards it."""
        if operand == "_":
            return f"static_cast<void>({value});"
        register = self._register(operand)
        if register is None:
            raise NotImplementedError(f"PTX operand {operand!r} written")
        return f"isa::put({register[0]}, {value});"

    def address(self, operand: str, space: str) -> str:
        """`[base + offset]` in a state space as a host pointer to bytes."""
        match = _ADDRESS.fullmatch(operand)
        if match is None:
            raise NotImplementedError(f"PTX address {operand!r}")
        base, offset = match[1], int(match[2] or "0", 0)
        register = self._register(base)

        def plus(type_: str) -> str:
            return f" + {_literal(offset, type_)}" if offset else ""

        if space == "shared":
            bits = "b64" if register and bits_of(register[1]) == 64 else "b32"
            value = self.read(base, bits) if register or not _INTEGER.fullmatch(base) else _literal(int(base, 0), bits)
            return f"(shared + ({value}{plus(bits)}))"
        if register:
            return f"isa::pointer({self.read(base, 'b64')}{plus('b64')})"
        return f"({self._base(base)} + {offset})"

    def _base(self, symbol: str) -> str:
        if symbol == self.parameter.name:
            return "reinterpret_cast<const uint8_t*>(&params)"
        if symbol in self.variables and self.variables[symbol].space != "shared":
            return f"reinterpret_cast<const uint8_t*>({identifier(symbol)})"
        raise NotImplementedError(f"PTX symbol {symbol!r} as an address")


def _rows(names: list[str], length: int = 12) -> list[list[str]]:
    return [names[i : i + length] for i in range(0, len(names), length)]


def literal_bits(text: str, type_: str) -> int:
    """The bits of an integer or `0f...` literal as a value of a PTX type."""
    floating = _FLOAT_BITS.fullmatch(text)
    value = int(floating[1], 16) if floating else int(text.rstrip("U"), 0)
    return value & ((1 << bits_of(type_)) - 1)


def _literal(value: int, type_: str) -> str:
    bits = bits_of(type_)
    if type_ == "pred":
        return "true" if value else "false"
    digits = f"0x{value & ((1 << bits) - 1):x}" + ("ull" if bits == 64 else "u")
    return f"{C_TYPE[type_]}{{{digits}}}" if type_[0] in "bu" else f"isa::as<{C_TYPE[type_]}>({digits})"
