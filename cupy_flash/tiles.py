"""Candidate tiles per kernel family and head dimension, best first; the plan takes the first that fits the device."""

from __future__ import annotations

from dataclasses import dataclass, fields

HEAD_DIM_BUCKETS = (32, 64, 128, 256, 512)
MMA_HEAD_DIM_BUCKETS = (32, 64, 96, 128, 192, 256)
VECTOR_BYTES = 16


def bucket(head_dim: int, buckets: tuple[int, ...]) -> int:
    """Smallest compiled head dimension that holds this one."""
    return next(n for n in buckets if n >= head_dim)


@dataclass(frozen=True)
class SimtTile:
    """How a CUDA-core kernel cuts its problem; `simt/matmul.cuh` gives the meaning of each number.

    Attributes
    ----------
    block_m, block_n : int
        Query rows and keys of a tile of scores.
    slice_d : int
        Columns of the head dimension in shared memory at a time.
    num_warps : int
        Warps of a thread block.
    lanes : int
        Neighbouring lanes that share a row.
    query_resident : bool
        Whether all slices of Q stay in shared memory (forward only).
    min_blocks : int
        Blocks that should fit a multiprocessor together: bounds the registers the compiler may use.
    """

    block_m: int
    block_n: int
    slice_d: int
    num_warps: int
    lanes: int
    query_resident: bool = False
    min_blocks: int = 1

    def __str__(self) -> str:
        return _text(self)

    @property
    def row_groups(self) -> int:
        return 32 * self.num_warps // self.lanes

    def forward_shared_bytes(self, head_dim: int, itemsize: int) -> int:
        """``sizeof(SharedStorage)`` of simt/forward.cu."""
        slices = head_dim // self.slice_d if self.query_resident else 1
        return (
            slices * _tile_bytes(self.block_m, self.slice_d, itemsize)
            + _tile_bytes(self.block_n, self.slice_d, itemsize)
            + self._score_bytes(itemsize)
        )

    def backward_shared_bytes(self, head_dim: int, itemsize: int) -> int:
        """``sizeof(SharedStorage)`` of simt/backward_tiles.cuh."""
        copies = 2 if head_dim == self.slice_d else 1
        return (
            copies * _tile_bytes(self.block_m, self.slice_d, itemsize)
            + copies * _tile_bytes(self.block_n, self.slice_d, itemsize)
            + self._score_bytes(itemsize)
        )

    def _score_bytes(self, itemsize: int) -> int:
        return self.block_m * (self.block_n + self.lanes) * itemsize

    def is_legal(self, head_dim: int, itemsize: int, *, backward: bool) -> bool:
        """Whether the kernels' static assertions hold."""
        vec = VECTOR_BYTES // itemsize
        groups, slice_cols = self.row_groups, self.slice_d // self.lanes
        return (
            self.block_m % groups == 0
            and self.block_n % self.lanes == 0
            and self.block_n % (2 * vec) == 0
            and self.slice_d % (2 * vec) == 0
            and head_dim % self.slice_d == 0
            and slice_cols >= 1
            and self.lanes % vec == 0
            and self.slice_d % (self.lanes * min(slice_cols, vec)) == 0
            and (not backward or self.block_n % groups == 0)
        )


def _tile_bytes(rows: int, cols: int, itemsize: int) -> int:
    return rows * (cols * itemsize + VECTOR_BYTES)  # each row is padded by one vector


# None of these is measured on hardware yet; the reasons are counts. The accumulators of a thread (rows x slice
# columns x slices, twice that in the backward) leave room under 255 registers for the rest, so that nothing spills
# on any architecture; 8 x 4 scores a thread need 12 shared-memory vectors for 128 multiply-adds, a third of what
# the FMA pipes could wait for. The last row of each list fits Turing's 64 KiB.
_FORWARD = {
    # float32 sums
    (4, 32): [SimtTile(64, 64, 32, 4, 8, True, 2)],
    (4, 64): [SimtTile(64, 64, 64, 4, 16, True, 2)],
    (4, 128): [SimtTile(64, 64, 64, 8, 16, True), SimtTile(64, 64, 64, 8, 16)],
    (4, 256): [SimtTile(32, 64, 128, 8, 16)],
    (4, 512): [SimtTile(32, 32, 128, 8, 16)],
    # float64 sums: the same bytes hold half the columns
    (8, 32): [SimtTile(64, 32, 32, 4, 8, True, 2)],
    (8, 64): [SimtTile(64, 32, 32, 4, 8, True, 2)],
    (8, 128): [SimtTile(32, 32, 64, 4, 8, False, 2)],
    (8, 256): [SimtTile(32, 32, 64, 8, 8)],
    (8, 512): [SimtTile(16, 32, 64, 8, 16)],
}
_BACKWARD = {
    (4, 32): [SimtTile(64, 64, 32, 4, 8, False, 2)],
    (4, 64): [SimtTile(64, 64, 64, 8, 16), SimtTile(32, 64, 64, 8, 16)],
    (4, 128): [SimtTile(64, 64, 64, 8, 16)],
    (4, 256): [SimtTile(32, 32, 128, 8, 16)],
    (4, 512): [SimtTile(32, 16, 128, 8, 16)],
    (8, 32): [SimtTile(32, 32, 32, 4, 8, False, 2)],
    (8, 64): [SimtTile(32, 32, 32, 8, 16)],
    (8, 128): [SimtTile(32, 32, 64, 8, 16)],
    (8, 256): [SimtTile(32, 16, 64, 8, 16)],
    (8, 512): [SimtTile(16, 16, 64, 8, 16)],
}


def simt_candidates(head_dim: int, itemsize: int, *, backward: bool) -> list[SimtTile]:
    """Tiles for a compiled head dimension and an accumulator of `itemsize` bytes, best first."""
    return (_BACKWARD if backward else _FORWARD)[itemsize, head_dim]


@dataclass(frozen=True)
class MmaTile:
    """How a tensor-core kernel cuts its problem.

    Attributes
    ----------
    block_m, block_n : int
        Query rows and keys of a tile of scores.
    num_warps : int
        Warps of a thread block.
    stages : int
        Forward: tiles of K and V in shared memory at a time. Backward: pairs of the tiles that stream, Q and dO or
        K and V.
    min_blocks : int
        Blocks that should fit a multiprocessor together: bounds registers and shared memory.
    """

    block_m: int
    block_n: int
    num_warps: int
    stages: int = 2
    min_blocks: int = 1

    def __str__(self) -> str:
        return _text(self)

    def forward_shared_bytes(self, head_dim: int, head_dim_v: int) -> int:
        """``sizeof(SharedStorage)`` of mma/forward.cu."""
        wide = max(head_dim, head_dim_v)
        return _HALF_BYTES * wide * (self.block_m + self.stages * self.block_n)

    def dq_shared_bytes(self, head_dim: int, head_dim_v: int) -> int:
        """``sizeof(SharedStorage)`` of mma/backward_dq.cu."""
        return _HALF_BYTES * (head_dim + head_dim_v) * (self.block_m + self.stages * self.block_n)

    def is_legal(self, *, min_stages: int) -> bool:
        """Whether the static assertions of the kernels whose warps own whole rows hold."""
        whole_pieces = self.block_m % (_PIECE * self.num_warps) == 0 and self.block_n % _PIECE == 0
        return whole_pieces and self.stages >= min_stages


@dataclass(frozen=True)
class MmaKeyTile(MmaTile):
    """As `MmaTile`, for the kernel of dK and dV, whose warps split each product in their own way.

    Attributes
    ----------
    warps_m : int
        Warps along the query rows of S, dP and dQ.
    warps_n : int
        Warps along the key rows of dK and dV.
    """

    warps_m: int = 1
    warps_n: int = 1

    def dkdv_shared_bytes(self, head_dim: int, head_dim_v: int) -> int:
        """``sizeof(SharedStorage)`` of mma/backward_dkdv.cu."""
        streamed = self.stages * self.block_m
        tiles = (head_dim + head_dim_v) * (self.block_n + streamed) + 2 * self.block_m * self.block_n
        return _HALF_BYTES * tiles + 2 * _FLOAT_BYTES * streamed + _HEAD_BYTES

    def is_legal_dkdv(self, head_dim: int, head_dim_v: int) -> bool:
        """Whether the static assertions of mma/backward_dkdv.cu hold."""
        if self.num_warps % self.warps_m or self.num_warps % self.warps_n:
            return False
        across_scores, across_keys = self.num_warps // self.warps_m, self.num_warps // self.warps_n
        key_part = self.block_n // self.warps_n
        return (
            self.block_m % (_PIECE * self.warps_m) == 0
            and self.block_n % (_PIECE * across_scores) == 0
            and self.block_n % 32 == 0
            and key_part in (16, 32, 64)
            and head_dim % (_PIECE * across_scores) == 0
            and head_dim % (_PIECE * across_keys) == 0
            and head_dim_v % (_PIECE * across_keys) == 0
            and self.stages >= 1
        )


Tile = SimtTile | MmaTile


@dataclass(frozen=True)
class Tiles:
    """Tiles, and with them kernel families, to take instead of the planner's choice; None leaves it to the planner.

    Attributes
    ----------
    forward : SimtTile or MmaTile, optional
        Of the forward, whether or not a group's heads are packed.
    dkdv : SimtTile or MmaKeyTile, optional
        Of the backward's kernel of dK and dV, and in one pass of dQ.
    dq : SimtTile or MmaTile, optional
        Of dQ in a pass of its own.
    """

    forward: Tile | None = None
    dkdv: Tile | None = None
    dq: Tile | None = None


PLANNED = Tiles()  # the planner chooses all


def _text(tile: Tile) -> str:
    names = [field.name for field in fields(tile)][2:]
    return ",".join([f"{tile.block_m}x{tile.block_n}", *(f"{name}={int(getattr(tile, name))}" for name in names)])


def parse_tile(text: str) -> Tile:
    """Read a tile as `str` writes it; fields with a default may be left out.

    The fields tell the kind: `slice_d` is a `SimtTile`'s, `warps_m` and `warps_n` are a `MmaKeyTile`'s.

    Raises
    ------
    ValueError
        If the text is no tile.

    Examples
    --------
    >>> parse_tile("128x64,num_warps=4,stages=3")
    MmaTile(block_m=128, block_n=64, num_warps=4, stages=3, min_blocks=1)
    >>> str(MmaKeyTile(64, 128, 8, warps_m=2, warps_n=4))
    '64x128,num_warps=8,stages=2,min_blocks=1,warps_m=2,warps_n=4'
    """
    blocks, *rest = text.split(",")
    try:
        block_m, block_n = map(int, blocks.split("x"))
        values = {name: int(value) for name, value in (item.split("=") for item in rest)}
        kind = SimtTile if "slice_d" in values else MmaKeyTile if {"warps_m", "warps_n"} & set(values) else MmaTile
        return kind(block_m, block_n, **values)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"tile is {text!r}: expected one like '128x64,num_warps=4,stages=3'") from None


_HALF_BYTES, _FLOAT_BYTES = 2, 4
_HEAD_BYTES = 256  # five matrices' addresses and strides, to the next multiple of a tile's alignment
_PIECE = 16  # rows and columns of an operand's fragment

# As above, nothing here is measured yet. The shapes are FlashAttention-2's (Dao 2023; its public tables); of several
# rows the plan takes the first whose shared memory lets min_blocks blocks share a multiprocessor. A lane's
# accumulators, rows x (head dimension + keys) / 32 / warps registers, stay near 192.
_MMA_FORWARD = {
    32: [MmaTile(128, 64, 4, 4, 2), MmaTile(128, 64, 4, 2, 2)],
    64: [MmaTile(128, 64, 4, 4, 2), MmaTile(128, 64, 4, 2, 2)],
    96: [MmaTile(128, 64, 4, 2, 2), MmaTile(64, 64, 4, 2, 1)],
    128: [MmaTile(128, 64, 4, 3, 2), MmaTile(128, 32, 4, 2, 2), MmaTile(64, 64, 4, 2, 1)],
    192: [MmaTile(128, 64, 8, 2, 1), MmaTile(64, 32, 4, 2, 1)],
    256: [MmaTile(128, 64, 8, 2, 1), MmaTile(64, 64, 4, 2, 1), MmaTile(64, 16, 4, 2, 1)],
}
# Packed groups, few query rows: time goes into reading K and V, so more of them are in flight.
_MMA_PACKED = {
    32: [MmaTile(64, 128, 4, 4, 2), MmaTile(64, 64, 4, 2, 2)],
    64: [MmaTile(64, 64, 4, 5, 2), MmaTile(64, 64, 4, 2, 2)],
    96: [MmaTile(64, 64, 4, 4, 2), MmaTile(64, 64, 4, 2, 1)],
    128: [MmaTile(64, 64, 4, 4, 2), MmaTile(64, 64, 4, 2, 1)],
    192: [MmaTile(64, 64, 4, 3, 1), MmaTile(64, 32, 4, 2, 1)],
    256: [MmaTile(64, 32, 4, 4, 1), MmaTile(64, 16, 4, 2, 1)],
}


def mma_forward_candidates(wide: int, *, packed: bool) -> list[MmaTile]:
    """Tiles where the larger compiled head dimension is `wide`, best first; the last fits every GPU."""
    return (_MMA_PACKED if packed else _MMA_FORWARD)[wide]


# FlashAttention-2's shapes again where their shared memory fits: a warp's parts are 32 rows high where registers
# allow, since with 16 the fragments of B would be read from shared memory for half the work. Over 128
# columns, Turing's 64 KiB hold only tiles so small that they spill: the planner takes the CUDA-core kernels there.
_MMA_DKDV = {
    32: [MmaKeyTile(128, 128, 8, 2, 1, 4, 4), MmaKeyTile(64, 64, 4, 1, 1, 2, 2)],
    64: [MmaKeyTile(64, 128, 8, 2, 1, 2, 4), MmaKeyTile(64, 64, 4, 1, 1, 2, 2)],
    96: [MmaKeyTile(64, 128, 8, 2, 1, 4, 4), MmaKeyTile(64, 64, 8, 1, 1, 4, 4), MmaKeyTile(32, 64, 4, 1, 1, 2, 4)],
    128: [MmaKeyTile(64, 128, 8, 2, 1, 2, 4), MmaKeyTile(64, 64, 8, 1, 1, 2, 4), MmaKeyTile(32, 64, 8, 1, 1, 2, 4)],
    192: [MmaKeyTile(64, 64, 8, 2, 1, 4, 4), MmaKeyTile(32, 64, 8, 1, 1, 2, 4)],
    256: [MmaKeyTile(64, 64, 8, 1, 1, 4, 4), MmaKeyTile(32, 32, 4, 1, 1, 2, 2)],
}
_MMA_DQ = {
    32: [MmaTile(128, 64, 8, 2, 1)],
    64: [MmaTile(128, 64, 8, 2, 1)],
    96: [MmaTile(128, 64, 8, 2, 1), MmaTile(64, 32, 4, 1, 1)],
    128: [MmaTile(128, 64, 8, 2, 1), MmaTile(64, 32, 4, 2, 1)],
    192: [MmaTile(64, 32, 4, 2, 1), MmaTile(64, 32, 4, 1, 1)],
    256: [MmaTile(64, 32, 4, 2, 1), MmaTile(64, 32, 4, 1, 1)],
}


def mma_dkdv_candidates(wide: int) -> list[MmaKeyTile]:
    """As `mma_forward_candidates`, for dK and dV; above 128 none fits Turing."""
    return _MMA_DKDV[wide]


def mma_dq_candidates(wide: int) -> list[MmaTile]:
    """As `mma_forward_candidates`, for dQ in a pass of its own; above 128 none fits Turing."""
    return _MMA_DQ[wide]
