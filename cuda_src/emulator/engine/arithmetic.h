// What a GPU may answer where it does not round correctly: ex2.approx, lg2.approx and tanh.approx of float32, as far
// off as the PTX ISA allows, and the sums of tensor cores.
//
//   ex2  at most 2 ulp from the correctly rounded result, "across the full range of inputs" (PTX ISA 9.7.3, ex2)
//   lg2  at most 2^-22 off for an argument in (0.5, 2), elsewhere at most 2^-22 times the result (9.7.3, lg2)
//   tanh at most 2^-11 times the result (9.7.3, tanh), and not beyond 1
//
// What the tables there list is exact: ex2(0) = 1, ex2(-inf) = 0, lg2(0) = -inf, tanh(0) = 0, tanh(inf) = 1, infinities
// and NaN. Nothing else is, though hardware that interpolates over the mantissa may well be at whole numbers and powers
// of two. An error is a function of the argument's bits: the same in every thread and on both of the emulator's paths.
#pragma once
#include <math.h>

#include "../half.h"
#include "machine.h"

namespace emulator {

// From -2^31 to 2^31 - 1: of the largest error allowed, the share that an argument gets.
inline int64_t error_share(float x) {
  if (machine->launch->arithmetic == kArithmeticHigh) return INT32_MAX;
  if (machine->launch->arithmetic == kArithmeticLow) return INT32_MIN;
  uint32_t bits = bit_cast<uint32_t>(x);  // the finalizer of MurmurHash3 (Appleby): each bit depends on all
  bits = (bits ^ bits >> 16) * 0x85ebca6bu;
  bits = (bits ^ bits >> 13) * 0xc2b2ae35u;
  return static_cast<int32_t>(bits ^ bits >> 16);
}

inline bool is_exact() { return machine->launch->arithmetic == kArithmeticExact; }

inline float approximate_ex2(float x) {
  const float rounded = static_cast<float>(exp2(static_cast<double>(x)));
  if (x == 0 || !isnormal(rounded)) return rounded;
  const int64_t ulps = (5 * (error_share(x) + (int64_t{1} << 31)) >> 32) - 2;  // -2 to 2, all as likely
  return bit_cast<float>(static_cast<uint32_t>(bit_cast<uint32_t>(rounded) + ulps));
}

// `exact` and the share of the error allowed that x gets, in float32: not rounded out of what is allowed.
inline float off_by(double allowed, double exact, float x) {
  const float y = static_cast<float>(exact + allowed * (static_cast<double>(error_share(x)) * 0x1p-31));
  return fabs(y - exact) > allowed ? nextafterf(y, static_cast<float>(exact)) : y;
}

inline float approximate_lg2(float x) {
  const double exact = log2(static_cast<double>(x));
  if (!isfinite(exact)) return static_cast<float>(exact);
  return off_by(0x1p-22 * (x > 0.5f && x < 2.0f ? 1 : fabs(exact)), exact, x);
}

inline float approximate_tanh(float x) {
  const double exact = tanh(static_cast<double>(x));
  if (x == 0 || isinf(x) || isnan(x)) return static_cast<float>(exact);
  return fmaxf(-1.0f, fminf(off_by(0x1p-11 * fabs(exact), exact, x), 1.0f));
}

// To float32, toward zero, but what its exponent cannot hold is infinite.
inline float toward_zero(double x) {
  const float y = static_cast<float>(x);
  return fabs(y) > fabs(x) && fabs(x) < 0x1p128 ? nextafterf(y, 0.0f) : y;
}

// The sum of some products and of what was summed before, as tensor cores make it (Fasi, Higham, Mikaitis and Pranesh
// 2021, Numerical behavior of NVIDIA tensor cores): every term is cut to a multiple of the last place that the largest
// has in 24 bits, their sum is exact, and the result is rounded toward zero. A double holds a product of half types.
template <int kTerms>
inline float truncated_sum(const double (&terms)[kTerms]) {
  double sum = 0, largest = 0;
  for (const double term : terms) {
    sum += term;
    largest = fmax(largest, fabs(term));
  }
  if (!isfinite(sum) || largest == 0) return static_cast<float>(sum);
  const double power = bit_cast<double>(bit_cast<uint64_t>(largest) >> 52 << 52), last_place = 0x1p-23 * power;
  const double places = 1 / last_place;
  int64_t whole = 0;
  for (const double term : terms) whole += static_cast<int64_t>(term * places);
  return toward_zero(static_cast<double>(whole) * last_place);
}

}  // namespace emulator

extern "C" {

float emulator_ex2(float x) { return emulator::is_exact() ? exp2f(x) : emulator::approximate_ex2(x); }
float emulator_tanh(float x) { return emulator::is_exact() ? tanhf(x) : emulator::approximate_tanh(x); }
float emulator_lg2(float x) { return emulator::is_exact() ? log2f(x) : emulator::approximate_lg2(x); }
}
