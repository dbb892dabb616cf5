"""The tiles worth trying: legal, within the device's shared memory and, by their accumulators, its registers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from cupy_flash._src import kernels
from cupy_flash._src.device import Device
from cupy_flash._src.specialization import Specialization, Variant
from cupy_flash._src.tiles import MmaKeyTile, MmaTile

# Registers of a thread besides its accumulators (fragments, addresses, row statistics), by a cautious and by a bold
# guess. A bold tile that spills is left out once it is compiled.
OTHER_REGISTERS = (56, 32)
MOST_REGISTERS, MOST_BLOCKS = 255, 4


def specialization(
    kernel: str, head_dim: int, causal: bool, tile: MmaTile | None, device: Device, dtype: str = "float16"
) -> Specialization:
    """One kernel of `tuning.KERNELS` with a tile, or with the planner's; errors as in `kernels`."""
    variant = Variant.of(dtype, head_dim, causal=causal)
    if kernel == "dkdv":
        return kernels.dkdv(variant, device, atomic_dq=True, tile=tile)
    if kernel == "dq":
        return kernels.dq(variant, device, tile=tile)
    return kernels.forward(variant, device, packed=kernel == "packed", tile=tile)


def candidates(kernel: str, head_dim: int, device: Device) -> list[MmaTile]:
    """Tiles of a kernel, each with as many blocks a multiprocessor as its accumulators and shared memory allow.

    Of tiles that differ in their stages alone the one with the most is kept: more copies in flight cost nothing.
    """
    best: dict[MmaTile, MmaTile] = {}
    for shape, other in product(_shapes(kernel), OTHER_REGISTERS):
        tile = _with_blocks(shape, kernel, head_dim, device, other)
        if tile is not None:
            best[replace(tile, stages=0)] = tile  # shapes come with growing stages
    return list(best.values())


def _shapes(kernel: str) -> Iterator[MmaTile]:
    if kernel == "forward":
        for (m, warps), n, stages in product(((64, 4), (128, 4), (128, 8), (256, 8)), (32, 64, 128), (2, 3, 4)):
            yield MmaTile(m, n, warps, stages)
    elif kernel == "packed":
        for (m, warps), n, stages in product(((32, 2), (64, 4)), (32, 64, 128), (2, 3, 4, 5)):
            yield MmaTile(m, n, warps, stages)
    elif kernel == "dq":
        for (m, warps), n, stages in product(((64, 4), (128, 8)), (32, 64, 128), (1, 2)):
            yield MmaTile(m, n, warps, stages)
    else:
        for m, n, warps, along_m, along_n in product((32, 64, 128), (64, 128), (4, 8), (2, 4), (2, 4)):
            for stages in (1, 2):
                yield MmaKeyTile(m, n, warps, stages, 1, along_m, along_n)


def _with_blocks(tile: MmaTile, kernel: str, head_dim: int, device: Device, other: int) -> MmaTile | None:
    try:
        size = specialization(kernel, head_dim, False, tile, device).constant("kSharedBytes")
    except ValueError:
        return None
    threads = 32 * tile.num_warps
    needed = _accumulators(tile, kernel, head_dim) + other
    if needed > MOST_REGISTERS:
        return None
    registers = device.registers_per_sm // (threads * needed)
    return replace(tile, min_blocks=min(MOST_BLOCKS, registers, device.shared_per_sm // device.shared_of_block(size)))


def _accumulators(tile: MmaTile, kernel: str, head_dim: int) -> int:
    """Float32 sums of a thread that live at the same time."""
    scores, queries, keys = tile.block_m * tile.block_n, tile.block_m * head_dim, tile.block_n * head_dim
    if kernel == "dkdv":
        sums = 2 * keys + max(2 * scores, queries)  # dK, dV; S and dP, then dQ
    elif kernel == "dq":
        sums = queries + 2 * scores
    else:
        sums = queries + scores
    return sums // (32 * tile.num_warps)
