"""Machine code, disassembled: its control flow, and what a warp executes of it.

Which way a branch goes in the steady state is not written in the code. Of all ways through a kernel or its main loop
that pass each instruction once at most, the one counted is that which does the most work, and of these the shortest;
what work is, `Code.main_loop`, `Code.before_copies` and `Code.after_loop` say. So rare paths do not count: masked
tiles, rows of scores far from 0, rows that vectors do not fit, the last steps, which copy nothing, and rounds of inner
loops but one. A predicated instruction counts whether or not its predicate holds.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

LOCAL, ATOMIC = r"LDL|STL", r"ATOM|QSPC"  # ATOM and QSPC: a space of memory that the compiler does not know
DIVISION = r"I2F[.\w]*\.RP"  # an integer division's guess of the reciprocal, rounded up
MMA, CALL = r"HG?MMA", r"CALL"
# Of each instruction the first that its opcode starts with.
KINDS = {
    "HMMA": MMA,
    "LDSM": r"LDSM|MOVM",
    "copy": r"LD(G|GSTS)?\b",
    "LDS/STS": r"LDS|STS",
    "MUFU": r"MUFU",
    "move": r"MOV|CS2R|IMAD\.MOV|HFMA2[.\w]* \w+, -RZ, RZ",
    "float": r"[DFH](ADD|MUL|FMA|MNMX|SEL|SET|CHK)",
    "convert": r"F2|I2|FRND",
    "integer": r"I[A-Z]*(ADD|MAD|ABS|MNMX)|V(IADD|IMNMX|ABS)|LEA|LOP|SEL|SH[FLR]\b|PRMT|POPC|FLO|SGXT|BMSK",
    "predicate": r"ISETP|PLOP|P2R|R2P|VOTE\b",
    "barrier": r"BAR|DEPBAR|LDGDEPBAR|SYNCS|MEMBAR",
    "branch": r"BR[AXK]|JM[PX]|BSSY|BSYNC|BMOV|BREAK|CALL|RET|EXIT|WARPSYNC",
    "RED": r"RED|ATOM",
    "uniform": r"U[A-Z]|VOTEU|R2UR|S2U?R|LDC",
    "other": r"",
}


@dataclass(frozen=True)
class Code:
    """Instructions of a kernel in order, and for each the instructions that may be executed next."""

    instructions: list[str]
    successors: list[list[int]]

    @classmethod
    def parse(cls, text: str, entry: str) -> Code:
        """Read what ``nvdisasm -c`` prints; of several kernels, take `entry`."""
        section = text.partition(f".section\t.text.{entry},")[2].partition("\n\t.section\t")[0]
        instructions: list[str] = []
        labels: dict[str, int] = {}
        for line in section.splitlines():
            if label := re.match(r"(\.L_\w+):", line):
                labels[label[1]] = len(instructions)
            elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
                instructions.append(instruction[1])
        if not instructions:
            raise ValueError(f"no instructions of {entry} in what was disassembled")
        return cls(instructions, [_successors(i, line, labels) for i, line in enumerate(instructions)])

    def is_a(self, i: int, opcode: str) -> bool:
        return re.match(opcode, self._bare[i]) is not None

    @cached_property
    def _bare(self) -> list[str]:
        return [_bare(instruction) for instruction in self.instructions]

    def count(self, opcode: str, which: Iterable[int] | None = None) -> int:
        """Instructions, among those of `which`, whose opcode starts with this pattern."""
        return sum(self.is_a(i, opcode) for i in (range(len(self.instructions)) if which is None else which))

    def kinds(self, which: Iterable[int]) -> Counter[str]:
        """How many of these instructions there are of each of `KINDS`."""
        return Counter(next(kind for kind, opcode in KINDS.items() if self.is_a(i, opcode)) for i in which)

    @cached_property
    def _order(self) -> tuple[list[int], set[tuple[int, int]]]:
        """What can be reached, each instruction after those that follow it, and the edges that lead back to a loop's
        head.
        """
        order: list[int] = []
        back, open_, done = set(), {0}, {0}
        stack = [(0, iter(self.successors[0]))]
        while stack:
            i, following = stack[-1]
            j = next(following, None)
            if j is None:
                stack.pop()
                open_.remove(i)
                order.append(i)
            elif j in open_:
                back.add((i, j))
            elif j not in done:
                done.add(j)
                open_.add(j)
                stack.append((j, iter(self.successors[j])))
        return order, back

    def _backward(self, starts: Iterable[int], end: int | None = None) -> set[int]:
        """`starts` and what leads to them, on ways that do not pass `end`."""
        found = set(starts)
        stack = [i for i in found if i != end]
        while stack:
            for i in self._predecessors[stack.pop()]:
                if i not in found:
                    found.add(i)
                    if i != end:
                        stack.append(i)
        return found

    @cached_property
    def _predecessors(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in self.instructions]
        for i in self._order[0]:
            for j in self.successors[i]:
                found[j].append(i)
        return found

    @cached_property
    def loops(self) -> dict[int, set[int]]:
        """Instructions of each loop, inner ones' too, by its head."""
        heads = {head for _, head in self._order[1]}
        return {head: self._backward({i for i, to in self._order[1] if to == head} | {head}, head) for head in heads}

    def _path(
        self, starts: Iterable[int], ends: set[int], worth: Callable[[int], tuple[int, ...]], inside: set[int]
    ) -> list[int]:
        """The instructions that together are worth most, on a way from one of `starts` to one of `ends`."""
        order, back = self._order
        best: dict[int, tuple[tuple[int, ...], int | None]] = {}
        for i in order:
            if i in inside:
                onward = [(best[j][0], j) for j in self.successors[i] if j in best and (i, j) not in back]
                if i in ends:
                    onward.append((tuple(0 for _ in worth(i)), -1))
                if onward:
                    value, following = max(onward)
                    total = tuple(a + b for a, b in zip(worth(i), value, strict=True))
                    best[i] = total, following if following >= 0 else None
        path: list[int] = []
        i = max((start for start in starts if start in best), key=lambda start: best[start][0], default=None)
        while i is not None:
            path.append(i)
            i = best[i][1]
        return path

    def copied(self, which: Iterable[int]) -> int:
        """Bytes that a lane brings from global memory, 8 or 16 at a time."""
        return sum(width for width in map(self._loaded, which) if width >= 8)

    def _loaded(self, i: int) -> int:
        return _width(self.instructions[i]) if self.is_a(i, r"LD(G|GSTS)?\b") else 0

    def added(self, which: Iterable[int]) -> int:
        """Numbers that a lane adds to global memory."""
        several = [re.search(r"x(\d)\b", _opcode(self.instructions[i])) for i in which if self.is_a(i, "RED")]
        return sum(int(found[1]) if found else 1 for found in several)

    def _work(self, i: int) -> tuple[int, ...]:
        return self.is_a(i, MMA), -self.is_a(i, CALL), self.copied([i]), self.added([i]), -1

    @cached_property
    def _main(self) -> tuple[int, list[int]]:
        """Head of the main loop, and what is executed of it."""
        loops = {head: body for head, body in self.loops.items() if self.count(MMA, body)}
        paths = {}
        for head, body in loops.items():
            if not any(other != head and other in body for other in loops):
                ends = {i for i, to in self._order[1] if to == head}
                paths[head] = self._path([head], ends, self._work, body)
        if not paths:
            raise ValueError("no loop has a matrix product")
        head = max(paths, key=lambda head: tuple(map(sum, zip(*map(self._work, paths[head]), strict=True))))
        return head, paths[head]

    @cached_property
    def main_loop(self) -> list[int]:
        """What a warp executes of the innermost loop with matrix products, once around.

        It has most matrix products, then fewest calls, then most bytes of vectors of 8 or 16 bytes from global memory,
        then most numbers added to global memory; then it is the shortest.
        """
        return self._main[1]

    @cached_property
    def main_loop_body(self) -> set[int]:
        """All instructions of that loop, rare paths too."""
        return self.loops[self._main[0]]

    @cached_property
    def inner_copies(self) -> set[int]:
        """Of the main loop, the loops inside that copy."""
        inner = (body for body in self.loops.values() if body < self.main_loop_body and self.copied(body))
        return set().union(*inner)

    @cached_property
    def before_copies(self) -> list[int]:
        """What a warp executes from the entry to the first copy of 8 or 16 bytes: fewest calls, then the shortest."""
        reached = set(self._order[0])
        ends = {i for i in reached if self.copied([i])}
        return self._path([0], ends, lambda i: (-self.is_a(i, CALL), -1), reached)

    @cached_property
    def after_loop(self) -> list[int]:
        """What a warp executes from the main loop to its end: fewest calls, then most bytes stored 16 at a time, then
        the shortest.
        """
        body, reached = self.main_loop_body, set(self._order[0])
        starts = {j for i in body for j in self.successors[i]} - body
        ends = {i for i in reached if not self.successors[i]}

        def worth(i: int) -> tuple[int, ...]:
            stored = self.is_a(i, r"STG?\b") and _width(self.instructions[i]) == 16
            return -self.is_a(i, CALL), stored, -1

        return self._path(starts, ends, worth, reached - body)

    def through(self, loaded: int) -> list[int]:
        """What a warp executes from the entry to the end where its lanes load so many bytes from global memory each.

        The shortest way without a call, loops with as many rounds as that takes: for kernels that go over rows.
        """
        start = (0, 0)
        came: dict[tuple[int, int], tuple[int, int] | None] = {start: None}
        queue = deque([start])
        while queue:
            i, before = queue.popleft()
            total = before + self._loaded(i)
            if total == loaded and self.is_a(i, "EXIT"):
                path: list[int] = []
                state: tuple[int, int] | None = (i, before)
                while state:
                    path.append(state[0])
                    state = came[state]
                return path[::-1]
            for j in self.successors[i]:
                if (j, total) not in came and total <= loaded and not self.is_a(j, CALL):
                    came[j, total] = (i, before)
                    queue.append((j, total))
        raise ValueError(f"no way through loads {loaded} bytes a lane")

    def sites(self, opcode: str) -> tuple[int, int, int]:
        """Instructions of this kind before the main loop, in it and after it, executed or not."""
        head, _ = self._main
        body, reached = self.main_loop_body, set(self._order[0])
        before = self._backward({head}) - body
        return self.count(opcode, before), self.count(opcode, body), self.count(opcode, reached - before - body)


def _successors(i: int, instruction: str, labels: dict[str, int]) -> list[int]:
    bare, opcode = _bare(instruction), _opcode(instruction)
    guard, operands = bare != instruction, bare.removeprefix(opcode)
    if re.match("EXIT|RET|KILL", opcode):
        return [i + 1] if guard else []
    if not re.match("BR[AX]|JM[PX]", opcode):
        return [i + 1]
    jumps = [labels[label] for label in re.findall(r"\.L_\w+", operands)]
    condition = re.match(r" !?U?[PR]\w+, ", operands) if opcode.startswith(("BRA", "JMP")) else None
    return [i + 1, *jumps] if guard or condition else jumps


def _width(instruction: str) -> int:
    """Bytes that a lane loads or stores."""
    bits = re.search(r"\.[US]?(8|16|64|128)\b", _opcode(instruction))
    return int(bits[1]) // 8 if bits else 4


def _bare(instruction: str) -> str:
    """The same without the predicate that guards it."""
    return re.sub(r"^@\S+ ", "", instruction)


def _opcode(instruction: str) -> str:
    """Name and modifiers."""
    return _bare(instruction).partition(" ")[0]


def disassemble(path: Path, entry: str) -> Code:
    """The kernel `entry` of a cubin."""
    tool = next(f for f in metadata.files("nvidia-cuda-nvdisasm") if f.name in ("nvdisasm", "nvdisasm.exe")).locate()
    text = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    return Code.parse(text, entry)
