// Named barriers over part of a block: PTX ISA 9.7.13, bar.sync / bar.arrive.
// `id` is 1 to 15 (0 is __syncthreads); `threads`, a multiple of 32, counts those that sync and those that
// arrive.
#pragma once
#include "platform.cuh"

namespace ptx {

// Waits until `threads` threads have come.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Signals and goes on: a producer's half.
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace ptx
