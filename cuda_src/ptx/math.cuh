// Base-2 exponential and logarithm: one instruction in float32 (PTX ISA 9.7.3, ex2 / lg2: approximate to
// about 2 ulp, subnormals flushed to zero), the full-precision library function in float64.
#pragma once
#include "platform.cuh"

namespace ptx {

__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ double ex2(double x) { return exp2(x); }

__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ double lg2(double x) { return log2(x); }

}  // namespace ptx
