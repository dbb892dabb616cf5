// Storage types and their conversion to the accumulator type: float, or double for double.
#pragma once
#include "platform.cuh"
#include "ptx/convert.cuh"

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class Element>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};

__device__ __forceinline__ float to_accumulator(Float16 x) { return ptx::f32_from_f16(x.bits); }
__device__ __forceinline__ float to_accumulator(BFloat16 x) { return ptx::f32_from_bf16(x.bits); }
__device__ __forceinline__ float to_accumulator(float x) { return x; }
__device__ __forceinline__ double to_accumulator(double x) { return x; }

// An online softmax lets probabilities, before their division, grow to 2^kSlack.
constexpr int kSlack = 8;

// Probabilities of bfloat16 are at most 2^-30, so that sums of up to 2^29 of them times a value stay below the largest
// number of the accumulator wherever the value is. An exponent near -38 is rounded by 1.3e-6, which only bfloat16's own
// rounding hides: float and double go without. float16's values end at 65504 and need none.
template <class Element>
constexpr int kHeadroom = 0;
template <>
constexpr int kHeadroom<BFloat16> = 30 + kSlack;

// Round to the storage type, to nearest even.
__device__ __forceinline__ void from_accumulator(Float16& y, float x) { y.bits = ptx::f16_from_f32(x); }
__device__ __forceinline__ void from_accumulator(BFloat16& y, float x) { y.bits = ptx::bf16_from_f32(x); }
__device__ __forceinline__ void from_accumulator(float& y, float x) { y = x; }
__device__ __forceinline__ void from_accumulator(double& y, double x) { y = x; }

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

template <class Accumulator>
__device__ __forceinline__ Accumulator infinity() {
  return static_cast<Accumulator>(__int_as_float(0x7f800000));
}
