"""One small kernel for each mistake the checker is for, right and wrong."""

import emulated
import numpy as np
import pytest
from mutation import caught, line_of

from cupy_flash import emulator

NEIGHBOURS = """
#include "platform.cuh"
struct Params { const float* in; float* out; };
struct Storage { float tile[128]; };
extern "C" __global__ void __launch_bounds__(128) kernel(const __grid_constant__ Params params) {
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x;
  const int i = blockIdx.x * 128 + t;
  s.tile[t] = params.in[i];                     // first write
  __syncthreads();                              // between write and read
  const float next = s.tile[(t + 1) % 128];     // first read
  __syncthreads();                              // between read and write
  s.tile[t] = next;                             // second write
  __syncthreads();                              // before the last read
  params.out[i] = s.tile[127 - t];              // last read
}
"""

PRODUCER_CONSUMER = """
#include "platform.cuh"
#include "ptx/barrier.cuh"
struct Params { const float* in; float* out; };
struct Storage { float tile[64]; };
extern "C" __global__ void __launch_bounds__(128) kernel(const __grid_constant__ Params params) {
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x;
  if (t < 64) {
    s.tile[t] = params.in[t];                   // produce
    ptx::barrier_arrive(1, 128);                // arrive
  } else {
    ptx::barrier_sync(1, 128);                  // wait for the producers
    params.out[t - 64] = s.tile[127 - t];       // consume
  }
}
"""

COPY = """
#include "platform.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/memory.cuh"
#include "ptx/shared.cuh"
struct Params { const float* in; float* out; };
struct Storage { alignas(16) float tile[2][128]; };
extern "C" __global__ void __launch_bounds__(32) kernel(const __grid_constant__ Params params) {
  Storage& s = shared_storage<Storage>();
  const int t = threadIdx.x;
  for (int stage = 0; stage < 2; ++stage) {
    const uint32_t to = ptx::shared_address(&s.tile[stage][4 * t]);
    ptx::cp_async_16(to, params.in + 128 * stage + 4 * t, 16);        // issue
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<1>();                                            // first stage
  ptx::Vec<float, 4> v = ptx::load_shared<4>(&s.tile[0][4 * t]);      // first load
  ptx::store_global(params.out + 4 * t, v);
  ptx::cp_async_wait<0>();                                            // second stage
  v = ptx::load_shared<4>(&s.tile[1][4 * t]);                         // second load
  ptx::store_global(params.out + 128 + 4 * t, v);
}
"""


def launcher(*, grid, block, size, shared):
    def launch(kernel):
        data, out = emulated.aligned(size, np.float32), emulated.aligned(size, np.float32)
        data[:] = np.arange(size)
        arguments = {"in": data, "out": out}
        emulated.run(kernel, arguments, grid=(grid,), block=(block,), shared=shared, mode="checked")

    return launch


SETUPS = {
    NEIGHBOURS: launcher(grid=2, block=128, size=256, shared=512),
    PRODUCER_CONSUMER: launcher(grid=1, block=128, size=64, shared=256),
    COPY: launcher(grid=1, block=32, size=256, shared=1024),
}

BUGS = {
    "no barrier before reading": (
        *(NEIGHBOURS, "__syncthreads();                              // between write and read", "//"),
        *({"uninitialised", "shared_race"}, ["first read"]),
    ),
    "no barrier before overwriting": (
        *(NEIGHBOURS, "__syncthreads();                              // between read and write", "//"),
        *({"shared_race"}, ["first read", "second write"]),
    ),
    "no barrier before the last read": (
        *(NEIGHBOURS, "__syncthreads();                              // before the last read", "//"),
        *({"shared_race"}, ["second write", "last read"]),
    ),
    "global read one too far": (
        *(NEIGHBOURS, "params.in[i];", "params.in[i + 1];"),
        *({"out_of_bounds"}, ["first write"]),
    ),
    "global write one too far": (
        *(NEIGHBOURS, "params.out[i] =", "params.out[i + 1] ="),
        *({"out_of_bounds", "global_race"}, ["last read"]),
    ),
    "shared read beyond the block's memory": (
        *(NEIGHBOURS, "s.tile[127 - t];", "(&s.tile[0])[128 - t];"),
        *({"out_of_bounds"}, ["last read"]),
    ),
    "a thread leaves its element unwritten": (
        *(NEIGHBOURS, "s.tile[t] = params.in[i];", "if (t != 77) s.tile[t] = params.in[i];"),
        *({"uninitialised"}, ["first read"]),
    ),
    "half of the block skips a barrier": (
        *(
            NEIGHBOURS,
            f"__syncthreads();{30 * ' '}// between read",
            "if (t < 64) __syncthreads();  // between read",
        ),
        *({"barrier_divergence"}, ["between read and write", "before the last read"]),
    ),
    "one thread returns before a barrier": (
        *(NEIGHBOURS, "s.tile[t] = next; ", "if (t == 9) return; "),
        *({"barrier_divergence"}, ["before the last read"]),
    ),
    "blocks write one output": (
        *(NEIGHBOURS, "params.out[i] =", "params.out[t] ="),
        *({"global_race"}, ["last read", "last read"]),
    ),
    "a barrier counts too many threads": (
        *(PRODUCER_CONSUMER, "ptx::barrier_arrive(1, 128)", "ptx::barrier_arrive(1, 160)"),
        *({"barrier"}, ["arrive"]),
    ),
    "producer and consumer count differently": (
        *(PRODUCER_CONSUMER, "ptx::barrier_arrive(1, 128)", "ptx::barrier_arrive(1, 96)"),
        *({"barrier"}, ["wait for the producers", "arrive"]),
    ),
    "the consumer waits for itself": (
        *(PRODUCER_CONSUMER, "ptx::barrier_sync(1, 128)", "ptx::barrier_sync(2, 64)"),
        *({"uninitialised", "shared_race"}, ["consume", "produce"]),
    ),
    "nobody arrives": (
        *(PRODUCER_CONSUMER, "ptx::barrier_arrive(1, 128)", "ptx::barrier_arrive(2, 128)"),
        *({"deadlock"}, ["wait for the producers"]),
    ),
    "no wait for a copy": (
        *(COPY, "ptx::cp_async_wait<1>();", "//"),
        *({"async_copy"}, ["first load", "issue"]),
    ),
    "a wait for too few copies": (
        *(COPY, "ptx::cp_async_wait<0>();", "ptx::cp_async_wait<1>();"),
        *({"async_copy"}, ["second load", "issue"]),
    ),
    "no barrier after a copy": (
        *(
            COPY,
            "v = ptx::load_shared<4>(&s.tile[1][4 * t]",
            "v = ptx::load_shared<4>(&s.tile[1][4 * (31 - t)]",
        ),
        *({"shared_race", "async_copy", "uninitialised"}, ["second load", "issue"]),
    ),
    "misaligned vector load": (
        *(COPY, "ptx::load_shared<4>(&s.tile[0][4 * t]);", "ptx::load_shared<4>(&s.tile[0][3 * t]);"),
        *({"misaligned"}, ["first load"]),
    ),
    "misaligned copy": (
        *(COPY, "params.in + 128 * stage + 4 * t, 16)", "params.in + 128 * stage + 4 * t + (t == 3), 16)"),
        *({"misaligned"}, ["issue"]),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("seed", [None, 5])
def test_seeded_bug_is_caught(bug, seed):
    kernel, old, new, kinds, lines = BUGS[bug]
    with emulator.settings(mode="checked", seed=seed):
        error = caught(SETUPS[kernel], kernel, old, new, kinds=kinds, flattened=emulated.host_source)
    expected = {line_of(kernel, f"// {mark}") for mark in lines}
    assert {site.line for site in error.sites} <= expected
    assert {site.file for site in error.sites} == {"kernel.cu"}
    assert max(error.threads) < 128
