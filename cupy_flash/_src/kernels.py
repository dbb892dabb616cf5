"""Which kernel family and which tile serve a variant on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cupy_flash._src.device import Device
from cupy_flash._src.expressions.cxx import STORAGE
from cupy_flash._src.problem import DTYPES
from cupy_flash._src.specialization import ELEMENT, Part, Specialization, Variant
from cupy_flash._src.tiles import (
    HEAD_DIM_BUCKETS,
    MMA_HEAD_DIM_BUCKETS,
    MmaKeyTile,
    MmaTile,
    SimtTile,
    Tile,
    bucket,
    mma_dkdv_candidates,
    mma_dq_candidates,
    mma_forward_candidates,
    mma_term_candidates,
    simt_candidates,
)
from cupy_flash._src.tuning import measured

_T = TypeVar("_T", SimtTile, MmaTile, MmaKeyTile)
_HALF = ("float16", "bfloat16")
# Why a kernel cannot take a tile, and the shared memory that it needs.
_SIMT_RULES = {
    "forward": (SimtTile.forward_fault, SimtTile.forward_shared_bytes),
    "dkdv": (SimtTile.dkdv_fault, SimtTile.backward_shared_bytes),
    "dq": (SimtTile.dq_fault, SimtTile.backward_shared_bytes),
    "term": (SimtTile.term_fault, SimtTile.backward_shared_bytes),
}

_PARAMS_OF_LISTS = {  # kParams of attention/block_lists.cu
    "attention_forward": 0,
    "attention_dkdv": 1,
    "attention_dq": 1,
    "attention_dterm": 2,
}


def head_dim_buckets(dtype: str, device: Device) -> list[tuple[str, int]]:
    """(family, compiled head dimension) of every kernel that `device` may need for `dtype`."""
    if not _has_mma(dtype, device):
        return [("simt", n) for n in HEAD_DIM_BUCKETS]
    largest = MMA_HEAD_DIM_BUCKETS[-1]
    return [("mma", n) for n in MMA_HEAD_DIM_BUCKETS] + [("simt", n) for n in HEAD_DIM_BUCKETS if n > largest]


def forward(variant: Variant, device: Device, *, packed: bool = False, tile: Tile | None = None) -> Specialization:
    """The forward kernel; `packed` puts the rows of a group's heads in one tile, where rows are few.

    Raises
    ------
    ValueError
        If the kernel cannot take `tile` for the variant, or the device cannot run it.
    """
    if _uses_mma(variant, device, tile):
        head_dim, head_dim_v = _mma_head_dims(variant)
        wide, kernel = max(head_dim, head_dim_v), "packed" if packed else "forward"
        known = measured(device.arch, kernel, wide, variant.masked)
        candidates = [*known, *mma_forward_candidates(wide, packed=packed)]
        rules = MmaTile.forward_fault, MmaTile.forward_shared_bytes
        chosen, size = _choose(tile, candidates, rules, (head_dim, head_dim_v), device)
        constants = (*_mma_constants(chosen, size, head_dim, head_dim_v, device), ("kPacked", int(packed)))
        return _composed("mma/forward.cu", "attention_forward", variant, constants)
    constants = _simt_constants(variant, device, tile, "forward")
    return _composed("simt/forward.cu", "attention_forward", variant, constants)


def dkdv(
    variant: Variant,
    device: Device,
    *,
    atomic_dq: bool,
    wants_dk: bool = True,
    wants_dv: bool = True,
    tile: Tile | None = None,
) -> Specialization:
    """The kernel of dK and dV, as far as they are wanted, with `atomic_dq` of dQ too; errors as `forward`."""
    gradients = ("kAtomicDq", int(atomic_dq)), ("kWantsDk", int(wants_dk)), ("kWantsDv", int(wants_dv))
    if _uses_mma_backward(variant, device, tile):
        head_dim, head_dim_v = _mma_head_dims(variant)
        wide = max(head_dim, head_dim_v)
        candidates = [*measured(device.arch, "dkdv", wide, variant.masked), *mma_dkdv_candidates(wide)]
        wanted = [tile] if isinstance(tile, MmaKeyTile) else candidates
        if any(t.dkdv_fault(head_dim, head_dim_v) for t in wanted):
            head_dim = head_dim_v = wide  # warps share the columns of both evenly
        rules = MmaKeyTile.dkdv_fault, MmaKeyTile.dkdv_shared_bytes
        chosen, size = _choose(tile, candidates, rules, (head_dim, head_dim_v), device)
        constants = _mma_constants(chosen, size, head_dim, head_dim_v, device)
        pairs = ("kAddsPairs", int(device.compute_capability >= 90))
        constants = (*constants, ("kWarpsM", chosen.warps_m), ("kWarpsN", chosen.warps_n), pairs, *gradients)
        return _composed("mma/backward_dkdv.cu", "attention_dkdv", variant, constants)
    constants = (*_simt_constants(variant, device, tile, "dkdv"), *gradients)
    return _composed("simt/backward_dkdv.cu", "attention_dkdv", variant, constants)


def dq(variant: Variant, device: Device, *, tile: Tile | None = None) -> Specialization:
    """The kernel of dQ in a pass of its own; errors as `forward`."""
    if _uses_mma_backward(variant, device, tile):
        head_dim, head_dim_v = _mma_head_dims(variant)
        wide = max(head_dim, head_dim_v)
        candidates = [*measured(device.arch, "dq", wide, variant.masked), *mma_dq_candidates(wide)]
        rules = MmaTile.dq_fault, MmaTile.dq_shared_bytes
        chosen, size = _choose(tile, candidates, rules, (head_dim, head_dim_v), device)
        constants = _mma_constants(chosen, size, head_dim, head_dim_v, device)
        constants = (*constants, ("kWarpsM", chosen.num_warps))
        return _composed("mma/backward_dq.cu", "attention_dq", variant, constants)
    constants = _simt_constants(variant, device, tile, "dq")
    return _composed("simt/backward_dq.cu", "attention_dq", variant, constants)


def term(
    variant: Variant, device: Device, step: int, out: str, *, gather: int = 0, tile: Tile | None = None
) -> Specialization:
    """The kernel of the gradient, of dtype `out`, of what the score's step of this number learns; errors likewise.

    With `gather`, of the score itself, for what its last step captures (attention/gather.cuh).
    """
    numbers = ("kTerm", step), ("kGather", gather)
    if _uses_mma_backward(variant, device, tile):
        head_dim, head_dim_v = _mma_head_dims(variant)
        rules = MmaTile.term_fault, MmaTile.term_shared_bytes
        candidates = mma_term_candidates(max(head_dim, head_dim_v))
        chosen, size = _choose(tile, candidates, rules, (head_dim, head_dim_v), device)
        constants = _mma_constants(chosen, size, head_dim, head_dim_v, device)
        constants = (*constants, ("kWarpsM", chosen.num_warps), *numbers)
        return _composed("mma/backward_term.cu", "attention_dterm", variant, constants, out)
    constants = (*_simt_constants(variant, device, tile, "term"), *numbers)
    return _composed("simt/backward_term.cu", "attention_dterm", variant, constants, out)


def block_lists(served: Specialization, *, from_table: bool) -> Specialization:
    """The kernel that lists the blocks that another has of a traced mask."""
    blocks = tuple((name, served.constant(name)) for name in ("kBlockM", "kBlockN"))
    by_keys, params = served.entry == "attention_dkdv", _PARAMS_OF_LISTS[served.entry]
    numbers = ("kByKeys", int(by_keys)), ("kFromTable", int(from_table)), ("kParams", params)
    constants = (*blocks, ("kNWarps", 1), *numbers)
    types = tuple(pair for pair in served.types if pair[0] == "Element")
    return Specialization("attention/block_lists.cu", "attention_block_lists", types, constants, served.parts)


def summaries(dtype: str) -> Specialization:
    """The kernel that looks through an array of ints of this dtype."""
    types = (("Element", "float"), ("Out", STORAGE[dtype]))
    return Specialization("attention/summaries.cu", "attention_summaries", types, (("kNWarps", 1),))


def row_wise(
    source: str, entry: str, dtype: str, *, out: str | None = None, parts: tuple[Part, ...] = ()
) -> Specialization:
    """A kernel whose blocks have some rows of one head each; `out` is the dtype of an output it reads or writes."""
    types = (("Element", ELEMENT[dtype]), ("Out", ELEMENT[out or dtype]))
    # Merging splits is a chain of loads for each of few rows; elsewhere 16 rows of a warp share what it takes to begin.
    warps, rows = {"combine.cu": (1, 1), "backward_terms.cu": (1, 1024)}.get(source, (4, 64))
    return Specialization(f"attention/{source}", entry, types, (("kNWarps", warps), ("kBlockRows", rows)), parts)


def combine(variant: Variant) -> Specialization:
    """The kernel that merges the results of split keys, which knows the units of their scores."""
    parts = tuple(part for part in variant.parts if part.component.concept != "Mask")
    return row_wise("combine.cu", "attention_combine", variant.dtype, parts=parts)


def _composed(
    source: str, entry: str, variant: Variant, constants: tuple[tuple[str, int], ...], out: str | None = None
) -> Specialization:
    types = (("Element", ELEMENT[variant.dtype]), *((("Out", ELEMENT[out]),) if out else ()))
    return Specialization(source, entry, types, constants, variant.parts)


def _has_mma(dtype: str, device: Device) -> bool:
    """Tensor cores take float16 from Turing on, bfloat16 from Ampere on."""
    return device.compute_capability >= {"float16": 75, "bfloat16": 80}.get(dtype, 1000)


def _uses_mma(variant: Variant, device: Device, tile: Tile | None) -> bool:
    fits = _has_mma(variant.dtype, device) and max(variant.head_dim, variant.head_dim_v) <= MMA_HEAD_DIM_BUCKETS[-1]
    if isinstance(tile, MmaTile) and not fits:
        raise ValueError(f"{tile} needs float16 or bfloat16 on tensor cores and head dimensions up to 256: {variant}")
    return fits and not isinstance(tile, SimtTile)


def _uses_mma_backward(variant: Variant, device: Device, tile: Tile | None) -> bool:
    """Whether a tile of the tensor-core backward is given or fits: on Turing, none does for more than 128 columns."""
    if not _uses_mma(variant, device, tile):
        return False
    wide = max(_mma_head_dims(variant))
    smallest = min(t.dkdv_shared_bytes(wide, wide) for t in mma_dkdv_candidates(wide))
    return tile is not None or smallest <= device.shared_per_block


def _mma_head_dims(variant: Variant) -> tuple[int, int]:
    return bucket(variant.head_dim, MMA_HEAD_DIM_BUCKETS), bucket(variant.head_dim_v, MMA_HEAD_DIM_BUCKETS)


def _mma_constants(
    tile: MmaTile, shared_bytes: int, head_dim: int, head_dim_v: int, device: Device
) -> tuple[tuple[str, int], ...]:
    ampere = device.compute_capability >= 80
    return (
        ("kHeadDim", head_dim),
        ("kHeadDimV", head_dim_v),
        ("kBlockM", tile.block_m),
        ("kBlockN", tile.block_n),
        ("kNWarps", tile.num_warps),
        ("kStages", tile.stages),
        ("kMinBlocks", tile.min_blocks),
        ("kMmaDepth", 16 if ampere else 8),
        ("kAsyncCopy", int(ampere)),
        ("kSharedBytes", shared_bytes),
    )


def _simt_constants(variant: Variant, device: Device, tile: Tile | None, kernel: str) -> tuple[tuple[str, int], ...]:
    itemsize = max(4, DTYPES[variant.dtype].itemsize)
    head_dim = bucket(max(variant.head_dim, variant.head_dim_v), HEAD_DIM_BUCKETS)
    backward = kernel != "forward"
    rules = _SIMT_RULES[kernel]
    candidates = simt_candidates(head_dim, itemsize, backward=backward)
    chosen, size = _choose(tile, candidates, rules, (head_dim, itemsize), device)
    constants = {
        "kHeadDim": head_dim,
        "kBlockM": chosen.block_m,
        "kBlockN": chosen.block_n,
        "kSliceD": chosen.slice_d,
        "kNWarps": chosen.num_warps,
        "kLanes": chosen.lanes,
        "kMinBlocks": chosen.min_blocks,
        "kSharedBytes": size,
    }
    if not backward:
        constants["kQueryResident"] = int(chosen.query_resident)
    return tuple(constants.items())


def _choose(
    tile: Tile | None,
    candidates: Sequence[_T],
    rules: tuple[Callable[..., str | None], Callable[..., int]],
    sizes: tuple[int, int],
    device: Device,
) -> tuple[_T, int]:
    """The tile asked for, or the first of which `min_blocks` blocks fit a multiprocessor; with its shared memory.

    `rules` tell of a tile and `sizes` why the kernel cannot take it, and its shared memory.
    """
    fault, shared_bytes = rules

    def refusal(tile: _T) -> str | None:
        if problem := fault(tile, *sizes):
            return f"breaks the kernel's rule: {problem}"
        size, resident = shared_bytes(tile, *sizes), _resident(tile, device)
        if size > device.shared_per_block:
            return f"needs {size} bytes of shared memory: {device.arch} gives a block at most {device.shared_per_block}"
        if tile.min_blocks > resident:
            return f"wants {tile.min_blocks} blocks on a multiprocessor: {device.arch} has room for {resident}"
        return None

    def fits(tile: _T) -> bool:
        if refusal(tile):
            return False
        return tile.min_blocks * device.shared_of_block(shared_bytes(tile, *sizes)) <= device.shared_per_sm

    if tile is None:
        chosen = next((t for t in candidates if fits(t)), candidates[-1])
    elif isinstance(tile, type(candidates[0])):
        chosen = tile
    else:
        raise ValueError(f"{tile} is of another kernel family: expected a {type(candidates[0]).__name__}")
    if reason := refusal(chosen):
        raise ValueError(f"{chosen} {reason}")
    return chosen, shared_bytes(chosen, *sizes)


def _resident(tile: Tile, device: Device) -> int:
    """Blocks that a multiprocessor takes at a time by their threads, whatever their registers and shared memory."""
    return min(device.blocks_per_sm, device.threads_per_sm // (32 * tile.num_warps))
