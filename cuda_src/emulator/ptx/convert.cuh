// Host version of cuda_src/ptx/convert.cuh.
#pragma once
#include "platform.cuh"

namespace ptx {

using emulator::bf16_from_f32;
using emulator::f16_from_f32;
using emulator::f32_from_bf16;
using emulator::f32_from_f16;

__forceinline__ uint32_t f16x2_from_f32(float lo, float hi) {
  return f16_from_f32(lo) | static_cast<uint32_t>(f16_from_f32(hi)) << 16;
}
__forceinline__ uint32_t bf16x2_from_f32(float lo, float hi) {
  return bf16_from_f32(lo) | static_cast<uint32_t>(bf16_from_f32(hi)) << 16;
}

}  // namespace ptx
