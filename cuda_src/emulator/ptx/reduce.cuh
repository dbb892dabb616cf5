// Host version of cuda_src/ptx/reduce.cuh.
#pragma once
#include "platform.cuh"

namespace ptx {

__forceinline__ void add_global(float* dst, float x, EMULATOR_SITE) {
  emulator_atomic_f32(kAtomicAdd, dst, x, file, line);
}
__forceinline__ void add_global(float* dst, float x, float y, EMULATOR_SITE) {
  emulator_add_f32x2(dst, x, y, file, line);
}

}  // namespace ptx
