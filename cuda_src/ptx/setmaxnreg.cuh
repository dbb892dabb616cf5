// Registers handed from one warpgroup to another: PTX ISA 9.7.19, setmaxnreg (sm_90a).
// kCount is a multiple of 8 in 24..256. All warps of a warpgroup execute the same one; an increase waits until
// decreases have freed enough. The kernel's own count must be known when it is compiled: give __launch_bounds__
// its second argument, else the instruction is dropped with a warning.
#pragma once
#include "platform.cuh"

namespace ptx {

template <int kCount> __device__ __forceinline__ void setmaxnreg_inc() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256, "a multiple of 8 in 24..256");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

template <int kCount> __device__ __forceinline__ void setmaxnreg_dec() {
  static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256, "a multiple of 8 in 24..256");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace ptx
