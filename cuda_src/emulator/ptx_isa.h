// What translated PTX calls: one function per arithmetic instruction, named after it (PTX ISA chapter 9.7).
//
// A PTX register is an unsigned integer of its width (a predicate is a bool). as<T> reads its low bytes as
// the instruction's type, put writes a result back, sign- or zero-extended as the type says.
// Approximate instructions (rcp, sin, ...) are computed to full precision, but for ex2 and lg2, where the launch's
// arithmetic says. NaN payloads are the host's.
#pragma once
// A translated kernel has thousands of statements: a backward compiles in 4 s at -Og, 9 at -O1, 19 at -O2.
// At -Og it runs six times slower, which conformance tests do not feel. clang ignores this.
#pragma GCC optimize("Og")
#include "platform.cuh"
#include "ptx/convert.cuh"
#include "ptx/memory.cuh"

#define PTX_SITE __FILE__, __LINE__

namespace isa {

// ---- registers
template <int kBytes> struct UnsignedOf;
template <> struct UnsignedOf<1> { using type = uint8_t; };
template <> struct UnsignedOf<2> { using type = uint16_t; };
template <> struct UnsignedOf<4> { using type = uint32_t; };
template <> struct UnsignedOf<8> { using type = uint64_t; };
template <class T> using Unsigned = typename UnsignedOf<sizeof(T)>::type;

template <int kBytes> struct SignedOf;
template <> struct SignedOf<2> { using type = int16_t; };
template <> struct SignedOf<4> { using type = int32_t; };
template <> struct SignedOf<8> { using type = int64_t; };

template <class T> constexpr bool kIsFloat = false;
template <> inline constexpr bool kIsFloat<float> = true;
template <> inline constexpr bool kIsFloat<double> = true;
template <class T> constexpr bool kIsSigned = static_cast<T>(-1) < static_cast<T>(0);
template <class T> constexpr int kBits = 8 * sizeof(T);

template <class T, class Register> inline T as(Register bits) {
  return __builtin_bit_cast(T, static_cast<Unsigned<T>>(bits));
}

template <class Register, class T> inline void put(Register& target, T value) {
  if constexpr (kIsFloat<T>) {
    target = static_cast<Register>(__builtin_bit_cast(Unsigned<T>, value));
  } else {
    target = static_cast<Register>(value);
  }
}

// ---- addresses
inline uint8_t* pointer(uint64_t address) {
  return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(address));
}
inline uint64_t address(const void* pointer) {
  return static_cast<uint64_t>(reinterpret_cast<uintptr_t>(pointer));
}
template <class T> inline T* at(const uint8_t* pointer) {
  return reinterpret_cast<T*>(const_cast<uint8_t*>(pointer));
}

// ---- .ftz and .sat
inline float ftz(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }
inline double ftz(double x) { return __builtin_fabs(x) < 0x1p-1022 ? __builtin_copysign(0.0, x) : x; }

template <class T> inline T saturate(T x) { return x > T(0) ? (x < T(1) ? x : T(1)) : T(0); }

// ---- integer and floating-point arithmetic; integers wrap
template <class T> inline T add(T a, T b) {
  if constexpr (kIsFloat<T>) return a + b;
  else return as<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
template <class T> inline T sub(T a, T b) {
  if constexpr (kIsFloat<T>) return a - b;
  else return as<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
}
template <class T> inline T mul(T a, T b) { return a * b; }
template <class T> inline T mul_lo(T a, T b) {
  return as<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
template <class T> inline T mul_hi(T a, T b) {
  using Wide = __int128;
  using UnsignedWide = unsigned __int128;
  if constexpr (kIsSigned<T>) return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> kBits<T>);
  else return static_cast<T>(static_cast<UnsignedWide>(a) * static_cast<UnsignedWide>(b) >> kBits<T>);
}
// The product in twice the bits.
inline uint32_t mul_wide(uint16_t a, uint16_t b) { return static_cast<uint32_t>(a) * b; }
inline int32_t mul_wide(int16_t a, int16_t b) { return static_cast<int32_t>(a) * b; }
inline uint64_t mul_wide(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }
inline int64_t mul_wide(int32_t a, int32_t b) { return static_cast<int64_t>(a) * b; }

template <class T> inline T mad_lo(T a, T b, T c) { return add<T>(mul_lo<T>(a, b), c); }
template <class T> inline T mad_hi(T a, T b, T c) { return add<T>(mul_hi<T>(a, b), c); }
template <class T, class W> inline W mad_wide(T a, T b, W c) { return add<W>(mul_wide(a, b), c); }

template <class T> inline T fma(T a, T b, T c) {
  if constexpr (sizeof(T) == 4) return __builtin_fmaf(a, b, c);
  else return __builtin_fma(a, b, c);
}
template <class T> inline T mad(T a, T b, T c) { return fma<T>(a, b, c); }

// An integer division by zero gives all ones, as the hardware's does.
template <class T> inline T div(T a, T b) {
  if constexpr (kIsFloat<T>) {
    return a / b;
  } else {
    if (b == 0) return as<T>(~uint64_t{0});
    if constexpr (kIsSigned<T>) {
      if (b == -1) return sub<T>(0, a);
    }
    return static_cast<T>(a / b);
  }
}
template <class T> inline T rem(T a, T b) {
  if (b == 0) return a;
  if constexpr (kIsSigned<T>) {
    if (b == -1) return 0;
  }
  return static_cast<T>(a % b);
}
template <class T> inline T neg(T a) {
  if constexpr (kIsFloat<T>) return -a;
  else return sub<T>(0, a);
}
template <class T> inline T abs(T a) {
  if constexpr (kIsFloat<T>) return static_cast<T>(__builtin_fabs(a));
  else return a < 0 ? neg<T>(a) : a;
}
template <class T> inline T sad(T a, T b, T c) { return add<T>(c, a > b ? sub<T>(a, b) : sub<T>(b, a)); }

// A NaN operand gives the other one; -0 is below +0. The _NaN versions give NaN instead.
template <class T> inline T min(T a, T b) {
  if constexpr (kIsFloat<T>) {
    if (a != a) return b;
    if (a == b) return as<T>(__builtin_bit_cast(Unsigned<T>, a) | __builtin_bit_cast(Unsigned<T>, b));
    return b < a ? b : a;
  } else {
    return b < a ? b : a;
  }
}
template <class T> inline T max(T a, T b) {
  if constexpr (kIsFloat<T>) {
    if (a != a) return b;
    if (a == b) return as<T>(__builtin_bit_cast(Unsigned<T>, a) & __builtin_bit_cast(Unsigned<T>, b));
    return b > a ? b : a;
  } else {
    return b > a ? b : a;
  }
}
template <class T> inline T min_NaN(T a, T b) { return a != a || b != b ? a + b : min<T>(a, b); }
template <class T> inline T max_NaN(T a, T b) { return a != a || b != b ? a + b : max<T>(a, b); }

// ---- floating-point functions
template <class T> inline T sqrt(T a) {
  if constexpr (sizeof(T) == 4) return __builtin_sqrtf(a);
  else return __builtin_sqrt(a);
}
// The approximate float64 seeds carry their upper 32 bits only.
inline double upper_half(double a) { return as<double>(__builtin_bit_cast(uint64_t, a) & ~0xffffffffull); }
template <class T> inline T rcp(T a) { return T(1) / a; }
template <class T> inline T rcp_approx(T a) {
  if constexpr (sizeof(T) == 4) return 1.0f / a;
  else return upper_half(1.0 / upper_half(a));
}
template <class T> inline T rsqrt_approx(T a) {
  if constexpr (sizeof(T) == 4) return 1.0f / __builtin_sqrtf(a);
  else return upper_half(1.0 / __builtin_sqrt(upper_half(a)));
}
inline float ex2(float a) { return emulator_ex2(a); }
inline float lg2(float a) { return emulator_lg2(a); }
inline float sin(float a) { return __builtin_sinf(a); }
inline float cos(float a) { return __builtin_cosf(a); }
inline float tanh(float a) { return emulator_tanh(a); }
// copysign d, a, b: the sign of a on b.
template <class T> inline T copysign(T sign, T value) {
  if constexpr (sizeof(T) == 4) return __builtin_copysignf(value, sign);
  else return __builtin_copysign(value, sign);
}
template <class T> inline bool testp_finite(T a) { return __builtin_isfinite(a); }
template <class T> inline bool testp_infinite(T a) { return __builtin_isinf(a); }
template <class T> inline bool testp_number(T a) { return a == a; }
template <class T> inline bool testp_notanumber(T a) { return a != a; }

// ---- bits
template <class T> inline T and_(T a, T b) { return static_cast<T>(a & b); }
template <class T> inline T or_(T a, T b) { return static_cast<T>(a | b); }
template <class T> inline T xor_(T a, T b) { return static_cast<T>(a ^ b); }
template <class T> inline T not_(T a) { return static_cast<T>(~a); }
template <> inline bool not_<bool>(bool a) { return !a; }
template <class T> inline T cnot(T a) { return a == 0 ? 1 : 0; }

// A shift by the width or more gives zero, or the sign for an arithmetic shift to the right.
template <class T> inline T shl(T a, uint32_t n) {
  return n < kBits<T> ? as<T>(static_cast<uint64_t>(a) << n) : T(0);
}
template <class T> inline T shr(T a, uint32_t n) {
  return static_cast<T>(n < kBits<T> ? a >> n : (a < 0 ? -1 : 0));
}
// Funnel shifts of the 64 bits b:a: the upper word of a left shift, the lower of a right shift.
inline uint64_t pair(uint32_t a, uint32_t b) { return static_cast<uint64_t>(b) << 32 | a; }
inline uint32_t funnel_left(uint32_t a, uint32_t b, uint32_t n) { return pair(a, b) << n >> 32; }
inline uint32_t funnel_right(uint32_t a, uint32_t b, uint32_t n) { return pair(a, b) >> n; }
inline uint32_t clamp32(uint32_t n) { return n < 32 ? n : 32; }
inline uint32_t shf_l_wrap(uint32_t a, uint32_t b, uint32_t n) { return funnel_left(a, b, n & 31); }
inline uint32_t shf_r_wrap(uint32_t a, uint32_t b, uint32_t n) { return funnel_right(a, b, n & 31); }
inline uint32_t shf_l_clamp(uint32_t a, uint32_t b, uint32_t n) { return funnel_left(a, b, clamp32(n)); }
inline uint32_t shf_r_clamp(uint32_t a, uint32_t b, uint32_t n) { return funnel_right(a, b, clamp32(n)); }

template <class T> inline uint32_t popc(T a) { return __builtin_popcountll(a); }
template <class T> inline uint32_t clz(T a) {
  return a == 0 ? kBits<T> : __builtin_clzll(a) - (64 - kBits<T>);
}
template <class T> inline T brev(T a) {
  T reversed = 0;
  for (int i = 0; i < kBits<T>; ++i) reversed |= (a >> i & 1) << (kBits<T> - 1 - i);
  return reversed;
}
// Position of the highest bit that differs from the sign (bfind); ~0 when there is none.
template <class T> inline uint32_t bfind(T a) {
  const auto bits = static_cast<Unsigned<T>>(kIsSigned<T> && a < 0 ? ~a : a);
  return bits == 0 ? ~0u : kBits<T> - 1 - clz<Unsigned<T>>(bits);
}

// Position and length are taken modulo 256; bits past the end read as the sign (zero when unsigned).
template <class T> inline T bfe(T a, uint32_t position, uint32_t length) {
  position &= 255;
  length &= 255;
  if (length == 0) return 0;
  const uint32_t end = position + length;
  const T shifted = shr<T>(a, position);
  if (end >= kBits<T>) return shifted;
  return shr<T>(shl<T>(shifted, kBits<T> - length), kBits<T> - length);
}
template <class T> inline T bfi(T a, T b, uint32_t position, uint32_t length) {
  position &= 255;
  length &= 255;
  const T ones = length < kBits<T> ? static_cast<T>((T(1) << length) - 1) : static_cast<T>(~T(0));
  const T mask = shl<T>(ones, position);
  return static_cast<T>((b & ~mask) | (shl<T>(a, position) & mask));
}
// Each nibble of the selector picks one of the eight bytes of b:a; its top bit repeats that byte's sign.
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15;
    uint32_t byte = pair(a, b) >> (8 * (nibble & 7)) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}
// Bit (4 a + 2 b + c) of the table is the result for bits a, b, c.
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i) {
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return result;
}

// ---- comparisons: the ...u versions are also true when an operand is NaN
template <class T> inline bool nan(T a, T b) { return a != a || b != b; }
template <class T> inline bool num(T a, T b) { return !nan<T>(a, b); }
template <class T> inline bool eq(T a, T b) { return a == b; }
template <class T> inline bool ne(T a, T b) { return a != b && num<T>(a, b); }
template <class T> inline bool lt(T a, T b) { return a < b; }
template <class T> inline bool le(T a, T b) { return a <= b; }
template <class T> inline bool gt(T a, T b) { return a > b; }
template <class T> inline bool ge(T a, T b) { return a >= b; }
template <class T> inline bool equ(T a, T b) { return a == b || nan<T>(a, b); }
template <class T> inline bool neu(T a, T b) { return a != b; }
template <class T> inline bool ltu(T a, T b) { return !(a >= b); }
template <class T> inline bool leu(T a, T b) { return !(a > b); }
template <class T> inline bool gtu(T a, T b) { return !(a <= b); }
template <class T> inline bool geu(T a, T b) { return !(a < b); }
template <class T> inline bool lo(T a, T b) { return a < b; }
template <class T> inline bool ls(T a, T b) { return a <= b; }
template <class T> inline bool hi(T a, T b) { return a > b; }
template <class T> inline bool hs(T a, T b) { return a >= b; }

template <class T> inline T selp(T a, T b, bool condition) { return condition ? a : b; }
template <class T> inline T slct(T a, T b, int32_t c) { return c >= 0 ? a : b; }
template <class T> inline T slct(T a, T b, float c) { return c >= 0 ? a : b; }

// ---- conversions
// To an integral value; every float32 is a float64, so one version serves both.
template <class T> inline T round_even(T a) { return static_cast<T>(__builtin_rint(a)); }
template <class T> inline T round_zero(T a) { return static_cast<T>(__builtin_trunc(a)); }
template <class T> inline T round_down(T a) { return static_cast<T>(__builtin_floor(a)); }
template <class T> inline T round_up(T a) { return static_cast<T>(__builtin_ceil(a)); }

template <class T>
constexpr T kLowest = kIsSigned<T> ? static_cast<T>(Unsigned<T>(1) << (kBits<T> - 1)) : T(0);
template <class T> constexpr T kHighest = static_cast<T>(~kLowest<T>);

// A rounded float to an integer: out of range clamps. NaN is 0, or the top bit alone if either type has 64 bits.
template <class To, class From> inline To to_integer(From a) {
  constexpr bool kWide = sizeof(From) == 8 || sizeof(To) == 8;
  if (a != a) return kWide ? static_cast<To>(Unsigned<To>(1) << (kBits<To> - 1)) : To(0);
  // 2^bits (or 2^(bits - 1)) is exact in either float type; kHighest need not be.
  const From bound = From(2) * static_cast<From>(uint64_t{1} << (kBits<To> - 1 - kIsSigned<To>));
  if (a >= bound) return kHighest<To>;
  if (a <= static_cast<From>(kLowest<To>)) return kLowest<To>;
  return static_cast<To>(a);
}
// cvt.sat between integers.
template <class To, class From> inline To clamp_integer(From a) {
  const __int128 value = a;
  if (value > kHighest<To>) return kHighest<To>;
  if (value < kLowest<To>) return kLowest<To>;
  return static_cast<To>(a);
}

// ---- shfl.sync: c holds the segment mask in bits 8-12 and the clamp in bits 0-4
template <int kMode>
inline uint32_t shfl(uint32_t value, uint32_t argument, uint32_t c, uint32_t mask, bool& in_range,
                     const char* file, int line) {
  const uint32_t clamp = kMode == kShuffleUp ? 0 : 31;
  if ((c & 31) != clamp) emulator_trap("shfl.sync: this clamp is not supported", file, line);
  int found = 0;
  const int width = 32 - static_cast<int>(c >> 8 & 31);
  const uint64_t result = emulator_shuffle(mask, value, 1, kMode, argument, width, &found, file, line);
  in_range = found != 0;
  return static_cast<uint32_t>(result);
}

}  // namespace isa
