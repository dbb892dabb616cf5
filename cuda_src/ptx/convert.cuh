// Conversions between float32 and the 16-bit formats, round to nearest even: PTX ISA 9.7.9, cvt.
// 16-bit values are kept as raw bits (uint16_t), so that kernels need neither cuda_fp16.h nor cuda_bf16.h.
// NaN becomes 0x7fff in both formats, overflow infinity; subnormals are kept.
#pragma once
#include "platform.cuh"

namespace ptx {

__device__ __forceinline__ float f32_from_f16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// bfloat16 is the upper half of a float32.
__device__ __forceinline__ float f32_from_bf16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

__device__ __forceinline__ uint16_t f16_from_f32(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

__device__ __forceinline__ uint16_t bf16_from_f32(float value) {
#if __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  // Adding 0x7fff, plus one where the kept half is odd, carries exactly when nearest-even rounds up.
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

// Two values in one register, `lo` in bits 0-15.
__device__ __forceinline__ uint32_t f16x2_from_f32(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(hi), "f"(lo));
  return bits;
#else
  return f16_from_f32(lo) | static_cast<uint32_t>(f16_from_f32(hi)) << 16;
#endif
}

__device__ __forceinline__ uint32_t bf16x2_from_f32(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(hi), "f"(lo));
  return bits;
#else
  return bf16_from_f32(lo) | static_cast<uint32_t>(bf16_from_f32(hi)) << 16;
#endif
}

}  // namespace ptx
