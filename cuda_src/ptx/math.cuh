// Base-2 exponential and logarithm, and a minimum: one instruction in float32 (PTX ISA 9.7.3, ex2 / lg2: approximate to
// about 2 ulp, subnormals flushed to zero), the full-precision library function in float64. And a hyperbolic tangent.
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

// PTX ISA 9.7.3, tanh: a relative error of at most 2^-11. One instruction from sm_75 on.
__device__ __forceinline__ float tanh_approx(float x) {
#if __CUDA_ARCH__ >= 750
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return tanhf(x);
#endif
}

// The smaller of two, NaN if x is: PTX ISA 9.7.3, min. One instruction from sm_80 on.
__device__ __forceinline__ float min_nan(float x, float y) {
#if __CUDA_ARCH__ >= 800
  float smaller;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(x), "f"(y));
  return smaller;
#else
  return y < x ? y : x;
#endif
}

__device__ __forceinline__ double min_nan(double x, double y) { return y < x ? y : x; }

}  // namespace ptx
