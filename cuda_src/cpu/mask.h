// Which keys a query sees, as in attention/mask.cuh, for the vectors of a CPU.
#pragma once
#include "cpu/shape.h"
#include "cpu/vector.h"

// Query i sees key j when j <= i + q_offset. Without a mask q_offset is seqlen_k, and every query sees every key.
struct CausalMask {
  int64_t seqlen_q, seqlen_k, q_offset;

  explicit CausalMask(const Shape& shape)
      : seqlen_q(shape.seqlen_q), seqlen_k(shape.seqlen_k), q_offset(shape.q_offset) {}

  bool sees(int64_t row, int64_t col) const { return col < seqlen_k && col <= row + q_offset; }

  // For the queries in the lanes. Beyond the last key there may be padding, which nobody sees.
  template <class T>
  Mask<T> lanes_see(Mask<T> rows, int64_t col) const {
    return rows >= Integer<T>(col < seqlen_k ? col - q_offset : seqlen_q);
  }

  // Queries up to `last_row` see only keys before this one.
  int64_t key_end(int64_t last_row) const { return clamp(last_row + q_offset + 1, 0, seqlen_k); }

  // Keys from `first_col` on are seen only by queries from this one on.
  int64_t query_begin(int64_t first_col) const { return clamp(first_col - q_offset, 0, seqlen_q); }

  // Whether every query from row0 on sees all keys in [col0, col0 + cols), and they are no padding.
  bool covers(int64_t row0, int64_t col0, int64_t cols) const {
    return col0 + cols <= seqlen_k && col0 + cols - 1 <= row0 + q_offset;
  }
};
