// Which keys a query sees. A mask is a compile-time component of every kernel: blocks it rules out are never
// loaded, and blocks it leaves whole are never tested element by element.
#pragma once
#include "params.cuh"

struct Range {
  int begin, end;
};

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ int clamp(int x, int low, int high) { return max(low, min(x, high)); }

// Every query sees every key.
struct FullMask {
  int seqlen_q, seqlen_k;

  __device__ explicit FullMask(const Shape& shape) : seqlen_q(shape.seqlen_q), seqlen_k(shape.seqlen_k) {}

  __device__ bool sees(int row, int col) const { return col < seqlen_k; }

  // Key blocks of kBlockN that some query in [row0, row0 + rows) sees.
  template <int kBlockN>
  __device__ Range key_blocks(int row0, int rows) const {
    return {0, ceil_div(seqlen_k, kBlockN)};
  }

  // Query blocks of kBlockM that see some key at or after col0.
  template <int kBlockM>
  __device__ Range query_blocks(int col0) const {
    return {0, ceil_div(seqlen_q, kBlockM)};
  }

  // Whether every query from row0 on sees all keys in [col0, col0 + cols).
  __device__ bool covers(int row0, int col0, int cols) const { return col0 + cols <= seqlen_k; }
};

// Query i sees key j when j <= i + q_offset.
struct CausalMask {
  int seqlen_q, seqlen_k, q_offset;

  __device__ explicit CausalMask(const Shape& shape)
      : seqlen_q(shape.seqlen_q), seqlen_k(shape.seqlen_k), q_offset(shape.q_offset) {}

  __device__ bool sees(int row, int col) const { return col < seqlen_k && col <= row + q_offset; }

  template <int kBlockN>
  __device__ Range key_blocks(int row0, int rows) const {
    const int last_row = min(row0 + rows, seqlen_q) - 1;
    return {0, ceil_div(clamp(last_row + q_offset + 1, 0, seqlen_k), kBlockN)};
  }

  template <int kBlockM>
  __device__ Range query_blocks(int col0) const {
    const int first_row = max(col0 - q_offset, 0), end = ceil_div(seqlen_q, kBlockM);
    return {first_row < seqlen_q ? first_row / kBlockM : end, end};
  }

  __device__ bool covers(int row0, int col0, int cols) const {
    return col0 + cols <= seqlen_k && col0 + cols - 1 <= row0 + q_offset;
  }
};
