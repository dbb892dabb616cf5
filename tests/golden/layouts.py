"""Where elements lie: shared-memory tiles with swizzle, and the registers of a warpgroup's matrices."""

from __future__ import annotations

import numpy as np

CHUNK_BYTES = 16


def swizzled(image: np.ndarray, swizzle: int) -> np.ndarray:
    """Permute the 16-byte chunks of dense memory as TMA does: PTX ISA 5.5, tensor swizzling modes.

    With 128 bytes of swizzle, bits 4-6 of an address are xored with its bits 7-9; with 64, bits 4-5 with 7-8; with
    32, bit 4 with 7; with 0 nothing. The memory starts at a multiple of 1024. It is its own inverse.
    """
    chunks = np.ascontiguousarray(image).reshape(-1).view(np.uint8).reshape(-1, CHUNK_BYTES)
    place = np.arange(len(chunks))
    place ^= place >> 3 & max(swizzle // CHUNK_BYTES - 1, 0)
    return chunks[place].reshape(-1).view(image.dtype).reshape(image.shape)


def tiles(matrix: np.ndarray) -> np.ndarray:
    """[rows, cols] of 16-bit elements as [cols / 64, rows, 64]: blocks of 128-byte rows, each swizzled."""
    rows, cols = matrix.shape
    return swizzled(matrix.reshape(rows, cols // 64, 64).transpose(1, 0, 2), 128)


def accumulator_places(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of D[64, columns] in [register, thread]: PTX ISA 9.7.15, figure of wgmma's D fragment."""
    register, thread = np.ogrid[: columns // 2, :128]
    rows = 16 * (thread // 32) + thread % 32 // 4 + 8 * (register // 2 % 2)
    return np.broadcast_arrays(rows, 8 * (register // 4) + 2 * (thread % 4) + register % 2)


def operand_places(depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of A[64, depth] in [register, thread, half], four registers for each 16 columns."""
    register, thread, half = np.ogrid[: depth // 4, :128, :2]
    rows = 16 * (thread // 32) + thread % 32 // 4 + 8 * (register % 2)
    return np.broadcast_arrays(rows, 8 * (register // 2) + 2 * (thread % 4) + half)
