"""What the tensor-core kernels are compiled to: registers, spills and the instructions that a warp executes.

    python benchmarks/machine_code.py --head-dims 128 --kernels forward dkdv

Needs NVRTC and nvdisasm, no GPU. Of the main loop, once around, it counts what `sass.Code.main_loop` takes; divisions
are those of integers. `--record` puts the rows into a table instead of those of the same NVRTC and kernel.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import ceil
from pathlib import Path
from typing import NamedTuple

import sass

from cupy_flash._src import compile, kernels
from cupy_flash._src.compile import CompiledKernel
from cupy_flash._src.device import NAMED, Device, named
from cupy_flash._src.specialization import Specialization, Variant
from cupy_flash._src.tiles import MMA_HEAD_DIM_BUCKETS, MmaKeyTile, MmaTile

RECORDED = Path(__file__).parents[1] / "tests/golden/machine_code.csv"
KERNELS: dict[str, Callable[[Variant, Device], Specialization]] = {
    "forward": kernels.forward,
    "packed": lambda variant, device: kernels.forward(variant, device, packed=True),
    "dkdv": lambda variant, device: kernels.dkdv(variant, device, atomic_dq=True),
    "dkdv-alone": lambda variant, device: kernels.dkdv(variant, device, atomic_dq=False),
    "dq": kernels.dq,
}
KEY = ("nvrtc", "arch", "kernel", "dtype", "head_dim", "mask")
Row = dict[str, str]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["sm_90a"], choices=NAMED, metavar="ARCH")
    parser.add_argument("--kernels", nargs="+", default=["forward", "dkdv", "dq"], choices=KERNELS)
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128, 256], choices=MMA_HEAD_DIM_BUCKETS)
    parser.add_argument("--dtypes", nargs="+", default=["float16", "bfloat16"], choices=["float16", "bfloat16"])
    parser.add_argument("--masks", nargs="+", default=["full", "causal"], choices=["full", "causal"])
    parser.add_argument(
        "--record", nargs="?", type=Path, const=RECORDED, metavar="CSV", help=f"default {RECORDED.name}"
    )
    args = parser.parse_args(argv)
    rows = list(measure(args.archs, args.kernels, args.head_dims, args.dtypes, args.masks))
    if not rows:
        parser.error("none of these kernels runs on tensor cores")
    print(table(rows))
    if args.record:
        record(args.record, rows)


def measure(
    archs: Iterable[str], names: Iterable[str], head_dims: Iterable[int], dtypes: Iterable[str], masks: Iterable[str]
) -> Iterator[Row]:
    """A row for each kernel that runs on tensor cores."""
    version = "{}.{}".format(*compile.nvrtc_version())
    for arch in archs:
        rows: dict[Specialization, Row] = {}
        for name, dtype, head_dim, mask in product(names, dtypes, head_dims, masks):
            kernel = KERNELS[name](Variant.of(dtype, head_dim, causal=mask == "causal"), named(arch))
            if kernel.family == "mma":
                rows[kernel] = dict(zip(KEY, (version, arch, name, dtype, str(head_dim), mask), strict=True))
        for (kernel, row), compiled in zip(rows.items(), compile.compile_all(rows, arch), strict=True):
            yield row | {name: str(value) for name, value in counted(kernel, compiled).items()}


def counted(kernel: Specialization, compiled: CompiledKernel) -> dict[str, object]:
    """What a table has of a kernel."""
    code = sass.disassemble(compiled.path, kernel.entry)
    loop, prologue = executed(kernel, code), code.before_copies
    before, inside, after = code.sites(sass.DIVISION)
    return {
        "tile": tile_of(kernel),
        "registers": compiled.registers,
        "spill": compiled.spill_bytes,
        "stack": compiled.stack_bytes,
        "loop": len(loop),
        **{kind: code.kinds(loop)[kind] for kind in sass.KINDS},
        "divisions": code.count(sass.DIVISION, loop),
        "prologue": len(prologue),
        "prologue divisions": code.count(sass.DIVISION, prologue),
        "epilogue": len(code.after_loop),
        "division sites": f"{before} {inside} {after}",
    }


def executed(kernel: Specialization, code: sass.Code) -> list[int]:
    """What a warp executes of the main loop, with all rounds of an inner loop that copies: there are some on Turing."""
    inner = [i for i in code.main_loop if i in code.inner_copies]
    return code.main_loop + (step_of(kernel).copied // code.copied(code.main_loop) - 1) * inner


class Step(NamedTuple):
    """A warp's share of a round of the main loop: mma instructions, and of a lane bytes of copies and numbers added."""

    products: int
    copied: int
    added: int


def step_of(kernel: Specialization) -> Step:
    """One block of queries meets one of keys."""
    value = dict(kernel.constants)
    m, n, d, dv, warps = (value[name] for name in ("kBlockM", "kBlockN", "kHeadDim", "kHeadDimV", "kNWarps"))
    shapes = {
        "attention_forward": [(m, n, d), (m, dv, n)],
        "attention_dkdv": [(m, n, d), (m, n, dv), (n, dv, m), (n, d, m)],
        "attention_dq": [(m, n, d), (m, n, dv), (m, d, n)],
    }[kernel.entry]
    added = 0
    if value.get("kAtomicDq"):
        shapes.append((m, d, n))
        added = m * d // (32 * warps)
    streamed = m if kernel.entry == "attention_dkdv" else n
    return Step(
        sum(rows * cols * depth for rows, cols, depth in shapes) // (16 * 8 * value["kMmaDepth"] * warps),
        sum(_copied(streamed, cols, 32 * warps) for cols in (d, dv)),
        added,
    )


def _copied(rows: int, cols: int, threads: int) -> int:
    """Bytes that a thread copies of a tile, if it copies any: `Share` of mma/tile.cuh."""
    across = (64 if cols % 64 == 0 else 32) // 8
    return 16 * ceil(rows / (threads // across)) * (cols // 8 // across)


def tile_of(kernel: Specialization) -> MmaTile:
    value = dict(kernel.constants)
    numbers = [value[name] for name in ("kBlockM", "kBlockN", "kNWarps", "kStages", "kMinBlocks")]
    if "kWarpsN" in value:
        return MmaKeyTile(*numbers, value["kWarpsM"], value["kWarpsN"])
    return MmaTile(*numbers)


def table(rows: Sequence[Row]) -> str:
    """Aligned columns."""
    titles = list(rows[0])
    widths = {title: max(len(title), *(len(row[title]) for row in rows)) for title in titles}
    lines = [titles, *([row[title] for title in titles] for row in rows)]
    return "\n".join(
        "  ".join(cell.rjust(widths[title]) for cell, title in zip(line, titles, strict=True)) for line in lines
    )


def record(path: Path, rows: Iterable[Row]) -> None:
    """Put rows into a table, in place of those of the same key."""
    known = {tuple(row[name] for name in KEY): row for row in (*(read(path) if path.exists() else ()), *rows)}
    found = [known[key] for key in sorted(known, key=lambda key: [(len(part), part) for part in key])]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
