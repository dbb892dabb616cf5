// Matrix products from register tiles of rows x N vectors.
#pragma once
#include "cpu/pair.h"
#include "cpu/sizes.h"
#include "cpu/vector.h"

// The factor whose elements are broadcast, A. In memory its rows lie `pitch` apart, or its columns where kTransposed.
template <class E, bool kTransposed>
struct Operand {
  const E* data;
  int64_t pitch;

  const E* row(int64_t r) const { return data + (kTransposed ? r : r * pitch); }
  int64_t rows_apart() const { return kTransposed ? 1 : pitch; }
  int64_t columns_apart() const { return kTransposed ? pitch : 1; }
};
template <class E>
using ByRows = Operand<E, false>;
template <class E>
using ByColumns = Operand<E, true>;

inline ALWAYS_INLINE void multiply_add(Vector<float>& sum, float x, Vector<float> y) { sum += splat(x) * y; }
inline ALWAYS_INLINE void multiply_add(Vector<double>& sum, double x, Vector<double> y) { sum += splat(x) * y; }

// Calls use(x, row, n) for the n-th vector x of each of M rows of A B, from row r on. B has N vectors in a row, and its
// rows are `pitch` apart. kSteps steps of the sum make a turn of its loop.
template <class T, int M, int N, int kSteps, class A, class E, class Use>
inline ALWAYS_INLINE void multiply_tile(int64_t depth, A a, const E* b, int64_t pitch, int64_t r, Use& use) {
  Vector<T> sum[M][N] = {};
  const E* x = a.row(r);
  const auto step = [&]() ALWAYS_INLINE {
    Vector<E> y[N];
    UNROLL
    for (int n = 0; n < N; ++n) y[n] = load(b + n * kLanes<T>);
    UNROLL
    for (int m = 0; m < M; ++m) {
      const E xm = x[m * a.rows_apart()];
      UNROLL
      for (int n = 0; n < N; ++n) multiply_add(sum[m][n], xm, y[n]);
    }
    x += a.columns_apart(), b += pitch;
  };
  int64_t k = 0;
  for (; k + kSteps <= depth; k += kSteps) {
    UNROLL
    for (int s = 0; s < kSteps; ++s) step();
  }
  for (; k < depth; ++k) step();
  UNROLL
  for (int m = 0; m < M; ++m) {
    UNROLL
    for (int n = 0; n < N; ++n) use(sum[m][n], r + m, n);
  }
}

// Rows from r on in tiles of M, and what is left in smaller ones.
template <class T, int M, int N, int kSteps, class A, class E, class Use>
inline ALWAYS_INLINE void multiply_rows(int64_t r, int64_t rows, int64_t depth, A a, const E* b, int64_t pitch,
                                        Use& use) {
  for (; rows - r > M - kRowUnit; r += M) multiply_tile<T, M, N, kSteps>(depth, a, b, pitch, r, use);
  if constexpr (M > kRowUnit) {
    multiply_rows<T, int(round_up(M / 2, kRowUnit)), N, kSteps>(r, rows, depth, a, b, pitch, use);
  }
}

// All rows, and those that fill the last unit: A has them, and their results have a place.
template <class T, int N, int kSteps = 1, class A, class E, class Use>
inline ALWAYS_INLINE void multiply(int64_t rows, int64_t depth, A a, const E* b, int64_t pitch, Use use) {
  multiply_rows<T, kTileRows<N>, N, kSteps>(0, rows, depth, a, b, pitch, use);
}

// C += A B for N vectors of columns. Sums of one call meet in registers first: blocked, hence accurate.
template <class T, int N, int kSteps = 1, class A, class E>
inline ALWAYS_INLINE void accumulate(int64_t rows, int64_t depth, A a, const E* b, int64_t b_pitch, T* c,
                                     int64_t c_pitch) {
  multiply<T, N, kSteps>(rows, depth, a, b, b_pitch, [=](Vector<T> x, int64_t r, int n) ALWAYS_INLINE {
    T* at = c + r * c_pitch + n * kLanes<T>;
    store(at, load(at) + x);
  });
}

// C += A B for rows of B and C of `width`, whole vectors.
template <class T, int N>
__attribute__((noinline)) void accumulate_wide(int64_t rows, int64_t depth, ByRows<T> a, const T* b, T* c,
                                               int64_t pitch, int64_t width) {
  constexpr int64_t kStep = N * kLanes<T>;
  int64_t n = 0;
  for (; n + kStep <= width; n += kStep) accumulate<T, N>(rows, depth, a, b + n, pitch, c + n, pitch);
  if constexpr (N > 1) {
    if (n < width) accumulate_wide<T, N - 1>(rows, depth, a, b + n, c + n, pitch, width - n);
  }
}

// Whether all numbers are finite; count is a multiple of the vector.
template <class T>
bool all_finite(const T* x, int64_t count) {
  Vector<T> sum = {};
  for (int64_t i = 0; i < count; i += kLanes<T>) sum += load(x + i) * T(0);
  return !any(sum != sum);
}
