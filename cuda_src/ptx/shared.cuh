// The 32-bit address within the shared window, as ldmatrix and cp.async take it: PTX ISA 9.7.9, cvta.
#pragma once
#include "platform.cuh"

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace ptx
