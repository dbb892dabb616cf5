"""A tile is legal exactly if its kernel compiles, and what is legal computes right."""

import dataclasses
import itertools
import math
import random
import re
import subprocess
from dataclasses import dataclass

import numpy as np
import pytest
from cases import Case, check
from conftest import On, slow_among
from hypothesis import given
from hypothesis import strategies as st

from cupy_flash import emulator
from cupy_flash._src import compile, kernels, source
from cupy_flash._src.backends.emulator import _text
from cupy_flash._src.device import NAMED, named
from cupy_flash._src.emulator import engine
from cupy_flash._src.specialization import Variant
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
from cupy_flash._src.toolchain import find_compiler
from cupy_flash._src.tuning import tiles

DEVICE = named("sm_90a")
CONSTANTS = {
    "block_m": "kBlockM", "block_n": "kBlockN", "slice_d": "kSliceD", "num_warps": "kNWarps", "lanes": "kLanes",
    "query_resident": "kQueryResident", "stages": "kStages", "min_blocks": "kMinBlocks", "warps_m": "kWarpsM",
    "warps_n": "kWarpsN",
}  # fmt: skip
# The kind of tile of each kernel, why the kernel cannot take one, and the shared memory it needs.
RULES = {
    ("simt", "forward"): (SimtTile, SimtTile.forward_fault, SimtTile.forward_shared_bytes),
    ("simt", "dkdv"): (SimtTile, SimtTile.dkdv_fault, SimtTile.backward_shared_bytes),
    ("simt", "dq"): (SimtTile, SimtTile.dq_fault, SimtTile.backward_shared_bytes),
    ("mma", "forward"): (MmaTile, MmaTile.forward_fault, MmaTile.forward_shared_bytes),
    ("mma", "packed"): (MmaTile, MmaTile.forward_fault, MmaTile.forward_shared_bytes),
    ("mma", "dkdv"): (MmaKeyTile, MmaKeyTile.dkdv_fault, MmaKeyTile.dkdv_shared_bytes),
    ("mma", "dq"): (MmaTile, MmaTile.dq_fault, MmaTile.dq_shared_bytes),
    ("simt", "term"): (SimtTile, SimtTile.term_fault, SimtTile.backward_shared_bytes),
    ("mma", "term"): (MmaTile, MmaTile.term_fault, MmaTile.term_shared_bytes),
}


def specialization(kernel, variant, device, tile=None):
    """One kernel, with a tile or with the planner's."""
    if kernel == "dkdv":
        return kernels.dkdv(variant, device, atomic_dq=True, tile=tile)
    if kernel == "dq":
        return kernels.dq(variant, device, tile=tile)
    if kernel == "term":
        slopes = Variant.of(variant.dtype, variant.head_dim, variant.head_dim_v, alibi_slopes=np.ones(1, np.float32))
        return kernels.term(slopes, device, 1, "float32", tile=tile)
    return kernels.forward(variant, device, packed=kernel == "packed", tile=tile)


@dataclass(frozen=True)
class Candidate:
    """A tile that a kernel may or may not take; `head_dims` are compiled ones."""

    family: str
    kernel: str
    dtype: str
    head_dims: tuple
    tile: SimtTile | MmaTile

    @property
    def sizes(self):
        if self.family == "mma":
            return self.head_dims
        return max(self.head_dims), 8 if self.dtype == "float64" else 4

    @property
    def fault(self):
        return RULES[self.family, self.kernel][1](self.tile, *self.sizes)

    @property
    def shared_bytes(self):
        return RULES[self.family, self.kernel][2](self.tile, *self.sizes)

    def specialization(self):
        """The kernel with this tile, which `kernels` has for legal ones only."""
        planned = specialization(self.kernel, Variant.of(self.dtype, *self.head_dims, causal=True), DEVICE)
        assert planned.family == self.family
        numbers = {CONSTANTS[name]: int(value) for name, value in vars(self.tile).items()}
        numbers["kSharedBytes"] = self.shared_bytes
        if self.family == "mma":
            numbers["kHeadDim"], numbers["kHeadDimV"] = self.head_dims
            numbers.setdefault("kWarpsM", self.tile.num_warps)
        constants = tuple((name, numbers.get(name, value)) for name, value in planned.constants)
        return dataclasses.replace(planned, constants=constants)

    def errors(self):
        """What a C++ compiler says against the kernel; to instantiate it takes a fraction of a second."""
        flags = "-std=c++17", "-w", "-fsyntax-only", f"-I{engine.headers()}", "-xc++", "-"
        text = _text(self.specialization(), DEVICE.arch, "source")
        answer = subprocess.run(
            [*find_compiler().command, *flags], input=text, text=True, capture_output=True, check=False
        )
        assert (answer.returncode == 0) == (answer.stderr == "")
        return answer.stderr


def is_malformed(fault):
    """Whether a fault is one of a number by itself."""
    return "expected a positive int" in fault


def check_compiles_if_legal(candidate):
    fault, errors = candidate.fault, candidate.errors()
    assert bool(errors) == (fault is not None), f"{candidate}: {fault or 'legal'}, but the compiler says {errors!r}"
    if errors and not is_malformed(fault):
        assert fault in errors, candidate


# Around legal tiles: each number takes each of its values while the others stay.
AROUND = {
    ("simt", "forward"): [
        ("float32", (32, 32), SimtTile(64, 32, 32, 4, 8)), ("float64", (64, 64), SimtTile(16, 64, 32, 4, 16)),
    ],
    ("simt", "dkdv"): [
        ("float32", (32, 32), SimtTile(64, 32, 32, 4, 8)), ("float64", (64, 64), SimtTile(16, 64, 32, 4, 16)),
    ],
    ("simt", "dq"): [("float16", (512, 256), SimtTile(64, 32, 32, 4, 8))],
    ("mma", "forward"): [("float16", (32, 96), MmaTile(64, 64, 4))],
    ("mma", "packed"): [("bfloat16", (64, 64), MmaTile(32, 32, 2))],
    ("mma", "dkdv"): [
        ("float16", (64, 64), MmaKeyTile(32, 64, 8, 1, 1, 2, 4)),
        ("float16", (64, 64), MmaKeyTile(48, 96, 6, 1, 1, 3, 6)),
        ("bfloat16", (32, 64), MmaKeyTile(32, 192, 2, 1, 1, 2, 1)),
        ("bfloat16", (96, 192), MmaKeyTile(16, 96, 6, 1, 1, 1, 3)),
    ],
    ("mma", "dq"): [("float16", (96, 64), MmaTile(48, 48, 3))],
    ("simt", "term"): [("float32", (32, 32), SimtTile(64, 32, 32, 4, 8))],
    ("mma", "term"): [("float16", (32, 64), MmaTile(48, 96, 3, 1)), ("bfloat16", (32, 32), MmaTile(64, 64, 4, 1))],
}  # fmt: skip
VALUES = {
    "block_m": (0, 16, 24, 32, 48, 65, 6144),
    "block_n": (0, 16, 24, 32, 40, 48, 96),
    "slice_d": (0, 4, 8, 16, 24, 64),
    "num_warps": (0, 1, 3, 4, 8, 33),
    "lanes": (0, 1, 2, 3, 4, 32, 64),
    "query_resident": (True,),
    "stages": (0, 1, 2, 3),
    "min_blocks": (0, 2),
    "warps_m": (0, 1, 2, 4),
    "warps_n": (0, 1, 2, 3, 8),
}


def neighbours(family, kernel):
    """Legal tiles, and legal and illegal ones that differ from them in one number."""
    for dtype, head_dims, tile in AROUND[family, kernel]:
        yield Candidate(family, kernel, dtype, head_dims, tile)
        for name in vars(tile):
            for value in set(VALUES[name]) - {getattr(tile, name)}:
                yield Candidate(family, kernel, dtype, head_dims, dataclasses.replace(tile, **{name: value}))


MANY = {("mma", "dkdv"), ("mma", "packed")}  # many candidates, and those of the forward once more


@pytest.mark.parametrize(
    ("family", "kernel"),
    [pytest.param(*key, marks=pytest.mark.slow if key in MANY else ()) for key in RULES],
)
def test_around_legal_tiles_those_that_compile_are_legal(family, kernel):
    found = list(neighbours(family, kernel))
    for candidate in found:
        check_compiles_if_legal(candidate)
    assert sum(c.fault is None for c in found) >= 5


# Legal to the last warp of a block and the last byte of a thread's sums, and one step further.
EDGES = [
    ("mma", "forward", (32, 32), MmaTile(16, 2016, 1), MmaTile(16, 2032, 1)),
    ("mma", "forward", (32, 32), MmaTile(512, 16, 32), MmaTile(528, 16, 33)),
    ("mma", "dq", (32, 32), MmaTile(16, 1008, 1, 1), MmaTile(16, 1024, 1, 1)),
    ("mma", "term", (32, 32), MmaTile(16, 672, 1, 1), MmaTile(16, 688, 1, 1)),
    ("simt", "term", (32, 32), SimtTile(16, 672, 32, 1, 32), SimtTile(16, 704, 32, 1, 32)),
    ("mma", "dkdv", (32, 32), MmaKeyTile(480, 32, 1, 1), MmaKeyTile(496, 32, 1, 1)),
    ("simt", "forward", (32, 32), SimtTile(16, 2016, 32, 1, 32), SimtTile(16, 2048, 32, 1, 32)),
]


@pytest.mark.parametrize(("family", "kernel", "head_dims", "last", "beyond"), EDGES)
def test_the_last_legal_tile(family, kernel, head_dims, last, beyond):
    """By the rules, which the tests above hold to what compiles: a thread's sums are counted here by hand."""
    candidates = [Candidate(family, kernel, "float16", head_dims, tile) for tile in (last, beyond)]
    if family == "simt":
        candidates = [dataclasses.replace(x, dtype="float32") for x in candidates]
    assert candidates[0].fault is None
    assert candidates[1].fault in ("a thread's sums have 4 KiB", "a block has 1 to 32 warps")


def test_every_assertion_of_the_kernels_has_its_tile():
    """What the kernels assert of tiles, and what `tiles` asks, is the same, and stands among the candidates above."""
    asserted = set()
    for path in (path for family in ("simt", "mma") for path in (source.root() / family).iterdir()):
        asserted |= set(re.findall(r'static_assert\([^;]*?"(.*?)"\);', path.read_text(), re.DOTALL))
    asserted -= {"sizes and counts of a tile are positive", "warps own whole rows"}
    asserted.remove("tiles.py and the kernel disagree on shared memory")
    faults = {c.fault for rules in RULES for c in neighbours(*rules)} - {None}
    assert {fault for fault in faults if not is_malformed(fault)} == asserted


# At random: the small tiles, and large ones up to what an H100 has.
SPACES = {
    "small": {
        "block_m": (8, 16, 24, 32, 40, 48, 64), "block_n": (8, 16, 24, 32, 40, 48, 64), "slice_d": (8, 16, 32, 64),
        "num_warps": (1, 2, 3, 4), "lanes": (2, 4, 8, 16, 32), "query_resident": (False, True), "stages": (1, 2, 3),
        "min_blocks": (1,), "warps_m": (1, 2, 3, 4), "warps_n": (1, 2, 3, 4), "head_dim": (32, 64, 96),
    },
    "large": {
        "block_m": (16, 64, 96, 128, 192, 256, 512), "block_n": (16, 48, 64, 96, 128, 160, 192, 256),
        "slice_d": (16, 32, 64, 128, 256), "num_warps": (4, 6, 8, 12, 16, 24, 32), "lanes": (4, 8, 16, 32),
        "query_resident": (False, True), "stages": (1, 2, 4, 7), "min_blocks": (1, 2),
        "warps_m": (1, 2, 3, 4, 6, 8, 12, 16), "warps_n": (1, 2, 3, 4, 6, 8, 12, 16),
        "head_dim": (64, 96, 128, 192, 256, 512),
    },
}  # fmt: skip


def at_random(family, kernel, space, count):
    """`count` legal candidates of a space and as many illegal ones, none of more shared memory than there is."""
    rng = random.Random(f"{family} {kernel} {space}")
    left = {True: count, False: count}
    kind, values = RULES[family, kernel][0], SPACES[space]
    buckets = HEAD_DIM_BUCKETS if family == "simt" else MMA_HEAD_DIM_BUCKETS
    head_dims = [n for n in values["head_dim"] if n in buckets]
    while any(left.values()):
        tile = kind(**{field.name: rng.choice(values[field.name]) for field in dataclasses.fields(kind)})
        dtype = rng.choice(("float32", "float64") if family == "simt" else ("float16", "bfloat16"))
        candidate = Candidate(family, kernel, dtype, (rng.choice(head_dims), rng.choice(head_dims)), tile)
        legal = candidate.fault is None
        if left[legal] and candidate.shared_bytes <= DEVICE.shared_per_block:
            left[legal] -= 1
            yield candidate


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("family", "kernel"), RULES)
def test_tiles_that_compile_are_legal(family, kernel, space):
    for candidate in at_random(family, kernel, space, 75):
        check_compiles_if_legal(candidate)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kernel"), RULES)
def test_nvrtc_agrees(family, kernel):
    pytest.importorskip(
        "cupy_backends.cuda.libs.nvrtc", reason='needs CuPy and NVRTC: pip install "cupy-flash[cuda13]"'
    )
    for candidate in at_random(family, kernel, "small", 2):
        if candidate.fault is None:
            assert ".entry" in compile.to_ptx(candidate.specialization(), DEVICE.arch)
        else:
            with pytest.raises(compile.CompileError, match=re.escape(candidate.fault)):
                compile.to_ptx(candidate.specialization(), DEVICE.arch)


# What is asked for by hand.

LEGAL = {
    SimtTile: SimtTile(64, 64, 32, 4, 8),
    MmaTile: MmaTile(64, 64, 4),
    MmaKeyTile: MmaKeyTile(64, 64, 4, 1, 1, 2, 2),
}
NO_NUMBERS = (0, -1, -64, True, 64.0, math.nan, math.inf, "64", None, [64])


@pytest.mark.parametrize(("family", "kernel"), RULES)
def test_what_is_no_number_is_refused_by_name(family, kernel):
    legal, dtype = LEGAL[RULES[family, kernel][0]], "float32" if family == "simt" else "float16"
    variant = Variant.of(dtype, 64)
    assert specialization(kernel, variant, DEVICE, legal).family == family
    for name, value in itertools.product(vars(legal), NO_NUMBERS):
        if name == "query_resident" and value in (0, 1):
            continue
        with pytest.raises(ValueError, match=rf"{name} is {re.escape(repr(value))}: expected"):
            specialization(kernel, variant, DEVICE, dataclasses.replace(legal, **{name: value}))


@pytest.mark.parametrize(("family", "kernel"), RULES)
def test_no_more_blocks_are_asked_for_than_a_multiprocessor_takes(family, kernel):
    legal = LEGAL[RULES[family, kernel][0]]
    variant = Variant.of("float32" if family == "simt" else "float16", 32)
    for device in NAMED.values():
        if family == "mma" and device.compute_capability < 75:
            continue  # without tensor cores
        most = min(device.blocks_per_sm, device.threads_per_sm // 128)
        tile = dataclasses.replace(legal, min_blocks=most)
        assert specialization(kernel, variant, device, tile).constant("kMinBlocks") == most
        with pytest.raises(ValueError, match=f"{device.arch} has room for {most}"):
            specialization(kernel, variant, device, dataclasses.replace(tile, min_blocks=most + 1))


def test_the_last_candidate_fits_every_device():
    """Shared memory of Turing, the least; but for the backward of more than 128 columns on tensor cores."""
    for dtype in ("float16", "float32", "float64"):
        for head_dim in HEAD_DIM_BUCKETS:
            itemsize = 8 if dtype == "float64" else 4
            for kernel, backward in (("forward", False), ("dkdv", True), ("dq", True)):
                tile = simt_candidates(head_dim, itemsize, backward=backward)[-1]
                _, fault, shared_bytes = RULES["simt", kernel]
                assert fault(tile, head_dim, itemsize) is None
                assert shared_bytes(tile, head_dim, itemsize) <= 64 * 1024
    for head_dim in MMA_HEAD_DIM_BUCKETS:
        lists = {
            kernel: mma_forward_candidates(head_dim, packed=kernel == "packed") for kernel in ("forward", "packed")
        }
        lists |= {"dkdv": mma_dkdv_candidates(head_dim), "dq": mma_dq_candidates(head_dim)}
        for kernel, tiles_of in lists.items():
            _, fault, shared_bytes = RULES["mma", kernel]
            assert all(fault(tile, head_dim, head_dim) is None for tile in tiles_of)
            if head_dim <= 128 or kernel in ("forward", "packed"):
                assert shared_bytes(tiles_of[-1], head_dim, head_dim) <= 64 * 1024


numbers = st.one_of(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 64, 96, 128]), st.integers(-2, 2**70))


@given(data=st.data(), rules=st.sampled_from(sorted(RULES)), device=st.sampled_from(list(NAMED.values())))
def test_a_tile_is_taken_if_legal_and_refused_with_a_reason_else(data, rules, device):
    family, kernel = rules
    kind, fault, shared_bytes = RULES[rules]
    names = [field.name for field in dataclasses.fields(kind)]
    changes = data.draw(st.dictionaries(st.sampled_from(names), numbers, max_size=3))
    tile = dataclasses.replace(LEGAL[kind], **changes)
    dtype = data.draw(st.sampled_from(["float32", "float64", "float16"] if family == "simt" else ["float16"]))
    buckets = HEAD_DIM_BUCKETS if family == "simt" else MMA_HEAD_DIM_BUCKETS
    variant = Variant.of(dtype, *(data.draw(st.sampled_from(buckets)) for _ in range(2)), causal=True)
    try:
        found = specialization(kernel, variant, device, tile)
    except ValueError as error:
        assert re.search("breaks the kernel's rule|bytes of shared memory|has room for|needs float16", str(error))
        return
    assert found.family == family
    for name, value in vars(tile).items():
        assert dict(found.constants).get(CONSTANTS[name], value) == value
    head_dims = found.constant("kHeadDim"), dict(found.constants).get("kHeadDimV")
    sizes = head_dims if family == "mma" else (head_dims[0], 8 if dtype == "float64" else 4)
    assert fault(tile, *sizes) is None
    assert found.constant("kSharedBytes") == shared_bytes(tile, *sizes) <= device.shared_per_block


def test_columns_are_widened_where_only_that_makes_the_tile_legal():
    """The warps of a tile by hand share 96 columns of dK where they cannot share 32 or 64 of them."""
    tile, variant = MmaKeyTile(16, 96, 6, 1, 1, 1, 3), Variant.of("float16", 32, 96)
    assert tile.dkdv_fault(32, 96) is not None and tile.dkdv_fault(96, 96) is None
    kernel = kernels.dkdv(variant, DEVICE, atomic_dq=True, tile=tile)
    assert (kernel.constant("kHeadDim"), kernel.constant("kHeadDimV")) == (96, 96)
    narrow = kernels.dkdv(variant, DEVICE, atomic_dq=True, tile=MmaKeyTile(32, 64, 2, 1, 1, 2, 2))
    assert (narrow.constant("kHeadDim"), narrow.constant("kHeadDimV")) == (32, 96)


# Numbers that no candidate of the planner has.
ODD = {
    "three warps": (
        Case(dtype="float16", d=40, dv=96),
        MmaTile(48, 48, 3, 3), MmaKeyTile(48, 96, 3, 1, 1, 3, 3), MmaTile(48, 48, 3, 1),
    ),
    "six warps across": (
        Case(dtype="float16", d=96), MmaTile(96, 16, 6), MmaKeyTile(16, 96, 6, 1, 1, 1, 3), MmaTile(96, 96, 6)
    ),
    "128 keys a warp": (
        Case(dtype="bfloat16", dv=24), MmaTile(16, 128, 1), MmaKeyTile(32, 128, 2, 1, 1, 2, 1), MmaTile(16, 16, 1)
    ),
    "96 keys a warp": (
        Case(dtype="float16", d=24), MmaTile(32, 96, 2, 5), MmaKeyTile(32, 96, 2, 3, 1, 2, 1), MmaTile(32, 48, 2)
    ),
    "two lanes": (
        Case(dtype="float64", d=40), SimtTile(48, 40, 16, 3, 2), SimtTile(48, 48, 16, 3, 2), SimtTile(96, 20, 8, 3, 2)
    ),
    "whole warps": (
        Case(dv=30), SimtTile(12, 32, 32, 3, 32), SimtTile(9, 96, 64, 3, 32), SimtTile(4, 64, 64, 2, 32)
    ),
    "four lanes": (
        Case(dtype="float16", d=257, dv=8),
        SimtTile(16, 24, 64, 2, 4, True), SimtTile(32, 32, 32, 2, 4), SimtTile(16, 8, 8, 1, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", slow_among(ODD, set(ODD) - {"six warps across", "two lanes"}))
def test_odd_tiles_compute_right(name):
    case, forward, dkdv, dq = ODD[name]
    case = dataclasses.replace(case, group=2, sq=70, sk=150, causal=True, q_offset=40)
    with tiles(forward=forward, dkdv=dkdv, dq=dq):
        for deterministic in (False, True):
            check(case, On("emulator:sm_90a"), deterministic=deterministic)
        warps = {x.kernel: x.block[0] // 32 for x in emulator.last_run().launches}
    assert (warps["attention_dkdv"], warps["attention_dq"]) == (dkdv.num_warps, dq.num_warps)


def test_a_tile_by_hand_brings_the_tensor_cores_where_the_planner_has_none():
    """Turing's shared memory holds no backward of 192 columns that would be worth it."""
    case = Case(dtype="float16", heads_k=1, group=1, sq=40, sk=50, d=150)
    with tiles(dkdv=MmaKeyTile(16, 32, 2, 1, 1, 1, 2)):
        check(case, On("emulator:sm_75"))
    variant = Variant.of("float16", 150)
    assert kernels.dkdv(variant, named("sm_75"), atomic_dq=True).family == "simt"
