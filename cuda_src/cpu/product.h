// Matrix products from register tiles of up to kRows rows x N vectors.
#pragma once
#include "cpu/mask.h"
#include "cpu/pair.h"
#include "cpu/vector.h"

// The factor whose elements are broadcast: `row` and `step` are its strides along the rows of the result and the sum.
template <class E>
struct Operand {
  const E* data;
  int64_t row, step;
};

inline ALWAYS_INLINE void multiply_add(Vector<float>& sum, float x, Vector<float> y) { sum += splat(x) * y; }
inline ALWAYS_INLINE void multiply_add(Vector<double>& sum, double x, Vector<double> y) { sum += splat(x) * y; }

// Calls use(x, row, n) for the n-th vector x of each of M rows of A B, from row r on. B has N vectors in a row, and its
// rows are `pitch` apart.
template <class T, int M, int N, class E, class Use>
inline ALWAYS_INLINE void multiply_tile(int64_t depth, Operand<E> a, const E* b, int64_t pitch, int64_t r, Use& use) {
  Vector<T> sum[M][N] = {};
  const E* x = a.data + r * a.row;
  for (int64_t k = 0; k < depth; ++k, x += a.step, b += pitch) {
    Vector<E> y[N];
    UNROLL
    for (int n = 0; n < N; ++n) y[n] = load(b + n * kLanes<T>);
    UNROLL
    for (int m = 0; m < M; ++m) {
      const E xm = x[m * a.row];
      UNROLL
      for (int n = 0; n < N; ++n) multiply_add(sum[m][n], xm, y[n]);
    }
  }
  UNROLL
  for (int m = 0; m < M; ++m) {
    UNROLL
    for (int n = 0; n < N; ++n) use(sum[m][n], r + m, n);
  }
}

// All rows, and those that fill the last third: A has them, and their results have a place.
template <class T, int N, class E, class Use>
inline ALWAYS_INLINE void multiply(int64_t rows, int64_t depth, Operand<E> a, const E* b, int64_t pitch, Use use) {
  int64_t r = 0;
  for (; rows - r > 2 * kThird; r += kRows) multiply_tile<T, kRows, N>(depth, a, b, pitch, r, use);
  if (rows - r > kThird) multiply_tile<T, 2 * kThird, N>(depth, a, b, pitch, r, use);
  else if (rows > r) multiply_tile<T, kThird, N>(depth, a, b, pitch, r, use);
}

// C += A B for N vectors of columns. Sums of one call meet in registers first: blocked, hence accurate.
template <class T, int N, class E>
__attribute__((noinline)) void accumulate(int64_t rows, int64_t depth, Operand<E> a, const E* b, int64_t b_pitch, T* c,
                                          int64_t c_pitch) {
  multiply<T, N>(rows, depth, a, b, b_pitch, [=](Vector<T> x, int64_t r, int n) ALWAYS_INLINE {
    T* at = c + r * c_pitch + n * kLanes<T>;
    store(at, load(at) + x);
  });
}

// C += A B for rows of B and C that are whole vectors.
template <class T>
void accumulate_wide(int64_t rows, int64_t depth, Operand<T> a, const T* b, T* c, int64_t pitch) {
  constexpr int kStep = kVectors * kLanes<T>;
  int64_t n = 0;
  for (; n + kStep <= pitch; n += kStep) accumulate<T, kVectors>(rows, depth, a, b + n, pitch, c + n, pitch);
  if (n < pitch) accumulate<T, 1>(rows, depth, a, b + n, pitch, c + n, pitch);
}

// Whether all numbers are finite; count is a multiple of the vector.
template <class T>
bool all_finite(const T* x, int64_t count) {
  Vector<T> sum = {};
  for (int64_t i = 0; i < count; i += kLanes<T>) sum += load(x + i) * T(0);
  return !any(sum != sum);
}
