// Which keys a query sees; the same interface as attention/mask.cuh.
#pragma once
#include "cpu/shape.h"
#include "cpu/vector.h"

inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// Query i sees key j when j <= i + q_offset. Without a mask q_offset is seqlen_k, and every query sees every key.
struct CausalMask {
  int64_t seqlen_q, seqlen_k, q_offset;

  explicit CausalMask(const Shape& shape)
      : seqlen_q(shape.seqlen_q), seqlen_k(shape.seqlen_k), q_offset(shape.q_offset) {}

  bool sees(int64_t row, int64_t col) const { return col < seqlen_k && col <= row + q_offset; }

  // For queries row, row + 1, ... and one key before seqlen_k.
  template <class T>
  Mask<T> lanes_see(int64_t row, int64_t col) const {
    using Integer = typename IntegerOf<T>::Type;
    const Integer first = Integer(clamp(col - row - q_offset, 0, kLanes<T>));
    return lane_index<T>() >= first;
  }

  // Queries up to `last_row` see only keys before this one.
  int64_t key_end(int64_t last_row) const { return clamp(last_row + q_offset + 1, 0, seqlen_k); }

  // Keys from `first_col` on are seen only by queries from this one on.
  int64_t query_begin(int64_t first_col) const { return clamp(first_col - q_offset, 0, seqlen_q); }

  // Whether every query from row0 on sees all keys in [col0, col0 + cols).
  bool covers(int64_t row0, int64_t col0, int64_t cols) const { return col0 + cols - 1 <= row0 + q_offset; }
};
