// Host version of cuda_src/ptx/math.cuh: the float32 functions flush subnormals to zero, as .ftz does, and round as the
// launch's arithmetic says.
#pragma once
#include "platform.cuh"

namespace ptx {

namespace detail {
__forceinline__ float flush(float x) {
  constexpr float kSmallestNormal = 0x1p-126f;
  return x > -kSmallestNormal && x < kSmallestNormal ? __builtin_copysignf(0.0f, x) : x;
}
}  // namespace detail

__forceinline__ float ex2(float x) { return detail::flush(emulator_ex2(detail::flush(x))); }
__forceinline__ double ex2(double x) { return exp2(x); }
__forceinline__ float lg2(float x) { return emulator_lg2(detail::flush(x)); }
__forceinline__ double lg2(double x) { return log2(x); }
__forceinline__ float tanh_approx(float x) { return emulator_tanh(x); }
__forceinline__ float min_nan(float x, float y) { return y < x ? y : x; }
__forceinline__ double min_nan(double x, double y) { return y < x ? y : x; }

}  // namespace ptx
