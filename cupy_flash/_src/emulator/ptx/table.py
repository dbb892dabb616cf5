"""The registry of PTX instructions: what carries out an opcode that starts so."""

from __future__ import annotations

from collections.abc import Callable

from cupy_flash._src.emulator.ptx.emit import Emitter
from cupy_flash._src.emulator.ptx.parser import Instruction

Handler = Callable[[Emitter, Instruction], str]
HANDLERS: dict[str, Handler] = {}

# The 16-bit floating-point types, by the engine's name.
HALF = {"f16": "kHalfF16", "bf16": "kHalfBf16"}


def instruction(*prefixes: str) -> Callable[[Handler], Handler]:
    """Decorate the function that gives the C++ statement for opcodes of these prefixes."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(prefixes, handler))
        return handler

    return register
