"""Tiles: what each number means, which of them a kernel can take, and the candidates, best first, of each family and
head dimension; the plan takes the first that fits the device.

What a kernel assumes of its tile it asserts where it does. The methods `..._fault` ask the same beforehand, in the
kernel's words: a tile compiles exactly if they find nothing (tests/test_tiles.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product

HEAD_DIM_BUCKETS = (32, 64, 128, 256, 512)
MMA_HEAD_DIM_BUCKETS = (32, 64, 96, 128, 192, 256)
VECTOR_BYTES = 16
_SUM_BYTES = 4096  # kSumBytes of simt/tile.cuh and mma/tile.cuh


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

    def forward_fault(self, head_dim: int, itemsize: int) -> str | None:
        """Why simt/forward.cu cannot take the tile, None if it can: one of the static assertions that fail."""
        problem = self._fault(head_dim, itemsize)
        return problem or _sums_fault(self, self.block_m * (self.block_n + head_dim), itemsize)

    def dq_fault(self, head_dim: int, itemsize: int) -> str | None:
        """The same for simt/backward_dq.cu, which sums dQ up in two levels."""
        problem = self._fault(head_dim, itemsize)
        return problem or _sums_fault(self, 2 * self.block_m * (self.block_n + head_dim), itemsize)

    def dkdv_fault(self, head_dim: int, itemsize: int) -> str | None:
        """The same for simt/backward_dkdv.cu, whose row groups own keys too."""
        if problem := self._fault(head_dim, itemsize):
            return problem
        if self.block_n % self.row_groups:
            return "row groups share the keys evenly"
        if not _whole_vectors(self.block_n // self.row_groups, VECTOR_BYTES // itemsize):
            return "a thread's keys are whole vectors"
        return _sums_fault(self, 2 * self.block_n * (self.block_m + head_dim), itemsize)

    def term_fault(self, head_dim: int, itemsize: int) -> str | None:
        """The same for simt/backward_term.cu."""
        problem = self._fault(head_dim, itemsize)
        return problem or _sums_fault(self, 3 * self.block_m * self.block_n, itemsize)

    def _fault(self, head_dim: int, itemsize: int) -> str | None:
        """The same for what they share."""
        if problem := _malformed(self):
            return problem
        vec = VECTOR_BYTES // itemsize
        if head_dim % self.slice_d:
            return "slices must fill the head dimension"
        if 32 % self.lanes:
            return "a row's lanes are neighbours in one warp"
        if self.block_m % self.row_groups:
            return "row groups share the queries evenly"
        if self.block_n % self.lanes:
            return "lanes share the keys evenly"
        if self.slice_d % (2 * vec) or self.block_n % (2 * vec):
            return "depths are whole unrolled steps"
        if self.slice_d % self.lanes or not _whole_vectors(self.slice_d // self.lanes, vec):
            return "lanes share a slice evenly, in whole vectors"
        if self.lanes % vec:  # the padding of a tile of scores
            return "vectors stay aligned from row to row"
        return None


def _tile_bytes(rows: int, cols: int, itemsize: int) -> int:
    return rows * (cols * itemsize + VECTOR_BYTES)  # each row is padded by one vector


def _whole_vectors(count: int, vec: int) -> bool:
    """Whether accesses of `vec` neighbours, or one access where `count` is less, cover `count` of them."""
    widest = min(count, vec)
    return count % widest == 0 and vec % widest == 0


def _malformed(tile: Tile) -> str | None:
    """What is wrong with a tile whatever the kernel."""
    for name, value in vars(tile).items():
        if name == "query_resident":
            if type(value) is not bool and (type(value) is not int or value not in (0, 1)):
                return f"{name} is {value!r}: expected True or False"
        elif type(value) is not int or value < 1:
            return f"{name} is {value!r}: expected a positive int"
    if tile.num_warps > 32:
        return "a block has 1 to 32 warps"
    return None


def _sums_fault(tile: Tile, sums: int, itemsize: int = 4) -> str | None:
    """The limit of what a thread sums up at a time, so that compiling takes no minutes: simt/tile.cuh, mma/tile.cuh."""
    return "a thread's sums have 4 KiB" if sums * itemsize > _SUM_BYTES * 32 * tile.num_warps else None


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
    (8, 64): [SimtTile(64, 32, 64, 4, 8, True, 2), SimtTile(64, 32, 32, 4, 8, True, 2)],
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

    def forward_fault(self, head_dim: int, head_dim_v: int) -> str | None:
        """Why mma/forward.cu cannot take the tile, None if it can: one of the static assertions that fail."""
        if problem := self._row_fault(head_dim, head_dim_v):
            return problem
        if self.stages < 2:
            return "one tile is read while the next arrives"
        return _sums_fault(self, self.block_m * (self.block_n + head_dim_v))

    def dq_fault(self, head_dim: int, head_dim_v: int) -> str | None:
        """The same for mma/backward_dq.cu."""
        problem = self._row_fault(head_dim, head_dim_v)
        return problem or _sums_fault(self, self.block_m * (2 * self.block_n + head_dim))

    def term_shared_bytes(self, head_dim: int, head_dim_v: int) -> int:
        """``sizeof(SharedStorage)`` of mma/backward_term.cu."""
        tiles = _HALF_BYTES * (head_dim + head_dim_v) * (self.block_m + self.block_n)
        size = max(tiles, _FLOAT_BYTES * self.block_m * (self.block_n + 8))
        return -(-size // 128) * 128

    def term_fault(self, head_dim: int, head_dim_v: int) -> str | None:
        """As `dq_fault`, for mma/backward_term.cu."""
        problem = self._row_fault(head_dim, head_dim_v)
        return problem or _sums_fault(self, 3 * self.block_m * self.block_n)

    def _row_fault(self, head_dim: int, head_dim_v: int) -> str | None:
        """The same for what they share: warps that own whole rows."""
        if problem := _malformed(self):
            return problem
        if self.block_m % (_PIECE * self.num_warps) or self.block_n % _PIECE:
            return "warps own whole pieces"
        return self._copy_fault(head_dim, head_dim_v)

    def _copy_fault(self, *head_dims: int) -> str | None:
        """The same for `Share` of mma/tile.cuh."""
        for rows, cols in product((self.block_m, self.block_n), head_dims):
            down = 32 * self.num_warps * _CHUNK // _swizzled(cols)  # rows that all threads copy at a time
            if rows > down and rows % down:
                return "threads share the rows evenly, or in one pass"
        return None


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
        return _HALF_BYTES * tiles + 2 * _FLOAT_BYTES * streamed

    def dkdv_fault(self, head_dim: int, head_dim_v: int) -> str | None:
        """Why mma/backward_dkdv.cu cannot take the tile, None if it can: one of the static assertions that fail."""
        if problem := _malformed(self):
            return problem
        if self.num_warps % self.warps_m:
            return "as many warps share each part of the queries"
        if self.num_warps % self.warps_n:
            return "as many warps share each part of the keys"
        # Columns that the warps of a part take by turns: of the scores and dQ, and of dK and dV.
        turn, key_turn = _PIECE * self.num_warps // self.warps_m, _PIECE * self.num_warps // self.warps_n
        if self.block_m % (_PIECE * self.warps_m) or self.block_n % turn:
            return "warps own whole pieces"
        if self.block_n % (_PIECE * self.warps_n):
            return "warps own whole pieces of keys"
        if head_dim % key_turn or head_dim_v % key_turn:
            return "warps own whole pieces of dK and dV"
        if head_dim % turn:
            return "warps own whole pieces of dQ"
        if self.block_n % 32:
            return "the swizzle permutes chunks within 32 or 64 columns"
        if _carries(self.block_n, self.block_n // self.warps_n):
            return "a warp's keys are whole swizzled groups, or parts of one"
        if _carries(head_dim, turn) or _carries(head_dim, key_turn) or _carries(head_dim_v, key_turn):
            return "turns of the warps are whole swizzled groups, or parts of one"
        sums = self.block_n * (2 * self.block_m + head_dim + head_dim_v)
        return self._copy_fault(head_dim, head_dim_v) or _sums_fault(self, sums)


def _swizzled(cols: int) -> int:
    """Columns of a group of the swizzle: `Tile::kGroup` of mma/tile.cuh."""
    return 64 if cols % 64 == 0 else 32


def _carries(cols: int, part: int) -> bool:
    """Whether parts of the columns straddle groups of the swizzle: not `kNoCarry` of mma/fragment.cuh."""
    group = _swizzled(cols)
    return part % group != 0 and group % part != 0


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
    values = {name: getattr(tile, name) for name in names}
    # An error must tell of what is no number too.
    numbers = (f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in values.items())
    return ",".join([f"{tile.block_m}x{tile.block_n}", *numbers])


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
_PIECE = 16  # rows and columns of an operand's fragment
_CHUNK = 8  # elements that a thread copies at a time

# As above, nothing here is measured yet. The shapes are FlashAttention-2's (Dao 2023; its public tables); of several
# rows the plan takes the first whose shared memory lets min_blocks blocks share a multiprocessor. A lane's
# accumulators, rows x (head dimension + keys) / 32 / warps registers, stay near 192.
_MMA_FORWARD = {
    32: [MmaTile(128, 64, 4, 4, 2), MmaTile(128, 64, 4, 2, 2)],
    64: [MmaTile(128, 64, 4, 4, 2), MmaTile(128, 64, 4, 2, 2)],
    96: [MmaTile(128, 64, 4, 4, 2), MmaTile(128, 64, 4, 2, 2), MmaTile(64, 32, 4, 2, 2)],
    128: [MmaTile(128, 64, 4, 3, 2), MmaTile(128, 32, 4, 2, 2), MmaTile(64, 32, 4, 2, 2)],
    192: [MmaTile(128, 64, 8, 4, 1), MmaTile(128, 64, 8, 2, 1), MmaTile(64, 32, 4, 2, 1)],
    256: [MmaTile(128, 64, 8, 4, 1), MmaTile(128, 64, 8, 3, 1), MmaTile(128, 32, 8, 2, 1), MmaTile(64, 16, 4, 2, 1)],
}
# Packed groups, few query rows: time goes into reading K and V, so more of them are in flight.
_MMA_PACKED = {
    32: [MmaTile(64, 128, 4, 4, 2), MmaTile(64, 64, 4, 2, 2)],
    64: [MmaTile(64, 64, 4, 5, 2), MmaTile(64, 64, 4, 2, 2)],
    96: [MmaTile(64, 64, 4, 4, 2), MmaTile(64, 64, 4, 3, 2), MmaTile(64, 32, 4, 2, 2)],
    128: [MmaTile(64, 64, 4, 4, 2), MmaTile(64, 32, 4, 4, 2), MmaTile(64, 32, 4, 2, 2)],
    192: [MmaTile(64, 64, 4, 3, 2), MmaTile(64, 32, 4, 4, 2), MmaTile(64, 32, 4, 4, 1), MmaTile(64, 32, 4, 2, 1)],
    256: [MmaTile(64, 32, 4, 4, 2), MmaTile(64, 32, 4, 3, 2), MmaTile(64, 32, 4, 4, 1), MmaTile(64, 16, 4, 2, 1)],
}


def mma_forward_candidates(wide: int, *, packed: bool) -> list[MmaTile]:
    """Tiles where the larger compiled head dimension is `wide`, best first; the last fits every GPU."""
    return (_MMA_PACKED if packed else _MMA_FORWARD)[wide]


# FlashAttention-2's shapes again where their shared memory fits: a warp's parts are 32 rows high where registers
# allow, since with 16 the fragments of B would be read from shared memory for half the work. Over 128
# columns, Turing's 64 KiB hold only tiles so small that they spill: the planner takes the CUDA-core kernels there.
_MMA_DKDV = {
    32: [
        MmaKeyTile(128, 128, 8, 2, 1, 4, 4),
        MmaKeyTile(64, 64, 4, 2, 2, 2, 2),
        MmaKeyTile(64, 64, 4, 1, 1, 2, 2),
    ],
    64: [MmaKeyTile(64, 128, 8, 2, 1, 2, 4), MmaKeyTile(64, 64, 4, 1, 1, 2, 2)],
    96: [MmaKeyTile(64, 128, 8, 2, 1, 4, 4), MmaKeyTile(64, 64, 8, 2, 1, 4, 4), MmaKeyTile(32, 64, 4, 1, 1, 2, 4)],
    128: [MmaKeyTile(64, 128, 8, 2, 1, 2, 4), MmaKeyTile(32, 64, 8, 2, 1, 2, 4), MmaKeyTile(32, 64, 8, 1, 1, 2, 4)],
    192: [MmaKeyTile(64, 64, 8, 2, 1, 4, 4), MmaKeyTile(32, 64, 8, 1, 1, 2, 4)],
    256: [MmaKeyTile(64, 64, 8, 2, 1, 4, 4), MmaKeyTile(32, 64, 8, 2, 1, 2, 4), MmaKeyTile(32, 32, 4, 1, 1, 2, 2)],
}
_MMA_DQ = {
    32: [MmaTile(128, 64, 8, 2, 1)],
    64: [MmaTile(128, 64, 8, 2, 1)],
    96: [MmaTile(128, 64, 8, 2, 1), MmaTile(64, 32, 4, 1, 1)],
    128: [MmaTile(128, 64, 8, 2, 1), MmaTile(128, 32, 8, 2, 1), MmaTile(64, 32, 4, 2, 1)],
    192: [MmaTile(128, 64, 8, 2, 1), MmaTile(128, 32, 8, 2, 1), MmaTile(64, 32, 4, 2, 1), MmaTile(64, 32, 4, 1, 1)],
    256: [MmaTile(128, 32, 8, 2, 1), MmaTile(128, 32, 8, 1, 1), MmaTile(64, 32, 4, 2, 1), MmaTile(64, 32, 4, 1, 1)],
}


# Of a step four tiles are read once: several blocks on a multiprocessor fill the time that they take to come.
_MMA_TERM = {
    32: [MmaTile(64, 64, 4, 1, 3)],
    64: [MmaTile(64, 64, 4, 1, 3), MmaTile(64, 64, 4, 1, 2)],
    96: [MmaTile(64, 64, 4, 1, 3), MmaTile(64, 64, 4, 1, 1)],
    128: [MmaTile(64, 64, 4, 1, 3), MmaTile(64, 64, 4, 1, 2), MmaTile(64, 64, 4, 1, 1)],
    192: [MmaTile(64, 64, 4, 1, 2), MmaTile(64, 64, 4, 1, 1), MmaTile(32, 32, 2, 1, 1)],
    256: [MmaTile(64, 64, 4, 1, 1), MmaTile(32, 32, 2, 1, 1)],
}


def mma_dkdv_candidates(wide: int) -> list[MmaKeyTile]:
    """As `mma_forward_candidates`, for dK and dV; above 128 none fits Turing."""
    return _MMA_DKDV[wide]


def mma_dq_candidates(wide: int) -> list[MmaTile]:
    """As `mma_forward_candidates`, for dQ in a pass of its own; above 128 none fits Turing."""
    return _MMA_DQ[wide]


def mma_term_candidates(wide: int) -> list[MmaTile]:
    """As `mma_forward_candidates`, for gradients of options."""
    return _MMA_TERM[wide]
