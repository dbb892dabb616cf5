// A value that the compiler takes for new: PTX ISA 9.7.9, mov. What is computed from it is computed again where it is
// needed, instead of holding registers from an earlier use.
#pragma once
#include "platform.cuh"

namespace ptx {

__device__ __forceinline__ uint32_t opaque(uint32_t value) {
  uint32_t same;
  asm volatile("mov.b32 %0, %1;" : "=r"(same) : "r"(value));
  return same;
}

template <class T>
__device__ __forceinline__ T* opaque(T* value) {
  T* same;
  asm volatile("mov.b64 %0, %1;" : "=l"(same) : "l"(value));
  return same;
}

}  // namespace ptx
