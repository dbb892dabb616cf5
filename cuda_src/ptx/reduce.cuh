// Additions to global memory that give nothing back: PTX ISA 9.7.13, red. They say what atomicAdd leaves open, that
// the address is global: of a pointer that stood in shared memory the compiler knows nothing, and would test the
// space of each address and keep a compare-and-swap loop for shared memory ready.
#pragma once
#include "platform.cuh"

namespace ptx {

__device__ __forceinline__ void add_global(float* dst, float x) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(dst)), "f"(x) : "memory");
}

// Two neighbours in one instruction, from sm_90 on; `dst` must be a multiple of 8 bytes.
__device__ __forceinline__ void add_global(float* dst, float x, float y) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(dst)), "f"(x), "f"(y)
               : "memory");
}

}  // namespace ptx
