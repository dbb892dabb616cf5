"""Each mistake that the checked mode is for, by both paths: found where it is made, and no alarm for its legal twin."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import emulated
import numpy as np
import pytest
from emulator.both_paths import cpp_of

from cupy_flash import emulator
from cupy_flash.emulator import Bytes, EmulatorError

PATHS = pytest.mark.parametrize("path", ["host", "ptx"])
KERNELS = """
#include "platform.cuh"
#include "ptx/barrier.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/memory.cuh"
#include "ptx/shared.cuh"
struct Params { int* a; const int* b; int legal, n; };
struct Storage { alignas(16) int x[256]; };
"""
# `s` is shared memory, `t` the thread, `p` the parameters: `a` to write to, `b` to read, and whether to do it right.
KERNEL = """extern "C" __global__ void __launch_bounds__(128) {name}(const __grid_constant__ Params p) {{
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x;
  (void)s, (void)t;
{body}
}}
"""


class Case(NamedTuple):
    """A kernel and what is found when p.legal is 0, on lines marked `// here`."""

    kind: str
    body: str
    threads: Callable | None = None  # of p.n
    words: Callable = lambda n: ""
    values: tuple[int, ...] = (0,)  # of p.n
    block: int = 64
    grid: int = 1


COPY = "ptx::cp_async_16(ptx::shared_address(s.x + {0} + 4 * t), p.b + {0} + 4 * t, 16); ptx::cp_async_commit();"
COPY_TWO = f"""
  {COPY.format(0)}  // here
  {COPY.format(128)}  // here"""

CASES = {
    # All have read the word; one warp, or lane, does not come to where the writer waits, a neighbour of it.
    "readers_of_shared_memory": Case(
        "shared_race",
        """
  if (t == 0) s.x[5] = 7;
  __syncthreads();
  p.a[t] = s.x[5];  // here
  if (p.legal || t / 32 != p.n) ptx::barrier_sync(1, p.legal ? 128 : 96);
  if (t == (p.n + 1) % 4 * 32) s.x[5] = t;  // here""",
        lambda n: (126 if n == 3 else 32 * n + 31, (n + 1) % 4 * 32),  # 127, last at the barrier, goes on first
        *(lambda n: "write of shared+20", range(4), 128),
    ),
    "readers_of_global_memory": Case(
        "global_race",
        """
  const int read = p.a[40];  // here
  p.a[t] = read;
  if (p.legal) __syncwarp();
  else if (t != p.n) __syncwarp(~(1u << p.n));
  if (t == (p.n + 1) % 32) p.a[40] = t;  // here""",
        *(lambda n: (n, (n + 1) % 32), lambda n: "write of a+160", (0, 1, 5, 30, 31), 32),
    ),
    "a_reader_in_another_block": Case(
        "global_race",
        """
  if (!p.legal || blockIdx.x == 1) p.a[64 * blockIdx.x + t] = p.a[160];  // here
  __syncthreads();
  if (blockIdx.x == 1 && t == 9) p.a[160] = t;  // here""",
        *(lambda n: (0, 9), lambda n: "another block (number 0)"),
        grid=2,
    ),
    "a_reader_of_the_other_byte": Case(
        "global_race",
        """
  int8_t* bytes = reinterpret_cast<int8_t*>(p.a + 64);
  if (t == 0) p.a[0] = bytes[0];  // here
  if (t == 1) bytes[1] = 1;
  if (p.legal) __syncthreads();
  if (t == 2) bytes[0] = 1;  // here""",
        *(lambda n: (0, 2), lambda n: "write of a+256"),
    ),
    "two_writers_of_shared_memory": Case(
        "shared_race",
        """
  if (t == 3) s.x[8] = t;  // here
  if (p.legal) __syncthreads();
  if (t == 40) s.x[8] = t;  // here""",
        *(lambda n: (3, 40), lambda n: "write of shared+32"),
    ),
    "two_writers_of_one_byte": Case(
        "shared_race",
        """
  reinterpret_cast<uint8_t*>(s.x)[p.legal ? t : t / 2] = t;  // here""",
        *(lambda n: (0, 1), lambda n: "write of shared+0"),
    ),
    "a_writer_then_readers": Case(
        "shared_race",
        """
  s.x[t] = t;  // here
  if (p.legal) __syncthreads();
  p.a[t] = s.x[t & 32];  // here""",
        lambda n: (0, 1),
    ),
    "an_atomic_then_a_write": Case(
        "shared_race",
        """
  if (t == 0) s.x[0] = 0;
  __syncthreads();
  if (t < 2) atomicAdd(s.x, 1);  // here
  if (p.legal) __syncthreads();
  if (t == 2) s.x[0] = t;  // here""",
        lambda n: (1, 2),
    ),
    "a_read_then_an_atomic": Case(
        "shared_race",
        """
  if (t == 0) s.x[0] = 0;
  __syncthreads();
  if (t == 33) p.a[0] = s.x[0];  // here
  if (p.legal) __syncthreads();
  if (t == 34) atomicAdd(s.x, 1);  // here""",
        lambda n: (33, 34),
    ),
    # All have added before the last of them reads.
    "atomics_then_a_read": Case(
        "global_race",
        """
  if (t < 5) atomicAdd(p.a, 1);  // here
  if (p.legal) __syncthreads();
  if (t == 4) p.a[t] = p.a[0];  // here""",
        *(lambda n: (0, 4), lambda n: "read of a+0 "),
    ),
    "an_atomic_then_a_write_to_global_memory": Case(
        "global_race",
        """
  if (t == 1) atomicAdd(p.a, 1);  // here
  if (p.legal) __syncthreads();
  if (t == 2) p.a[0] = 1;  // here""",
        *(lambda n: (1, 2), lambda n: "after the atomic by thread 1"),
    ),
    "blocks_write_one_word": Case(
        "global_race",
        """
  p.a[p.legal ? 64 * blockIdx.x + t : t] = t;  // here""",
        *(lambda n: (0, 0), lambda n: "another block (number 0)"),
        grid=2,
    ),
    "a_copy_read_before_the_wait": Case(
        "async_copy",
        f"""
  {COPY.format(0)}  // here
  if (p.legal) ptx::cp_async_wait<0>();
  p.a[t] = s.x[4 * t + p.n];  // here
  ptx::cp_async_wait<0>();""",
        *(lambda n: (0, 0), lambda n: f"read of shared+{4 * n} ", range(4), 32),
    ),
    "a_copy_overwritten_before_the_wait": Case(
        "async_copy",
        f"""
  {COPY.format(0)}  // here
  if (p.legal) ptx::cp_async_wait<0>();
  s.x[4 * t + 3] = t;  // here
  ptx::cp_async_wait<0>();
  p.a[t] = s.x[4 * t + 3];""",
        *(lambda n: (0, 0), lambda n: "write of shared+12 "),
        block=32,
    ),
    # wait<1> ends the older of two.
    "a_wait_for_the_wrong_group": Case(
        "async_copy",
        f"""{COPY_TWO}
  ptx::cp_async_wait<1>();
  p.a[t] = s.x[(p.legal ? 0 : 128) + 4 * t];  // here
  ptx::cp_async_wait<0>();""",
        *(lambda n: (0, 0), lambda n: "read of shared+512 "),
        block=32,
    ),
    "a_wait_before_the_commit": Case(
        "async_copy",
        f"""
  {COPY.format(0).replace("ptx::cp_async_commit();", "")}  // here
  if (p.legal) ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  p.a[t] = s.x[4 * t];  // here
  ptx::cp_async_wait_all();""",
        lambda n: (0, 0),
        block=32,
    ),
    "a_copy_never_waited_for": Case(
        "async_copy",
        f"""{COPY_TWO}
  if (p.legal) ptx::cp_async_wait<0>();
  else ptx::cp_async_wait<1>();""",
        *(lambda n: (0,), lambda n: "thread 0 returned"),
        block=32,
    ),
    "a_copy_read_by_another_thread": Case(
        "shared_race",
        f"""
  {COPY.format(0)}  // here
  if (t >= 32) return;
  ptx::cp_async_wait<0>();
  if (p.legal) __syncwarp();
  if (t == 31) p.a[t] = s.x[4 * p.n];  // here""",
        *(lambda n: (n, 31), lambda n: f"read of shared+{16 * n} ", (0, 30), 32),
    ),
    "a_copy_to_what_another_thread_reads": Case(
        "shared_race",
        f"""
  s.x[t] = t;
  __syncthreads();
  p.a[t] = s.x[(t + 1) % 32];  // here
  if (p.legal) __syncthreads();
  if (t == 1) ptx::cp_async_4(ptx::shared_address(s.x), p.b, 4);  // here
  ptx::cp_async_wait_all();""",
        *(lambda n: (31, 1), lambda n: "write of shared+0 "),
        block=32,
    ),
    "one_byte_of_a_word": Case(
        "uninitialised",
        """
  uint8_t* bytes = reinterpret_cast<uint8_t*>(s.x + t);
  for (int i = 0; i < 4; ++i)
    if (p.legal || i == p.n) bytes[i] = i;
  p.a[t] = s.x[t];  // here""",
        *(lambda n: (0,), lambda n: f"read of shared+{n == 0:d} ", range(4)),
    ),
    "one_word_of_a_vector": Case(
        "uninitialised",
        """
  for (int i = 0; i < 4; ++i)
    if (p.legal || i != p.n) s.x[4 * t + i] = i;
  const auto v = ptx::load_shared<4>(s.x + 4 * t);  // here
  p.a[t] = v[0] + v[1] + v[2] + v[3];""",
        *(lambda n: (0,), lambda n: f"read of shared+{4 * n} ", range(4), 32),
    ),
    "an_atomic_on_nothing": Case(
        "uninitialised",
        """
  if (p.legal && t == 0) s.x[3] = 0;
  __syncthreads();
  atomicAdd(s.x + 3, 1);  // here""",
        *(lambda n: (63,), lambda n: "atomic of shared+12 "),
    ),
    "a_byte_beyond_either_end": Case(
        "out_of_bounds",
        """
  int8_t* bytes = reinterpret_cast<int8_t*>(p.a);
  if (t == 7) bytes[p.n < 0 ? (p.legal ? 0 : -1) : 1024 - p.legal] = 1;  // here""",
        lambda n: (7,),
        lambda n: "write of 1 bytes at a" + ("-1 " if n < 0 else "+1024 "),
        (-1, 1),
    ),
    "a_read_beyond_either_end": Case(
        "out_of_bounds",
        """
  const int8_t* bytes = reinterpret_cast<const int8_t*>(p.b);
  if (t == 7) p.a[t] = bytes[p.n < 0 ? (p.legal ? 0 : -1) : 1024 - p.legal];  // here""",
        lambda n: (7,),
        lambda n: "read of 1 bytes at b" + ("-1 " if n < 0 else "+1024 "),
        (-1, 1),
    ),
    "a_vector_across_the_end": Case(
        "out_of_bounds",
        """
  if (t != 1) return;
  const auto v = ptx::load_global<2>(p.b + (p.legal ? 254 : 256 - p.n));  // here
  p.a[t] = v[0] + v[1];""",
        *(lambda n: (1,), lambda n: f"read of 8 bytes at b+{1024 - 4 * n} ", (0, 1)),
    ),
    "a_byte_beyond_shared_memory": Case(
        "out_of_bounds",
        """
  if (t == 2) reinterpret_cast<int8_t*>(s.x)[1024 - p.legal] = 1;  // here""",
        *(lambda n: (2,), lambda n: "write of 1 bytes at shared+1024"),
    ),
    "a_byte_before_shared_memory": Case(
        "out_of_bounds",
        """
  if (t == 2) reinterpret_cast<int8_t*>(s.x)[p.legal - 1] = 1;  // here""",
        lambda n: (2,),
    ),
    "a_vector_across_the_end_of_shared_memory": Case(
        "out_of_bounds",
        """
  ptx::Vec<int, 4> v{};
  if (t == 2) ptx::store_shared(s.x + (p.legal ? 252 : 256 - 4 * p.n), v);  // here""",
        *(lambda n: (2,), lambda n: "write of 16 bytes at shared+1024"),
    ),
    "a_copy_beyond_its_source": Case(
        "out_of_bounds",
        """
  if (t == 2) ptx::cp_async_16(ptx::shared_address(s.x), p.b + 256, p.legal ? 0 : 4);  // here
  ptx::cp_async_wait_all();""",
        *(lambda n: (2,), lambda n: "read of 4 bytes at b+1024"),
    ),
    "a_misaligned_vector": Case(
        "misaligned",
        """
  const auto v = ptx::load_global<2>(p.b + 2 * t + (t == 5 && !p.legal));  // here
  p.a[t] = v[0] + v[1];""",
        *(lambda n: (5,), lambda n: "8 bytes at b+44"),
    ),
    "a_misaligned_vector_in_shared_memory": Case(
        "misaligned",
        """
  ptx::Vec<int, 4> v{};
  ptx::store_shared(s.x + 4 * t + (p.legal ? 0 : p.n), v);  // here""",
        *(lambda n: (0,), lambda n: f"16 bytes at shared+{4 * n}", (1, 2, 3), 32),
    ),
    "a_misaligned_word": Case(
        "undefined",
        """
  const int8_t* bytes = reinterpret_cast<const int8_t*>(p.b) + (p.legal ? 0 : p.n);
  p.a[t] = reinterpret_cast<const int*>(bytes)[t];  // here""",
        *(lambda n: (0,), lambda n: "misaligned pointer", (1, 2, 3)),
    ),
    "a_write_to_what_is_only_read": Case(
        "read_only",
        """
  int* to = p.legal ? p.a : const_cast<int*>(p.b);
  to[t] = t;  // here""",
        *(lambda n: (0,), lambda n: "write of b+0 "),
    ),
    "an_atomic_on_what_is_only_read": Case(
        "read_only",
        """
  atomicAdd(p.legal ? p.a : const_cast<int*>(p.b), 1);  // here""",
        *(lambda n: (0,), lambda n: "atomic of b+0 "),
    ),
    "a_warp_that_skips_a_barrier": Case(
        "barrier_divergence",
        """
  if (p.legal || t / 32 != p.n) __syncthreads();  // here""",
        *(lambda n: tuple(range(32 - 32 * n, 64 - 32 * n)), lambda n: f"threads {32 * n}-{32 * n + 31} have returned"),
        values=(0, 1),
    ),
    "a_thread_that_has_left": Case(
        "barrier_divergence",
        """
  if (!p.legal && t == 20) return;
  __syncthreads();  // here""",
        *(lambda n: tuple(t for t in range(64) if t != 20), lambda n: "threads 20 have returned"),
    ),
    "a_named_barrier_for_too_many": Case(
        "deadlock",
        """
  if (t < 32) ptx::barrier_sync(3, p.legal ? 32 : 64);  // here""",
        *(lambda n: tuple(range(32)), lambda n: "threads 0-31 wait at barrier 3"),
    ),
    "a_lane_that_skips_a_shuffle": Case(
        "deadlock",
        """
  int v = t;
  if (p.legal || t != p.n) v = __shfl_xor_sync(0xffffffffu, v, 1);  // here
  p.a[t] = v;""",
        lambda n: tuple(t for t in range(32) if t != n),
        lambda n: f"threads {n} have returned",
        (0, 31),
        32,
    ),
    "a_lane_that_skips_a_vote": Case(
        "deadlock",
        """
  unsigned v = t;
  if (p.legal || t != 8) v = __ballot_sync(0xffffffffu, t < 4);  // here
  p.a[t] = v;""",
        *(lambda n: tuple(t for t in range(32) if t != 8), lambda n: "threads 0-7, 9-31 wait in vote"),
        block=32,
    ),
    "a_shuffle_from_a_lane_that_takes_no_part": Case(
        "divergence",
        """
  if (t < 16) p.a[t] = __shfl_xor_sync(0xffffu, t, p.legal ? 1 : 16);  // here""",
        words=lambda n: "lane 0 reads lane 16, which takes no part",
        block=32,
    ),
    "a_lane_outside_its_own_mask": Case(
        "divergence",
        """
  if (t < 16) p.a[t] = __any_sync(p.legal ? 0xffffu : 0x7fffu, t == 3);  // here""",
        *(lambda n: (15,), lambda n: "lane 15 is not in its own mask 0x00007fff"),
        block=32,
    ),
    "lanes_with_different_masks": Case(
        "divergence",
        """
  const unsigned halves = t < 16 ? 0xffffu : 0xffff0000u;
  p.a[t] = __all_sync(p.legal || t != 9 ? halves : 0xffffffffu, 1);  // here""",
        lambda n: (0, 9),
        block=32,
    ),
}


def kernels():
    return KERNELS + "".join(KERNEL.format(name=name, body=case.body) for name, case in CASES.items())


@functools.cache
def compiled(path):
    return cpp_of(path, "detectors.cu", {"detectors.cu": kernels()}, "sm_80")


def lines_of(name):
    """The marked lines of a kernel."""
    lines = kernels().splitlines()
    first = next(i for i, line in enumerate(lines) if f" {name}(" in line)
    return {i + 1 for i in range(first, lines.index("}", first)) if "// here" in lines[i]}


def launch(path, name, n, *, legal, **settings):
    a, b = emulated.aligned(256, np.int32), emulated.aligned(256, np.int32)
    b[:] = np.arange(256)
    buffers = [emulator.Buffer("a", a.ctypes.data, a.nbytes, True), emulator.Buffer("b", b.ctypes.data, b.nbytes, False)]
    params = emulated.pack({"a": a, "b": b, "legal": np.int32(legal), "n": np.int32(n)})
    with emulator.settings(mode="checked", **settings):
        emulator.launch(compiled(path), name, (CASES[name].grid,), (CASES[name].block,), params, 1024, buffers)


@PATHS
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_found_and_its_legal_twin_is_not(name, path):
    case = CASES[name]
    for n in case.values:
        launch(path, name, n, legal=True)
        launch(path, name, n, legal=True, seed=n % 7, preempt=3)
        with pytest.raises(EmulatorError) as raised:
            launch(path, name, n, legal=False)
        error = raised.value
        assert error.kind == case.kind, error
        assert case.words(n) in str(error)
        if case.threads:
            assert error.threads == case.threads(n), error
        assert error.sites
        assert {site.line for site in error.sites} <= lines_of(name), error
        assert {site.file for site in error.sites} == {"detectors.cu"}
