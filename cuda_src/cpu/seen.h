// The product that a sum over keys or over queries needs where inf or nan may hide behind the mask: p is 0 there, but
// 0 * inf is nan.
#pragma once
#include "cpu/shape.h"
#include "cpu/vector.h"

template <class T>
struct Rows {
  T* data;
  int64_t query, key, col;  // strides; either query or key is 0
};

// For each query i, which is row rows[i] of its head, and each key that it sees, p times the row of x that belongs to
// the one is added to the row of y that belongs to the other.
template <class T>
void accumulate_seen(const KeyMask& mask, const Integer<T>* rows, int64_t queries, int64_t j0, int64_t keys,
                     const T* p, int64_t pitch, Rows<const T> x, Rows<T> y, int64_t width) {
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t i = 0; i < queries; ++i) {
      if (!mask.sees(rows[i], j0 + j)) continue;
      const T weight = p[j * pitch + i];
      const T* from = x.data + i * x.query + j * x.key;
      T* to = y.data + i * y.query + j * y.key;
      for (int64_t c = 0; c < width; ++c) to[c * y.col] += weight * from[c * x.col];
    }
  }
}
