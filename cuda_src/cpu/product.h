// Matrix products from register tiles of kRows x N vectors.
#pragma once
#include "cpu/mask.h"
#include "cpu/vector.h"

template <class T>
struct Operand {  // the one whose elements are broadcast
  const T* data;
  int64_t row, step;  // strides along the rows of the result and along the sum
};

// Calls use(tile, r) for the tiles, rows r on, of A B with B of N vectors, its rows `pitch` apart.
template <class T, int M, int N, class Use>
inline ALWAYS_INLINE void multiply_tile(int64_t depth, Operand<T> a, const T* b, int64_t pitch, int64_t r, Use& use) {
  Vector<T> sum[M][N] = {};
  const T* x = a.data + r * a.row;
  for (int64_t k = 0; k < depth; ++k, x += a.step, b += pitch) {
    Vector<T> y[N];
    UNROLL
    for (int n = 0; n < N; ++n) y[n] = load(b + n * kLanes<T>);
    UNROLL
    for (int m = 0; m < M; ++m) {
      const Vector<T> xm = splat(x[m * a.row]);
      UNROLL
      for (int n = 0; n < N; ++n) sum[m][n] += xm * y[n];
    }
  }
  use(sum, r);
}

template <class T, int M, int N, class Use>
inline void multiply_rest(int64_t rows, int64_t depth, Operand<T> a, const T* b, int64_t pitch, int64_t r, Use& use) {
  if constexpr (M > 0) {
    if (rows == M) multiply_tile<T, M, N>(depth, a, b, pitch, r, use);
    else multiply_rest<T, M - 1, N>(rows, depth, a, b, pitch, r, use);
  }
}

template <class T, int N, class Use>
inline void multiply(int64_t rows, int64_t depth, Operand<T> a, const T* b, int64_t pitch, Use use) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) multiply_tile<T, kRows, N>(depth, a, b, pitch, r, use);
  multiply_rest<T, kRows - 1, N>(rows - r, depth, a, b, pitch, r, use);
}

// C += A B for N vectors of columns. Sums of one call meet in registers first: blocked, hence accurate.
template <class T, int N>
__attribute__((noinline)) void accumulate(int64_t rows, int64_t depth, Operand<T> a, const T* b, int64_t b_pitch,
                                          T* c, int64_t c_pitch) {
  multiply<T, N>(rows, depth, a, b, b_pitch, [=](auto& sum, int64_t r) ALWAYS_INLINE {
    constexpr int kM = sizeof(sum) / sizeof(sum[0]);
    UNROLL
    for (int m = 0; m < kM; ++m) {
      T* row = c + (r + m) * c_pitch;
      UNROLL
      for (int n = 0; n < N; ++n) store(row + n * kLanes<T>, load(row + n * kLanes<T>) + sum[m][n]);
    }
  });
}

// C += A B for rows of B and C that are whole vectors.
template <class T>
void accumulate_wide(int64_t rows, int64_t depth, Operand<T> a, const T* b, T* c, int64_t pitch) {
  int64_t n = 0;
  for (; n + kPanel<T> <= pitch; n += kPanel<T>) accumulate<T, kVectors>(rows, depth, a, b + n, pitch, c + n, pitch);
  const int64_t rest = (pitch - n) / kLanes<T>;
  if constexpr (kVectors > 2) {
    if (rest == 2) accumulate<T, 2>(rows, depth, a, b + n, pitch, c + n, pitch);
  }
  if (rest == 1) accumulate<T, 1>(rows, depth, a, b + n, pitch, c + n, pitch);
}

// Whether all numbers are finite; count is a multiple of the vector.
template <class T>
bool all_finite(const T* x, int64_t count) {
  Vector<T> sum = {};
  for (int64_t i = 0; i < count; i += kLanes<T>) sum += load(x + i) * T(0);
  return !any(sum != sum);
}

// The product a sum over keys or over queries needs where inf or nan may hide behind the mask: p is 0 there, but
// 0 * inf is nan. For each pair that sees one another, p times the row of x that belongs to the one is added to
// the row of y that belongs to the other.
template <class T>
struct Rows {
  T* data;
  int64_t query, key, col;  // strides; either query or key is 0
};

template <class T>
void accumulate_seen(const CausalMask& mask, int64_t i0, int64_t queries, int64_t j0, int64_t keys, const T* p,
                     int64_t pitch, Rows<const T> x, Rows<T> y, int64_t width) {
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t i = 0; i < queries; ++i) {
      if (!mask.sees(i0 + i, j0 + j)) continue;
      const T weight = p[j * pitch + i];
      const T* from = x.data + i * x.query + j * x.key;
      T* to = y.data + i * y.query + j * y.key;
      for (int64_t c = 0; c < width; ++c) to[c * y.col] += weight * from[c * x.col];
    }
  }
}
