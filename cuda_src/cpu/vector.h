// Vectors of the CPU's width through the compiler's vector extensions: the same source for AVX-512, AVX2, SSE2 and
// NEON. No standard C++ header, so that no C++ library is needed (ziglang would first build one, for minutes).
#pragma once
#include <stdint.h>

#define UNROLL _Pragma("GCC unroll 16")
// Accumulators stay in registers only where their last use is inlined; clang would not of itself.
#define ALWAYS_INLINE __attribute__((always_inline))

// Bytes of a vector, and how many vectors the registers hold. Tests define both, for the compiler makes vectors of
// another width from those it has.
#if !defined(VECTOR_BYTES)
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define REGISTERS 32
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define REGISTERS 16
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define REGISTERS 32
#else
#define VECTOR_BYTES 16
#define REGISTERS 16
#endif
#endif
constexpr int kVectorBytes = VECTOR_BYTES;

// A register tile has kTileRows<N> rows of N vectors: its accumulators, N operands and one scalar fit the registers,
// and the loads of a step (N vectors, kTileRows<N> scalars) take less time than its kAccumulators multiply-adds. Of the
// rows that whole tiles leave over, whole units are done.
constexpr int kAccumulators = REGISTERS == 32 ? 24 : 12;
constexpr int kRowUnit = kAccumulators / 6;
template <int N>
constexpr int kTileRows = kAccumulators / N;

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using Type = int32_t;
};
template <>
struct IntegerOf<double> {
  using Type = int64_t;
};

template <class T>
using Integer = typename IntegerOf<T>::Type;

template <class T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::Type;
template <class T>
using Mask = Vector<Integer<T>>;  // all bits of a lane set or none

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

// Rows in scratch are whole vectors, and whole units where they become rows of a product.
template <class T>
constexpr int kPitchUnit = kLanes<T> > kRowUnit ? kLanes<T> : kRowUnit;

template <class V>
inline V load_as(const void* p) {
  V x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

template <class T>
inline Vector<T> load(const T* p) {
  return load_as<Vector<T>>(p);
}

template <class V>
inline void store(void* p, V x) {
  __builtin_memcpy(p, &x, sizeof x);
}

// x - 0 is x for every x, -0 and nan too, so nothing is left of the subtraction.
template <class T>
inline Vector<T> splat(T x) {
  return x - Vector<T>{};
}

template <class T>
constexpr T kInfinity = T(__builtin_inff());

// `a` where `b` is nan, as a reference for scores must not become nan by one of them.
template <class V>
inline V max_of(V a, V b) {
  return b > a ? b : a;
}

template <class M>
inline bool any(M mask) {
  auto bits = mask[0];
  for (int i = 1; i < int(sizeof(M) / sizeof(mask[0])); ++i) bits |= mask[i];
  return bits != 0;
}

template <class T>
inline Mask<T> lane_index() {
  Mask<T> index;
  UNROLL
  for (int i = 0; i < kLanes<T>; ++i) index[i] = i;
  return index;
}

// The lower or upper halves of a and b, lane by lane in turn.
template <class T>
inline ALWAYS_INLINE Vector<T> interleave(Vector<T> a, Vector<T> b, bool upper) {
  constexpr int kHalf = kLanes<T> / 2;
#if defined(__clang__)
#define INTERLEAVE(...) __builtin_shufflevector(a, b, __VA_ARGS__)
  if constexpr (kLanes<T> == 2) return upper ? INTERLEAVE(1, 3) : INTERLEAVE(0, 2);
  if constexpr (kLanes<T> == 4) return upper ? INTERLEAVE(2, 6, 3, 7) : INTERLEAVE(0, 4, 1, 5);
  if constexpr (kLanes<T> == 8) {
    return upper ? INTERLEAVE(4, 12, 5, 13, 6, 14, 7, 15) : INTERLEAVE(0, 8, 1, 9, 2, 10, 3, 11);
  }
  if constexpr (kLanes<T> == 16) {
    return upper ? INTERLEAVE(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                 : INTERLEAVE(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  }
#undef INTERLEAVE
#else
  Mask<T> order;
  UNROLL
  for (int i = 0; i < kLanes<T>; ++i) order[i] = i / 2 + (upper ? kHalf : 0) + (i % 2 ? kLanes<T> : 0);
  return __builtin_shuffle(a, b, order);
#endif
}

// Of as many vectors as they have lanes.
template <class T>
inline ALWAYS_INLINE void transpose_square(Vector<T> (&x)[kLanes<T>]) {
  constexpr int kHalf = kLanes<T> / 2;
  UNROLL
  for (int size = 1; size < kLanes<T>; size *= 2) {
    Vector<T> y[kLanes<T>];
    UNROLL
    for (int i = 0; i < kHalf; ++i) {
      y[2 * i] = interleave<T>(x[i], x[i + kHalf], false);
      y[2 * i + 1] = interleave<T>(x[i], x[i + kHalf], true);
    }
    UNROLL
    for (int i = 0; i < kLanes<T>; ++i) x[i] = y[i];
  }
}

// y[c][r] = x[r][c]; rows and columns are whole vectors.
template <class T>
void transpose(T* y, int64_t y_pitch, const T* x, int64_t x_pitch, int64_t rows, int64_t cols) {
  constexpr int kStep = kLanes<T>;
  for (int64_t r = 0; r < rows; r += kStep) {
    for (int64_t c = 0; c < cols; c += kStep) {
      Vector<T> square[kStep];
      UNROLL
      for (int i = 0; i < kStep; ++i) square[i] = load(x + (r + i) * x_pitch + c);
      transpose_square<T>(square);
      UNROLL
      for (int i = 0; i < kStep; ++i) store(y + (c + i) * y_pitch + r, square[i]);
    }
  }
}

// 2^f on [-1/2, 1/2] is 1 + f q(f), q interpolated at Chebyshev nodes: relative error 5e-9 and 9e-18.
template <class T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kRound = 0x1.8p23f;  // added, it leaves the rounded argument in the low bits
  static constexpr float q[] = {0.69314718802622878106f,    0.24022650760568126945f,  0.055503571142190778186f,
                                0.0096180825572778514913f, 0.0013390863364671234381f, 0.00015453162945120690177f};
};
template <>
struct Exp2<double> {
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double q[] = {0.69314718055994530942,    0.2402265069591009822,     0.055504108664821594339,
                                 0.0096181291076068885273,  0.001333355814641693531,   0.00015403530441736050155,
                                 0.000015252733829836118394, 1.3215442587921689653e-6, 1.0178062445845773521e-7,
                                 7.0725859492692236999e-9,  4.4549605981865183938e-10};
};

// 2^(unit x - less) as (1 + x) power, `less` a whole number, for exponents up to kBias + 1, where power is inf. It is 0
// below the normal numbers; nan stays nan in x. Several vectors take every step together: of one alone each step would
// wait for the one before. The products with `unit` are part of multiply-adds that were additions without it.
template <class T, int W>
inline ALWAYS_INLINE void exp2_parts(Vector<T> (&x)[W], Vector<T> (&power)[W], T unit, T less) {
  using E = Exp2<T>;
  constexpr int kTerms = sizeof(E::q) / sizeof(T);
  const Vector<T> bottom = splat((less - T(E::kBias)) / unit);
  const T shift = T(E::kRound + E::kBias) - less;
  Vector<T> q[W];
  UNROLL
  for (int i = 0; i < W; ++i) {
    x[i] = x[i] < bottom ? bottom : x[i];
    const Vector<T> shifted = x[i] * unit + shift;
    x[i] = x[i] * unit - (shifted - shift);
    power[i] = (Vector<T>)((Mask<T>)shifted << E::kMantissa);  // 2^round(x - less), 0 for the bottom
    q[i] = splat<T>(E::q[kTerms - 1]);
  }
  UNROLL
  for (int term = kTerms - 2; term >= 0; --term) {
    UNROLL
    for (int i = 0; i < W; ++i) q[i] = q[i] * x[i] + E::q[term];
  }
  UNROLL
  for (int i = 0; i < W; ++i) x[i] = q[i] * x[i];
}

// x = 2^(unit x - less)
template <class T, int W>
inline ALWAYS_INLINE void exp2(Vector<T> (&x)[W], T unit, T less) {
  Vector<T> power[W];
  exp2_parts<T>(x, power, unit, less);
  UNROLL
  for (int i = 0; i < W; ++i) x[i] = (x[i] + T(1)) * power[i];
}
template <class T>
inline ALWAYS_INLINE Vector<T> exp2(Vector<T> x, T unit = 1, T less = 0) {
  Vector<T> one[1] = {x};
  exp2<T>(one, unit, less);
  return one[0];
}
