"""The emulator's second path: NVRTC's PTX translated to C++ on the same engine.

The host headers replace the kernels' inline PTX; this path executes it. Every PTX statement becomes one C++
statement, and `#line` directives carry `.loc` on, so that errors name the CUDA source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cupy_flash._src import source
from cupy_flash._src.emulator.ptx.emit import C_TYPE, Emitter, bits_of, identifier, literal_bits
from cupy_flash._src.emulator.ptx.instructions import translate_instruction
from cupy_flash._src.emulator.ptx.parser import (
    Close,
    Entry,
    Instruction,
    Label,
    Open,
    PtxModule,
    Registers,
    Statement,
    Variable,
    parse,
)

__all__ = ["translate"]

_NAME = "translated_ptx.cpp"


def translate(ptx: str) -> str:
    """Translate a PTX module to C++ with the same entry points.

    Parameters
    ----------
    ptx
        A module as NVRTC prints it; compile with `-lineinfo` to keep source lines.

    Returns
    -------
    str
        Flattened C++, to be compiled and launched as the kernel's own source is.

    Raises
    ------
    NotImplementedError
        For an instruction, operand or declaration that the emulator does not know, naming it and its line.
    ValueError
        If `ptx` is not a PTX module.

    Examples
    --------
    >>> ptx = '''
    ... .target sm_80
    ... .visible .entry twice(.param .u64 twice_param_0)
    ... {
    ...   .reg .b32 %r<2>;
    ...   .reg .b64 %rd<2>;
    ...   ld.param.u64 %rd1, [twice_param_0];
    ...   ld.global.u32 %r1, [%rd1];
    ...   add.s32 %r1, %r1, %r1;
    ...   st.global.u32 [%rd1], %r1;
    ...   ret;
    ... }'''
    >>> print(*translate(ptx).splitlines()[-6:-2], sep="\\n")
      isa::put(rd1, *isa::at<const uint64_t>((reinterpret_cast<const uint8_t*>(&params) + 0)));
      isa::put(r1, *isa::at<const uint32_t>(isa::pointer(rd1)));
      isa::put(r1, isa::add<int32_t>(isa::as<int32_t>(r1), isa::as<int32_t>(r1)));
      *isa::at<uint32_t>(isa::pointer(rd1)) = r1;
    """
    module = parse(ptx)
    parts = [
        '#include "ptx_isa.h"',
        *_constants(module),
        *(_entry(module, entry) for entry in module.entries),
    ]
    text = "\n\n".join(parts) + "\n"
    return source.flatten(_NAME, virtual={_NAME: text}, search=(source.root() / "emulator", source.root()))


def _constants(module: PtxModule) -> Iterator[str]:
    """The module's initialised variables that some instruction names."""
    used = " ".join(
        operand
        for entry in module.entries
        for statement in entry.body
        if isinstance(statement, Instruction)
        for operand in statement.operands
    )
    for variable in module.variables:
        if variable.name in used and variable.space in ("global", "const"):
            values = ", ".join(f"0x{literal_bits(value, variable.type):x}" for value in variable.values)
            c_type = C_TYPE[f"b{bits_of(variable.type)}"]
            array = f"{identifier(variable.name)}[{variable.count or 1}]"
            yield f"alignas({variable.align or 8}) static {c_type} {array} = {{{values}}};"


def _entry(module: PtxModule, entry: Entry) -> str:
    emit = Emitter(module, entry)
    statements = list(_statements(emit, entry.body))
    size = (emit.parameter.count or 1) * bits_of(emit.parameter.type) // 8
    params = f"{entry.name}_params"
    bounds = f"__launch_bounds__({entry.max_threads}) " if entry.max_threads else ""
    head = [
        f"struct alignas({emit.parameter.align or size}) {params} {{\n  uint8_t bytes[{size}];\n}};\n",
        f'extern "C" __global__ void {bounds}{entry.name}(const __grid_constant__ {params} params) {{',
        *(f"  {declaration}" for declaration in emit.declarations()),
        "  uint8_t* const shared = emulator_shared_memory();",
        "  static_cast<void>(shared);",
    ]
    return "\n".join([*head, *statements, "}"])


def _statements(emit: Emitter, body: Iterable[Statement]) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, Registers):
            emit.declare_registers(statement.type, statement.names)
        elif isinstance(statement, Variable):
            emit.declare_local(statement)
        elif isinstance(statement, Open):
            emit.open_scope()
        elif isinstance(statement, Close):
            emit.close_scope()
        elif isinstance(statement, Label):
            yield f"{emit.label(statement.name)}:;"
        elif isinstance(statement, Instruction):
            if statement.site.line:
                yield f'#line {statement.site.line} "{statement.site.file}"'
            yield f"  {translate_instruction(emit, statement)}"
