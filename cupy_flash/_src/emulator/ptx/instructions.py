"""What carries out each PTX instruction (PTX ISA chapter 9.7): one small function each, found by the opcode.

Here are the instructions on memory, control flow, barriers, warps and tensor cores; arithmetic.py has the others.
"""

from __future__ import annotations

from cupy_flash._src.emulator.ptx.arithmetic import ARITHMETIC, arithmetic
from cupy_flash._src.emulator.ptx.emit import C_TYPE, Emitter, bits_of, vector
from cupy_flash._src.emulator.ptx.parser import Instruction
from cupy_flash._src.emulator.ptx.table import HALF, HANDLERS, Handler, instruction

_SPACES = ("param", "shared", "global", "local", "const")
_ATOMICS = {
    "add": "kAtomicAdd",
    "exch": "kAtomicExchange",
    "min": "kAtomicMin",
    "max": "kAtomicMax",
    "and": "kAtomicAnd",
    "or": "kAtomicOr",
    "xor": "kAtomicXor",
    "cas": "kAtomicCas",
}


def translate_instruction(emit: Emitter, instruction: Instruction) -> str:
    """The C++ statement for one instruction, its guard predicate included."""
    statement = _handler(instruction)(emit, instruction)
    if instruction.predicate is not None:
        return f"if ({emit.read(instruction.predicate, 'pred')}) {{ {statement} }}"
    return statement


def _handler(instruction: Instruction) -> Handler:
    for length in range(len(instruction.opcode), 0, -1):
        handler = HANDLERS.get(".".join(instruction.opcode[:length]))
        if handler is not None:
            return handler
    if instruction.opcode[0] in {name.partition(".")[0] for name in ARITHMETIC}:
        return arithmetic
    raise instruction.unsupported()


def _space(instruction: Instruction) -> str:
    return next((space for space in _SPACES if instruction.has(space)), "generic")


# ---- memory


@instruction("ld", "ldu")
def _ld(emit: Emitter, instruction: Instruction) -> str:
    type_, c_type = instruction.opcode[-1], C_TYPE[instruction.opcode[-1]]
    d, a = instruction.operands
    address = emit.address(a, _space(instruction))
    if not instruction.has("v2", "v4", "v8"):
        return emit.write(d, f"*isa::at<const {c_type}>({address})")
    registers = vector(d)
    bits = C_TYPE[f"b{bits_of(type_)}"]
    load = f"const auto x = ptx::load_global<{len(registers)}>(isa::at<const {bits}>({address}), PTX_SITE);"
    writes = (emit.write(r, f"isa::as<{c_type}>(x[{i}])") for i, r in enumerate(registers) if r != "_")
    return f"{{ {load} {' '.join(writes)} }}"


@instruction("st")
def _st(emit: Emitter, instruction: Instruction) -> str:
    type_ = instruction.opcode[-1]
    a, b = instruction.operands
    address = emit.address(a, _space(instruction))
    if not instruction.has("v2", "v4", "v8"):
        return f"*isa::at<{C_TYPE[type_]}>({address}) = {emit.read(b, type_)};"
    bits = f"b{bits_of(type_)}"
    values = [emit.read(register, bits) for register in vector(b)]
    x = f"ptx::Vec<{C_TYPE[bits]}, {len(values)}>{{{{{', '.join(values)}}}}}"
    return f"ptx::store_global(isa::at<{C_TYPE[bits]}>({address}), {x}, PTX_SITE);"


@instruction("atom", "red")
def _atomic(emit: Emitter, instruction: Instruction) -> str:
    operands = list(instruction.operands)
    if instruction.has("v2", "v4", "v8"):
        return _add_pair(emit, instruction, *operands)
    d = operands.pop(0) if instruction.opcode[0] == "atom" else "_"
    operation = next((part for part in instruction.opcode[1:] if part in _ATOMICS), None)
    type_ = instruction.opcode[-1].replace("b", "u") if instruction.opcode[-1][0] == "b" else instruction.opcode[-1]
    if operation is None or type_ not in ("f32", "f64", "u32", "s32", "u64", "s64"):
        raise instruction.unsupported()
    c_type = C_TYPE[type_]
    values = [emit.read(operand, type_) for operand in operands[1:]]
    if operation == "cas":  # cas d, [a], compare, value
        values.reverse()
    elif type_[0] != "f":
        values.append("0")
    pointer = f"isa::at<{c_type}>({emit.address(operands[0], _space(instruction))})"
    call = f"emulator_atomic_{type_}({_ATOMICS[operation]}, {pointer}, {', '.join(values)}, PTX_SITE)"
    return emit.write(d, call)


def _add_pair(emit: Emitter, instruction: Instruction, target: str, source: str) -> str:
    emit.require(instruction, 90)
    if instruction.opcode[0] != "red" or not instruction.has("add") or instruction.opcode[-2:] != ("v2", "f32"):
        raise instruction.unsupported()
    pointer = f"isa::at<float>({emit.address(target, _space(instruction))})"
    x, y = (emit.read(register, "f32") for register in vector(source))
    return f"emulator_add_f32x2({pointer}, {x}, {y}, PTX_SITE);"


@instruction("cp.async.ca.shared", "cp.async.cg.shared", "cp.async.ca.shared::cta", "cp.async.cg.shared::cta")
def _cp_async(emit: Emitter, instruction: Instruction) -> str:
    emit.require(instruction, 80)
    target, source, size, *source_size = instruction.operands
    if len(source_size) > 1:
        raise instruction.unsupported("with a cache policy is not supported by the emulator")
    read = emit.read(source_size[0], "s32") if source_size else size
    offset = f"static_cast<uint32_t>({emit.address(target, 'shared')} - shared)"
    return f"emulator_cp_async({offset}, {emit.address(source, 'global')}, {size}, {read}, PTX_SITE);"


@instruction("cp.async.commit_group")
def _cp_async_commit(emit: Emitter, instruction: Instruction) -> str:
    emit.require(instruction, 80)
    return "emulator_cp_async_commit();"


@instruction("cp.async.wait_group", "cp.async.wait_all")
def _cp_async_wait(emit: Emitter, instruction: Instruction) -> str:
    emit.require(instruction, 80)
    pending = emit.read(instruction.operands[0], "s32") if instruction.operands else "-1"
    return f"emulator_cp_async_wait({pending});"


@instruction("fence", "membar", "prefetch", "prefetchu", "nanosleep", "discard", "applypriority")
def _no_effect(emit: Emitter, instruction: Instruction) -> str:
    """Ordering and hints: the emulator's memory is sequentially consistent and has no caches."""
    return ";"


# ---- control, barriers, warp


@instruction("bra")
def _bra(emit: Emitter, instruction: Instruction) -> str:
    return f"goto {emit.label(instruction.operands[0])};"


@instruction("ret", "exit")
def _ret(emit: Emitter, instruction: Instruction) -> str:
    return "return;"


@instruction("trap")
def _trap(emit: Emitter, instruction: Instruction) -> str:
    return 'emulator_trap("trap", PTX_SITE);'


@instruction("bar.sync", "bar.arrive", "barrier.sync", "barrier.arrive", "barrier.cta.sync", "barrier.cta.arrive")
def _bar(emit: Emitter, instruction: Instruction) -> str:
    barrier, *threads = (emit.read(operand, "s32") for operand in instruction.operands)
    call = "arrive" if instruction.has("arrive") else "sync"
    return f"emulator_barrier_{call}({barrier}, {threads[0] if threads else '0'}, PTX_SITE);"


@instruction("bar.red", "barrier.red", "barrier.cta.red")
def _bar_red(emit: Emitter, instruction: Instruction) -> str:
    d, barrier, *threads, predicate = instruction.operands
    reduce = next(part for part in ("popc", "and", "or") if instruction.has(part))
    count = emit.read(threads[0], "s32") if threads else "0"
    arguments = f"{emit.read(barrier, 's32')}, {count}, kReduce{reduce.capitalize()}, {emit.read(predicate, 'pred')}"
    call = f"emulator_barrier_reduce({arguments}, PTX_SITE)"
    return emit.write(d, call if reduce == "popc" else f"{call} != 0")


@instruction("bar.warp.sync")
def _bar_warp_sync(emit: Emitter, instruction: Instruction) -> str:
    return f"emulator_syncwarp({emit.read(instruction.operands[0], 'u32')}, PTX_SITE);"


@instruction("shfl.sync")
def _shfl(emit: Emitter, instruction: Instruction) -> str:
    modes = {"idx": "kShuffleIndex", "bfly": "kShuffleXor", "up": "kShuffleUp", "down": "kShuffleDown"}
    d, *operands = instruction.operands
    d, _, in_range = d.partition("|")
    arguments = ", ".join(emit.read(operand, "u32") for operand in operands)
    call = f"isa::shfl<{modes[instruction.opcode[2]]}>({arguments}, inside, PTX_SITE)"
    keep = emit.write(in_range, "inside") if in_range else ""
    return f"{{ bool inside; {emit.write(d, call)} {keep} }}"


@instruction("vote.sync")
def _vote(emit: Emitter, instruction: Instruction) -> str:
    mode = instruction.opcode[2]
    d, predicate, mask = instruction.operands
    arguments = f"{emit.read(mask, 'u32')}, {emit.read(predicate, 'pred')}, kVote{mode.capitalize()}"
    call = f"emulator_vote({arguments}, PTX_SITE)"
    return emit.write(d, call if mode == "ballot" else f"{call} != 0")


# ---- tensor cores


@instruction("mma.sync.aligned.m16n8k16.row.col.f32", "mma.sync.aligned.m16n8k8.row.col.f32")
def _mma(emit: Emitter, instruction: Instruction) -> str:
    shape, half = instruction.opcode[3], instruction.opcode[7]
    if half not in HALF or (shape, half) == ("m16n8k8", "bf16"):
        raise instruction.unsupported()
    emit.require(instruction, 80 if shape == "m16n8k16" else 75)
    d, a, b, c = (vector(operand) for operand in instruction.operands)

    def fragment(name: str, registers: list[str], type_: str) -> str:
        values = ", ".join(emit.read(register, type_) for register in registers)
        return f"const {C_TYPE[type_]} {name}[] = {{{values}}};"

    inputs = f"{fragment('a', a, 'b32')} {fragment('b', b, 'b32')} {fragment('c', c, 'f32')}"
    call = f"emulator_mma_{shape}(d, a, b, c, {HALF[half]}, PTX_SITE);"
    writes = " ".join(emit.write(register, f"d[{i}]") for i, register in enumerate(d))
    return f"{{ {inputs} float d[4]; {call} {writes} }}"


@instruction("ldmatrix.sync.aligned.m8n8")
def _ldmatrix(emit: Emitter, instruction: Instruction) -> str:
    emit.require(instruction, 75)
    d, a = instruction.operands
    registers = vector(d)
    offset = f"static_cast<uint32_t>({emit.address(a, 'shared')} - shared)"
    call = f"emulator_ldmatrix(r, {len(registers)}, {offset}, {int(instruction.has('trans'))}, PTX_SITE);"
    writes = " ".join(emit.write(register, f"r[{i}]") for i, register in enumerate(registers))
    return f"{{ uint32_t r[{len(registers)}]; {call} {writes} }}"


@instruction("stmatrix.sync.aligned.m8n8")
def _stmatrix(emit: Emitter, instruction: Instruction) -> str:
    emit.require(instruction, 90)
    a, b = instruction.operands
    values = [emit.read(register, "b32") for register in vector(b)]
    offset = f"static_cast<uint32_t>({emit.address(a, 'shared')} - shared)"
    call = f"emulator_stmatrix({offset}, r, {len(values)}, {int(instruction.has('trans'))}, PTX_SITE);"
    return f"{{ const uint32_t r[] = {{{', '.join(values)}}}; {call} }}"
