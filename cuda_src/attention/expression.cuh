// What the text of a traced function is made of (expressions/cxx.py): operations of int, int64_t, Accumulator and bool,
// with NumPy's meaning. Ints of 32 bits are known to fit; those of 64 wrap around.
#pragma once
#include "numeric.cuh"
#include "ptx/math.cuh"

namespace np {

__device__ __forceinline__ double nan() { return __int_as_float(0x7fffffff); }
__device__ __forceinline__ double infinite() { return infinity<double>(); }

__device__ __forceinline__ int64_t wide(int x) { return x; }
__device__ __forceinline__ int64_t wide(int64_t x) { return x; }
__device__ __forceinline__ int narrow(int64_t x) { return static_cast<int>(x); }
__device__ __forceinline__ int64_t wrapped_bits(uint64_t x) { return static_cast<int64_t>(x); }

template <class T>
__device__ __forceinline__ T add(T x, T y) {
  return x + y;
}
template <class T>
__device__ __forceinline__ T subtract(T x, T y) {
  return x - y;
}
template <class T>
__device__ __forceinline__ T multiply(T x, T y) {
  return x * y;
}
template <class T>
__device__ __forceinline__ T negative(T x) {
  return -x;
}
template <>
__device__ __forceinline__ int64_t add(int64_t x, int64_t y) {
  return wrapped_bits(static_cast<uint64_t>(x) + static_cast<uint64_t>(y));
}
template <>
__device__ __forceinline__ int64_t subtract(int64_t x, int64_t y) {
  return wrapped_bits(static_cast<uint64_t>(x) - static_cast<uint64_t>(y));
}
template <>
__device__ __forceinline__ int64_t multiply(int64_t x, int64_t y) {
  return wrapped_bits(static_cast<uint64_t>(x) * static_cast<uint64_t>(y));
}
template <>
__device__ __forceinline__ int64_t negative(int64_t x) {
  return subtract<int64_t>(0, x);
}

template <class T>
__device__ __forceinline__ T square(T x) {
  return multiply(x, x);
}

template <class T>
__device__ __forceinline__ T absolute(T x) {
  return x < T(0) ? negative(x) : x;
}
template <>
__device__ __forceinline__ float absolute(float x) {
  return fabsf(x);
}
template <>
__device__ __forceinline__ double absolute(double x) {
  return fabs(x);
}

// NaN if either is.
template <class T>
__device__ __forceinline__ T minimum(T x, T y) {
  return x < y || x != x ? x : y;
}
template <class T>
__device__ __forceinline__ T maximum(T x, T y) {
  return x > y || x != x ? x : y;
}
template <class T>
__device__ __forceinline__ T sign(T x) {
  return x > T(0) ? T(1) : x < T(0) ? T(-1) : x;
}

// Towards minus infinity; by 0 it is 0.
template <class T>
__device__ __forceinline__ T floor_divide(T x, T y) {
  if (y == T(0) || y == T(-1)) return y == T(0) ? T(0) : negative(x);  // the smallest by -1 would overflow
  const T quotient = x / y;
  return quotient - T(x % y != T(0) && (x < T(0)) != (y < T(0)));
}
template <class T>
__device__ __forceinline__ T remainder(T x, T y) {
  if (y == T(0) || y == T(-1)) return T(0);
  const T rest = x % y;
  return rest != T(0) && (rest < T(0)) != (y < T(0)) ? rest + y : rest;
}
template <>
__device__ __forceinline__ float remainder(float x, float y) {
  const float rest = fmodf(x, y);
  return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}
template <>
__device__ __forceinline__ double remainder(double x, double y) {
  const double rest = fmod(x, y);
  return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}

// Of floats, as NumPy has it, exact before it is rounded; by 0 the quotient.
template <>
__device__ __forceinline__ float floor_divide(float x, float y) {
  const float rest = fmodf(x, y), whole = rintf((x - rest) / y);
  return y == 0 ? x / y : rest != 0 && (rest < 0) != (y < 0) ? whole - 1 : whole;
}
template <>
__device__ __forceinline__ double floor_divide(double x, double y) {
  const double rest = fmod(x, y), whole = rint((x - rest) / y);
  return y == 0 ? x / y : rest != 0 && (rest < 0) != (y < 0) ? whole - 1 : whole;
}

__device__ __forceinline__ float divide(float x, float y) { return x / y; }
__device__ __forceinline__ double divide(double x, double y) { return x / y; }
__device__ __forceinline__ float power(float x, float y) { return powf(x, y); }
__device__ __forceinline__ double power(double x, double y) { return pow(x, y); }
__device__ __forceinline__ float floor(float x) { return floorf(x); }
__device__ __forceinline__ double floor(double x) { return ::floor(x); }
__device__ __forceinline__ float exp(float x) { return expf(x); }
__device__ __forceinline__ double exp(double x) { return ::exp(x); }
__device__ __forceinline__ float exp2(float x) { return exp2f(x); }
__device__ __forceinline__ double exp2(double x) { return ::exp2(x); }
__device__ __forceinline__ float log(float x) { return logf(x); }
__device__ __forceinline__ double log(double x) { return ::log(x); }
__device__ __forceinline__ float log2(float x) { return log2f(x); }
__device__ __forceinline__ double log2(double x) { return ::log2(x); }
__device__ __forceinline__ float log1p(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p(double x) { return ::log1p(x); }
__device__ __forceinline__ float tanh(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh(double x) { return ::tanh(x); }
// For half types as attention/score/softcap.cuh has it.
template <class Element>
__device__ __forceinline__ float tanh_of_score(float x) {
  return sizeof(Element) == 2 ? ptx::tanh_approx(x) : tanhf(x);
}
template <class Element>
__device__ __forceinline__ double tanh_of_score(double x) {
  return ::tanh(x);
}
__device__ __forceinline__ float sqrt(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt(double x) { return ::sqrt(x); }
__device__ __forceinline__ float sin(float x) { return sinf(x); }
__device__ __forceinline__ double sin(double x) { return ::sin(x); }
__device__ __forceinline__ float cos(float x) { return cosf(x); }
__device__ __forceinline__ double cos(double x) { return ::cos(x); }

template <class T>
__device__ __forceinline__ bool isfinite(T x) {
  return x - x == T(0);
}
template <class T>
__device__ __forceinline__ auto less(T x, T y) {
  return x < y;
}
template <class T>
__device__ __forceinline__ auto less_equal(T x, T y) {
  return x <= y;
}
template <class T>
__device__ __forceinline__ auto equal(T x, T y) {
  return x == y;
}
template <class T>
__device__ __forceinline__ auto not_equal(T x, T y) {
  return x != y;
}
template <class T>
__device__ __forceinline__ T bitwise_and(T x, T y) {
  return x & y;
}
template <class T>
__device__ __forceinline__ T bitwise_or(T x, T y) {
  return x | y;
}
template <class T>
__device__ __forceinline__ T bitwise_xor(T x, T y) {
  return x ^ y;
}
__device__ __forceinline__ bool invert(bool x) { return !x; }
__device__ __forceinline__ int invert(int x) { return ~x; }
__device__ __forceinline__ int64_t invert(int64_t x) { return ~x; }
template <class T>
__device__ __forceinline__ T where(bool condition, T x, T y) {
  return condition ? x : y;
}

template <class Int>
__device__ __forceinline__ Int bool_to_int(bool x) {
  return x;
}
template <class Float>
__device__ __forceinline__ Float bool_to_float(bool x) {
  return x;
}
template <class Float, class Int>
__device__ __forceinline__ Float int_to_float(Int x) {
  return static_cast<Float>(x);
}

// A float is cut towards 0: NaN is 0, and what lies beyond 32 bits the nearest.
template <class Int, class Float>
__device__ __forceinline__ Int float_to_int(Float x) {
  if (x != x) return 0;
  return x >= Float(2147483647) ? 2147483647 : x <= Float(-2147483647) ? -2147483647 : static_cast<int>(x);
}

// An index into an axis of so many: negative ones count from the end, and of those beyond there are none.
template <class Index>
__device__ __forceinline__ Index wrapped(Index i, int size) {
  return i < 0 ? i + size : i;
}
template <class Index>
__device__ __forceinline__ Index held(Index i, int size) {
  return max(Index(0), min(wrapped(i, size), Index(size - 1)));
}

// How many elements there are, and which of them one is, row by row.
template <int kAxes>
__device__ __forceinline__ int64_t count(const int (&sizes)[kAxes]) {
  int64_t elements = 1;
  for (int axis = 0; axis < kAxes; ++axis) elements *= sizes[axis];
  return elements;
}
template <int kAxes, class... Index>
__device__ __forceinline__ int64_t position(const int (&sizes)[kAxes], Index... index) {
  int64_t at = 0;
  int axis = 0;
  ((at = at * sizes[axis++] + index), ...);
  return at;
}

template <class To, class Storage>
__device__ __forceinline__ To number(Storage x) {
  return static_cast<To>(x);
}
template <class To>
__device__ __forceinline__ To number(Float16 x) {
  return to_accumulator(x);
}
template <class To>
__device__ __forceinline__ To number(BFloat16 x) {
  return to_accumulator(x);
}

// Between which values the elements lie whose indices lie between others: attention/range.cuh.
template <class To, class Storage, class Array, class... Index>
__device__ To element_range(const Array& array, Index... index);

// An element of an array that is stored as Storage. Strides may have 32 bits, as far as they add up.
template <class To, class Storage, class Array, class... Index>
__device__ __forceinline__ To element(const Array& array, Index... index) {
  auto offset = array.strides[0] * 0;
  int axis = 0;
  ((offset += index * array.strides[axis++]), ...);
  return number<To>(static_cast<const Storage*>(array.data)[offset]);
}

}  // namespace np
