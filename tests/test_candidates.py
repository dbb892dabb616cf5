"""Every tile of the candidates in the emulator's checked mode, each on a problem that has some of its blocks."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from cases import Case, check
from conftest import slow_among

from cupy_flash import emulator, flash_attention
from cupy_flash._src.device import named
from cupy_flash._src.plan import plan_backward, plan_forward
from cupy_flash._src.tiles import (
    HEAD_DIM_BUCKETS,
    MMA_HEAD_DIM_BUCKETS,
    MmaKeyTile,
    MmaTile,
    SimtTile,
    mma_dkdv_candidates,
    mma_dq_candidates,
    mma_forward_candidates,
    simt_candidates,
)
from cupy_flash._src.tuning import tiles

# Candidates and shared memory of each kernel. "packed" is the forward with all heads of a group in a tile, "one_pass"
# the kernel of dK and dV that adds dQ up too.
MMA = {
    "forward": (functools.partial(mma_forward_candidates, packed=False), MmaTile.forward_shared_bytes),
    "packed": (functools.partial(mma_forward_candidates, packed=True), MmaTile.forward_shared_bytes),
    "dkdv": (mma_dkdv_candidates, MmaKeyTile.dkdv_shared_bytes),
    "one_pass": (mma_dkdv_candidates, MmaKeyTile.dkdv_shared_bytes),
    "dq": (mma_dq_candidates, MmaTile.dq_shared_bytes),
}
SIMT = {
    "forward": SimtTile.forward_shared_bytes,
    "dkdv": SimtTile.backward_shared_bytes,
    "one_pass": SimtTile.backward_shared_bytes,
    "dq": SimtTile.backward_shared_bytes,
}
ARGUMENT = {"packed": "forward", "one_pass": "dkdv"}  # of `tiles`, where the kernel's name is none


@dataclass(frozen=True)
class Candidate:
    """A tile of one kernel's candidates, and a GPU that can run it."""

    kernel: str
    dtype: str
    head_dim: int
    tile: SimtTile | MmaTile
    arch: str

    def __str__(self):
        return f"{self.kernel}-{self.dtype}-{self.head_dim}-{self.tile}-{self.arch}"

    def case(self, causal):
        """What streams has one block more than there are stages, and a rest; what does not, one block and a rest.

        With the mask the first query sees half of the keys or more, the last all, or all but five.
        """
        block_m, block_n = self.tile.block_m, self.tile.block_n
        streamed = (self.tile.stages if isinstance(self.tile, MmaTile) else 1) + 1
        if self.kernel in ("dkdv", "one_pass"):
            group, sq, sk = 3, streamed * block_m + 10, block_n + 22
        elif self.kernel == "packed":  # for two splits
            group, sq, sk = 3, (block_m + 22) // 3, 2 * streamed * block_n + 10
        else:
            group, sq, sk = 2, block_m * 3 // 2 + 8, streamed * block_n + 10
        d, q_offset = self.head_dim, max(sk // 2, sk - sq - 5)
        return Case(self.dtype, group=group, sq=sq, sk=sk, d=d, dv=d - 8, causal=causal, q_offset=q_offset)


def mma_candidates() -> Iterator[Candidate]:
    """Turing takes the last of each list and loads to registers; later ones copy asynchronously, Hopper adds pairs."""
    for kernel, (candidates, shared_bytes) in MMA.items():
        for head_dim in MMA_HEAD_DIM_BUCKETS:
            *others, last = candidates(head_dim)
            for tile in (*others, last):
                size = shared_bytes(tile, head_dim, head_dim)
                archs = ("sm_75", "sm_80") if tile is last else ("sm_90a" if kernel == "one_pass" else "sm_80",)
                arch = next((arch for arch in archs if size <= named(arch).shared_per_block), "sm_90a")
                yield Candidate(kernel, "float16", head_dim, tile, arch)


def simt_all() -> Iterator[Candidate]:
    """The emulator runs one program whatever the GPU."""
    for kernel, shared_bytes in SIMT.items():
        for dtype, itemsize in (("float32", 4), ("float64", 8)):
            for head_dim in HEAD_DIM_BUCKETS:
                for tile in simt_candidates(head_dim, itemsize, backward=kernel != "forward"):
                    small = shared_bytes(tile, head_dim, itemsize) <= named("sm_75").shared_per_block
                    yield Candidate(kernel, dtype, head_dim, tile, "sm_75" if small else "sm_80")


CANDIDATES = {str(x): x for x in (*mma_candidates(), *simt_all())}
# With the mask a kernel is another one: half of the candidates have it.
MASKED = {name: i % 2 == 1 for i, name in enumerate(CANDIDATES)}
SMALL = {(x.kernel, type(x.tile)): name for name, x in CANDIDATES.items() if x.head_dim == 32}  # the last of each list
PLAIN = {SMALL["forward", MmaTile], SMALL["one_pass", MmaKeyTile]}


def two_shares(*args):
    """A plan of the backward: the three heads of a group in two shares, if in any."""
    whole = plan_backward(*args)
    if whole.num_splits == 1:
        return whole
    return replace(whole, num_splits=2, dkdv=replace(whole.dkdv, grid=whole.dkdv.grid // whole.num_splits * 2))


def run_checked(candidate, causal, replan, path="host"):
    """Its kernel runs in the emulator, what else the call needs on the CPU."""
    case, tile, forward = candidate.case(causal), candidate.tile, candidate.kernel in ("forward", "packed")
    splits = 2 if candidate.kernel == "packed" else 1

    def on(function, *arrays, **options):
        emulated = forward == (function is flash_attention)
        return function(*arrays, **options, backend=f"emulator:{candidate.arch}" if emulated else "cpu")

    with (
        replan(plan_forward=functools.partial(plan_forward, num_splits=splits), plan_backward=two_shares),
        tiles(**{ARGUMENT.get(candidate.kernel, candidate.kernel): tile}),
        emulator.settings(mode="checked", path=path),
    ):
        check(case, on, deterministic=candidate.kernel != "one_pass")

    entry = "attention_forward" if forward else "attention_dq" if candidate.kernel == "dq" else "attention_dkdv"
    (launch,) = (x for x in emulator.last_run().launches if x.kernel == entry)
    blocks = {
        "forward": 2 * -(-case.sq // tile.block_m),
        "packed": 2 * -(-3 * case.sq // tile.block_m),
        "dkdv": -(-case.sk // tile.block_n),
        "one_pass": -(-case.sk // tile.block_n) * (2 if isinstance(tile, MmaTile) else 1),
        "dq": 2 * -(-case.sq // tile.block_m),
    }
    assert (launch.grid[0], launch.block[0]) == (blocks[candidate.kernel], 32 * tile.num_warps)


@pytest.mark.parametrize("name", slow_among(CANDIDATES, CANDIDATES.keys() - PLAIN))
def test_checked_mode_finds_nothing(name, replan):
    run_checked(CANDIDATES[name], MASKED[name], replan)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL.values())
def test_checked_mode_finds_nothing_in_instructions(name, replan):
    """Those that NVRTC makes."""
    run_checked(CANDIDATES[name], MASKED[name], replan, path="ptx")
