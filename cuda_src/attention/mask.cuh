// Which keys a query sees. A mask is a compile-time component of every kernel: blocks it rules out are never
// loaded, and blocks it leaves whole are never tested element by element.
#pragma once
#include "params.cuh"

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ int ceil_div(int a, const Divisor& b) { return (a + b - 1) / b; }
__device__ __forceinline__ int clamp(int x, int low, int high) { return max(low, min(x, high)); }

// Every query sees every key.
struct FullMask {
  int seqlen_q, seqlen_k;

  __device__ explicit FullMask(const Shape& shape) : seqlen_q(shape.seqlen_q), seqlen_k(shape.seqlen_k) {}

  __device__ bool sees(int row, int col) const { return col < seqlen_k; }

  // Queries up to `last_row` see only keys before this one.
  __device__ int key_end(int last_row) const { return seqlen_k; }

  // Keys from `first_col` on are seen only by queries from this one on.
  __device__ int query_begin(int first_col) const { return 0; }

  // Whether every query from row0 on sees all keys in [col0, col0 + cols).
  __device__ bool covers(int row0, int col0, int cols) const { return col0 + cols <= seqlen_k; }
};

// Query i sees key j when j <= i + q_offset.
struct CausalMask {
  int seqlen_q, seqlen_k, q_offset;

  __device__ explicit CausalMask(const Shape& shape)
      : seqlen_q(shape.seqlen_q), seqlen_k(shape.seqlen_k), q_offset(shape.q_offset) {}

  __device__ bool sees(int row, int col) const { return col < seqlen_k && col <= row + q_offset; }

  __device__ int key_end(int last_row) const { return clamp(last_row + q_offset + 1, 0, seqlen_k); }

  __device__ int query_begin(int first_col) const { return clamp(first_col - q_offset, 0, seqlen_q); }

  __device__ bool covers(int row0, int col0, int cols) const {
    return col0 + cols <= seqlen_k && col0 + cols - 1 <= row0 + q_offset;
  }
};
