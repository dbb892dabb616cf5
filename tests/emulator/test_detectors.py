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
#include "ptx/ldmatrix.cuh"
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
    threads: tuple[int, ...] | Callable = ()  # those concerned, or a function of p.n; (): not asked
    words: str | Callable = ""  # of the message
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
        "write of shared+20",
        range(4),
        128,
    ),
    "readers_of_global_memory": Case(
        "global_race",
        """
  const int read = p.a[40];  // here
  p.a[t] = read;
  if (p.legal) __syncwarp();
  else if (t != p.n) __syncwarp(~(1u << p.n));
  if (t == (p.n + 1) % 32) p.a[40] = t;  // here""",
        lambda n: (n, (n + 1) % 32),
        "write of a+160",
        (0, 1, 5, 30, 31),
        32,
    ),
    "a_reader_in_another_block": Case(
        "global_race",
        """
  if (!p.legal || blockIdx.x == 1) p.a[64 * blockIdx.x + t] = p.a[160];  // here
  __syncthreads();
  if (blockIdx.x == 1 && t == 9) p.a[160] = t;  // here""",
        (0, 9),
        "another block (number 0)",
        grid=2,
    ),
    "a_reader_of_the_other_byte": Case(
        "global_race",
        """
  int8_t* bytes = reinterpret_cast<int8_t*>(p.a + 64);
  if (t == 0) p.a[0] = bytes[0];  // here
  if (t < 2) __syncwarp(3);
  if (t == 1) bytes[1] = 1;
  if (p.legal) __syncthreads();
  if (t == 2) bytes[0] = 1;  // here""",
        (0, 2),
        "write of a+256",
    ),
    "a_reader_of_the_other_byte_in_shared_memory": Case(
        "shared_race",
        """
  uint8_t* bytes = reinterpret_cast<uint8_t*>(s.x);
  if (t == 2) bytes[0] = bytes[1] = 1;
  __syncthreads();
  if (t == 0) p.a[0] = bytes[0];  // here
  if (t == 1) bytes[1] = 1;
  if (p.legal) __syncthreads();
  if (t == 2) bytes[0] = 2;  // here""",
        (0, 2),
        "write of shared+0",
    ),
    "a_writer_that_has_read_last": Case(
        "shared_race",
        """
  if (t == 0) s.x[0] = 1;
  __syncthreads();
  if (t < 2) p.a[t] = s.x[0];  // here
  if (p.legal) __syncwarp();
  if (t == 1) s.x[0] = 2;  // here""",
        (0, 1),
        "write of shared+0 ",
    ),
    "a_thread_that_arrives_and_does_not_wait": Case(
        "shared_race",
        """
  if (t < 32) s.x[t] = t;  // here
  if (t < 32 || p.legal) ptx::barrier_sync(1, 64);
  else ptx::barrier_arrive(1, 64);
  if (t == 63) p.a[0] = s.x[0];  // here""",
        (0, 63),
    ),
    "a_thread_that_writes_after_it_has_arrived": Case(
        "shared_race",
        """
  if (t < 32) {
    if (p.legal) s.x[t] = t;
    ptx::barrier_arrive(1, 64);
    if (!p.legal) s.x[t] = t;  // here
  } else {
    ptx::barrier_sync(1, 64);
    p.a[t] = s.x[63 - t];  // here
  }""",
        (0, 63),
    ),
    "a_matrix_of_rows_that_other_lanes_wrote": Case(
        "shared_race",
        """
  ptx::Vec<int, 4> row{t, t, t, t};
  ptx::store_shared(s.x + 4 * t, row);  // here
  uint32_t r[4];
  ptx::ldmatrix_x4(r, ptx::shared_address(s.x + 4 * (p.legal ? t : t ^ 1)));  // here
  p.a[t] = r[0] + r[1] + r[2] + r[3];""",
        (1, 0),
        "read of shared+16 ",
        block=32,
    ),
    "two_writers_of_shared_memory": Case(
        "shared_race",
        """
  if (t == 3) s.x[8] = t;  // here
  if (p.legal) __syncthreads();
  if (t == 40) s.x[8] = t;  // here""",
        (3, 40),
        "write of shared+32",
    ),
    "two_writers_of_one_byte": Case(
        "shared_race",
        """
  reinterpret_cast<uint8_t*>(s.x)[p.legal ? t : t / 2] = t;  // here""",
        (0, 1),
        "write of shared+0",
    ),
    "a_writer_then_readers": Case(
        "shared_race",
        """
  s.x[t] = t;  // here
  if (p.legal) __syncthreads();
  p.a[t] = s.x[t & 32];  // here""",
        (0, 1),
    ),
    "an_atomic_then_a_write": Case(
        "shared_race",
        """
  if (t == 0) s.x[0] = 0;
  __syncthreads();
  if (t < 2) atomicAdd(s.x, 1);  // here
  if (p.legal) __syncthreads();
  if (t == 2) s.x[0] = t;  // here""",
        (1, 2),
    ),
    "a_read_then_an_atomic": Case(
        "shared_race",
        """
  if (t == 0) s.x[0] = 0;
  __syncthreads();
  if (t == 33) p.a[0] = s.x[0];  // here
  if (p.legal) __syncthreads();
  if (t == 34) atomicAdd(s.x, 1);  // here""",
        (33, 34),
    ),
    # All have added before the last of them reads.
    "atomics_then_a_read": Case(
        "global_race",
        """
  if (t < 5) atomicAdd(p.a, 1);  // here
  if (p.legal) __syncthreads();
  if (t == 4) p.a[t] = p.a[0];  // here""",
        (0, 4),
        "read of a+0 ",
    ),
    "an_atomic_then_a_write_to_global_memory": Case(
        "global_race",
        """
  if (t == 1) atomicAdd(p.a, 1);  // here
  if (p.legal) __syncthreads();
  if (t == 2) p.a[0] = 1;  // here""",
        (1, 2),
        "after the atomic by thread 1",
    ),
    "blocks_write_one_word": Case(
        "global_race",
        """
  p.a[p.legal ? 64 * blockIdx.x + t : t] = t;  // here""",
        (0, 0),
        "another block (number 0)",
        grid=2,
    ),
    "a_copy_read_before_the_wait": Case(
        "async_copy",
        f"""
  {COPY.format(0)}  // here
  if (p.legal) ptx::cp_async_wait<0>();
  p.a[t] = s.x[4 * t + p.n];  // here
  ptx::cp_async_wait<0>();""",
        (0, 0),
        lambda n: f"read of shared+{4 * n} ",
        range(4),
        32,
    ),
    "a_copy_overwritten_before_the_wait": Case(
        "async_copy",
        f"""
  {COPY.format(0)}  // here
  if (p.legal) ptx::cp_async_wait<0>();
  s.x[4 * t + 3] = t;  // here
  ptx::cp_async_wait<0>();
  p.a[t] = s.x[4 * t + 3];""",
        (0, 0),
        "write of shared+12 ",
        block=32,
    ),
    # wait<1> ends the older of two.
    "a_wait_for_the_wrong_group": Case(
        "async_copy",
        f"""{COPY_TWO}
  ptx::cp_async_wait<1>();
  p.a[t] = s.x[(p.legal ? 0 : 128) + 4 * t];  // here
  ptx::cp_async_wait<0>();""",
        (0, 0),
        "read of shared+512 ",
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
        (0, 0),
        block=32,
    ),
    "a_copy_never_waited_for": Case(
        "async_copy",
        f"""{COPY_TWO}
  if (p.legal) ptx::cp_async_wait<0>();
  else ptx::cp_async_wait<1>();""",
        (0,),
        "thread 0 returned",
        block=32,
    ),
    "a_barrier_before_the_wait": Case(
        "shared_race",
        f"""
  {COPY.format(0)}  // here
  if (p.legal) ptx::cp_async_wait<0>();
  __syncthreads();
  ptx::cp_async_wait<0>();
  if (t == 30) p.a[t] = s.x[0];  // here""",
        (0, 30),
        "read of shared+0 ",
        block=32,
    ),
    "a_copy_read_by_another_thread": Case(
        "shared_race",
        f"""
  {COPY.format(0)}  // here
  ptx::cp_async_wait<0>();
  if (p.legal) __syncwarp();
  if (t == 31) p.a[t] = s.x[4 * p.n];  // here""",
        lambda n: (n, 31),
        lambda n: f"read of shared+{16 * n} ",
        (0, 30),
        32,
    ),
    "a_copy_to_what_another_thread_reads": Case(
        "shared_race",
        """
  s.x[t] = t;
  __syncthreads();
  p.a[t] = s.x[(t + 1) % 32];  // here
  if (p.legal) __syncthreads();
  if (t == 1) ptx::cp_async_4(ptx::shared_address(s.x), p.b, 4);  // here
  ptx::cp_async_wait_all();""",
        (31, 1),
        "write of shared+0 ",
        block=32,
    ),
    "one_byte_of_a_word": Case(
        "uninitialised",
        """
  uint8_t* bytes = reinterpret_cast<uint8_t*>(s.x + t);
  for (int i = 0; i < 4; ++i)
    if (p.legal || i == p.n) bytes[i] = i;
  p.a[t] = s.x[t];  // here""",
        (0,),
        lambda n: f"read of shared+{n == 0:d} ",
        range(4),
    ),
    "one_word_of_a_vector": Case(
        "uninitialised",
        """
  for (int i = 0; i < 4; ++i)
    if (p.legal || i != p.n) s.x[4 * t + i] = i;
  const auto v = ptx::load_shared<4>(s.x + 4 * t);  // here
  p.a[t] = v[0] + v[1] + v[2] + v[3];""",
        (0,),
        lambda n: f"read of shared+{4 * n} ",
        range(4),
        32,
    ),
    "an_atomic_on_nothing": Case(
        "uninitialised",
        """
  if (p.legal && t == 0) s.x[3] = 0;
  __syncthreads();
  atomicAdd(s.x + 3, 1);  // here""",
        (63,),
        "atomic of shared+12 ",
    ),
    "a_byte_beyond_either_end": Case(
        "out_of_bounds",
        """
  int8_t* bytes = reinterpret_cast<int8_t*>(p.a);
  if (t == 7) bytes[p.n < 0 ? (p.legal ? 0 : -1) : 1024 - p.legal] = 1;  // here""",
        (7,),
        lambda n: "write of 1 bytes at a" + ("-1 " if n < 0 else "+1024 "),
        (-1, 1),
    ),
    "a_read_beyond_either_end": Case(
        "out_of_bounds",
        """
  const int8_t* bytes = reinterpret_cast<const int8_t*>(p.b);
  if (t == 7) p.a[t] = bytes[p.n < 0 ? (p.legal ? 0 : -1) : 1024 - p.legal];  // here""",
        (7,),
        lambda n: "read of 1 bytes at b" + ("-1 " if n < 0 else "+1024 "),
        (-1, 1),
    ),
    "a_vector_across_the_end": Case(
        "out_of_bounds",
        """
  if (t != 1) return;
  const auto v = ptx::load_global<2>(p.b + (p.legal ? 254 : 256 - p.n));  // here
  p.a[t] = v[0] + v[1];""",
        (1,),
        lambda n: f"read of 8 bytes at b+{1024 - 4 * n} ",
        (0, 1),
    ),
    "a_byte_beyond_shared_memory": Case(
        "out_of_bounds",
        """
  if (t == 2) reinterpret_cast<int8_t*>(s.x)[1024 - p.legal] = 1;  // here""",
        (2,),
        "write of 1 bytes at shared+1024",
    ),
    "a_byte_before_shared_memory": Case(
        "out_of_bounds",
        """
  if (t == 2) reinterpret_cast<int8_t*>(s.x)[p.legal - 1] = 1;  // here""",
        (2,),
    ),
    "a_vector_across_the_end_of_shared_memory": Case(
        "out_of_bounds",
        """
  ptx::Vec<int, 4> v{};
  if (t == 2) ptx::store_shared(s.x + (p.legal ? 252 : 256 - 4 * p.n), v);  // here""",
        (2,),
        "write of 16 bytes at shared+1024",
    ),
    "a_copy_beyond_its_source": Case(
        "out_of_bounds",
        """
  if (t == 2) ptx::cp_async_16(ptx::shared_address(s.x), p.b + 256, p.legal ? 0 : 4);  // here
  ptx::cp_async_wait_all();""",
        (2,),
        "read of 4 bytes at b+1024",
    ),
    "a_misaligned_copy": Case(
        "misaligned",
        """
  const uint32_t to = ptx::shared_address(s.x + 4 * t + (p.legal || p.n ? 0 : 2));
  ptx::cp_async_16(to, p.b + 4 * t + (p.legal ? 0 : p.n), 16);  // here
  ptx::cp_async_wait_all();""",
        (0,),
        lambda n: "from b+8 " if n else "to shared+8",
        (0, 2),
        32,
    ),
    "a_copy_of_more_than_its_size": Case(
        "async_copy",
        """
  ptx::cp_async_4(ptx::shared_address(s.x + t), p.b + t, p.legal ? 4 : p.n);  // here
  ptx::cp_async_wait_all();""",
        (0,),
        lambda n: f"of {n} of 4 bytes",
        (5,),
    ),
    "the_shared_address_of_global_memory": Case(
        "out_of_bounds",
        """
  const uint32_t address = ptx::shared_address(p.legal ? s.x : p.a);  // here
  if (t == 5) p.a[t] = address;""",
        words=lambda n: "does not point into shared memory",
    ),
    "a_misaligned_vector": Case(
        "misaligned",
        """
  const auto v = ptx::load_global<2>(p.b + 2 * t + (t == 5 && !p.legal));  // here
  p.a[t] = v[0] + v[1];""",
        (5,),
        "8 bytes at b+44",
    ),
    "a_misaligned_vector_in_shared_memory": Case(
        "misaligned",
        """
  ptx::Vec<int, 4> v{};
  ptx::store_shared(s.x + 4 * t + (p.legal ? 0 : p.n), v);  // here""",
        (0,),
        lambda n: f"16 bytes at shared+{4 * n}",
        (1, 2, 3),
        32,
    ),
    "a_misaligned_word": Case(
        "undefined",
        """
  const int8_t* bytes = reinterpret_cast<const int8_t*>(p.b) + (p.legal ? 0 : p.n);
  p.a[t] = reinterpret_cast<const int*>(bytes)[t];  // here""",
        (0,),
        "misaligned pointer",
        (1, 2, 3),
    ),
    "a_write_to_what_is_only_read": Case(
        "read_only",
        """
  int* to = p.legal ? p.a : const_cast<int*>(p.b);
  to[t] = t;  // here""",
        (0,),
        "write of b+0 ",
    ),
    "an_atomic_on_what_is_only_read": Case(
        "read_only",
        """
  atomicAdd(p.legal ? p.a : const_cast<int*>(p.b), 1);  // here""",
        (0,),
        "atomic of b+0 ",
    ),
    "a_warp_that_skips_a_barrier": Case(
        "barrier_divergence",
        """
  if (p.legal || t / 32 != p.n) __syncthreads();  // here""",
        lambda n: tuple(range(32 - 32 * n, 64 - 32 * n)),
        lambda n: f"threads {32 * n}-{32 * n + 31} have returned",
        values=(0, 1),
    ),
    "threads_at_two_barriers": Case(
        "barrier_divergence",
        """
  if (p.legal || t < 32) __syncthreads();  // here
  if (p.legal || t >= 32) __syncthreads();  // here""",
        (0, 32),
        "thread 32 is in __syncthreads",
    ),
    "a_thread_that_has_left": Case(
        "barrier_divergence",
        """
  if (!p.legal && t == 20) return;
  __syncthreads();  // here""",
        lambda n: tuple(t for t in range(64) if t != 20),
        "threads 20 have returned",
    ),
    "a_named_barrier_for_too_many": Case(
        "deadlock",
        """
  if (t < 32) ptx::barrier_sync(3, p.legal ? 32 : 64);  // here""",
        lambda n: tuple(range(32)),
        "threads 0-31 wait at barrier 3",
    ),
    "a_named_barrier_for_more_than_the_block": Case(
        "barrier",
        """
  ptx::barrier_arrive(1, p.legal ? 64 : p.n);  // here""",
        (0,),
        "barrier 1 at detectors.cu",
        (48, 96),
    ),
    "threads_that_count_differently": Case(
        "barrier",
        """
  ptx::barrier_sync(2, p.legal || t < 32 ? 64 : 32);  // here""",
        (0, 32),
        "for 32 threads meets the same barrier",
    ),
    "a_barrier_that_nobody_else_comes_to": Case(
        "deadlock",
        """
  if (t < 32) ptx::barrier_arrive(p.legal ? 1 : 2, 64);
  else ptx::barrier_sync(1, 64);  // here""",
        lambda n: tuple(range(32, 64)),
        "threads 32-63 wait at barrier 1",
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
        lambda n: tuple(t for t in range(32) if t != 8),
        "threads 0-7, 9-31 wait in vote",
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
        (15,),
        "lane 15 is not in its own mask 0x00007fff",
        block=32,
    ),
    "lanes_with_different_masks": Case(
        "divergence",
        """
  const unsigned halves = t < 16 ? 0xffffu : 0xffff0000u;
  p.a[t] = __all_sync(p.legal || t != 9 ? halves : 0xffffffffu, 1);  // here""",
        (0, 9),
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
    buffers = [
        emulator.Buffer("a", a.ctypes.data, a.nbytes, True),
        emulator.Buffer("b", b.ctypes.data, b.nbytes, False),
    ]
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
        words, threads = (x(n) if callable(x) else x for x in (case.words, case.threads))
        assert words in str(error)
        assert not threads or error.threads == threads, error
        assert error.sites
        assert {site.line for site in error.sites} <= lines_of(name), error
        assert {site.file for site in error.sites} == {"detectors.cu"}


# ---- counts
COUNTED = """
#include "platform.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/memory.cuh"
#include "ptx/shared.cuh"
#include "ptx/warp.cuh"
struct Params {
  const uint8_t* bytes; const uint16_t* halves; const int* words; const double* doubles; const int* copied;
  int *once, *twice, *added, *some; uint8_t* last;
};
struct Storage { alignas(16) int x[512]; };
extern "C" __global__ void __launch_bounds__(64) counted(const __grid_constant__ Params p) {
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x;
  ptx::cp_async_16(ptx::shared_address(s.x + 4 * t), p.copied + 4 * t, t % 17);
  ptx::cp_async_wait_all();
  const auto four = ptx::load_global<4>(p.words + 4 * t);
  const int sum = four[0] + four[1] + four[2] + four[3] + p.bytes[t] + p.halves[t] + static_cast<int>(p.doubles[t]);
  p.once[t] = sum;
  p.twice[t] = sum + 1;
  __syncthreads();
  p.twice[t] = p.once[t] + s.x[4 * t];
  if (t < 5) p.some[t] = p.some[t] + 1;
  atomicAdd(p.added, ptx::shfl_xor(ptx::shfl_xor(t, 1), 2));
  uint32_t r[4];
  ptx::ldmatrix_x4(r, ptx::shared_address(s.x + 4 * (t % 32)));
  const bool some = ptx::any(r[0] + r[1] + r[2] + r[3] != 0);
  const int votes = some + ptx::any(t == 40) + ptx::all(t >= 32);
  for (int i = 0; i < 4; ++i) __syncwarp();
  if (t == 63) *p.last = votes;
}
"""


@PATHS
def test_bytes_and_instructions_are_counted(path):
    dtypes = {"bytes": "u1", "halves": "u2", "words": "4i4", "doubles": "f8", "copied": "4i4"}
    outputs = {"once": "i4", "twice": "i4", "added": "i4", "some": "i4", "last": "u1"}
    arrays = {name: emulated.aligned((64, *np.dtype(d).shape), np.dtype(d).base) for name, d in dtypes.items()}
    for x in arrays.values():
        x[:] = np.random.default_rng(3).integers(1, 100, x.shape)
    arrays |= {name: np.zeros(64, d) for name, d in outputs.items()}
    buffers = [emulator.Buffer(name, x.ctypes.data, x.nbytes, name in outputs) for name, x in arrays.items()]
    text = cpp_of(path, "counted.cu", {"counted.cu": COUNTED}, "sm_80")
    with emulator.settings(mode="counted", seed=3):
        report = emulator.launch(text, "counted", (2,), (64,), emulated.pack(arrays), 2048, buffers)
    copied = 2 * sum(t % 17 for t in range(64))
    assert report.buffers == {
        "bytes": Bytes(2 * 64, 0),
        "halves": Bytes(2 * 128, 0),
        "words": Bytes(2 * 1024, 0),
        "doubles": Bytes(2 * 512, 0),
        "copied": Bytes(copied, 0),
        "once": Bytes(2 * 256, 2 * 256),
        "twice": Bytes(0, 2 * 512),
        "added": Bytes(0, 2 * 256),
        "some": Bytes(2 * 20, 2 * 20),
        "last": Bytes(0, 2),
    }
    once = arrays["words"].sum(-1) + arrays["bytes"] + arrays["halves"] + arrays["doubles"].astype(int)
    first = np.where(np.arange(64) % 17, arrays["copied"][:, 0], 0)  # numbers of one byte
    np.testing.assert_array_equal(arrays["once"], once)
    np.testing.assert_array_equal(arrays["twice"], once + first)
    assert arrays["added"][0] == 2 * np.arange(64).sum()
    np.testing.assert_array_equal(arrays["some"], np.where(np.arange(64) < 5, 2, 0))
    assert arrays["last"][0] == 3
    assert (report.cp_async, report.atomics) == (2 * 64, 2 * 64)
    warps = 2 * 2
    work = (report.ldmatrix, report.shuffles, report.votes, report.syncwarps)
    assert work == (warps, 2 * warps, 3 * warps, 4 * warps)
    assert (report.barriers, report.mma) == (2, 0)
    # A load of 4 bytes from rows of 16, one access of each warp; four matrices of ldmatrix.
    assert report.shared_accesses == warps * (1 + 4)
    assert report.bank_conflicts == warps * 3


# Lanes below 16 and the others store to the same banks, by turns with something between.
STORES = """
#include "platform.cuh"
#include "ptx/barrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"
struct Params { int* a; int between, apart; };
struct Storage { alignas(16) int x[2][1024]; };
extern "C" __global__ void __launch_bounds__(64) stores(const __grid_constant__ Params p) {
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x;
  const ptx::Vec<int, 4> v{t, t, t, t};
  for (int go = 0; go < 4; ++go) {
    if (t % 32 / 16 == go % 2) s.x[t / 32][t % 16 + 32 * (go % 2)] = t;  // words
    if (p.between == 1) __syncthreads();
    if (p.between == 2) ptx::barrier_sync(5, 64);
    if (p.between == 3) __syncwarp();
    if (p.between == 4) p.a[t] = ptx::shfl_xor(t, 1);
    if (p.between == 5) p.a[t] = ptx::any(t == 7);
  }
  __syncthreads();
  if (t < 32) ptx::store_shared(&s.x[0][p.apart * t], v);  // vectors
}
"""


@PATHS
def test_stores_conflict_within_one_instruction_only(path):
    text = cpp_of(path, "stores.cu", {"stores.cu": STORES}, "sm_80")
    lines = {
        mark: i
        for i, line in enumerate(STORES.splitlines(), 1)
        for mark in ("words", "vectors")
        if f"// {mark}" in line
    }

    def conflicts(between, apart, seed):
        a = np.zeros(64, np.int32)
        params = emulated.pack({"a": a, "between": np.int32(between), "apart": np.int32(apart)})
        buffer = emulator.Buffer("a", a.ctypes.data, a.nbytes, True)
        with emulator.settings(mode="checked", seed=seed):
            report = emulator.launch(text, "stores", (1,), (64,), params, 8192, [buffer])
        found = {c.site.line: (c.instructions, c.wavefronts) for c in report.conflicts}
        assert report.bank_conflicts == sum(c.wavefronts for c in report.conflicts)
        return found[lines["words"]], found[lines["vectors"]]

    # 32 lanes of 16 bytes are four transactions; 8 lanes 16 bytes apart hit each bank once, 32 apart twice, ...
    for between, (apart, extra) in enumerate(((4, 0), (8, 4), (16, 12), (32, 28), (20, 0)), 1):
        assert conflicts(between, apart, seed=between) == ((8, 0), (1, extra))


@PATHS
def test_shared_memory_ends_at_its_last_byte(path):
    body = """
  const uint32_t address = ptx::shared_address(s.x + p.n);
  ptx::cp_async_16(address, p.b, 16);
  ptx::cp_async_wait_all();
  p.a[0] = address;
  for (int i = 0; i < 4; ++i) p.a[1 + i] = s.x[p.n + i];"""
    name, shared_bytes = "last", 100 * 1024
    text = cpp_of(path, "last.cu", {"last.cu": KERNELS + KERNEL.format(name=name, body=body)}, "sm_80")
    b = emulated.aligned(4, np.int32)
    b[:] = 7, 8, 9, 10

    def at(word):
        a = np.zeros(5, np.int32)
        buffers = [emulator.Buffer(key, x.ctypes.data, x.nbytes, key == "a") for key, x in {"a": a, "b": b}.items()]
        params = emulated.pack({"a": a, "b": b, "legal": np.int32(0), "n": np.int32(word)})
        emulator.launch(text, name, (1,), (1,), params, shared_bytes, buffers)
        return a.tolist()

    for mode in ("fast", "checked"):
        with emulator.settings(mode=mode):
            assert at(shared_bytes // 4 - 4) == [shared_bytes - 16, 7, 8, 9, 10]
            with pytest.raises(EmulatorError, match="out_of_bounds"):
                at(shared_bytes // 4)


# ---- values
FLOATS = {  # expressions of x and y
    "fmaxf(x, y)": np.fmax,
    "fminf(x, y)": np.fmin,
    "max(x, y)": np.fmax,
    "min(x, y)": np.fmin,
    "fabsf(x)": np.abs,
    "fabs(x)": np.abs,
    "floorf(x)": np.floor,
    "ceilf(x)": np.ceil,
    "sqrtf(x)": np.sqrt,
    "__frcp_rn(x)": np.reciprocal,
    "x / y": np.divide,
    "isinf(x)": np.isinf,
    "isnan(x)": np.isnan,
    "__float_as_int(x)": lambda x: x.view(np.int32),
    "__float_as_uint(x)": lambda x: x.view(np.uint32),
    "__int_as_float(__float_as_int(x))": lambda x: x,
    "__uint_as_float(__float_as_uint(x) & 0x7fffffffu)": np.abs,
    "ptx::min_nan(x, floor(0 * y) == 0 ? y : 0)": lambda x, y: np.minimum(x, np.where(np.isfinite(y), y, 0)),
    "__ldg(p.floats + t)": lambda x: x,
}
DOUBLES = {
    "fmax(x, y)": np.fmax,
    "fmin(x, y)": np.fmin,
    "max(x, y)": np.fmax,
    "min(x, y)": np.fmin,
    "fabs(x)": np.abs,
    "floor(x)": np.floor,
    "ceil(x)": np.ceil,
    "sqrt(x)": np.sqrt,
    "isinf(x)": np.isinf,
    "isnan(x)": np.isnan,
    "__double_as_longlong(x)": lambda x: x.view(np.int64),
    "__longlong_as_double(__double_as_longlong(x))": lambda x: x,
    "ptx::min_nan(x, floor(0 * y) == 0 ? y : 0)": lambda x, y: np.minimum(x, np.where(np.isfinite(y), y, 0)),
}
INTEGERS = {
    "max(x, y)": np.maximum,
    "min(x, y)": np.minimum,
    "max(unsigned(x), unsigned(y))": lambda x, y: np.maximum(x.view("u4"), y.view("u4")),
    "min(unsigned(x), unsigned(y))": lambda x, y: np.minimum(x.view("u4"), y.view("u4")),
    "abs(x)": np.abs,
    "__popc(x)": lambda x: np.array([int(v).bit_count() for v in x.view("u4")], np.int32),
    "__clz(x)": lambda x: np.array([32 - int(v).bit_length() for v in x.view("u4")], np.int32),
    "ptx::opaque(x)": lambda x: x.view("u4"),
    "*ptx::opaque(p.ints + t)": lambda x: x,
}
LONGS = {
    "max(x, y)": np.maximum,
    "min(x, y)": np.minimum,
    "max((unsigned long long)x, (unsigned long long)y)": lambda x, y: np.maximum(x.view("u8"), y.view("u8")),
    "min((unsigned long long)x, (unsigned long long)y)": lambda x, y: np.minimum(x.view("u8"), y.view("u8")),
}
TABLES = {"float": FLOATS, "double": DOUBLES, "int": INTEGERS, "long long": LONGS}
N = 256


def functions():
    """Each result in 8 bytes: its bits, or an integer."""
    bits = """
__device__ inline long long bits(float x) { return __float_as_uint(x); }
__device__ inline long long bits(double x) { return __double_as_longlong(x); }
template <class T> __device__ inline long long bits(T x) { return static_cast<long long>(x); }
"""
    body, row = "", 0
    for type_, table in TABLES.items():
        array = f"p.{type_.split()[0]}s"
        body += f"  {{\n    const {type_} x = {array}[t], y = {array}[{N} + t];\n"
        for expression in table:
            body += f"    p.out[{N * row} + t] = bits({expression});\n"
            row += 1
        body += "  }\n"
    return f"""
#include "platform.cuh"
#include "ptx/math.cuh"
#include "ptx/opaque.cuh"
struct Params {{
  const float* floats; const double* doubles; const int* ints; const long long* longs;
  long long* out; int* extremes; unsigned* sum;
}};
{bits}
extern "C" __global__ void __launch_bounds__({N}) functions(const __grid_constant__ Params p) {{
  const int t = threadIdx.x;
{body}
  atomicMin(p.extremes, p.ints[t]);
  atomicMax(p.extremes + 1, p.ints[t]);
  atomicAdd(p.extremes + 2, p.ints[t]);
  atomicAdd(p.sum, static_cast<unsigned>(p.ints[t]));
}}
"""


@PATHS
def test_functions_have_the_values_of_numpy(path):
    rng = np.random.default_rng(11)
    special = [0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, 1e20, -1e20, np.inf, -np.inf, np.nan]
    pick = rng.random((2, N)) < 0.5
    doubles = np.where(pick, rng.choice(special, (2, N)), rng.standard_normal((2, N)) * 100)
    edges = [0, 1, -1, 2**31 - 1, 1 - 2**31]
    longs = np.where(pick, rng.choice(edges, (2, N)), rng.integers(-(2**31) + 1, 2**31, (2, N)))
    arrays = {"floats": doubles.astype("f4"), "doubles": doubles, "ints": longs.astype("i4"), "longs": longs * 2**31}
    inputs = {type_: arrays[f"{type_.split()[0]}s"] for type_ in TABLES}
    rows = [(type_, expression) for type_, table in TABLES.items() for expression in table]
    arrays |= {"out": np.zeros((len(rows), N), np.int64), "extremes": np.zeros(3, np.int32), "sum": np.zeros(1, "u4")}
    outputs = ("out", "extremes", "sum")
    buffers = [emulator.Buffer(key, x.ctypes.data, x.nbytes, key in outputs) for key, x in arrays.items()]
    text = cpp_of(path, "functions.cu", {"functions.cu": functions()}, "sm_80")
    emulator.launch(text, "functions", (1,), (N,), emulated.pack(arrays), 0, buffers)

    for (type_, expression), out in zip(rows, arrays["out"], strict=True):
        oracle = TABLES[type_][expression]
        arguments = oracle.nin if isinstance(oracle, np.ufunc) else oracle.__code__.co_argcount
        with np.errstate(all="ignore"):
            expected = oracle(*inputs[type_][:arguments])
        actual = out if expected.dtype.kind != "f" else out.astype(f"u{expected.itemsize}").view(expected.dtype)
        np.testing.assert_array_equal(actual.astype(expected.dtype), expected, err_msg=f"{expression} of {type_}")
    ints = arrays["ints"][0].astype(np.int64)
    wrapped = ints.sum() % 2**32
    assert arrays["extremes"].tolist() == [ints.min(), ints.max(), int(np.uint32(wrapped).view(np.int32))]
    assert arrays["sum"] == wrapped
