"""The tile that each tensor-core kernel takes on each GPU, and what of a multiprocessor it leaves unused.

    python benchmarks/tile_room.py --archs sm_80 sm_90a

Bytes and stages follow from the tile; registers, and with them the blocks and warps that share a multiprocessor, from
compiling the kernels, float16 and unmasked, with NVRTC. No GPU is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, product, takewhile

from machine_code import KERNELS, table, tile_of

from cupy_flash._src.analysis.occupancy import occupancy
from cupy_flash._src.compile import compile_all
from cupy_flash._src.device import NAMED, Device, named
from cupy_flash._src.plan import Launch
from cupy_flash._src.specialization import Specialization, Variant
from cupy_flash._src.tiles import MMA_HEAD_DIM_BUCKETS, MmaKeyTile, MmaTile

BYTES = {
    "attention_forward": MmaTile.forward_shared_bytes,
    "attention_dkdv": MmaKeyTile.dkdv_shared_bytes,
    "attention_dq": MmaTile.dq_shared_bytes,
}


@dataclass(frozen=True)
class Room:
    """A kernel's tile on a device, and how many stages as many blocks of it would leave room for."""

    device: Device
    name: str
    head_dim: int
    kernel: Specialization

    @property
    def tile(self) -> MmaTile:
        return tile_of(self.kernel)

    def shared_bytes(self, stages: int) -> int:
        tile, dims = replace(self.tile, stages=stages), (self.kernel.constant(x) for x in ("kHeadDim", "kHeadDimV"))
        return BYTES[self.kernel.entry](tile, *dims)

    @property
    def warps(self) -> int:
        """On a multiprocessor, of the blocks that the tile wants there."""
        return self.tile.min_blocks * self.tile.num_warps

    @property
    def stages_that_fit(self) -> int:
        """Of `min_blocks` blocks on a multiprocessor."""

        def fit(stages: int) -> bool:
            size = self.shared_bytes(stages)
            together = self.tile.min_blocks * self.device.shared_of_block(size)
            return size <= self.device.shared_per_block and together <= self.device.shared_per_sm

        return max(takewhile(fit, count(1)))


def rooms(arch: str) -> Iterator[Room]:
    """Of every list of candidates: each kernel, the larger where two take one tile, and head dimension."""
    for name, head_dim in product(("forward", "packed", "dkdv", "dq"), MMA_HEAD_DIM_BUCKETS):
        kernel = KERNELS[name](Variant.of("float16", head_dim), named(arch))
        if kernel.family == "mma":
            yield Room(named(arch), name, head_dim, kernel)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    archs = [arch for arch in NAMED if any(rooms(arch))]
    parser.add_argument("--archs", nargs="+", default=archs, choices=archs, metavar="ARCH")
    for arch in parser.parse_args(argv).archs:
        found = list(rooms(arch))
        compiled = compile_all([room.kernel for room in found], arch)
        print(table([_row(room, code.registers) for room, code in zip(found, compiled, strict=True)]), end="\n\n")


def _row(room: Room, registers: int) -> dict[str, str]:
    size = room.shared_bytes(room.tile.stages)
    resident = occupancy(Launch(room.kernel, 1, 32 * room.tile.num_warps, size), room.device, registers)
    return {
        "arch": room.device.arch,
        "kernel": room.name,
        "head_dim": str(room.head_dim),
        "tile": str(room.tile),
        "bytes a block": str(size),
        "bytes that fit": str(min(room.device.shared_per_block, room.device.shared_per_sm // room.tile.min_blocks)),
        "stages": str(room.tile.stages),
        "that fit": str(room.stages_that_fit),
        "registers": str(registers),
        "blocks": str(resident.blocks),
        "warps": str(resident.warps),
        "limited by": resident.limited_by,
    }


if __name__ == "__main__":
    main()
