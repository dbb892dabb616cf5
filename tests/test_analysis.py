"""Occupancy, traffic and roofline of plans, and the GPUs they are of, against tables and counts of their own."""

import dataclasses
from math import prod

import numpy as np
import pytest
from cases import Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import visible

from cupy_flash import emulator, flash_attention, flash_attention_backward
from cupy_flash._src.analysis.occupancy import occupancy
from cupy_flash._src.analysis.roofline import (
    DATASHEET,
    Bound,
    Rates,
    bound,
    compulsory_bytes,
    flops,
    standard_bytes,
    visible_pairs,
)
from cupy_flash._src.analysis.traffic import launch_bytes
from cupy_flash._src.device import ATTRIBUTES, NAMED, Device, from_attributes, named
from cupy_flash._src.plan import Launch, plan_backward, plan_forward
from cupy_flash._src.problem import DTYPES, AttentionProblem
from cupy_flash._src.specialization import Specialization

KERNEL = Specialization("mma/forward.cu", "attention_forward", (), ())

# --- GPUs ---

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": KiB of shared memory a block may opt
# in to and of a multiprocessor, warps, blocks, registers. Multiprocessors, L2 in MiB: NVIDIA's architecture whitepapers
# (Volta, Turing, GA100, GA102, Ada, H100, Blackwell) and the technical brief of Jetson AGX Orin.
GPUS = {
    "sm_70": (96, 96, 64, 32, 65536, 80, 6),
    "sm_75": (64, 64, 32, 16, 65536, 40, 4),
    "sm_80": (163, 164, 64, 32, 65536, 108, 40),
    "sm_86": (99, 100, 48, 16, 65536, 84, 6),
    "sm_87": (163, 164, 48, 16, 65536, 16, 4),
    "sm_89": (99, 100, 48, 24, 65536, 128, 72),
    "sm_90a": (227, 228, 64, 32, 65536, 132, 50),
    "sm_100": (227, 228, 64, 32, 65536, 148, 126),
    "sm_120": (99, 100, 48, 24, 65536, 170, 96),
}
# Of the same whitepapers: boost clock in GHz for tensor cores and for the rest; FLOPs of a multiprocessor in a clock,
# half types with float32 sums, float32, float64; width of the memory in bits and Gbit/s of one.
CARDS = {
    "sm_70": (1.53, 1.53, 1024, 128, 64, 4096, 1.752),
    "sm_75": (1.59, 1.59, 1024, 128, 4, 256, 10),
    "sm_80": (1.41, 1.41, 2048, 128, 64, 5120, 2.43),
    "sm_86": (1.80, 1.80, 1024, 256, 4, 384, 16),
    "sm_89": (2.52, 2.52, 512, 256, 4, 384, 21),
    "sm_90a": (1.83, 1.98, 4096, 256, 128, 5120, 5.234),
    "sm_100": (1.856, 1.965, 8192, 256, 128, 8192, 8),
    "sm_120": (2.407, 2.407, 512, 256, 4, 512, 28),
}


def test_every_named_gpu_is_as_nvidia_documents_it():
    for arch, (per_block, per_sm, warps, blocks, registers, sms, l2) in GPUS.items():
        assert NAMED[arch] == Device(arch, sms, per_block << 10, per_sm << 10, 32 * warps, blocks, l2 << 20, registers)
        assert named(arch) is NAMED[arch] and f"sm_{NAMED[arch].compute_capability}" == arch.removesuffix("a")
    assert set(NAMED) == set(GPUS) and named("sm_90") is NAMED["sm_90a"]


def test_a_gpu_is_described_by_its_attributes():
    """Names of cudaDeviceAttr, as CuPy has them."""
    values = {
        "MultiProcessorCount": 1, "MaxSharedMemoryPerBlockOptin": 2, "MaxSharedMemoryPerMultiprocessor": 3,
        "MaxThreadsPerMultiProcessor": 4, "MaxBlocksPerMultiprocessor": 5, "L2CacheSize": 6,
        "MaxRegistersPerMultiprocessor": 7,
    }  # fmt: skip
    assert set(values) == set(ATTRIBUTES)
    assert from_attributes("sm_80", values) == Device(
        "sm_80", num_sms=1, shared_per_block=2, shared_per_sm=3, threads_per_sm=4, blocks_per_sm=5, l2_bytes=6,
        registers_per_sm=7,
    )  # fmt: skip


def test_a_datasheets_rates_are_clocks_times_units():
    """But for B200: NVIDIA rounds it, and rates float64 and memory a little below what its units could do."""
    for arch, (tensor_clock, clock, half, single, double, bits, gbits) in CARDS.items():
        rates, sms, within = DATASHEET[arch], NAMED[arch].num_sms, 0.1 if arch == "sm_100" else 0.04
        assert rates.half == pytest.approx(sms * tensor_clock * half / 1000, rel=0.01)
        assert rates.single == pytest.approx(sms * clock * single / 1000, rel=within)
        assert rates.double == pytest.approx(sms * clock * double / 1000, rel=within)
        assert rates.bandwidth == pytest.approx(bits / 8 * gbits, rel=0.03)
    assert set(DATASHEET) == set(CARDS) < set(NAMED)


# Blocks on a multiprocessor by cuda_occupancy.h of the CUDA toolkit 13.0, the code behind
# cudaOccupancyMaxActiveBlocksPerMultiprocessor: of (registers, threads, dynamic shared bytes) on GPUs as above.
BLOCKS = {
    (32, 32, 0): (32, 16, 32, 16, 16, 24, 32, 32, 24),
    (32, 1024, 0): (2, 1, 2, 1, 1, 1, 2, 2, 1),
    (96, 64, 0): (10, 10, 10, 10, 10, 10, 10, 10, 10),
    (168, 128, 0): (3, 3, 3, 3, 3, 3, 3, 3, 3),
    (169, 128, 0): (2, 2, 2, 2, 2, 2, 2, 2, 2),
    (200, 64, 0): (4, 4, 4, 4, 4, 4, 4, 4, 4),
    (200, 32, 0): (8, 8, 8, 8, 8, 8, 8, 8, 8),
    (255, 128, 0): (2, 2, 2, 2, 2, 2, 2, 2, 2),
    (100, 160, 0): (3, 3, 3, 3, 3, 3, 3, 3, 3),
    (33, 512, 0): (3, 2, 3, 3, 3, 3, 3, 3, 3),
    (40, 256, 0): (6, 4, 6, 6, 6, 6, 6, 6, 6),
    (41, 256, 0): (5, 4, 5, 5, 5, 5, 5, 5, 5),
    (32, 128, 23168): (4, 2, 6, 4, 6, 4, 9, 9, 4),
    (32, 128, 32768): (3, 2, 4, 3, 4, 3, 6, 6, 3),
    (32, 128, 32769): (2, 1, 4, 3, 4, 3, 6, 6, 3),
    (32, 128, 33104): (2, 1, 4, 2, 4, 2, 6, 6, 2),
    (32, 128, 32560): (3, 2, 4, 3, 4, 3, 6, 6, 3),
    (32, 128, 21840): (4, 2, 7, 4, 7, 4, 10, 10, 4),
    (64, 256, 49152): (2, 1, 3, 2, 3, 2, 4, 4, 2),
    (32, 64, 1): (32, 16, 32, 16, 16, 24, 32, 32, 24),
}


def test_occupancy_is_what_nvidia_computes():
    for (registers, threads, shared), expected in BLOCKS.items():
        for arch, blocks in zip(GPUS, expected, strict=True):
            found = occupancy(Launch(KERNEL, 216, threads, shared), NAMED[arch], registers)
            assert (found.blocks, found.warps) == (blocks, blocks * threads // 32), (arch, registers, threads, shared)
            assert found.waves == 216 / (blocks * NAMED[arch].num_sms)


@pytest.mark.parametrize(("shared", "registers", "block", "limited_by"), [
    (0, 32, 1024, "threads"), (0, 32, 32, "blocks"), (0, 128, 256, "registers"), (83968, 32, 128, "shared memory"),
])  # fmt: skip
def test_what_limits_occupancy(shared, registers, block, limited_by):
    assert occupancy(Launch(KERNEL, 216, block, shared), named("sm_80"), registers).limited_by == limited_by


def test_a_kernel_that_no_multiprocessor_holds():
    assert occupancy(Launch(KERNEL, 216, 1024, 0), named("sm_75"), 255).blocks == 0


# --- problems ---


@st.composite
def problems(draw, dtypes=tuple(DTYPES), head_dims=(1, 8, 24, 64, 100), least=0, most=30):
    """A problem, its inputs, an output, and which query sees which key."""
    heads_k, group, batch = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([(), (2,), (2, 3)]))
    sq, sk = draw(st.integers(least, most)), draw(st.integers(least, most))
    d, dv = draw(st.sampled_from(head_dims)), draw(st.sampled_from(head_dims))
    side = st.one_of(st.none(), st.integers(0, 3), st.integers(0, most))
    options = {"causal": draw(st.booleans()), "window": draw(st.one_of(st.none(), st.tuples(side, side)))}
    if options["causal"] or options["window"] not in (None, (None, None)):
        options["q_offset"] = draw(st.integers(-sq - 5, sk + 5))
    dtype = DTYPES[draw(st.sampled_from(dtypes))]
    q, k, v = (
        np.zeros((*batch, *shape), dtype) for shape in ((heads_k * group, sq, d), (heads_k, sk, d), (heads_k, sk, dv))
    )
    problem, seen = AttentionProblem.from_arrays(q, k, v, **options), visible(sq, sk, **options)
    return problem, (q, k, v), np.zeros((*q.shape[:-1], dv), dtype), seen


def test_pairs_of_more_queries_than_are_held_at_once():
    q, k = np.zeros((2**20 + 3, 1), np.float16), np.zeros((5, 1), np.float16)
    for options, pairs in (
        ({"causal": True, "q_offset": 0}, 5 * (2**20 + 3) - 10),
        ({"causal": True, "q_offset": -(2**20)}, 1 + 2 + 3),
        ({"window": (1, 0), "q_offset": 1 - 2**20}, 1 + 2 + 2 + 2),
        ({}, 5 * (2**20 + 3)),
    ):
        assert visible_pairs(AttentionProblem.from_arrays(q, k, k, **options)) == pairs


@given(drawn=problems(), wide_out=st.booleans())
def test_a_problems_work_and_bytes_are_those_of_its_arrays(drawn, wide_out):
    problem, (q, k, v), out, seen = drawn
    heads, d, dv = prod(q.shape[:-2]), q.shape[-1], v.shape[-1]
    assert visible_pairs(problem) == heads * seen.sum()
    products = {False: (d, dv), True: (d, dv, dv, d, d)}  # S, O; S, dP, dV, dK, dQ: 2 FLOPs for each term
    scores = heads * seen.size * q.itemsize
    for backward, terms in products.items():
        assert flops(problem, backward=backward) == heads * seen.sum() * sum(2 * n for n in terms)
        whole = [q, k, v, out] if not backward else [q, k, v, out, q, k, v]  # of the last four, gradients of q, k, v
        assert standard_bytes(problem, backward=backward) == (7 if backward else 4) * scores + sum(
            x.nbytes for x in whole
        )

    rows, keys = seen.any(1), seen.any(0)
    lse = np.zeros(out.shape[:-1], np.float64 if q.dtype == np.float64 else np.float32)
    read = q[..., rows, :].nbytes + k[..., keys, :].nbytes + v[..., keys, :].nbytes
    assert compulsory_bytes(problem, backward=False) == read + out.nbytes + lse.nbytes
    dout, dq = out, q
    if wide_out:
        problem, out, dq = problem.with_wide_out, out.astype(lse.dtype), q.astype(lse.dtype)
    cotangents = dout[..., rows, :].nbytes + out[..., rows, :].nbytes + lse.nbytes
    assert compulsory_bytes(problem, backward=True) == read + cotangents + dq.nbytes + k.nbytes + v.nbytes


def test_peaks_are_those_of_the_units_that_compute():
    rates = Rates("x", half=8, single=4, double=2, bandwidth=1)
    for dtype, peaks in (("float16", (8, 4)), ("bfloat16", (8, 4)), ("float32", (8, 4)), ("float64", (2, 2))):
        assert (rates.peak(dtype, True), rates.peak(dtype, False)) == peaks
    assert (Bound(2, 1).seconds, Bound(2, 1).by, Bound(1, 1).by) == (2, "arithmetic", "arithmetic")
    assert (Bound(1, 2).seconds, Bound(1, 2).by) == (2, "memory")


def test_no_kernel_beats_the_bound():
    """The bound of a decode is memory's, that of a long sequence arithmetic's."""
    x, rates = np.broadcast_to(np.float16(0), (2, 16, 4096, 128)), DATASHEET["sm_90a"]
    long, decode = (AttentionProblem.from_arrays(q, x, x) for q in (x, x[:, :, :1]))
    for cores, peak in ((True, 989.4e12), (False, 66.9e12)):
        for backward, products in ((False, 2), (True, 5)):
            work = 2 * products * 2 * 16 * 4096**2 * 128
            a = bound(long, rates, tensor_cores=cores, backward=backward)
            assert a.by == "arithmetic" and a.seconds == pytest.approx(work / peak, rel=1e-12)
            m = bound(decode, rates, tensor_cores=cores, backward=backward)
            assert m.by == "memory" and m.seconds == compulsory_bytes(decode, backward=backward) / 3350e9


# --- traffic ---


@pytest.mark.slow
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sq=st.integers(1, 200), sk=st.integers(1, 300), causal=st.booleans(), offset=st.integers(-40, 60),
    window=st.sampled_from([None, (30, 20), (90, None), (None, 5)]),
    group=st.sampled_from([1, 2, 5]), heads_k=st.integers(1, 2), dv=st.sampled_from([32, 64]),
    deterministic=st.booleans(), batch=st.sampled_from([(), (2,)]), wide_out=st.booleans(),
)  # fmt: skip
def test_traffic_is_what_the_emulator_counts(
    sq, sk, causal, offset, window, group, heads_k, dv, deterministic, batch, wide_out
):
    case = Case(
        dtype="float16", batch=batch, heads_k=heads_k, group=group, sq=sq, sk=sk, dv=dv, causal=causal,
        window=window, q_offset=offset,
    )  # fmt: skip
    q, k, v, dout, _ = case.arrays()
    problem = AttentionProblem.from_arrays(q, k, v, **case.options, deterministic=deterministic)
    with emulator.settings(mode="counted"):
        out, lse = flash_attention(q, k, v, **case.options, return_lse=True, backend="emulator")
        runs = [(plan_forward(problem, named("sm_80")), emulator.last_run())]
        if wide_out:
            out, problem = out.astype(lse.dtype), problem.with_wide_out
        flash_attention_backward(
            dout, q, k, v, out, lse, **case.options, deterministic=deterministic, backend="emulator"
        )
        runs.append((plan_backward(problem, named("sm_80")), emulator.last_run()))
    for plan, report in runs:
        for launch, counted in zip(plan.launches, report.launches, strict=True):
            expected = launch_bytes(problem, plan, launch)
            assert counted.bytes_read + counted.bytes_written == expected, launch.kernel


def counted(problem, plan, launch, seen):
    """Bytes of one launch, block by block over the pairs that are seen; every array has the sizes of its own rows."""
    d, dv, sq, sk = problem.head_dim, problem.head_dim_v, *seen.shape
    hq, hk, size, out = problem.num_heads_q, problem.num_heads_k, problem.storage.itemsize, problem.out_storage.itemsize
    block = {name: value for name, value in launch.kernel.constants if name in ("kBlockM", "kBlockN")}
    total = 0
    if launch.kernel.entry == "attention_forward":
        packed, splits = plan.packed_heads, plan.num_splits
        rows = np.repeat(seen, packed, axis=0)
        for r in range(0, len(rows), block["kBlockM"]):
            total += hq // packed * rows[r : r + block["kBlockM"]].any(0).sum() * (d + dv) * size
        result = dv * size + 4 if splits == 1 else splits * (4 * dv + 8)  # out, lse; or float32, maximum and sum
        return total + hq * sq * (splits * d * size + result)
    if launch.kernel.entry == "attention_dq":
        for r in range(0, sq, block["kBlockM"]):
            total += hq * seen[r : r + block["kBlockM"]].any(0).sum() * (d + dv) * size
        return total + hq * sq * ((d + dv) * size + d * out + 4 * 8)  # lse and delta for each of four lanes
    if launch.kernel.entry == "attention_dkdv":
        for c in range(0, sk, block["kBlockN"]):
            rows = seen[:, c : c + block["kBlockN"]].any(1)
            total += hq * rows.sum() * ((d + dv) * size + 8)
            if plan.atomic_dq:  # dq in whole blocks of rows, in float32
                whole = sum(
                    min(block["kBlockM"], sq - r) for r in range(0, sq, block["kBlockM"])
                    if rows[r : r + block["kBlockM"]].any()
                )  # fmt: skip
                total += hq * whole * d * 4
        gradient = size if plan.num_splits == 1 else 4
        return total + plan.num_splits * hk * (d + dv) * (seen.any(0).sum() * size + sk * gradient)
    passes = len(range(0, dv, 32 if dv % 4 else 128))  # weights are read again for each, by two lanes
    return {
        "attention_combine": hq * sq * (plan.num_splits * 4 * (3 + 4 * passes + dv) + dv * size + 4),
        "attention_delta": hq * sq * (dv * (size + out) + 4),
        "attention_convert_dq": hq * sq * d * (4 + size),
        "attention_convert_dkdv": hk * sk * (d + dv) * (4 + size),
    }[launch.kernel.entry]


@settings(max_examples=60)
@given(
    drawn=problems(("float16", "bfloat16"), (32, 64, 100, 128), 1, 400),  # for empty arrays nothing is launched
    arch=st.sampled_from(["sm_80", "sm_86", "sm_90a"]), deterministic=st.sampled_from([False, False, True]),
    wide_out=st.booleans(),
)  # fmt: skip
def test_traffic_is_what_a_walk_over_the_blocks_counts(drawn, arch, deterministic, wide_out):
    problem, _, _, seen = drawn
    problem = dataclasses.replace(problem, deterministic=deterministic)
    backward = problem.with_wide_out if wide_out else problem
    for plan, of in (
        (plan_forward(problem, NAMED[arch]), problem),
        (plan_backward(backward, NAMED[arch]), backward),
    ):
        for launch in plan.launches:
            found = launch_bytes(of, plan, launch)
            if launch.kernel.family in ("mma", "attention"):
                assert found == prod(of.batch) * counted(of, plan, launch, seen), launch.kernel
            else:
                assert found is None


LEARNED = st.sampled_from([None, (False,) * 5, (False, True), (True, False), (True, True, True)])


@settings(max_examples=40)
@given(
    drawn=problems(("float16", "bfloat16"), (32, 64, 100, 128), 1, 300), bias=LEARNED, wide=st.booleans(),
    slopes=st.sampled_from([None, True, False]), sinks=st.sampled_from([None, True, False]),
    wrt=st.sets(st.sampled_from(["q", "k", "v"])), deterministic=st.booleans(),
)  # fmt: skip
def test_work_and_traffic_of_what_is_wanted(drawn, bias, wide, slopes, sinks, wrt, deterministic):
    """By a walk over tiles; an array has its own axes, and a number for each head, or for each of the batch too."""
    plain, (q, k, v), out, seen = drawn
    full, dtype = (*plain.lse_shape, plain.seqlen_k), np.float32 if wide else q.dtype
    options = {}
    if bias is not None:
        own = (*[True] * (len(full) - len(bias)), *bias)[-len(full) :]
        options["bias"] = np.zeros(tuple(n if x else 1 for n, x in zip(full, own, strict=True)), dtype)
    for name, of_batch in (("alibi_slopes", slopes), ("sinks", sinks)):
        if of_batch is not None:
            options[name] = np.zeros(full[:-2] if of_batch else full[-3:-2], np.float32)
    wrt = tuple(wrt) + tuple(options)
    if not wrt:
        return
    problem = AttentionProblem.from_arrays(q, k, v, **options, deterministic=deterministic, wrt=wrt)
    problem = dataclasses.replace(problem, components=(*problem.components, *plain.masks), q_offset=plain.q_offset)
    d, dv, size = problem.head_dim, problem.head_dim_v, problem.storage.itemsize
    scores, dscores = set(wrt) - {"sinks"}, set(wrt) - {"sinks", "v"}
    products = d * bool(scores) + dv * bool(dscores) + sum({"q": d, "k": d, "v": dv}.get(x, 0) for x in wrt)
    assert flops(problem, backward=True) == 2 * prod(full[:-2]) * seen.sum() * products
    rows, keys, lse = seen.any(1), seen.any(0), 4 * prod(full[:-1])
    once = (q[..., rows, :].nbytes + k[..., keys, :].nbytes) * bool(scores) + v[..., keys, :].nbytes * bool(dscores)
    once += out[..., rows, :].nbytes * (1 + (wrt != ("v",))) + lse
    gradients = {"q": q, "k": k, "v": v} | options
    assert compulsory_bytes(problem, backward=True) == once + sum(gradients[x].nbytes for x in wrt)

    plan, heads = plan_backward(problem, named("sm_80")), prod(full[:-2])
    for step in plan.launches:
        found, entry = launch_bytes(problem, plan, step), step.kernel.entry
        of = next((x for x in plan.terms if any(step is y for y in x.launches)), None)
        if of is None:
            columns = {"attention_dkdv": d * ("k" in wrt) + dv * ("v" in wrt)}
            columns["attention_convert_dkdv"] = columns["attention_dkdv"]
            less = (d + dv - columns.get(entry, d + dv)) * problem.num_heads_k * problem.seqlen_k
            gradient = plan.num_splits * (4 if plan.convert_dkdv else size)
            less *= size + 4 if entry == "attention_convert_dkdv" else gradient
            assert found == prod(problem.batch) * (counted(problem, plan, step, seen) - less), entry
            continue
        gradient = options[of.term.keyword]
        written = of.num_splits * gradient.size * 4 if of.num_splits > 1 else gradient.nbytes
        if entry == "attention_sum_splits":
            assert found == written + gradient.nbytes
        elif entry == "attention_dsinks":
            assert found == 2 * lse + heads * 32 * 4 + written  # of so few rows a block has all
        else:
            block_m, block_n = step.kernel.constant("kBlockM"), step.kernel.constant("kBlockN")
            read = 0
            for r in range(0, seen.shape[0], block_m):
                for c in range(0, seen.shape[1], block_n):
                    tile = seen[r : r + block_m, c : c + block_n]
                    if tile.any():
                        read += (tile.any(1).sum() + tile.any(0).sum()) * (d + dv) * size + len(tile) * 4 * 8
            assert found == heads * read + written


@pytest.mark.parametrize(("wrt", "columns"), [
    (("v",), 8 + 24), (("k",), 8 + 24 + 8), (("q", "v"), 8 + 24 + 8 + 24), (("bias",), 8 + 24), (("sinks",), 0),
    (("v", "sinks"), 8 + 24), (("q", "k", "v", "bias", "sinks"), 3 * 8 + 2 * 24),
])  # fmt: skip
def test_products_that_gradients_take(wrt, columns):
    """S and dV for v; S and dP, from which dQ and dK, and a bias' gradient, are made; for sinks nothing."""
    q, v = np.zeros((3, 5, 8), np.float16), np.zeros((3, 5, 24), np.float16)
    bias, sinks = np.zeros((5, 5), np.float16), np.zeros(3, np.float32)
    problem = AttentionProblem.from_arrays(q, q, v, bias=bias, sinks=sinks, wrt=wrt)
    assert flops(problem, backward=True) == 2 * 3 * 25 * columns
    read = {"v": 2 * q.nbytes + v.nbytes, "sinks": 2 * v.nbytes}.get(wrt[0] if len(wrt) == 1 else "")
    sizes = {"q": q.nbytes, "k": q.nbytes, "v": v.nbytes, "bias": bias.nbytes, "sinks": sinks.nbytes}
    if read is not None:
        assert compulsory_bytes(problem, backward=True) == read + 3 * 5 * 4 + sum(sizes[name] for name in wrt)


def test_kernels_on_cuda_cores_have_no_formula():
    problem = AttentionProblem.from_arrays(*(np.zeros((2, 4, 128, 64), np.float32),) * 3)
    for plan in (plan_forward(problem, named("sm_80")), plan_backward(problem, named("sm_80"))):
        for launch in plan.launches:
            assert (launch_bytes(problem, plan, launch) is None) == (launch.kernel.family == "simt")
    wide = dataclasses.replace(problem, dtype="float64")
    delta = plan_backward(wide, named("sm_80")).delta
    assert launch_bytes(wide, plan_backward(wide, named("sm_80")), delta) == 2 * 4 * 128 * (2 * 64 * 8 + 8)
