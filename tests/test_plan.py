"""Plans for every named GPU, made without one."""

import dataclasses
import itertools
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from cases import Case, cases
from hypothesis import example, given
from hypothesis import strategies as st

from cupy_flash import flash_attention, flash_attention_backward
from cupy_flash._src.backends.emulator import EmulatorBackend
from cupy_flash._src.device import NAMED, Device, from_attributes, named
from cupy_flash._src.plan import (
    COMMON,
    _num_splits,
    all_specializations,
    core_specializations,
    plan_backward,
    plan_forward,
    plan_merge,
    plan_seal,
    plan_spoil_term,
    plan_term,
    term_axes,
)
from cupy_flash._src.problem import DTYPES, AttentionProblem
from cupy_flash._src.tiles import HEAD_DIM_BUCKETS, MMA_HEAD_DIM_BUCKETS, MmaTile, SimtTile, Tiles, bucket

devices = st.sampled_from(list(NAMED.values()))
# Calls of every mask: kernels know of a window which of its sides are open.
CALLS = [*COMMON, *({"window": sides} for sides in ((3, 2), (5, None), (None, 4)))]
every_kernel = {arch: set(all_specializations(device, CALLS)) for arch, device in NAMED.items()}


def problem_of(case, **options):
    q, k, v, *_ = case.arrays()
    return AttentionProblem.from_arrays(q, k, v, **case.options, **options)


@given(
    case=cases(max_seqlen=40, head_dims=st.integers(1, 512), arrays=True), device=devices, deterministic=st.booleans(),
    wide_out=st.booleans(),
)  # fmt: skip
@example(case=Case(dtype="float16", group=3), device=NAMED["sm_80"], deterministic=True, wide_out=False)
def test_plans_keep_the_limits_of_the_device(case, device, deterministic, wide_out):
    problem = problem_of(case, deterministic=deterministic)
    if wide_out and problem.storage != problem.accumulator:
        problem = problem.with_wide_out
    assert plan_merge(problem).kernel in every_kernel[device.arch]
    forward, backward = plan_forward(problem, device), plan_backward(problem, device)
    assert (forward.combine is None) == (forward.num_splits == 1)
    assert (backward.convert_dkdv is None) == (backward.num_splits == 1)
    # What repeats bit for bit adds nothing up by atomics; without a pass for dQ its sums are.
    assert backward.dkdv.kernel.constant("kAtomicDq") == (backward.dq is None)
    if deterministic:
        assert backward.dq is not None and backward.num_splits == 1 and backward.convert_dq is None
    for launch in (*forward.launches, *backward.launches):
        usual = problem.scale >= 0 and {x.keyword for x in problem.components} <= {"scale", "causal", "window"}
        if usual and one_size(problem.head_dim, problem.head_dim_v):
            assert launch.kernel in every_kernel[device.arch]
        assert launch.shared_bytes <= device.shared_per_block
        assert launch.block <= 1024
        constants = dict(launch.kernel.constants)
        resident = constants.get("kMinBlocks", 1)
        assert resident * launch.block <= device.threads_per_sm
        if launch.kernel.family == "mma":
            assert resident * device.shared_of_block(launch.shared_bytes) <= device.shared_per_sm
        assert launch.shared_bytes == constants.get("kSharedBytes", 0) and launch.block == 32 * constants["kNWarps"]
        assert constants.get("kHeadDim", 512) >= problem.head_dim
        assert constants.get("kHeadDimV", constants.get("kHeadDim", 512)) >= problem.head_dim_v


@pytest.mark.parametrize("arch", NAMED)
def test_a_multiprocessor_holds_the_blocks_that_a_kernel_is_compiled_for(arch):
    """Kernels of every pair of head dimensions, with few queries and with many."""
    device, kernels = NAMED[arch], set(every_kernel[arch])
    for d, dv, sq in itertools.product(MMA_HEAD_DIM_BUCKETS, MMA_HEAD_DIM_BUCKETS, (1, 300)):
        for dtype in ("float16", "bfloat16"):
            problem = problem_of(Case(dtype=dtype, group=2, sq=sq, sk=300, d=d, dv=dv), deterministic=True)
            plans = plan_forward(problem, device), plan_backward(problem, device)
            kernels |= {launch.kernel for plan in plans for launch in plan.launches}
    for kernel in kernels:
        constants = dict(kernel.constants)
        resident, shared = constants.get("kMinBlocks", 1), constants.get("kSharedBytes", 0)
        assert shared <= device.shared_per_block
        assert resident * 32 * constants["kNWarps"] <= device.threads_per_sm
        if kernel.family == "mma":
            assert resident * device.shared_of_block(shared) <= device.shared_per_sm, kernel


def one_size(head_dim, head_dim_v):
    """Whether both are compiled for one size, also where that is up to 256 and in finer steps."""
    if max(head_dim, head_dim_v) > MMA_HEAD_DIM_BUCKETS[-1]:
        return True
    return bucket(head_dim, MMA_HEAD_DIM_BUCKETS) == bucket(head_dim_v, MMA_HEAD_DIM_BUCKETS)


@given(case=cases(max_seqlen=300, arrays=True))
def test_grids_cover_every_row_once(case):
    problem = problem_of(case)
    plan = plan_backward(dataclasses.replace(problem, deterministic=True), named("sm_80"))
    forward = plan_forward(problem, named("sm_80"))
    heads = problem.num_heads_q * math.prod(problem.batch)
    packed = forward.packed_heads
    for launch, rows, block, count in [
        (forward.forward, problem.seqlen_q * packed, "kBlockM", heads // packed * forward.num_splits),
        (plan.dq, problem.seqlen_q, "kBlockM", heads),
        (plan.dkdv, problem.seqlen_k, "kBlockN", heads // problem.group_size),
    ]:
        assert launch.grid == count * blocks_of(rows, launch.kernel.constant(block))
    spread = plan_backward(problem, named("sm_80"))
    seal = plan_seal(problem, "attention_seal")
    queries, keys = ((heads, problem.seqlen_q),), ((heads // problem.group_size, problem.seqlen_k),)
    row_wise = {plan.delta: queries, plan_merge(problem): queries, forward.combine: queries, seal: queries + keys}
    row_wise |= {spread.convert_dq: queries, spread.convert_dkdv: keys}
    for launch, parts in row_wise.items():
        if launch is not None:
            block, threads = (1, 32) if launch is forward.combine else (64, 128)
            assert launch.kernel.constant("kBlockRows") == block and launch.block == threads
            assert launch.grid == sum(count * blocks_of(rows, block) for count, rows in parts)


def blocks_of(rows, size):
    return (rows + size - 1) // size


@pytest.mark.parametrize("arch", NAMED)
def test_kernels_have_only_instructions_of_the_architecture(arch):
    """Turing multiplies in steps of 8 and copies by registers; before Hopper no atomic takes two neighbours."""
    generation = int(arch[3:].rstrip("a"))
    found = [dict(kernel.constants) for kernel in every_kernel[arch]]
    for constants in found:
        assert constants.get("kMmaDepth") in (None, 16 if generation >= 80 else 8)
        assert constants.get("kAsyncCopy", 0) <= (generation >= 80)
        assert constants.get("kAddsPairs", 0) <= (generation >= 90)
    if generation >= 90:
        assert any(constants.get("kAddsPairs") for constants in found)
    assert any("kMmaDepth" in constants for constants in found) == (generation >= 75)


def test_a_smaller_tile_is_chosen_where_the_best_does_not_fit():
    problem = problem_of(Case(d=128))
    large, small = (plan_forward(problem, named(arch)).forward for arch in ("sm_80", "sm_75"))
    assert large.shared_bytes > named("sm_75").shared_per_block >= small.shared_bytes


def test_modes_of_the_backward():
    for dtype, entries in [
        ("float16", ["attention_delta", "attention_dkdv", "attention_convert_dq"]),
        ("float32", ["attention_delta", "attention_dkdv"]),
    ]:
        plan = plan_backward(problem_of(Case(dtype=dtype)), named("sm_80"))
        assert [launch.kernel.entry for launch in plan.launches] == entries
        assert plan.dkdv.kernel.constant("kAtomicDq") == 1
    plan = plan_backward(problem_of(Case(dtype="float16"), deterministic=True), named("sm_80"))
    assert [launch.kernel.entry for launch in plan.launches][1:] == ["attention_dkdv", "attention_dq"]
    assert plan.dkdv.kernel.constant("kAtomicDq") == 0


def test_a_wide_output_changes_what_reads_it_and_saves_the_conversion_of_dq():
    problem = problem_of(Case(dtype="float16"))
    narrow, wide = (plan_backward(p, named("sm_80")) for p in (problem, problem.with_wide_out))
    assert [dict(plan.delta.kernel.types)["Out"] for plan in (narrow, wide)] == ["Float16", "float"]
    assert (narrow.convert_dq is None, wide.convert_dq is None) == (False, True)
    assert narrow.dkdv == wide.dkdv


def test_the_prelude_prints_the_whole_specialization():
    for kernel in every_kernel["sm_80"]:
        prelude = kernel.prelude()
        for name, value in kernel.constants:
            assert f"constexpr int {name} = {value};" in prelude
        for name, value in kernel.types:
            assert f"using {name} = {value};" in prelude
        for part in kernel.parts:
            concept = part.component.concept
            assert f'#include "attention/{part.component.header}.cuh"\n' in prelude
            assert re.search(rf"struct Components : .*\b{part.component.struct}\b", prelude)
            assert re.search(rf"using {concept} = {concept}Of<.*\b{part.type}\b.*>;", prelude)


def test_core_kernels_are_what_a_default_call_needs():
    for arch, device in NAMED.items():
        core = set(core_specializations(device))
        assert core <= every_kernel[arch]
        for dtype in ("float16", "bfloat16"):
            for d in (64, 128):
                for causal in (False, True):
                    problem = large(dtype, d=d, causal=causal)
                    launches = *plan_forward(problem, device).launches, *plan_backward(problem, device).launches
                    assert {launch.kernel for launch in launches} <= core


def relative(s, b, h, i, j, table):
    return s + table[h, np.clip(i - j + 8, 0, 15)]


def documents(b, h, i, j, of_queries, of_keys, weights):
    return (of_queries[b, i] == of_keys[b, j]) & (weights[j] > 0)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("arch", "dtype", "group", "sq", "sk"), [
    ("sm_80", "float16", 1, 100, 100), ("sm_90a", "bfloat16", 4, 1, 300), ("sm_75", "float64", 2, 30, 50),
    ("sm_90a", "float16", 1, 300, 20),
])  # fmt: skip
def test_all_that_calls_with_functions_launch_is_planned(monkeypatch, arch, dtype, group, sq, sk, deterministic):
    """In this order but for lists and summaries, which come when they are needed."""
    ran, device = [], named(arch)
    monkeypatch.setattr(EmulatorBackend, "run", lambda self, step, params, tensors: ran.append(step))
    q, k = np.zeros((2, 2 * group, sq, 64), dtype), np.zeros((2, 2, sk, 64), dtype)
    options = {
        "score_mod": relative, "score_args": (np.zeros((2 * group, 16), np.float32),),
        "alibi_slopes": np.ones(2 * group, np.float32),
        "mask_mod": documents,
        "mask_args": (np.zeros((2, sq), np.int16), np.zeros((2, sk), np.int64), np.ones(sk, np.float32)),
    }  # fmt: skip
    backward = {"wrt": ("q", "k", "v", "alibi_slopes", "score_args"), "deterministic": deterministic}
    problem = AttentionProblem.from_arrays(q, k, k, **options, **backward)
    plans = plan_forward(problem, device), plan_backward(problem, device)
    summaries = [(made.name, made.axis, made.rows, made.chunks) for made in plans[0].summaries]
    assert summaries == [
        ("mask_args[0]", 1, (2,), math.ceil(sq / 32)),
        ("mask_args[1]", 1, (2,), math.ceil(sk / 32)),
    ]
    assert ran == []
    out, lse = flash_attention(q, k, k, return_lse=True, **options, backend=f"emulator:{arch}")
    forward = len(ran)
    flash_attention_backward(q, q, k, k, out, lse, **options, **backward, backend=f"emulator:{arch}")
    prepares = {"attention_summaries", "attention_block_lists"}
    for plan, steps in zip(plans, (ran[:forward], ran[forward:]), strict=True):
        found, wanted = (
            [[step for step in some if (step.kernel.entry in prepares) == first] for first in (True, False)]
            for some in (steps, plan.all_launches)
        )
        assert found[1] == wanted[1] and sorted(map(str, found[0])) == sorted(map(str, wanted[0]))
    entries = [step.kernel.entry for step in ran]
    assert entries.count("attention_summaries") == 4 and entries.count("attention_dterm") == 2 + deterministic
    assert {step.kernel for step in ran} <= set(all_specializations(device, [options]))
    assert not plan_backward(dataclasses.replace(problem, wrt=("q",), terms=()), device).gathers


def large(dtype, *, batch=4, heads_q=16, heads_k=16, sq=4096, sk=4096, d=64, **options):
    """A problem of any size, without its memory."""
    zero = np.zeros((), DTYPES[dtype])
    q, k = (np.broadcast_to(zero, (batch, h, s, d)) for h, s in ((heads_q, sq), (heads_k, sk)))
    return AttentionProblem.from_arrays(q, k, k, **options)


@pytest.mark.parametrize(("arch", "dtype", "d", "family"), [
    ("sm_75", "float16", 128, "mma"), ("sm_75", "bfloat16", 128, "simt"), ("sm_70", "float16", 64, "simt"),
    ("sm_80", "bfloat16", 256, "mma"), ("sm_90a", "float16", 257, "simt"), ("sm_120", "float32", 64, "simt"),
])  # fmt: skip
def test_the_family_is_chosen_by_dtype_and_head_dimension(arch, dtype, d, family):
    problem = large(dtype, d=d)
    assert plan_forward(problem, named(arch)).forward.kernel.family == family
    assert plan_backward(problem, named(arch)).dkdv.kernel.family == family


def test_keys_are_split_only_where_blocks_are_few():
    device = named("sm_90a")
    assert plan_forward(large("float16"), device).num_splits == 1
    decode = plan_forward(large("float16", batch=1, heads_q=8, heads_k=8, sq=1, sk=2**17), device)
    assert decode.combine is not None
    blocks = decode.forward.grid
    assert blocks == 8 * decode.num_splits
    slots = device.num_sms * decode.forward.kernel.constant("kMinBlocks")
    assert blocks / slots / math.ceil(blocks / slots) >= 0.85 * 0.85


@given(blocks=st.integers(0, 1200), slots=st.integers(1, 1000), parts=st.integers(0, 3000))
@example(blocks=80, slots=100, parts=64).via("80% of the slots are enough")
@example(blocks=79, slots=100, parts=64)
@example(blocks=1, slots=1000, parts=3000).via("no more than 128")
@example(blocks=1, slots=1000, parts=128)
@example(blocks=1, slots=10, parts=3000).via("no more than run at a time")
@example(blocks=3, slots=20, parts=7).via("no more than give a block fewer parts")
def test_the_least_number_of_splits_that_fills_the_device(blocks, slots, parts):
    """Within 85% of the best, of all numbers of which each gives the fullest block fewer parts than the one before."""
    found = _num_splits(blocks, slots, parts)
    if 5 * blocks >= 4 * slots:
        assert found == 1
        return

    def filled(n):
        return Fraction(blocks * n, slots * max(1, blocks_of(blocks * n, slots)))

    numbers = range(1, min(128, slots, max(1, parts)) + 1)
    useful = [n for n in numbers if n == 1 or blocks_of(parts, n) < blocks_of(parts, n - 1)]
    enough = Fraction(85, 100) * max(map(filled, useful))
    assert found in useful and filled(found) >= enough * (1 - Fraction(1, 10**9))
    assert all(filled(n) < enough * (1 + Fraction(1, 10**9)) for n in useful if n < found)


def test_on_cuda_cores_many_keys_of_floats_come_in_spans():
    device = named("sm_90a")
    few, many, doubles = (
        plan_forward(large(dtype, batch=1, sq=1, sk=sk), device)
        for dtype, sk in (("float32", 2**15), ("float32", 2**15 + 1), ("float64", 2**20))
    )
    assert [plan.num_spans for plan in (few, many, doubles)] == [1, 2, 1]
    assert [launch.span for launch in many.launches] == [0, 1]
    assert plan_forward(large("float16", batch=1, sq=1, sk=2**20), device).num_spans == 1


def test_more_blocks_of_rows_than_a_launch_takes_are_refused():
    zero = np.broadcast_to(np.zeros((), np.float16), (2**16, 1, 2**17, 1))
    assert plan_merge(AttentionProblem.from_arrays(zero, zero, zero)).grid == 2**33 // 64
    zero = np.broadcast_to(np.zeros((), np.float16), (2**16, 2**15, 1, 1))
    with pytest.raises(ValueError, match=r"attention_merge needs 2147483648 thread blocks: .* at most 2147483647"):
        plan_merge(AttentionProblem.from_arrays(zero, zero, zero))


def test_the_group_is_packed_where_rows_are_few():
    device = named("sm_80")
    assert plan_forward(large("float16", heads_q=32, heads_k=4, sq=1), device).packed_heads == 8
    assert plan_forward(large("float16", heads_q=32, heads_k=4, sq=4096), device).packed_heads == 1
    # Tiles of 128 rows of one head against ones of 64 rows of all four: a tenth emptier is too empty.
    packed = {sq: plan_forward(large("float16", heads_q=4, heads_k=1, sq=sq), device) for sq in (112, 116, 224, 240)}
    assert {sq: plan.packed_heads for sq, plan in packed.items()} == {112: 4, 116: 1, 224: 4, 240: 1}
    assert {sq: plan.forward.kernel.constant("kPacked") for sq, plan in packed.items()} == {
        112: 1, 116: 0, 224: 1, 240: 0
    }  # fmt: skip
    assert plan_forward(large("float16", heads_q=4, heads_k=4, sq=1), device).packed_heads == 1


def test_key_heads_of_a_section_fit_half_the_cache():
    plan = plan_forward(large("float16", sk=16384, d=128), named("sm_80"))
    assert plan.section_heads * 16384 * 2 * 128 * 2 <= named("sm_80").l2_bytes / 2
    assert (plan.section_heads + 1) * 16384 * 2 * 128 * 2 > named("sm_80").l2_bytes / 2
    key_bytes = 1000 * (64 + 32) * 2
    for l2_bytes, heads in ((1, 1), (4 * key_bytes - 1, 1), (4 * key_bytes, 2), (100 * key_bytes, 6)):
        zero = np.broadcast_to(np.zeros((), np.float16), (2, 3, 1000, 64))
        problem = AttentionProblem.from_arrays(zero, zero, zero[..., :32])
        device = dataclasses.replace(named("sm_80"), l2_bytes=l2_bytes)
        assert plan_forward(problem, device).section_heads == heads
    assert plan_forward(large("float16", sk=0), named("sm_80")).section_heads == 64


def test_the_backward_takes_two_passes_where_few_keys_meet_many_queries():
    device = named("sm_80")
    assert plan_backward(large("float16"), device).dq is None
    assert plan_backward(large("float16", batch=1, heads_q=2, heads_k=2, sq=2**16, sk=64), device).dq is not None
    # Blocks of 128 rows, one on each of 108 multiprocessors: three times as many, and where the device is full.
    passes = [(9, 3 * 128, 1), (9, 3 * 128 + 1, 2), (36, 2**16, 1), (35, 2**16, 2)]
    for heads, sq, count in passes:
        plan = plan_backward(large("float16", batch=1, heads_q=heads, heads_k=heads, sq=sq, sk=128), device)
        assert (plan.dkdv.grid, 1 + (plan.dq is not None)) == (heads, count)
        assert plan.dkdv.kernel.constant("kAtomicDq") == (plan.dq is None) == (plan.convert_dq is not None)
        assert plan.dq is None or plan.dq.grid == heads * blocks_of(sq, 128)


def test_the_backward_spreads_a_group_where_key_heads_are_few():
    device = named("sm_80")
    plan = plan_backward(large("float16", batch=1, heads_q=32, heads_k=1), device)
    assert plan.num_splits > 1 and plan.convert_dkdv is not None
    assert plan.dkdv.grid == plan.num_splits * 4096 // plan.dkdv.kernel.constant("kBlockN")
    entries = ["delta", "dkdv", "convert_dq", "convert_dkdv"]
    assert [launch.kernel.entry for launch in plan.launches] == [f"attention_{entry}" for entry in entries]
    problem = large("float16", batch=1, heads_q=32, heads_k=1, deterministic=True)
    assert plan_backward(problem, device).num_splits == 1


def test_only_blocks_that_are_seen_count():
    """A schedule is that of as many keys and queries as see one another."""
    device, few = named("sm_80"), {"batch": 1, "heads_q": 32, "heads_k": 1}
    windowed = plan_forward(large("float16", **few, sq=1, sk=65536, window=(256, 0)), device)
    alone, everything = (plan_forward(large("float16", **few, sq=1, sk=n), device) for n in (320, 65536))
    assert 1 < windowed.num_splits == alone.num_splits < everything.num_splits
    windowed = plan_backward(large("float16", **few, sq=64, sk=8192, window=(63, 0), q_offset=0), device)
    alone, everything = (plan_backward(large("float16", **few, sq=64, sk=n), device) for n in (64, 8192))
    assert windowed.num_splits == alone.num_splits > everything.num_splits
    few["heads_q"] = 1
    windowed = plan_backward(large("float16", **few, sq=65536, sk=128, window=(0, 0), q_offset=0), device)
    alone, everything = (plan_backward(large("float16", **few, sq=n, sk=128), device) for n in (128, 65536))
    assert windowed.atomic_dq and alone.atomic_dq and not everything.atomic_dq


def test_bad_tiles_are_refused():
    half = large("float16", d=128)
    with pytest.raises(ValueError, match="warps own whole pieces"):
        plan_forward(half, named("sm_80"), Tiles(forward=MmaTile(32, 64, 4)))
    with pytest.raises(ValueError, match="of another kernel family"):
        plan_backward(half, named("sm_80"), Tiles(dkdv=MmaTile(64, 64, 4)))
    with pytest.raises(ValueError, match="needs float16 or bfloat16"):
        plan_forward(problem_of(Case()), named("sm_80"), Tiles(forward=MmaTile(64, 64, 4)))
    problem = problem_of(Case(d=128))
    with pytest.raises(ValueError, match="breaks the kernel's rule: lanes share the keys evenly"):
        plan_forward(problem, named("sm_80"), Tiles(forward=SimtTile(64, 48, 64, 4, 32)))
    with pytest.raises(ValueError, match=r"needs \d+ bytes .* sm_75 gives a block at most 65536"):
        plan_forward(problem, named("sm_75"), Tiles(forward=SimtTile(128, 128, 64, 8, 16)))


def test_a_grid_too_large_is_refused():
    problem = dataclasses.replace(problem_of(Case()), batch=(2**20, 2**12))
    with pytest.raises(ValueError, match="a launch takes at most 2147483647"):
        plan_forward(problem, named("sm_80"))


def test_devices_by_name_and_by_attributes():
    assert named("sm_90") is named("sm_90a")
    with pytest.raises(ValueError, match="architecture is 'sm_61'"):
        named("sm_61")
    attributes = {
        "MultiProcessorCount": 132,
        "MaxSharedMemoryPerBlockOptin": 232448,
        "MaxSharedMemoryPerMultiprocessor": 233472,
        "MaxThreadsPerMultiProcessor": 2048,
        "MaxBlocksPerMultiprocessor": 32,
        "L2CacheSize": 50 * 2**20,
        "MaxRegistersPerMultiprocessor": 65536,
    }
    device = Device("sm_90a", 132, 232448, 233472, 2048, 32, 50 * 2**20)
    assert from_attributes("sm_90a", attributes) == named("sm_90a") == device
    assert named("sm_90a").compute_capability == 90


def test_head_dim_buckets():
    assert [bucket(d, HEAD_DIM_BUCKETS) for d in (1, 32, 33, 128, 129, 512)] == [32, 32, 64, 128, 256, 512]
    assert [bucket(d, MMA_HEAD_DIM_BUCKETS) for d in (1, 65, 129, 193)] == [32, 96, 192, 256]


TERMS = {"bias": (2, 4, 300, 200), "of keys": (1, 1, 1, 200), "of heads": (1, 4, 1, 1), "pair": (1, 4, 300, 200)}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("device", NAMED.values(), ids=NAMED)
def test_a_gradient_of_an_option_has_blocks_of_its_own_elements(name, dtype, device):
    shape, x = TERMS[name], np.zeros((2, 4, 300, 64), dtype)
    options = {"bias": np.zeros(shape, dtype), "softcap": 9.0, "sinks": np.zeros(4, np.float32)}
    problem = AttentionProblem.from_arrays(x, x[:, :, :200], x[:, :, :200], **options, wrt=("bias", "sinks"))
    bias, sinks = plan_backward(problem, device).terms
    kernel = bias.kernel.kernel
    assert kernel.constant("kTerm") == 2 and dict(kernel.types)["Out"] == ("Float16" if dtype == "float16" else "float")
    assert [x.component.concept for x in kernel.parts] == ["Score"] * 3
    full = (2, 4, math.ceil(300 / kernel.constant("kBlockM")), math.ceil(200 / kernel.constant("kBlockN")))
    own = math.prod(n for n, size in zip(full, shape, strict=True) if size > 1)
    assert bias.kernel.grid == own * bias.num_splits and bias.num_splits <= math.prod(full) // own
    assert math.prod(own * summed for own, summed in term_axes(problem, bias.term, kernel)) == math.prod(full)
    assert math.prod(own for own, _ in term_axes(problem, bias.term, kernel)) == own
    slots = device.num_sms * kernel.constant("kMinBlocks")
    if own >= 0.8 * slots or math.prod(full) == own:
        assert bias.num_splits == 1
    elif 2 * own <= slots:
        assert bias.num_splits > 1
    for plan in (bias, sinks):
        assert (plan.sum_splits is None) == (plan.num_splits == 1)
        if plan.sum_splits:
            assert plan.sum_splits.grid == math.ceil(math.prod(plan.term.shape) / 32)
        spoil = plan_spoil_term(problem, plan.term)
        assert spoil.grid == math.ceil(math.prod(plan.term.shape) / 32) and spoil.block == 32
        assert dict(spoil.kernel.types)["Out"] == dict(plan.kernel.kernel.types)["Out"]
    assert sinks.kernel.kernel.entry == "attention_dsinks" and sinks.kernel.grid == 4 * sinks.num_splits
    assert plan_term(problem, device, bias.term, 3).num_splits == 3


def test_kernels_of_gradients_that_are_wanted():
    x = np.zeros((2, 4, 300, 64), np.float16)
    for wrt, deterministic in itertools.product((("q",), ("k",), ("v",), ("k", "v"), ("q", "v")), (False, True)):
        problem = AttentionProblem.from_arrays(x, x, x, wrt=wrt, deterministic=deterministic)
        plan = plan_backward(problem, NAMED["sm_80"])
        keys = "k" in wrt or "v" in wrt
        assert (plan.dkdv is not None) == keys
        assert plan.atomic_dq == (keys and "q" in wrt and not deterministic)
        assert (plan.dq is not None) == ("q" in wrt and not plan.atomic_dq)
        assert (plan.convert_dq is not None) == plan.atomic_dq
        if keys:
            wants = tuple(map(plan.dkdv.kernel.constant, ("kWantsDk", "kWantsDv")))
            assert wants == ("k" in wrt, "v" in wrt)
