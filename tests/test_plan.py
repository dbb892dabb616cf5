"""Plans for every named GPU, made without one."""

import dataclasses

import pytest
from cases import Case, cases
from hypothesis import given
from hypothesis import strategies as st

from cupy_flash.device import NAMED, Device, from_attributes, named
from cupy_flash.plan import all_specializations, core_specializations, plan_backward, plan_forward
from cupy_flash.problem import AttentionProblem
from cupy_flash.tiles import SimtTile, head_dim_bucket

devices = st.sampled_from(list(NAMED.values()))
every_kernel = {arch: set(all_specializations(device)) for arch, device in NAMED.items()}


def problem_of(case):
    q, k, v, *_ = case.arrays()
    return AttentionProblem.from_arrays(q, k, v, **case.options)


@given(case=cases(max_seqlen=40, head_dims=st.integers(1, 512)), device=devices, deterministic=st.booleans())
def test_plans_keep_the_limits_of_the_device(case, device, deterministic):
    problem = problem_of(case)
    launches = [
        plan_forward(problem, device),
        *plan_backward(problem, device, deterministic).launches,
    ]
    for launch in launches:
        assert launch.kernel in every_kernel[device.arch]
        assert launch.shared_bytes <= device.shared_per_block
        assert launch.block <= 1024
        constants = dict(launch.kernel.constants)
        resident = constants.get("kMinBlocks", 1)
        assert resident * launch.block <= device.threads_per_sm
        assert constants.get("kHeadDim", 512) >= max(problem.head_dim, problem.head_dim_v)


@given(case=cases(max_seqlen=300))
def test_grids_cover_every_row_once(case):
    problem = problem_of(case)
    plan = plan_backward(problem, named("sm_80"), deterministic=True)
    forward = plan_forward(problem, named("sm_80"))
    heads = problem.num_heads_q
    for b in problem.batch:
        heads *= b
    for launch, rows, block, count in [
        (forward, problem.seqlen_q, "kBlockM", heads),
        (plan.dq, problem.seqlen_q, "kBlockM", heads),
        (plan.dkdv, problem.seqlen_k, "kBlockN", heads // problem.group_size),
    ]:
        size = launch.kernel.constant(block)
        assert launch.grid == count * ((rows + size - 1) // size)


def test_a_smaller_tile_is_chosen_where_the_best_does_not_fit():
    problem = problem_of(Case(d=128))
    large, small = (plan_forward(problem, named(arch)) for arch in ("sm_80", "sm_75"))
    assert large.shared_bytes > named("sm_75").shared_per_block >= small.shared_bytes


def test_modes_of_the_backward():
    for dtype, entries in [
        ("float16", ["attention_delta", "attention_dkdv", "attention_convert_dq"]),
        ("float32", ["attention_delta", "attention_dkdv"]),
    ]:
        plan = plan_backward(problem_of(Case(dtype=dtype)), named("sm_80"))
        assert [launch.kernel.entry for launch in plan.launches] == entries
        assert plan.dkdv.kernel.constant("kAtomicDq") == 1
    plan = plan_backward(problem_of(Case(dtype="float16")), named("sm_80"), deterministic=True)
    assert [launch.kernel.entry for launch in plan.launches][1:] == ["attention_dkdv", "attention_dq"]
    assert plan.dkdv.kernel.constant("kAtomicDq") == 0


def test_the_prelude_prints_the_whole_specialization():
    for kernel in every_kernel["sm_80"]:
        prelude = kernel.prelude()
        for name, value in kernel.constants:
            assert f"constexpr int {name} = {value};" in prelude
        for name, value in kernel.types:
            assert f"using {name} = {value};" in prelude


def test_core_kernels_are_what_a_default_call_needs():
    for arch, device in NAMED.items():
        core = set(core_specializations(device))
        assert core <= every_kernel[arch]
        for dtype in ("float16", "bfloat16"):
            for d in (64, 128):
                for causal in (False, True):
                    problem = problem_of(Case(dtype=dtype, d=d, causal=causal))
                    launches = plan_forward(problem, device), *plan_backward(problem, device).launches
                    assert {launch.kernel for launch in launches} <= core


def test_bad_tiles_are_refused():
    problem = problem_of(Case(d=128))
    with pytest.raises(ValueError, match="not legal for head dimension 128"):
        plan_forward(problem, named("sm_80"), SimtTile(64, 48, 64, 4, 32))
    with pytest.raises(ValueError, match=r"needs \d+ bytes .* sm_75 gives a block at most 65536"):
        plan_forward(problem, named("sm_75"), SimtTile(128, 128, 64, 8, 16))


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
        "MaxRegistersPerMultiprocessor": 65536,
    }
    assert from_attributes("sm_90a", attributes) == named("sm_90a") == Device("sm_90a", 132, 232448, 233472, 2048)
    assert named("sm_90a").compute_capability == 90


def test_head_dim_buckets():
    assert [head_dim_bucket(d, 1) for d in (1, 32, 33, 128, 129, 512)] == [32, 32, 64, 128, 256, 512]
    assert head_dim_bucket(64, 65) == 128
