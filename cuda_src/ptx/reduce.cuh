// Additions to global memory that give nothing back: PTX ISA 9.7.13, red. They say what atomicAdd leaves open, that
// the address is global: of a pointer that stood in shared memory the compiler knows nothing, and would test the
// space of each address and keep a compare-and-swap loop for shared memory ready.
#pragma once
#include "platform.cuh"

namespace ptx {

// Where `wanted`: a predicate costs less than a branch around each of many additions.
__device__ __forceinline__ void add_global(float* dst, float x, bool wanted) {
  asm volatile(
      "{\n"
      "  .reg .pred wanted;\n"
      "  setp.ne.s32 wanted, %2, 0;\n"
      "  @wanted red.relaxed.gpu.global.add.f32 [%0], %1;\n"
      "}" ::"l"(__cvta_generic_to_global(dst)),
      "f"(x), "r"(static_cast<int>(wanted))
      : "memory");
}

// Two neighbours in one instruction, from sm_90 on; `dst` must be a multiple of 8 bytes.
__device__ __forceinline__ void add_global(float* dst, float x, float y, bool wanted) {
  asm volatile(
      "{\n"
      "  .reg .pred wanted;\n"
      "  setp.ne.s32 wanted, %3, 0;\n"
      "  @wanted red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};\n"
      "}" ::"l"(__cvta_generic_to_global(dst)),
      "f"(x), "f"(y), "r"(static_cast<int>(wanted))
      : "memory");
}

}  // namespace ptx
