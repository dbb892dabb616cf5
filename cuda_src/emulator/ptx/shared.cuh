// Host version of cuda_src/ptx/shared.cuh.
#pragma once
#include "platform.cuh"

namespace ptx {

__forceinline__ uint32_t shared_address(const void* pointer, EMULATOR_SITE) {
  return emulator_shared_address(pointer, file, line);
}

}  // namespace ptx
