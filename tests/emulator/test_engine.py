"""The emulator itself: what threads see, schedules, limits, counts, errors and reports."""

import ctypes
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emulated
import numpy as np
import pytest
from emulated import line_of

from cupy_flash import emulator
from cupy_flash._src import source
from cupy_flash._src.emulator import engine
from cupy_flash.emulator import Bytes, EmulatorError

HEADER = """
#include "platform.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"
"""


def kernel(params, body, *, shared="int unused", threads=1024):
    """A kernel with this body: `s` is its shared memory, `t` the linear thread index, `p` the parameters."""
    return f"""{HEADER}
struct Params {{ {params}; }};
struct Storage {{ {shared}; }};
extern "C" __global__ void __launch_bounds__({threads}) kernel(const __grid_constant__ Params p) {{
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  (void)s;
{body}
}}
"""


def failure(source, arguments, **options):
    with pytest.raises(EmulatorError) as raised:
        emulated.run(source, arguments, **options)
    return raised.value


# ---- what a thread sees
def test_threads_and_blocks_know_who_they_are():
    body = """
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned n = blockDim.x * blockDim.y * blockDim.z;
    unsigned* out = p.out + 6 * (block * n + t);
    out[0] = threadIdx.x; out[1] = threadIdx.y; out[2] = threadIdx.z;
    out[3] = blockIdx.x; out[4] = blockIdx.y; out[5] = blockIdx.z;"""
    block, grid = (5, 3, 4), (3, 2, 4)
    out = np.empty((24, 60, 6), np.uint32)
    emulated.run(kernel("unsigned* out", body), {"out": out}, grid=grid, block=block, mode="checked")
    for column, sizes in ((0, block), (3, grid)):
        z, y, x = np.unravel_index(np.arange(np.prod(sizes)), sizes[::-1])
        seen = out[0, :, :3] if column == 0 else out[:, 0, 3:]
        np.testing.assert_array_equal(seen, np.stack([x, y, z], axis=-1))


def test_shared_memory_starts_as_nan_in_every_block():
    out = np.zeros(96, np.float32)
    source = kernel("float* out", "p.out[blockIdx.x * 32 + t] = s.x[t]; s.x[t] = 1.0f;", shared="float x[32]")
    emulated.run(source, {"out": out}, grid=(3,), shared=128)
    assert np.isnan(out).all()


def test_a_partial_warp_meets_in_collectives():
    body = """
    p.out[t] = ptx::shfl_xor(static_cast<float>(t), 1);
    p.votes[3 * t] = ptx::ballot(t % 3 == 0);
    p.votes[3 * t + 1] = ptx::all(t >= 32);
    p.votes[3 * t + 2] = ptx::any(t == 39);"""
    out, votes = np.empty(40, np.float32), np.empty((40, 3), np.uint32)
    source = kernel("float* out; uint32_t* votes", body)
    emulated.run(source, {"out": out, "votes": votes}, outputs=("out", "votes"), block=(40,))
    np.testing.assert_array_equal(out, np.arange(40) ^ 1)
    ballots = [sum(1 << lane for lane in range(32) if (32 * warp + lane) % 3 == 0) for warp in (0, 1)]
    assert (votes[:32] == [ballots[0], 0, 0]).all()
    assert (votes[32:] == [ballots[1] & 0xFF, 1, 1]).all()


def test_the_last_thread_of_a_block_has_a_stack_as_well():
    body = """
    volatile int local[50000];
    for (int i = 49999; i >= 0; i -= 1000) local[i] = t + i;
    p.out[t] = local[49999] + local[999];"""
    out = np.zeros(1024, np.int32)
    emulated.run(kernel("int* out", body), {"out": out}, block=(1024,))
    np.testing.assert_array_equal(out, 2 * np.arange(1024) + 49999 + 999)


def test_there_are_sixteen_barriers():
    header = HEADER + '#include "ptx/barrier.cuh"\n'
    source = kernel("int* out; int id", "ptx::barrier_sync(p.id, 64); p.out[t] = p.id;").replace(HEADER, header)
    out = np.zeros(64, np.int32)
    for id in range(16):
        emulated.run(source, {"out": out, "id": np.int32(id)}, block=(64,))
        assert (out == id).all()
    error = failure(source, {"out": out, "id": np.int32(16)}, block=(64,))
    assert error.kind == "barrier"
    assert "barrier 16" in str(error) and "0 to 15" in str(error)


def test_a_python_thread_takes_its_machine_along():
    def mappings():
        return Path("/proc/self/maps").read_text().count("\n")

    def launch():
        out = np.zeros(512, np.int32)
        emulated.run(kernel("int* out", "p.out[t] = t;"), {"out": out}, block=(512,))

    launch()
    before = mappings()
    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(launch).result()
    for _ in range(1000):  # a thread that has been joined may still be ending
        if mappings() < before + 500:  # a machine has more than 1000
            break
        time.sleep(0.01)
    assert mappings() < before + 500


# ---- schedules
TICKETS = kernel("int* out; int* next", "p.out[blockIdx.x * blockDim.x + t] = atomicAdd(p.next, 1);")


def order(**settings):
    out, following = np.empty(192, np.int32), np.zeros(1, np.int32)
    arguments = {"out": out, "next": following}
    emulated.run(TICKETS, arguments, outputs=("out", "next"), grid=(3,), block=(64,), **settings)
    np.testing.assert_array_equal(np.sort(out), np.arange(192))
    return out


def test_without_a_seed_blocks_and_threads_run_in_order():
    np.testing.assert_array_equal(order(), np.arange(192))


def test_a_seed_draws_an_order_and_repeats_it():
    orders = [tuple(order(seed=seed)) for seed in range(4)]
    assert len({*orders, tuple(range(192))}) == 5
    assert orders == [tuple(order(seed=seed, mode="checked")) for seed in range(4)]
    for seed in range(4):
        steps = np.diff(np.reshape(orders[seed], (3, 64)))
        assert (steps != 1).any(axis=1).all(), f"seed {seed}: the threads of a block keep their order"
    first_tickets = [np.reshape(o, (3, 64)).min(axis=1).argsort().tolist() for o in orders]
    assert any(blocks != [0, 1, 2] for blocks in first_tickets), "blocks keep their order"


def test_preemption_changes_what_unordered_threads_see():
    body = "s.x[t] = p.out[t]; p.out[t] = s.x[t]; p.out[t] = atomicAdd(p.next, 1);"
    source = kernel("int* out; int* next", body, shared="int x[64]")

    def tickets(preempt, seed):
        arguments = {"out": np.zeros(64, np.int32), "next": np.zeros(1, np.int32)}
        settings = {"mode": "checked", "seed": seed, "preempt": preempt}
        emulated.run(source, arguments, outputs=("out", "next"), block=(64,), shared=256, **settings)
        return tuple(arguments["out"])

    assert tickets(2, seed=1) == tickets(2, seed=1)
    assert tickets(2, seed=1) != tickets(0, seed=1)
    assert tickets(2, seed=None) != tickets(0, seed=None) == tuple(range(64))


def test_python_threads_run_kernels_at_the_same_time():
    body = "s.x[t] = p.value; __syncthreads(); p.out[t] = s.x[63 - t];"
    source = kernel("float* out; float value", body, shared="float x[64]")

    def launch(value):
        out = np.zeros(64, np.float32)
        for _ in range(20):
            emulated.run(source, {"out": out, "value": np.float32(value)}, block=(64,), shared=256)
        return (out == value).all()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(launch, range(1, 9)))


# ---- mistakes found in every mode
MODES = pytest.mark.parametrize("mode", ["fast", "counted", "checked"])


@MODES
def test_lanes_in_different_collectives(mode):
    body = """
    float v = t;
    if (t < 16) v = ptx::shfl_xor(v, 1);
    else v = ptx::shfl_xor(v, 2);
    p.out[t] = v;"""
    source = kernel("float* out", body)
    error = failure(source, {"out": np.zeros(32, np.float32)}, mode=mode)
    assert error.kind == "divergence"
    first, second = (source.splitlines().index(line) + 1 for line in source.splitlines() if "shfl_xor" in line)
    assert {site.line for site in error.sites} == {first, second}
    assert error.threads == (0, 16)


@MODES
def test_lanes_that_do_not_come(mode):
    source = kernel("float* out", "if (t == 7) return; p.out[t] = ptx::shfl_xor(1.0f, 1);")
    error = failure(source, {"out": np.zeros(64, np.float32)}, block=(64,), mode=mode)
    assert error.kind == "deadlock"
    assert "threads 7, 32-63 have returned" in str(error)
    assert "threads 0-6, 8-31 wait in shfl.bfly" in str(error)
    assert error.threads == tuple(i for i in range(32) if i != 7)


@MODES
def test_spinning_for_something_that_never_happens(mode):
    source = kernel("int* out", "if (t < 2) while (atomicAdd(p.out, 0) == 0) {}")
    error = failure(source, {"out": np.zeros(1, np.int32)}, mode=mode)
    assert error.kind == "deadlock"


@MODES
def test_spinning_for_another_thread_ends(mode):
    source = kernel("int* out", "if (t == 0) while (atomicAdd(p.out, 0) < 31) {} else atomicAdd(p.out, 1);")
    out = np.zeros(1, np.int32)
    emulated.run(source, {"out": out}, mode=mode)
    assert out[0] == 31


@MODES
def test_trap(mode):
    error = failure(kernel("int* out", "if (t == 5) __trap();"), {"out": np.zeros(1, np.int32)}, mode=mode)
    assert (error.kind, error.threads, error.block) == ("trap", (5,), (0, 0, 0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block": (1025,)}, "1025"),
        ({"block": (0,)}, "1 to 1024 threads"),
        ({"grid": (1, 65536)}, "65535"),
        ({"shared": 228 * 1024}, "232448"),
    ],
)
def test_launches_that_a_device_refuses(changes, words):
    error = failure(kernel("int* out", ""), {"out": np.zeros(1, np.int32)}, **changes)
    assert error.kind == "launch"
    assert words in str(error)


def test_parameters_of_the_wrong_size():
    error = failure(kernel("int* out; int* more", ""), {"out": np.zeros(1, np.int32)})
    assert error.kind == "launch"
    assert "8 bytes: the kernel's argument has 16" in str(error)


def test_of_longer_parameters_a_kernel_has_the_first():
    out, more = np.zeros(32, np.int32), np.zeros(32, np.int32)
    emulated.run(kernel("int* out", "p.out[t] = t;"), {"out": out, "more": more}, outputs=("out", "more"))
    np.testing.assert_array_equal(out, np.arange(32))
    assert not more.any()


def test_the_engine_is_well_after_an_error():
    for _ in range(3):
        failure(kernel("int* out", "if (t == 5) __trap(); __syncthreads();"), {"out": np.zeros(1, np.int32)})
        np.testing.assert_array_equal(order(), np.arange(192))


@MODES
@pytest.mark.parametrize("nbytes", [512, 504])
def test_matrices_end_with_shared_memory(mode, nbytes):
    body = """
    for (int i = t; i < p.words; i += 32) s.x[i] = i;
    __syncwarp();
    uint32_t r[4];
    ptx::ldmatrix_x4(r, ptx::shared_address(s.x + 4 * t));  // here
    p.out[t] = r[3];"""
    source = kernel("uint32_t* out; int words", body, shared="alignas(16) uint32_t x[128]")
    source = source.replace(HEADER, HEADER + '#include "ptx/ldmatrix.cuh"\n#include "ptx/shared.cuh"\n')
    arguments = {"out": np.zeros(32, np.uint32), "words": np.int32(nbytes // 4)}
    if nbytes == 512:
        emulated.run(source, arguments, shared=nbytes, mode=mode)
        np.testing.assert_array_equal(arguments["out"], 96 + np.arange(32))
    else:
        error = failure(source, arguments, shared=nbytes, mode=mode)
        assert error.kind == "out_of_bounds"
        assert "16 bytes at shared+496" in str(error)
        assert [site.line for site in error.sites] == [line_of(source, "// here")]


def test_lanes_in_different_files():
    """The same line of two files is not the same place."""
    part = "#pragma once\n__device__ inline int {name}(int v) {{ return ptx::shfl_xor(v, 1); }}\n"
    source = kernel("int* out", "p.out[t] = t < 16 ? first(t) : second(t);")
    source = source.replace(HEADER, HEADER + '#include "first.cuh"\n#include "second.cuh"\n')
    files = {f"{name}.cuh": part.format(name=name) for name in ("first", "second")}
    text = emulated.flatten(
        "kernel.cu", virtual={"kernel.cu": source, **files}, search=[emulated.root() / "emulator", emulated.root()]
    )
    out = np.zeros(32, np.int32)
    buffer = emulator.Buffer("out", out.ctypes.data, out.nbytes, True)
    with pytest.raises(EmulatorError) as raised:
        emulator.launch(text, "kernel", (1,), (32,), emulated.pack({"out": out}), 0, [buffer])
    assert raised.value.kind == "divergence"
    assert {(site.file, site.line) for site in raised.value.sites} == {("first.cuh", 2), ("second.cuh", 2)}


# ---- mistakes that only the checked mode finds
def checked(params, body, arguments, **options):
    shared = options.pop("storage", "int x[64]")
    return failure(kernel(params, body, shared=shared), arguments, mode="checked", **options)


def test_writes_to_a_read_only_buffer():
    error = checked("float* in", "p.in[t] = 0.0f;", {"in": np.zeros(32, np.float32)})
    assert error.kind == "read_only"
    assert "in+0" in str(error)


def test_undefined_behaviour():
    error = checked("int* out; int by", "p.out[t] = 1 << p.by;", {"out": np.zeros(32, np.int32), "by": np.int32(40)})
    assert error.kind == "undefined"
    assert "shift" in str(error)


def test_a_plain_read_races_with_an_atomic():
    error = checked(
        "int* out",
        "if (t == 0) atomicAdd(p.out, 1); else p.out[t] = p.out[0];",
        {"out": np.zeros(32, np.int32)},
    )
    assert error.kind == "global_race"
    assert error.threads == (0, 1)


def test_a_block_reads_what_another_writes():
    error = checked(
        "int* out",
        "p.out[blockIdx.x] = p.out[1 - blockIdx.x];",
        {"out": np.zeros(2, np.int32)},
        grid=(2,),
        block=(1,),
    )
    assert error.kind == "global_race"
    assert re.search("by thread 0 of another block", str(error))
    assert error.block == (1, 0, 0)


def test_lanes_of_one_warp_race_without_syncwarp():
    body = "s.x[t] = t; SYNC p.out[t] = s.x[t ^ 1];"
    arguments = {"out": np.zeros(32, np.int32)}
    error = checked("int* out", body.replace("SYNC", ""), arguments, shared=256, seed=3)
    assert error.kind in ("shared_race", "uninitialised")
    fixed = kernel("int* out", body.replace("SYNC", "__syncwarp();"), shared="int x[64]")
    emulated.run(fixed, arguments, shared=256, mode="checked", seed=3)


def test_neighbouring_halves_of_a_word_do_not_race():
    body = "s.h[t] = t; s.h[t] = s.h[t] + 1; p.out[t] = s.h[t];"
    source = kernel("uint16_t* out", body, shared="uint16_t h[64]")
    out = np.zeros(64, np.uint16)
    emulated.run(source, {"out": out}, block=(64,), shared=128, mode="checked", seed=1, preempt=2)
    np.testing.assert_array_equal(out, np.arange(64) + 1)


def test_a_view_that_spans_gigabytes():
    nbytes = 16 << 30
    address = emulated.reserve(nbytes)
    source = kernel("float* out; int64_t last", "if (t < 2) p.out[t * p.last] = 1.0f + t;")
    buffer = emulator.Buffer("out", address, nbytes, True)
    text = emulated.host_source(source)

    def launch(last):
        params = emulated.pack({"out": np.uint64(address), "last": np.int64(last)})
        return emulator.launch(text, "kernel", (1,), (32,), params, 0, [buffer])

    with emulator.settings(mode="checked"):
        report = launch(nbytes // 4 - 1)
        assert report.bytes_written == 8
        with pytest.raises(EmulatorError, match=re.escape(f"out+{nbytes} (a buffer of {nbytes} bytes)")):
            launch(nbytes // 4)


def test_places_of_one_launch_are_not_those_of_the_next():
    body = """
    if (p.n == 1) atomicAdd(p.out + 1, 1);
    atomicAdd(p.out + 2 * p.n, 1);  // here"""
    source, out = kernel("int* out; int n", body), np.zeros(2, np.int32)
    emulated.run(source, {"out": out, "n": np.int32(0)}, mode="checked")
    error = failure(source, {"out": out, "n": np.int32(1)}, mode="checked")
    assert error.kind == "out_of_bounds"
    assert [site.line for site in error.sites] == [line_of(source, "// here")]


def test_a_vector_across_two_buffers():
    memory = emulated.aligned(8, np.int32)
    arguments = {"out": memory[:3], "in": memory[3:], "n": np.int32(0)}
    body = "if (t == 0) ptx::store_global(p.out + 2 * p.n, ptx::load_global<2>(p.out + 2));"
    source = kernel("int* out; const int* in; int n", body)
    memory[2:4] = 5, 6
    emulated.run(source, arguments, mode="checked")
    assert memory.tolist() == [5, 6, 5, 6, 0, 0, 0, 0]
    error = failure(source, arguments | {"n": np.int32(1)}, mode="checked")
    assert error.kind == "read_only"
    assert "write of in+0" in str(error)


def test_a_structure_is_copied_by_parts():
    """Each of its bytes is an access."""
    body = """
    struct Part { uint8_t bytes[27]; };
    Part* to = reinterpret_cast<Part*>(p.out);
    const Part* from = reinterpret_cast<const Part*>(p.in);
    if (t < p.n) to[t] = from[t];"""
    source = kernel("uint8_t* out; const uint8_t* in; int n", body)
    data, out = np.arange(81).astype(np.uint8), np.zeros(81, np.uint8)
    arguments = {"out": out, "in": data, "n": np.int32(3)}
    report = emulated.run(source, arguments, mode="checked")
    np.testing.assert_array_equal(out, data)
    assert report.buffers == {"out": Bytes(0, 81), "in": Bytes(81, 0)}
    for short in ("out", "in"):
        error = failure(source, arguments | {short: arguments[short][:-1]}, mode="checked")
        assert error.kind == "out_of_bounds"
        assert f"{short}+80" in str(error)


def test_overlapping_views_keep_their_rights():
    packed = np.zeros(64, np.float32)
    source = kernel("const float* in; float* out", "p.out[2 * t] = p.in[2 * t] + 1.0f;")
    arguments = {"in": packed[1:], "out": packed[:63]}
    report = emulated.run(source, arguments, mode="checked")
    np.testing.assert_array_equal(packed[::2], 1)
    np.testing.assert_array_equal(packed[1::2], 0)
    assert report.bytes_read == report.bytes_written == 128


def test_an_error_names_the_included_file():
    helper = "#pragma once\n__device__ inline void put(float* p, int i) {\n  p[i] = 1.0f;\n}\n"
    text = emulated.flatten(
        "kernel.cu",
        virtual={
            "kernel.cu": kernel("float* out", "put(p.out, t);").replace(
                HEADER, HEADER + '#include "part/helper.cuh"\n'
            ),
            "part/helper.cuh": helper,
        },
        search=[emulated.root() / "emulator", emulated.root()],
    )
    out = np.zeros(31, np.float32)
    buffer = emulator.Buffer("out", out.ctypes.data, out.nbytes, True)
    with emulator.settings(mode="checked"), pytest.raises(EmulatorError) as raised:
        emulator.launch(text, "kernel", (1,), (32,), emulated.pack({"out": out}), 0, [buffer])
    assert str(raised.value.sites[0]) == "part/helper.cuh:3 from kernel.cu:13"
    assert raised.value.threads == (31,)


# ---- counts
CONFLICTS = [  # element type, elements read together, distance between lanes in elements, extra wavefronts
    ("float", 1, 1, 0),
    ("float", 1, 0, 0),
    ("float", 1, 2, 1),
    ("float", 1, 8, 7),
    ("float", 1, 32, 31),
    ("float", 1, 33, 0),
    ("float", 2, 2, 0),
    ("float", 2, 4, 2),
    ("float", 4, 4, 0),
    ("float", 4, 8, 4),
    ("float", 4, 32, 4 * 7),
    ("float", 4, 36, 0),
    ("double", 1, 1, 0),
    ("double", 1, 2, 2),
    ("uint16_t", 1, 1, 0),
    ("uint16_t", 1, 2, 0),
    ("uint16_t", 8, 8, 0),
]


MATRICES = [  # instruction, elements from row to row, extra wavefronts of four matrices
    (call, pitch, extra) for call in ("ldmatrix", "stmatrix") for pitch, extra in ((8, 0), (64, 28), (72, 0), (16, 4))
]
CONFLICT_HEADER = f"""{HEADER}
#include "ptx/ldmatrix.cuh"
#include "ptx/shared.cuh"
#include "ptx/stmatrix.cuh"
struct Params {{ float* out; }};
template <class T> __device__ T* filled() {{
  T* x = &shared_storage<T>();
  for (int i = threadIdx.x; i < 2304; i += 32) x[i] = 0;
  __syncwarp();
  return x;
}}
"""
CONFLICT_KERNEL = """
extern "C" __global__ void __launch_bounds__(32) {name}(const __grid_constant__ Params p) {{
  const int t = threadIdx.x;
  {body}
}}
"""


def conflict_kernels():
    """All in one source: it is compiled once."""
    bodies = {}
    for i, (element, together, distance, _) in enumerate(CONFLICTS):
        bodies[f"lanes_{i}"] = f"""
  const auto v = ptx::load_shared<{together}>(filled<{element}>() + {distance} * t);  // lanes_{i}!
  p.out[t] = static_cast<float>(v[0]);"""
    for i, (call, pitch, _) in enumerate(MATRICES):
        bodies[f"matrix_{i}"] = f"""
  uint32_t r[4] = {{}};
  const uint32_t row = ptx::shared_address(filled<uint16_t>() + {pitch} * t);
  ptx::{call}_x4({"r, row" if call == "ldmatrix" else "row, r"});  // matrix_{i}!
  p.out[t] = r[0];"""
    return CONFLICT_HEADER + "".join(CONFLICT_KERNEL.format(name=name, body=body) for name, body in bodies.items())


@pytest.mark.parametrize(
    ("entry", "extra"),
    [
        *((f"lanes_{i}", extra) for i, (*_, extra) in enumerate(CONFLICTS)),
        *((f"matrix_{i}", extra) for i, (*_, extra) in enumerate(MATRICES)),
    ],
)
def test_bank_conflicts(entry, extra):
    """Expected counts follow from 32 banks of 4 bytes and one transaction for 128 bytes."""
    source = conflict_kernels()
    arguments = {"out": np.zeros(32, np.float32)}
    report = emulated.run(source, arguments, entry=entry, shared=2304 * 8, mode="counted")
    line = line_of(source, f"// {entry}!")
    (counted,) = (c for c in report.conflicts if c.site.line == line)
    assert counted.instructions == (4 if entry.startswith("matrix") else 1)
    assert counted.wavefronts == extra


@pytest.mark.parametrize(
    ("offset", "barrier", "kind"),
    [(0, "__syncthreads", None), (2, "__syncthreads", "misaligned"), (0, "__syncwarp", "shared_race")],
)
def test_stmatrix_is_a_store(offset, barrier, kind):
    body = f"""
    const uint32_t r[1] = {{0x10000u * t}};
    ptx::stmatrix_x1(ptx::shared_address(s.x + t / 32 * 64 + t % 8 * 8) + {offset}, r);
    {barrier}();
    p.out[t] = s.x[127 - 2 * t];"""
    source = kernel("uint32_t* out", body, shared="alignas(16) uint16_t x[128]", threads=64)
    source = source.replace(HEADER, HEADER + '#include "ptx/shared.cuh"\n#include "ptx/stmatrix.cuh"\n')
    arguments = {"out": np.zeros(64, np.uint32)}
    options = {"block": (64,), "shared": 256, "mode": "checked"}
    if kind:
        assert failure(source, arguments, **options).kind == kind
    else:
        emulated.run(source, arguments, **options)
        np.testing.assert_array_equal(arguments["out"], 63 - np.arange(64))


def test_bytes_are_counted_by_buffer():
    body = """
    const auto v = ptx::load_global<4>(p.in + 4 * t);
    atomicAdd(p.sum, v[0]);
    p.out[t] = v[1];
    if (t < 3) p.some[t] = p.some[t] * 2;"""
    source = kernel("const float* in; float* out; float* sum; double* some", body)
    arguments = {
        "in": emulated.aligned(128, np.float32),
        "out": np.zeros(32, np.float32),
        "sum": np.zeros(1, np.float32),
        "some": np.zeros(3),
    }
    for mode in ("counted", "checked"):
        report = emulated.run(source, arguments, outputs=("out", "sum", "some"), mode=mode)
        assert report.buffers == {
            "in": Bytes(512, 0),
            "out": Bytes(0, 128),
            "sum": Bytes(0, 128),
            "some": Bytes(24, 24),
        }
        assert (report.bytes_read, report.bytes_written) == (512 + 24, 128 + 128 + 24)


# ---- reports and settings
def test_a_run_gathers_its_launches():
    with emulator.settings(mode="counted"), emulator.run():
        for _ in range(2):
            order()
        failure(kernel("int* out", "__trap();"), {"out": np.zeros(1, np.int32)})
    report = emulator.last_run()
    assert [launch.kernel for launch in report.launches] == ["kernel", "kernel"]
    assert report.total("atomics") == 2 * 192
    assert report.total("bytes_written") == 2 * 2 * 192 * 4
    order()
    assert len(emulator.last_run().launches) == 1
    with pytest.raises(ValueError, match="not counted in mode 'fast'"):
        emulator.last_run().total("bytes_read")


@pytest.mark.parametrize(
    "wrong", [{"mode": "slow"}, {"path": "sass"}, {"arithmetic": "none"}, {"seed": -1}, {"preempt": -1}]
)
def test_settings_name_what_is_wrong(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}"), emulator.settings(**wrong):
        pass


def test_settings_nest_and_end():
    with emulator.settings(mode="checked"):
        with emulator.settings(seed=3):
            assert emulator.current() == emulator.Settings(mode="checked", seed=3)
        assert emulator.current().seed is None
    assert emulator.current() == emulator.Settings()


def test_a_source_without_kernels():
    with pytest.raises(ValueError, match="no extern"):
        emulator.EmulatorModule("int x;")
    with pytest.raises(ValueError, match="entry is 'other'"):
        emulated.run(TICKETS, {"out": np.zeros(1, np.int32)}, entry="other")


def test_python_and_the_engine_agree_on_the_structs_between_them():
    structs = {
        "EmulatorBuffer": engine.BufferStruct, "EmulatorLaunch": engine.LaunchStruct,
        "EmulatorSite": engine.SiteStruct, "EmulatorConflict": engine.ConflictStruct,
        "EmulatorBytes": engine.BytesStruct, "EmulatorResult": engine.ResultStruct,
    }  # fmt: skip
    checks = []
    for name, struct in structs.items():
        checks.append(f'static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "");')
        checks += [
            f'static_assert(__builtin_offsetof({name}, {field}) == {getattr(struct, field).offset}, "{field}");'
            for field, *_ in struct._fields_
        ]
    entry = 'extern "C" __global__ void entry(const __grid_constant__ EmulatorBytes params) {}'
    text = "\n".join(['#include "platform.cuh"', '#include "launch.h"', *checks, entry])
    whole = source.flatten("check.cu", virtual={"check.cu": text}, search=(source.root() / "emulator", source.root()))
    assert emulator.EmulatorModule(whole).entries == ("entry",)
    with pytest.raises(emulator.ToolchainError, match="static assertion failed"):
        emulator.EmulatorModule(whole.replace("sizeof(EmulatorResult) ==", "sizeof(EmulatorResult) + 8 =="))
