// One thread of a converged warp: PTX ISA 9.7.13, elect.sync (sm_90).
// For starting TMA copies: the compiler then knows that a single thread does, where after a comparison with
// threadIdx.x it makes a loop over the threads that might.
#pragma once
#include "platform.cuh"

namespace ptx {

// True in one lane, the same at each call. All 32 lanes take part.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(elected)::"memory");
  return elected != 0;
}

}  // namespace ptx
