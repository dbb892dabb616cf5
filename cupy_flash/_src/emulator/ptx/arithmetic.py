"""Instructions on registers: arithmetic, comparisons, moves and conversions.

Arithmetic is data: a signature per instruction, and the C++ function `isa::name` of ptx_isa.h.
"""

from __future__ import annotations

from cupy_flash._src.emulator.ptx.emit import C_TYPE, Emitter, bits_of, vector
from cupy_flash._src.emulator.ptx.parser import Instruction
from cupy_flash._src.emulator.ptx.table import HALF, instruction

# result = operands, each T (the instruction's type), W (twice as wide), U (u32) or P (predicate).
ARITHMETIC = {
    **dict.fromkeys(("add", "sub", "mul", "mul.lo", "mul.hi", "div", "rem", "min", "max"), "T=TT"),
    **dict.fromkeys(("min.NaN", "max.NaN", "copysign", "and", "or", "xor"), "T=TT"),
    **dict.fromkeys(("mad", "mad.lo", "mad.hi", "fma", "sad", "prmt"), "T=TTT"),
    **dict.fromkeys(("neg", "abs", "not", "cnot", "brev", "sqrt", "rcp", "rcp.approx"), "T=T"),
    **dict.fromkeys(("rsqrt.approx", "ex2", "lg2", "sin", "cos", "tanh"), "T=T"),
    **dict.fromkeys(("popc", "clz", "bfind"), "U=T"),
    **dict.fromkeys((f"testp.{kind}" for kind in ("finite", "infinite", "number", "notanumber")), "P=T"),
    **dict.fromkeys((f"shf.{way}.{mode}" for way in "lr" for mode in ("wrap", "clamp")), "T=TTU"),
    "mul.wide": "W=TT",
    "mad.wide": "W=TTW",
    "shl": "T=TU",
    "shr": "T=TU",
    "bfe": "T=TUU",
    "bfi": "T=TTUU",
    "lop3": "T=TTTU",
    "selp": "T=TTP",
}
# Functions of ptx_isa.h that are overloads or have one type only.
_UNTYPED = {"mul_wide", "ex2", "lg2", "sin", "cos", "tanh", "prmt", "lop3"}
_UNTYPED |= {"shf_l_wrap", "shf_l_clamp", "shf_r_wrap", "shf_r_clamp"}
_KEYWORDS = ("and", "or", "xor", "not")

# Modifiers that change nothing here: rounding to nearest is the host's, approximations are computed exactly.
_NEUTRAL = frozenset(("rn", "approx", "full", "ftz", "sat", "uni"))

_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"}
_COMPARISONS |= {"equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_ROUND_TO_INTEGER = {"rni": "round_even", "rzi": "round_zero", "rmi": "round_down", "rpi": "round_up"}


def arithmetic(emit: Emitter, instruction: Instruction) -> str:
    name, *modifiers, type_ = instruction.opcode
    exact_or_approximate = [m for m in modifiers if m not in _NEUTRAL]
    key = ".".join((name, *exact_or_approximate))
    if "approx" in modifiers and f"{key}.approx" in ARITHMETIC:
        key += ".approx"
    if key not in ARITHMETIC or type_ not in C_TYPE or "16x2" in type_ or type_ in HALF:
        raise instruction.unsupported()
    result, _, operands = ARITHMETIC[key].partition("=")
    wide = f"{type_[0]}{2 * bits_of(type_)}"
    types = {"T": type_, "W": wide, "U": "u32", "P": "pred"}
    flush = "isa::ftz" if "ftz" in modifiers and result == "T" else ""
    values = []
    for letter, operand in zip(operands, instruction.operands[1:], strict=True):
        value = emit.read(operand, types[letter])
        values.append(f"{flush}({value})" if flush and letter == "T" else value)
    function = key.replace(".", "_") + ("_" if name in _KEYWORDS else "")
    explicit = f"<{C_TYPE[type_]}>" if function not in _UNTYPED else ""
    call = f"isa::{function}{explicit}({', '.join(values)})"
    if "sat" in modifiers:
        if type_ not in ("f32", "f64"):
            raise instruction.unsupported()
        call = f"isa::saturate({call})"
    return emit.write(instruction.operands[0], f"{flush}({call})" if flush else call)


@instruction("slct")
def _slct(emit: Emitter, instruction: Instruction) -> str:
    type_, condition = instruction.opcode[-2:]
    d, a, b, c = instruction.operands
    arguments = f"{emit.read(a, type_)}, {emit.read(b, type_)}, {emit.read(c, condition)}"
    return emit.write(d, f"isa::slct<{C_TYPE[type_]}>({arguments})")


def _comparison(emit: Emitter, instruction: Instruction) -> tuple[str, str]:
    """The comparison of setp / set, and its C++ text combined with the optional predicate operand."""
    _, compare, *rest = instruction.opcode
    type_ = rest[-1]
    logic = next((part for part in rest if part in _LOGIC), None)
    if compare not in _COMPARISONS or type_ in HALF or "16x2" in type_:
        raise instruction.unsupported()
    a, b = (emit.read(operand, type_) for operand in instruction.operands[1:3])
    if instruction.has("ftz"):
        a, b = f"isa::ftz({a})", f"isa::ftz({b})"
    test = f"isa::{compare}<{C_TYPE[type_]}>({a}, {b})"
    if logic is None:
        return test, f"!{test}"
    c = emit.read(instruction.operands[3], "pred")
    return f"({test} {_LOGIC[logic]} {c}) != 0", f"(!{test} {_LOGIC[logic]} {c}) != 0"


@instruction("setp")
def _setp(emit: Emitter, instruction: Instruction) -> str:
    p, _, q = instruction.operands[0].partition("|")
    test, opposite = _comparison(emit, instruction)
    if not q:
        return emit.write(p, test)
    # Both are computed before either is written: p may be an operand.
    return f"{{ const bool p = {test}, q = {opposite}; {emit.write(p, 'p')} {emit.write(q, 'q')} }}"


@instruction("set")
def _set(emit: Emitter, instruction: Instruction) -> str:
    type_ = instruction.opcode[-2]
    test, _ = _comparison(emit, instruction)
    one, zero = ("1.0f", "0.0f") if type_ == "f32" else ("~0u", "0u")
    return emit.write(instruction.operands[0], f"{test} ? {one} : {zero}")


# ---- moves and conversions


@instruction("mov")
def _mov(emit: Emitter, instruction: Instruction) -> str:
    type_ = instruction.opcode[-1]
    d, a = instruction.operands
    if d.startswith("{"):
        parts = vector(d)
        bits = bits_of(type_) // len(parts)
        writes = (
            emit.write(part, f"static_cast<uint{bits}_t>(x >> {bits * i})")
            for i, part in enumerate(parts)
            if part != "_"
        )
        return f"{{ const auto x = {emit.read(a, f'b{bits_of(type_)}')}; {' '.join(writes)} }}"
    if a.startswith("{"):
        parts = vector(a)
        bits = bits_of(type_) // len(parts)
        whole = C_TYPE[f"b{bits_of(type_)}"]
        packed = " | ".join(
            f"static_cast<{whole}>({emit.read(part, f'b{bits}')}) << {bits * i}" for i, part in enumerate(parts)
        )
        return emit.write(d, f"static_cast<{whole}>({packed})")
    return emit.write(d, emit.read(a, type_))


@instruction("cvta")
def _cvta(emit: Emitter, instruction: Instruction) -> str:
    d, a = instruction.operands
    type_ = instruction.opcode[-1]
    value = emit.read(a, type_)
    if instruction.has("shared") and instruction.has("to"):
        value = f"uint64_t{{emulator_shared_address(isa::pointer({value}), PTX_SITE)}}"
    elif instruction.has("shared"):
        value = f"isa::address(shared + {value})"
    return emit.write(d, value)


@instruction("cvt")
def _cvt(emit: Emitter, instruction: Instruction) -> str:
    *modifiers, to, source = instruction.opcode[1:]
    d, *operands = instruction.operands
    if to in ("f16x2", "bf16x2") and source == "f32" and modifiers == ["rn"]:
        emit.require(instruction, 80)
        high, low = (emit.read(operand, "f32") for operand in operands)
        return emit.write(d, f"ptx::{to}_from_f32({low}, {high})")
    if to == "bf16" or source == "bf16":
        emit.require(instruction, 80)
    if to not in C_TYPE or source not in C_TYPE or not set(modifiers) <= {"rn", "ftz", "sat", *_ROUND_TO_INTEGER}:
        raise instruction.unsupported()
    value = emit.read(operands[0], source)
    if source in HALF:
        value, source = f"ptx::f32_from_{source}({value})", "f32"
    elif source == "f32" and "ftz" in modifiers:
        value = f"isa::ftz({value})"
    rounding = next((_ROUND_TO_INTEGER[m] for m in modifiers if m in _ROUND_TO_INTEGER), None)
    if rounding:
        value = f"isa::{rounding}<{C_TYPE[source]}>({value})"
    return emit.write(d, _converted(instruction, value, source, to))


def _converted(instruction: Instruction, value: str, source: str, to: str) -> str:
    """A value that is already rounded to an integer where the conversion asks for it, in its new type."""
    floating = (source[0] == "f", to[0] == "f" or to in HALF)
    saturated = instruction.has("sat")
    if floating == (False, False):
        return f"{'isa::clamp_integer' if saturated else 'static_cast'}<{C_TYPE[to]}>({value})"
    if floating == (True, False):
        return f"isa::to_integer<{C_TYPE[to]}>({value})"
    if to in HALF:
        if source != "f32":  # two roundings would not be one
            raise instruction.unsupported()
        return f"ptx::{to}_from_f32({f'isa::saturate({value})' if saturated else value})"
    value = f"static_cast<{C_TYPE[to]}>({value})"
    if saturated:
        value = f"isa::saturate({value})"
    return f"isa::ftz({value})" if instruction.has("ftz") and to == "f32" else value
