// A ring of kStages slots in shared memory that asynchronous copies fill ahead of their use.
#pragma once
#include "mma/tile.cuh"

// Fill slots for the first steps; `fill(step)` starts the copies of one step, or none beyond the last.
template <class Fill>
__device__ __forceinline__ void start_ring(Fill&& fill) {
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    fill(step);
    if (kAsyncCopy) ptx::cp_async_commit();
  }
}

// Wait until what `step` reads is there. The step before it is done everywhere, so its slot is filled again; with a
// single slot that is this step's own, and the wait is for all of it.
template <class Fill>
__device__ __forceinline__ void arrive(int step, Fill&& fill) {
  if (kStages == 1) {
    __syncthreads();
    fill(step);
    if (kAsyncCopy) ptx::cp_async_wait_all();
    __syncthreads();
  } else {
    if (kAsyncCopy) ptx::cp_async_wait<(kStages > 1 ? kStages - 2 : 0)>();
    __syncthreads();
    fill(step + kStages - 1);
    if (kAsyncCopy) ptx::cp_async_commit();
  }
}
