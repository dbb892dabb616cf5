"""From a problem and a device to the kernels to run: pure functions, no GPU needed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from cupy_flash.device import Device
from cupy_flash.problem import DTYPES, AttentionProblem
from cupy_flash.tiles import HEAD_DIM_BUCKETS, SimtTile, head_dim_bucket, simt_candidates

_ELEMENT = {"float16": "Float16", "bfloat16": "BFloat16", "float32": "float", "float64": "double"}
_HEADERS = ("numeric.cuh", "attention/mask.cuh", "attention/score.cuh")
MAX_GRID = 2**31 - 1
_ROWS_PER_BLOCK = 4  # of the row-wise kernels, which give each row a warp


@dataclass(frozen=True)
class Specialization:
    """One compiled kernel: exactly what its prelude prints, exactly what its cache key covers.

    Attributes
    ----------
    source : str
        The kernel's file under cuda_src.
    entry : str
        Name of the entry point.
    types : tuple of (str, str)
        Type aliases: Element, Mask.
    constants : tuple of (str, int)
        Compile-time integers by name.
    """

    source: str
    entry: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...]

    def prelude(self) -> str:
        """The text of ``specialization.cuh``, which the kernel includes."""
        lines = ["#pragma once", *(f'#include "{header}"' for header in _HEADERS)]
        lines += [f"using {name} = {value};" for name, value in self.types]
        lines += ["template <class Accumulator> using Score = ScaledScore<Accumulator>;"]
        lines += [f"constexpr int {name} = {value};" for name, value in self.constants]
        return "\n".join(lines) + "\n"

    def constant(self, name: str) -> int:
        """Value of one compile-time integer."""
        return dict(self.constants)[name]

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in (*self.types, *self.constants))
        return f"{self.entry}({values})"


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and block (both one-dimensional) and dynamic shared memory in bytes."""

    kernel: Specialization
    grid: int
    block: int
    shared_bytes: int


@dataclass(frozen=True)
class BackwardPlan:
    """Launches of one backward, in order; `dq` of the deterministic mode or `convert_dq` may be absent.

    `atomic_dq` tells that dkdv adds dQ by atomics, into dQ itself when there is no `convert_dq`.
    """

    delta: Launch
    dkdv: Launch
    dq: Launch | None
    convert_dq: Launch | None

    @property
    def atomic_dq(self) -> bool:
        return self.dq is None

    @property
    def launches(self) -> list[Launch]:
        return [x for x in (self.delta, self.dkdv, self.dq, self.convert_dq) if x is not None]


@functools.lru_cache(maxsize=1024)
def plan_forward(problem: AttentionProblem, device: Device, tile: SimtTile | None = None) -> Launch:
    """Choose the forward kernel.

    Parameters
    ----------
    problem : AttentionProblem
        What to compute. Its batch is the batch of one launch.
    device : Device
        Where.
    tile : SimtTile, optional
        Use this tile instead of the planner's choice.

    Returns
    -------
    Launch

    Raises
    ------
    ValueError
        If `tile` is illegal for this head dimension or does not fit the device, or the grid is too large.
    """
    head_dim = head_dim_bucket(problem.head_dim, problem.head_dim_v)
    kernel = _simt_forward(problem.dtype, problem.causal, head_dim, device, tile)
    blocks = _ceil_div(problem.seqlen_q, kernel.constant("kBlockM")) * problem.num_heads_q
    return _launch(kernel, blocks * prod(problem.batch))


@functools.lru_cache(maxsize=1024)
def plan_backward(
    problem: AttentionProblem, device: Device, deterministic: bool = False, tile: SimtTile | None = None
) -> BackwardPlan:
    """Choose the backward kernels; parameters and errors as in `plan_forward`."""
    head_dim = head_dim_bucket(problem.head_dim, problem.head_dim_v)
    dkdv = _simt_dkdv(problem.dtype, problem.causal, head_dim, device, not deterministic, tile)
    batches = prod(problem.batch)
    rows = _rows_grid(problem)
    key_blocks = _ceil_div(problem.seqlen_k, dkdv.constant("kBlockN")) * problem.num_heads_k
    dq = None
    if deterministic:
        kernel = _simt_dq(problem.dtype, problem.causal, head_dim, device, tile)
        blocks = _ceil_div(problem.seqlen_q, kernel.constant("kBlockM")) * problem.num_heads_q
        dq = _launch(kernel, blocks * batches)
    half = problem.storage != problem.accumulator
    return BackwardPlan(
        delta=_launch(_rows_kernel("attention_delta", problem.dtype), rows),
        dkdv=_launch(dkdv, key_blocks * batches),
        dq=dq,
        convert_dq=_launch(_rows_kernel("attention_convert_dq", problem.dtype), rows)
        if half and not deterministic
        else None,
    )


def all_specializations(device: Device) -> Iterator[Specialization]:
    """Every kernel the planner can choose on `device`."""
    for dtype in DTYPES:
        yield _rows_kernel("attention_delta", dtype)
        if dtype in ("float16", "bfloat16"):
            yield _rows_kernel("attention_convert_dq", dtype)
        for causal, head_dim in product((False, True), HEAD_DIM_BUCKETS):
            yield from _attention_kernels(dtype, causal, head_dim, device)


def core_specializations(device: Device) -> Iterator[Specialization]:
    """The kernels compiled when the package is imported: half types, head dimensions 64 and 128, default mode."""
    for dtype in ("float16", "bfloat16"):
        yield _rows_kernel("attention_delta", dtype)
        yield _rows_kernel("attention_convert_dq", dtype)
        for causal, head_dim in product((False, True), (64, 128)):
            yield _simt_forward(dtype, causal, head_dim, device)
            yield _simt_dkdv(dtype, causal, head_dim, device, True)


def _attention_kernels(dtype: str, causal: bool, head_dim: int, device: Device) -> Iterator[Specialization]:
    yield _simt_forward(dtype, causal, head_dim, device)
    for atomic_dq in (True, False):
        yield _simt_dkdv(dtype, causal, head_dim, device, atomic_dq)
    yield _simt_dq(dtype, causal, head_dim, device)


def _simt_forward(
    dtype: str, causal: bool, head_dim: int, device: Device, tile: SimtTile | None = None
) -> Specialization:
    constants = _simt_constants(dtype, head_dim, device, tile, backward=False)
    return Specialization("simt/forward.cu", "attention_forward", _types(dtype, causal), constants)


def _simt_dkdv(
    dtype: str, causal: bool, head_dim: int, device: Device, atomic_dq: bool, tile: SimtTile | None = None
) -> Specialization:
    constants = _simt_constants(dtype, head_dim, device, tile, backward=True)
    return Specialization(
        "simt/backward_dkdv.cu",
        "attention_dkdv",
        _types(dtype, causal),
        (*constants, ("kAtomicDq", int(atomic_dq))),
    )


def _simt_dq(dtype: str, causal: bool, head_dim: int, device: Device, tile: SimtTile | None = None) -> Specialization:
    constants = _simt_constants(dtype, head_dim, device, tile, backward=True)
    return Specialization("simt/backward_dq.cu", "attention_dq", _types(dtype, causal), constants)


def _rows_kernel(entry: str, dtype: str) -> Specialization:
    return Specialization("attention/backward_rows.cu", entry, _types(dtype, False), (("kNWarps", _ROWS_PER_BLOCK),))


def _simt_constants(
    dtype: str, head_dim: int, device: Device, tile: SimtTile | None, *, backward: bool
) -> tuple[tuple[str, int], ...]:
    itemsize = max(4, DTYPES[dtype].itemsize)

    def shared_bytes(tile: SimtTile) -> int:
        count = tile.backward_shared_bytes if backward else tile.forward_shared_bytes
        return count(head_dim, itemsize)

    if tile is None:
        candidates = simt_candidates(head_dim, itemsize, backward=backward)
        tile = next((t for t in candidates if shared_bytes(t) <= device.shared_per_block), candidates[-1])
    if not tile.is_legal(head_dim, itemsize, backward=backward):
        raise ValueError(f"{tile} is not legal for head dimension {head_dim} and {dtype}")
    size = shared_bytes(tile)
    if size > device.shared_per_block:
        raise ValueError(
            f"{tile} needs {size} bytes of shared memory: {device.arch} gives a block at most {device.shared_per_block}"
        )
    constants = {
        "kHeadDim": head_dim,
        "kBlockM": tile.block_m,
        "kBlockN": tile.block_n,
        "kSliceD": tile.slice_d,
        "kNWarps": tile.num_warps,
        "kLanes": tile.lanes,
        "kMinBlocks": tile.min_blocks,
        "kSharedBytes": size,
    }
    if not backward:
        constants["kQueryResident"] = int(tile.query_resident)
    return tuple(constants.items())


def _types(dtype: str, causal: bool) -> tuple[tuple[str, str], ...]:
    return ("Element", _ELEMENT[dtype]), ("Mask", "CausalMask" if causal else "FullMask")


def _launch(kernel: Specialization, grid: int) -> Launch:
    if grid > MAX_GRID:
        raise ValueError(f"{kernel.entry} needs {grid} thread blocks: a launch takes at most {MAX_GRID}")
    constants = dict(kernel.constants)
    return Launch(kernel, grid, 32 * constants["kNWarps"], constants.get("kSharedBytes", 0))


def _rows_grid(problem: AttentionProblem) -> int:
    return _ceil_div(prod(problem.batch) * problem.num_heads_q * problem.seqlen_q, _ROWS_PER_BLOCK)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
