"""The CUDA kernels themselves, in the emulator: checks, counts, legal tiles, and bugs that must be caught."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from cases import Case, cases, check, every_component
from conftest import On
from emulator.both_paths import run_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import attention

from cupy_flash import attention_reference, emulator, flash_attention, flash_attention_vjp, merge_attention
from cupy_flash._src import compile, source
from cupy_flash._src.device import NAMED, named
from cupy_flash._src.params import layout
from cupy_flash._src.plan import plan_forward
from cupy_flash._src.specialization import Specialization, composition, parts_of
from cupy_flash._src.structs import structs_of
from cupy_flash._src.tiles import HEAD_DIM_BUCKETS, SimtTile, bucket
from cupy_flash._src.tuning import tiles
from cupy_flash.emulator import EmulatorError

ON = On("emulator")
RAGGED = Case(heads_k=1, group=2, sq=70, sk=150, causal=True, q_offset=40)
PASSED = ("ForwardParams", "BackwardParams", "MergeParams", "SealParams")


@pytest.mark.parametrize("seed", [None, 1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("dtype", "d", "dv"), [
    ("float32", 64, 64), pytest.param("float16", 64, 40, marks=pytest.mark.slow),
    pytest.param("bfloat16", 33, 33, marks=pytest.mark.slow), pytest.param("float64", 80, 128, marks=pytest.mark.slow),
])  # fmt: skip
def test_checked_mode_finds_nothing(dtype, d, dv, deterministic, seed):
    with emulator.settings(mode="checked", seed=seed):
        check(dataclasses.replace(RAGGED, dtype=dtype, d=d, dv=dv), ON, deterministic=deterministic)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=cases(max_seqlen=130, head_dims=st.sampled_from([8, 33, 64, 100, 256, 512])),
    deterministic=st.booleans(),
    seed=st.one_of(st.none(), st.integers(0, 2**32)),
    preempt=st.sampled_from([0, 50]),
)
def test_checked_mode_finds_nothing_thoroughly(arch, case, deterministic, seed, preempt):
    with emulator.settings(mode="checked", seed=seed, preempt=preempt):
        check(case, On(f"emulator:{arch}"), deterministic=deterministic)


@pytest.mark.parametrize("arch", NAMED)
def test_every_named_device_is_emulated(arch):
    check(Case(d=128, sq=40, sk=50, causal=True), On(f"emulator:{arch}"))


@functools.cache
def legal_tiles(dtype, d):
    """Every tile of a set, of odd ones too, that all three kernels take for this head dimension on a Hopper GPU."""
    sizes, limit = (bucket(d, HEAD_DIM_BUCKETS), np.dtype(dtype).itemsize), named("sm_90a").shared_per_block
    blocks, slices = (16, 24, 32, 40, 48, 64, 96, 128), (8, 16, 32, 64, 128)
    warps, lanes = (1, 2, 3, 4, 8), (2, 4, 8, 16, 32)
    return [
        t
        for t in itertools.starmap(SimtTile, itertools.product(blocks, blocks, slices, warps, lanes, (False, True)))
        if not (t.forward_fault(*sizes) or t.dkdv_fault(*sizes) or t.dq_fault(*sizes))
        and max(t.forward_shared_bytes(*sizes), t.backward_shared_bytes(*sizes)) <= limit
    ]


ANY_TILE = given(
    data=st.data(), dtype=st.sampled_from(["float32", "float64"]), d=st.sampled_from([24, 64, 128]),
    spans=st.integers(1, 4), det=st.booleans(),
)  # fmt: skip


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@ANY_TILE
def test_results_do_not_depend_on_the_tile(replan, data, dtype, d, spans, det):
    check_tile(replan, data, dtype, d, spans, det)


@pytest.mark.slow
@settings(max_examples=24, suppress_health_check=[HealthCheck.function_scoped_fixture])
@ANY_TILE
def test_results_do_not_depend_on_the_tile_thoroughly(replan, data, dtype, d, spans, det):
    check_tile(replan, data, dtype, d, spans, det)


def check_tile(replan, data, dtype, d, spans, det):
    tile = data.draw(st.sampled_from(legal_tiles(dtype, d)))
    in_spans = functools.partial(plan_forward, num_spans=spans)
    with replan(plan_forward=in_spans), tiles(forward=tile, dkdv=tile, dq=tile):
        check(dataclasses.replace(RAGGED, dtype=dtype, d=d), On("emulator:sm_90a"), deterministic=det)


@pytest.mark.parametrize("q_offset", [-2, 230])
@pytest.mark.parametrize(
    ("dtype", "d"),
    [("float32", 64), *(pytest.param(*x, marks=pytest.mark.slow) for x in (("float64", 64), ("float16", 264)))],
)
def test_spans_of_keys_change_nothing_beyond_rounding(replan, dtype, d, q_offset):
    """On CUDA cores, with rows that see all spans, or some, or none, and one of NaN."""
    case = dataclasses.replace(RAGGED, dtype=dtype, d=d, sk=300, q_offset=q_offset)
    q, k, v, *_ = case.arrays()
    q[..., 5, 0] = np.nan
    results = []
    for spans in (1, 2, 5, 30):
        in_spans = functools.partial(plan_forward, num_spans=spans)
        with replan(plan_forward=in_spans), emulator.settings(mode="checked"):
            results.append(flash_attention(q, k, v, **case.options, return_lse=True, backend="emulator"))
        assert [x.kernel for x in emulator.last_run().launches] == ["attention_forward"] * spans
    (out, lse), *others = results
    assert np.isneginf(lse).sum() == lse.shape[0] * max(0, -q_offset)
    assert np.isnan(lse[..., 5]).all() and np.isnan(out[..., 5, :]).all()
    rounding = 8 * np.finfo(dtype).eps
    for x, y in others:
        np.testing.assert_allclose(x.astype(float), out.astype(float), rtol=0, atol=rounding)
        np.testing.assert_allclose(y, lse, rtol=rounding if dtype != "float16" else 1e-6)


def test_a_maximum_that_stays_costs_no_accuracy():
    """Blocks of keys that leave the row's maximum alone must rescale by exactly 1: no error may grow with them."""
    q, k, v, *_ = Case(dtype="float64", heads_k=1, group=1, sq=60, sk=1500, d=1).arrays()
    lse = flash_attention(q, k, v, return_lse=True, backend="emulator")[1]
    exact = attention_reference(q, k, v, return_lse=True)[1]
    assert np.abs(lse - exact).max() <= 2 * np.spacing(np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_bank_conflicts(dtype):
    """On CUDA cores; test_mma.py has tensor cores."""
    q, k, v, dout, _ = dataclasses.replace(RAGGED, dtype=dtype).arrays()
    for deterministic in (False, True):
        with emulator.settings(mode="counted"):
            _, vjp = flash_attention_vjp(q, k, v, deterministic=deterministic, backend="emulator")
            assert emulator.last_run().total("shared_accesses") > 0
            assert emulator.last_run().total("bank_conflicts") == 0
            vjp(dout)
            assert emulator.last_run().total("bank_conflicts") == 0


@pytest.mark.parametrize("causal", [False, True])
def test_forward_moves_exactly_what_the_schedule_says(causal):
    """Q once; K and V once for each query block that sees them; out and lse written once."""
    q, k, v, *_ = Case(heads_k=2, group=2, sq=200, sk=300, causal=causal).arrays()
    with emulator.settings(mode="counted"):
        flash_attention(q, k, v, causal=causal, backend="emulator")
    (report,) = emulator.last_run().launches
    keys = sum(min(300, min(m0 + 64, 200) + 100) if causal else 300 for m0 in range(0, 200, 64))
    assert report.buffers["q"].read == q.nbytes
    assert report.buffers["k"].read == report.buffers["v"].read == 4 * keys * 64 * 4
    assert report.buffers["out"].written == q.nbytes and report.buffers["lse"].written == 4 * 200 * 4
    assert report.bytes_written == q.nbytes + 4 * 200 * 4


def test_nothing_of_the_size_of_the_scores_reaches_global_memory():
    q, k, v, dout, _ = Case(sq=256, sk=256, d=8).arrays()
    with emulator.settings(mode="counted"):
        _, vjp = flash_attention_vjp(q, k, v, backend="emulator", deterministic=True)
        forward = emulator.last_run().total("bytes_written")
        vjp(dout)
        backward = emulator.last_run().total("bytes_written")
    assert forward + backward < 256 * 256 * 4 / 4


@pytest.mark.parametrize(("sq", "sk", "d", "dv"), [(5, 7, 24, 33), (5, 7, 24, 36), (70, 200, 33, 40)])
def test_rows_that_do_not_fill_the_last_block_of_row_wise_kernels(replan, sq, sk, d, dv):
    """No thread without a row takes another's, in any of them; of both head dimensions one or none is whole vectors."""
    case = Case(dtype="float16", group=3, sq=sq, sk=sk, d=d, dv=dv)
    q, k, v, dout, dlse = case.arrays()
    seen = set()

    def launched():
        seen.update(x.kernel for x in emulator.last_run().launches)

    with emulator.settings(mode="checked"):
        with replan(plan_forward=functools.partial(plan_forward, num_splits=2)):
            (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, backend="emulator")
        launched()
        grads = vjp(dout, dlse=dlse)
        launched()
        merged = merge_attention(out, lse, out, lse, backend="emulator")
        launched()
    exact = attention(q, k, v, dout=dout, dlse=dlse)
    for x, truth in zip((out, lse, *grads, merged[0], merged[1] - np.log(2)), (*exact, *exact[:2]), strict=True):
        np.testing.assert_allclose(x.astype(float), truth, atol=4e-3)
    assert seen >= {
        f"attention_{name}" for name in ("combine", "delta", "convert_dq", "convert_dkdv", "merge", "seal", "spoil")
    }


@pytest.mark.parametrize("path", ["host", "ptx"])
def test_params_have_the_layout_of_the_kernels(path):
    """Of every struct that is read, and of what kernels of all components together are passed."""
    if path == "ptx":
        pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs CuPy and NVRTC")
    parts = parts_of(every_component())
    prelude = Specialization("", "", (("Element", "float"),), (), parts).prelude().removeprefix("#pragma once\n")
    text = '#include "params.cuh"\n' + prelude
    passed = '#include "params.cuh"\n' + composition(parts)
    structs = structs_of(source.flatten("parts", virtual={"parts": passed}))
    known = {name: structs[name] for name in ("Divisor", "Tensor", "Shape", "Schedule", *PASSED, "Components")}
    known |= {x: structs[x] for part in parts if structs[x := part.component.struct].itemsize}
    known |= {f"Composed<{name}>": layout(name, parts) for name in PASSED}
    expected, code = [], []
    for struct, dtype in known.items():
        code.append(f"{{ const {struct}& x = *reinterpret_cast<const {struct}*>(4096); p.found[n++] = sizeof(x);")
        expected.append((struct, dtype.itemsize))
        for name, (_, offset, *_) in dtype.fields.items():
            member = f"static_cast<const {name}&>(x)" if name in structs else f"x.{name}"  # of a base class
            code.append(f"p.found[n++] = reinterpret_cast<const char*>(&{member}) - reinterpret_cast<const char*>(&x);")
            expected.append((f"{struct}.{name}", offset))
        code.append("}")
    text += "struct Found { int64_t* found; };\n"
    text += 'extern "C" __global__ void layout(const __grid_constant__ Found p) {\nint n = 0;\n'
    text += "\n".join([*code, "}\n"])
    arrays = {"found": np.zeros(len(expected), np.int64)}
    found = run_path(path, "layout.cu", "layout", arrays, ["found"], virtual={"layout.cu": text}, block=(1,))["found"]
    assert list(zip((name for name, _ in expected), found.tolist(), strict=True)) == expected


def test_a_kernel_reads_as_much_of_its_params_as_it_knows():
    """What is passed for kernels of several parts begins with what those of fewer are passed."""
    parts = parts_of(every_component())
    for name in PASSED:
        for count in range(len(parts)):
            fewer, all_of_them = layout(name, parts[:count]), layout(name, parts)
            assert fewer.itemsize <= all_of_them.itemsize
            for field in set(fewer.names) - {"components"}:
                assert fewer.fields[field] == all_of_them.fields[field]
            if count:
                assert fewer.fields["components"][1] == all_of_them.fields["components"][1]
                for field, (_, offset, *_) in fewer["components"].fields.items():
                    assert all_of_them["components"].fields[field][1] == offset


TYPES = {f"{sign}int{bits}_t": (bits, sign) for bits in (8, 16, 32, 64) for sign in ("", "u")}
STORAGE = """
struct alignas(ALIGNMENT) Storage { int x[32]; };
extern "C" __global__ void entry(const __grid_constant__ Shape params) { shared_storage<Storage>().x[threadIdx.x] = 1; }
"""


@pytest.mark.parametrize("path", ["host", "ptx"])
def test_the_platform_has_what_its_names_say(path):
    asserted = [f"sizeof({name}) == {bits // 8}" for name, (bits, _) in TYPES.items()]
    asserted += [f"(static_cast<{name}>(-1) < 0) == {int(sign == '')}" for name, (_, sign) in TYPES.items()]
    checks = "".join(f"static_assert({x});\n" for x in (*asserted, "kWarpSize == 32"))

    def code(alignment):
        text = '#include "params.cuh"\n' + checks + STORAGE.replace("ALIGNMENT", str(alignment))
        folders = (source.root() / "emulator", source.root()) if path == "host" else (source.root(),)
        text = source.flatten("check.cu", virtual={"check.cu": text}, search=folders)
        return text if path == "host" else compile.text_to_ptx(text, "check.cu", "sm_80")

    if path == "host":
        assert emulator.EmulatorModule(code(1024)).entries == ("entry",)
        with pytest.raises(emulator.ToolchainError, match="shared memory is 1024-byte aligned"):
            emulator.EmulatorModule(code(2048))
    else:
        pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs CuPy and NVRTC")
        assert ".extern .shared .align 1024" in code(1024)
        with pytest.raises(compile.CompileError, match="shared memory is 1024-byte aligned"):
            code(2048)


MUTANTS = {
    "forward: tiles reused before all have read them": (
        "simt/forward.cu", "__syncthreads();  // the tiles' last readers are done", "", {"shared_race"}),
    "forward: K read before it is written": (
        "simt/forward.cu", "load_tile(shared.key, gK, n0, slice * kSliceD);\n      __syncthreads();",
        "load_tile(shared.key, gK, n0, slice * kSliceD);", {"shared_race", "uninitialised"}),
    "forward: V overwrites K": (
        "simt/forward.cu", "__syncthreads();  // K's, then the previous slice's, readers are done; P is written", "",
        {"shared_race"}),
    "forward: one row too many": (
        "attention/matrix.cuh", "row >= row_begin && row < rows", "row >= row_begin && row <= rows", {"out_of_bounds"}),
    "forward: divergent barrier": (
        "simt/forward.cu", "__syncthreads();  // the tiles' last readers are done",
        "if (threadIdx.x < 64) __syncthreads();", {"barrier_divergence"}),
    "forward: every block writes the first rows": (
        "simt/forward.cu", "store_row(g, m0 + row_of<kRows>(i), ", "store_row(g, row_of<kRows>(i), ", {"global_race"}),
    "forward: a row's statistics written while they are read": (
        "simt/forward.cu", "__syncwarp();  // all lanes of a row have read its statistics", "", {"global_race"}),
    "forward: misaligned vectors": (
        "simt/tile.cuh", "g.at(row0 + row, col0 + col));", "g.at(row0 + row, col0 + col) + 1);",
        {"misaligned"}),
    "backward: P published without a barrier": (
        "simt/backward_tiles.cuh", "    for (int j = 0; j < kCols; ++j) *shared.p.at(row_of<kRows>(i), col_of(j)) = "
        "p[i][j];\n  }\n  __syncthreads();", "    for (int j = 0; j < kCols; ++j) *shared.p.at(row_of<kRows>(i), "
        "col_of(j)) = p[i][j];\n  }", {"shared_race", "uninitialised"}),
    "backward: dQ added without atomics": (
        "simt/backward_dkdv.cu", "atomicAdd(gDq.at(row, col), acc_dq[i][j]);",
        "*gDq.at(row, col) += acc_dq[i][j];", {"global_race"}),
}  # fmt: skip


def run_checked(replan):
    q, k, v, dout, _ = dataclasses.replace(RAGGED, sq=130, heads_k=2).arrays()
    with emulator.settings(mode="checked"):
        _, vjp = flash_attention_vjp(q, k, v, backend="emulator")
        vjp(dout)
        with replan(plan_forward=functools.partial(plan_forward, num_spans=3)):
            flash_attention(q, k, v, backend="emulator")


@pytest.mark.slow  # plain tests ask small kernels for what the checker finds (emulator/test_detectors.py)
@pytest.mark.parametrize("name", MUTANTS)
def test_seeded_bugs_in_the_kernels_are_caught(name, mutate, replan):
    file, old, new, kinds = MUTANTS[name]
    run_checked(replan)
    mutate(file, old, new)
    with pytest.raises(EmulatorError) as raised:
        run_checked(replan)
    error = raised.value
    assert error.kernel == ("attention_dkdv" if name.startswith("backward") else "attention_forward")
    assert error.kind in kinds, error
    assert error.sites and error.threads
    assert all(str(site) in str(error) for site in error.sites)
