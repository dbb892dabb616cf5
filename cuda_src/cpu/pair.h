// Two neighbouring bfloat16 of a sum as one element: what AVX512_BF16 multiplies and adds. Any other machine can do the
// same in floats, more slowly than without pairs: with BFLOAT16_PAIRS defined, for tests.
#pragma once
#include "cpu/vector.h"

struct Pair {
  uint32_t bits;  // the first in the low half
};
template <>
struct IntegerOf<Pair> {
  using Type = int32_t;
};
template <>
struct VectorOf<Pair> {
  typedef uint32_t Type __attribute__((vector_size(kVectorBytes)));
};

template <class E>
constexpr bool kIsPair = false;
template <>
constexpr bool kIsPair<Pair> = true;

#if defined(__AVX512BF16__) || defined(BFLOAT16_PAIRS)
constexpr bool kUsesPairs = true;
#else
constexpr bool kUsesPairs = false;
#endif

inline ALWAYS_INLINE void multiply_add(Vector<float>& sum, Pair x, Vector<Pair> y) {
  const Vector<Pair> xs = x.bits + Vector<Pair>{};
#if defined(__AVX512BF16__)
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(xs), "v"(y));  // its intrinsic's header takes a second to compile
#else
  sum += (Vector<float>)(xs << 16) * (Vector<float>)(y << 16);
  sum += (Vector<float>)(xs & 0xffff0000) * (Vector<float>)(y & 0xffff0000);
#endif
}
