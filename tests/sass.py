"""Machine code, disassembled: what the main loop of a tensor-core kernel must hold and what it must not."""

import re
import subprocess
from dataclasses import dataclass
from importlib import metadata

MMA = r"HMMA[.\w]*"


@dataclass(frozen=True)
class Code:
    """Instructions of a kernel in order, and its loops as (first, last) instruction."""

    instructions: list[str]
    loops: list[tuple[int, int]]

    def count(self, opcode: str) -> int:
        return sum(re.match(rf"(@!?\w+ )?{opcode}\b", text) is not None for text in self.instructions)

    @property
    def main_loop(self) -> "Code":
        """The shortest loop with a matrix product in it."""
        bodies = [Code(self.instructions[first : last + 1], []) for first, last in self.loops]
        return min((body for body in bodies if body.count(MMA)), key=lambda body: len(body.instructions))


def disassemble(path) -> Code:
    tool = next(f for f in metadata.files("nvidia-cuda-nvdisasm") if f.name in ("nvdisasm", "nvdisasm.exe")).locate()
    text = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    instructions, labels = [], {}
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    targets = ((i, re.search(r"BRA.*`\((\.L_x_\d+)\)", text)) for i, text in enumerate(instructions))
    loops = [(labels[target[1]], i) for i, target in targets if target and labels[target[1]] <= i]
    return Code(instructions, loops)


def products_per_warp(kernel) -> int:
    """mma instructions with which a warp does its share of the main loop's matrix products, one block of each."""
    value = dict(kernel.constants)
    m, n, d, dv = (value[name] for name in ("kBlockM", "kBlockN", "kHeadDim", "kHeadDimV"))
    shapes = {
        "attention_forward": [(m, n, d), (m, dv, n)],
        "attention_dkdv": [(m, n, d), (m, n, dv), (n, dv, m), (n, d, m)],
        "attention_dq": [(m, n, d), (m, n, dv), (m, d, n)],
    }[kernel.entry]
    if value.get("kAtomicDq"):
        shapes.append((m, d, n))
    return sum(rows * cols * depth for rows, cols, depth in shapes) // (16 * 8 * value["kMmaDepth"] * value["kNWarps"])


def check_main_loop(kernel, path) -> None:
    """The main loop of a tensor-core kernel holds its matrix products, all of them, and nothing local."""
    code, expected = disassemble(path), products_per_warp(kernel)
    assert code.count("LDL") == code.count("STL") == 0, f"{kernel} uses local memory"
    assert code.main_loop.count(MMA) == code.count(MMA) == expected, kernel
    # Additions to dQ must know that they go to global memory: no test of the address, no loop.
    assert code.count(r"ATOM[.\w]*") == code.count(r"QSPC[.\w]*") == 0, kernel
